"""Tangent kernels and their infinite-width limits, tile by tile."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from . import checks, memory
from .linearise import responses

if TYPE_CHECKING:
    from .network import TwoLayerNetwork

WORK_BYTES = 256 * 2**20
"""Default limit on everything but the result."""

TILE_ROWS = 1024
"""Rows of a tile on the host while all panels are kept: 8 MiB, whose elementwise work stays in the shared cache, and
products long enough to run at full speed (measured; 512 is as good for symmetric kernels, 128 is a third slower)."""

TILE_ARRAYS = 3
"""Tile-sized arrays alive at once: the product, <x_i, x_j>, and a copy on its way into the result."""

PANEL_ARRAYS = 4
"""(k rows, m) arrays alive at once: the responses of both sides, and two while one of them is computed."""


class TangentKernel:
    """H_{(l1,i),(l2,j)} = (1/m) <x_i, x_j> sum_r P_{l1,i,r} P_{l2,j,r}."""

    def __init__(self, network: TwoLayerNetwork) -> None:
        self.network = network
        self.width = network.m
        """Numbers that a panel holds for each of its rows."""

    def panel(self, X: Array) -> Array:
        """P (k T, m)."""
        return responses(self.network, X)

    def tile(self, X1: Array, P1: Array, X2: Array, P2: Array) -> Array:
        """H (k, T1, k, T2)."""
        k = self.network.k
        H = B.namespace(X1).reshape(P1 @ P2.T, (k, X1.shape[0], k, X2.shape[0]))
        G = X1 @ X2.T
        G *= 1.0 / self.network.m
        H *= G[None, :, None, :]
        if P1 is P2 and B.peek(X1) is None:  # elsewhere P P^T may differ from its transpose in the last digit
            H = 0.5 * (H + B.namespace(X1).permute_dims(H, (2, 3, 0, 1)))
        return H


class LimitKernel:
    """I_k kron [<x_i, x_j> exp(...)]: the limit of the tangent kernel at initialisation as m grows."""

    def __init__(self, network: TwoLayerNetwork) -> None:
        self.network = network
        self.width = 1

    def panel(self, X: Array) -> Array:
        """|x_i|^2 (T,)."""
        return B.namespace(X).sum(X * X, axis=1)

    def tile(self, X1: Array, q1: Array, X2: Array, q2: Array) -> Array:
        """H (k, T1, k, T2)."""
        G = X1 @ X2.T
        H = G * B.namespace(X1).exp(self.network._limit_exponent(G, q1, q2))
        return B.eye(self.network.k, X1)[:, None, :, None] * H[None, :, None, :]


Kernel = TangentKernel | LimitKernel


def compute(kernel: Kernel, X: Array, X2: Array | None, out: Any, max_bytes: int | None) -> Array:
    """Fill the kernel (k n, k n2) on X and X2 (X itself when None); see `TwoLayerNetwork.tangent_kernel`."""
    network = kernel.network
    checks.points(network, X=X)
    if X2 is not None:
        checks.points(network, X=X2, names=("X2", "y"))
    n, n2, k = X.shape[0], (X if X2 is None else X2).shape[0], network.k
    rows, keep = plan(kernel, X, n, n2, max_bytes, result=out is None)
    if out is None:
        out = B.zeros((k * n, k * n2), X)
    else:
        _check_out(out, X, (k * n, k * n2))
    (finite,) = B.read(_fill(kernel, X, X2, out, rows, keep))
    if not finite:
        raise network._overflow(X)
    return out


def plan(kernel: Kernel, X: Array, n: int, n2: int, max_bytes: int | None, *, result: bool) -> tuple[int, bool]:
    """Choose the rows of a panel, and whether all panels are kept: the largest that the memory limit allows.

    Raises
    ------
    NotEnoughMemoryError
        Not even the result and tiles of one point fit.
    """
    k, width, size = kernel.network.k, kernel.width, B.itemsize(X)
    result_bytes = k * n * k * n2 * size if result else 0

    def work(rows: int, kept: int) -> int:
        return (TILE_ARRAYS * (k * rows) ** 2 + (PANEL_ARRAYS * rows + kept) * k * width) * size

    least = min(max(n, n2), 32)
    remedy = [
        f"max_bytes={result_bytes + work(least, 0)}",
        "float32" if size == 8 else "fewer points",
    ]
    available = memory.limit(X, max_bytes)
    if result:
        remedy.append(f"out=numpy.memmap(...), which leaves {memory.text(work(least, 0))} of tiles")
        if available is not None and available > work(least, 0):
            remedy.append(f"n = {math.isqrt((available - work(least, 0)) // size) // k} points")
    memory.require(
        result_bytes + work(least, 0),
        X,
        what=f"the kernel ({k * n}, {k * n2}) of n = {n} points, k = {k} outputs and its tiles",
        remedy="; or ".join(remedy),
        max_bytes=max_bytes,
    )
    budget = WORK_BYTES if available is None else available - result_bytes
    if max_bytes is None:
        budget = max(min(budget, WORK_BYTES), work(least, 0))
    largest = max(n, n2)
    for kept, enough in ((n2, min(largest, 512)), (0, least)):
        rows = _largest_rows(lambda r, kept=kept: work(r, kept) <= budget, largest)
        if rows >= enough:
            return min(rows, max(1, TILE_ROWS // k)) if kept and B.peek(X) is not None else rows, kept > 0
    return least, False


def _largest_rows(fits: Any, most: int) -> int:
    """Return the largest r in 0..most with fits(r), by bisection."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _check_out(out: Any, X: Array, shape: tuple[int, int]) -> None:
    host = B.peek(out) is not None
    if not host:
        B.common_namespace(X=X, out=out)
    if tuple(out.shape) != shape or str(out.dtype).split(".")[-1] != str(X.dtype).split(".")[-1]:
        raise InvalidArgumentError(
            f"out is {out.dtype} {tuple(out.shape)}, but {X.dtype} {shape} is needed for this kernel."
        )


def _fill(kernel: Kernel, X: Array, X2: Array | None, out: Any, rows: int, keep: bool) -> Array:
    """Write every tile into ``out``; return whether all of them are finite (a bool array, unread)."""
    xp = B.namespace(X)
    on_host = B.peek(out) is not None and B.peek(X) is None
    symmetric = X2 is None
    points1, points2 = X, X if X2 is None else X2
    slices1, slices2 = B.even_slices(points1.shape[0], rows), B.even_slices(points2.shape[0], rows)
    kept: dict[int, Array] = {}
    finite = B.full((), True, X, dtype=xp.bool)
    with B.quiet():
        for p, I in enumerate(slices1):
            X_I = points1[I, :]
            P_I = kept[p] if symmetric and p in kept else kernel.panel(X_I)
            for q, J in enumerate(slices2):
                if symmetric and q < p:
                    continue
                X_J, P_J = (X_I, P_I) if symmetric and p == q else (points2[J, :], kept.get(q))
                if P_J is None:
                    P_J = kernel.panel(X_J)
                if keep:
                    kept[q] = P_J
                H = kernel.tile(X_I, P_I, X_J, P_J)
                finite = finite & xp.all(xp.isfinite(H))
                H = B.to_numpy(H) if on_host else H
                _write(out, H, I, J, mirror=symmetric and p != q)
    return finite


def _write(out: Any, H: Any, I: slice, J: slice, *, mirror: bool) -> None:
    """out[(l1, I), (l2, J)] = H[l1, :, l2, :], and its transpose on the other side of the diagonal."""
    k = H.shape[0]
    n, n2 = out.shape[0] // k, out.shape[1] // k
    for l1 in range(k):
        for l2 in range(k):
            tile = H[l1, :, l2, :]
            out[l1 * n + I.start : l1 * n + I.stop, l2 * n2 + J.start : l2 * n2 + J.stop] = tile
            if mirror:
                out[l2 * n2 + J.start : l2 * n2 + J.stop, l1 * n + I.start : l1 * n + I.stop] = tile.T
