"""What the networks' arguments must be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError

if TYPE_CHECKING:
    from .network import TwoLayerNetwork


def weights(W: Array, a: Array, *, one_output: bool) -> None:
    """Require finite W (d, m), and signs a (m,) or (m, k)."""
    xp = B.common_namespace(W=W, a=a)
    if W.ndim != 2 or 0 in W.shape:
        raise InvalidArgumentError(f"W has shape {tuple(W.shape)}, but (d, m) with d, m >= 1 is needed.")
    shape = "(m,)" if one_output else "(m, k)"
    if a.ndim != (1 if one_output else 2) or a.shape[0] != W.shape[1] or 0 in a.shape:
        raise InvalidArgumentError(
            f"a has shape {tuple(a.shape)}, but {shape} is needed, with m = {W.shape[1]}, the columns of W."
        )
    finite, signs = B.read(xp.all(xp.isfinite(W)), xp.all(xp.abs(a) == 1.0))
    if not finite:
        raise InvalidArgumentError("W has entries that are NaN or infinite, but finite weights are needed.")
    if not signs:
        raise InvalidArgumentError("a has entries other than +1 and -1, but fixed signs are needed.")


def points(network: TwoLayerNetwork, *, X: Array, y: Array | None = None, names: tuple[str, str] = ("X", "y")) -> None:
    """Require finite points X (n, d) beside the network, and finite targets y in the shape of its predictions."""
    x_name, y_name = names
    xp = B.common_namespace(**{"W": network.W, x_name: X, y_name: y})
    if X.ndim != 2 or X.shape[1] != network.d or X.shape[0] < 1:
        raise InvalidArgumentError(
            f"{x_name} has shape {tuple(X.shape)}, but (n, {network.d}) with n >= 1 is needed, one point a row "
            f"(W is {tuple(network.W.shape)})."
        )
    arrays = {x_name: X}
    if y is not None:
        needed = (X.shape[0],) if network._one_output else (X.shape[0], network.k)
        if tuple(y.shape) != needed:
            raise InvalidArgumentError(
                f"{y_name} has shape {tuple(y.shape)}, but {needed} is needed: one target for every point"
                + ("." if network._one_output else " and output.")
            )
        arrays[y_name] = y
    for name, finite in zip(arrays, B.read(*(xp.all(xp.isfinite(v)) for v in arrays.values())), strict=True):
        if not finite:
            raise InvalidArgumentError(f"{name} has entries that are NaN or infinite, but finite numbers are needed.")


def distinct(X: Array) -> None:
    """Require distinct nonzero rows: else the tangent kernel is singular."""
    xp = B.namespace(X)
    # equal rows have equal random projections, so that sorting by them brings equal rows together
    order = xp.argsort(xp.sum(X * B.random_normal((1, X.shape[1]), 0, X), axis=1))
    ordered = xp.take(X, order, axis=0)
    zero, equal = (
        xp.astype(rows, xp.int64)
        for rows in (xp.all(X == 0.0, axis=1), xp.all(ordered[1:, :] == ordered[:-1, :], axis=1))
    )
    zeros, pairs = (int(v) for v in B.read(xp.sum(zero), xp.sum(equal)))
    if zeros:
        raise InvalidArgumentError(
            f"X has {zeros} zero row(s), the first is row {int(B.read(xp.argmax(zero))[0])}: their tangent kernel is "
            "zero, and no weight changes their prediction. Remove them, append a constant column, or pass damping > 0."
        )
    if pairs:
        at = int(B.read(xp.argmax(equal))[0])
        first, second = sorted(int(v) for v in B.to_numpy(order[at : at + 2]))
        raise InvalidArgumentError(
            f"X has {pairs} row(s) that equal another one, for example rows {first} and {second}: their tangent "
            "kernel is singular. Merge them (with the mean of their targets), or pass damping > 0."
        )


def largest_exponent(x: Array) -> float:
    """Return the largest t for which exp(t) is finite in the dtype of ``x``."""
    return math.log(float(B.namespace(x).finfo(x.dtype).max))
