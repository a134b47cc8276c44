"""What a problem refuses: arrays of the wrong shape, place or values. Every message names the argument."""

from __future__ import annotations

import math
import numbers
from typing import Any

from . import backend as B
from .backend import Array, namespace, quiet
from .blocked import store_of
from .errors import InvalidArgumentError
from .maps import BlockRows, Chain, DenseRows, Map, SparseRows


def check_finite(**arrays: Array) -> None:
    """Refuse arrays with NaN or infinite entries; reads one scalar per array."""
    for name, x in arrays.items():
        xp = namespace(x)
        with quiet():
            total = float(xp.sum(x))  # NaN and inf survive a sum, so one reduction without a temporary does
        if math.isfinite(total):
            continue
        bad = int(xp.count_nonzero(~xp.isfinite(x)))
        if bad:
            raise InvalidArgumentError(f"{name} has {bad} entries that are NaN or infinite; all must be finite.")


def check_matrix(**matrix: Array) -> None:
    """Refuse an A that is no (n, d) array of finite floats with n, d >= 1."""
    for name, A in matrix.items():
        B.require_array(A, name)
    B.common_namespace(**matrix)
    for name, A in matrix.items():
        check_sizes(A.shape, name)
    check_finite(**matrix)


def check_sizes(shape: tuple[int, ...], name: str) -> None:
    """Refuse what has no rows or no columns."""
    if len(shape) != 2 or 0 in shape:
        raise InvalidArgumentError(
            f"{name} has shape {tuple(shape)}, but a matrix (n, d) with at least one row and one column is needed."
        )


def check_rows(A: Any, device: str | None = None) -> Map:
    """Check A (n, d), an array, a sparse CSR matrix or what holds its rows elsewhere, and hold it as rows."""
    store = store_of(A, device)
    if store is not None:
        return _check_blocks(BlockRows(store))
    if not B.is_sparse(A):
        A = B.to_device(A, device, "A")
        check_matrix(A=A)
        return DenseRows(A)
    rows = SparseRows(B.csr_to_device(B.csr(A, "A"), device))
    B.common_namespace(A=rows.like)
    check_sizes(rows.A.shape, "A")
    check_finite(A=rows.like)
    return rows


def _check_blocks(rows: BlockRows) -> BlockRows:
    if rows.bad_entries:
        raise InvalidArgumentError(f"A has {rows.bad_entries} entries that are NaN or infinite; all must be finite.")
    return rows


def check_b(b: Array, rows: Chain) -> Array:
    """Refuse a b that is no finite (n,) or (..., n) beside the rows, and return it as it is kept there."""
    B.require_array(b, "b")
    if b.ndim < 1 or b.shape[-1] != rows.n or math.prod(b.shape) == 0:
        raise InvalidArgumentError(
            f"b has shape {tuple(b.shape)}, but {rows.last} has {rows.n} rows: b must have shape ({rows.n},), "
            f"or (..., {rows.n}) for a stack of at least one problem."
        )
    b = rows.hold(b, "b", rows.last)
    check_finite(b=b)
    return b


def check_weights(weights: Any, rows: Map, name: str) -> Array | None:
    """Return w^2 (n,), or None when the weights are the number 0."""
    if isinstance(weights, numbers.Real):
        weights = float(weights)
        if not weights * weights <= float(namespace(rows.like).finfo(rows.like.dtype).max):
            raise InvalidArgumentError(
                f"weights is {weights}, but a number whose square is finite in {rows.like.dtype}, or an array (n,), is "
                "needed."
            )
        return None if weights == 0 else rows.full(weights**2)
    B.require_array(weights, "weights")
    if tuple(weights.shape) not in ((), (rows.n,)):
        raise InvalidArgumentError(
            f"weights has shape {tuple(weights.shape)}, but a number or an array of shape ({rows.n},) is needed."
        )
    weights = rows.hold(weights, "weights", name)
    check_finite(weights=weights)
    with quiet():
        w2 = weights * weights
        check_finite(**{"the square of weights": w2})
    return namespace(w2).broadcast_to(w2, (rows.n,))
