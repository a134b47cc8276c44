"""Rows held as one (n, d) array."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .. import backend as B
from .. import kernels
from ..backend import Array, namespace
from .base import Map, Moments, Product, set_apart

PACKED_COLUMNS = 128
"""Up to this d, the Gram matrices of a stack come from one matrix product with the packed products of rows."""

PACKED_BYTES = 32 * 2**20
"""Bytes of packed row products in memory at a time."""


SQUARES_BYTES = 2**19
"""Bytes of a block whose squares are added up: they stay in the cache."""


class DenseRows(Map):
    """z = A x for an array A (n, d).

    Temporaries are blocks of rows: nothing of the size of A is ever made.
    """

    def __init__(self, A: Array):
        self.A = A
        self.n, self.d = A.shape
        self._packed_block: tuple[slice, Array, Array] | None = None
        self._moments = Moments()

    @property
    def like(self) -> Array:
        return self.A

    def release(self) -> None:
        self._packed_block = None
        self._moments.forget()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed_block": None}

    def to_device(self, device: str | None) -> DenseRows:
        return DenseRows(B.to_device(self.A, device))

    def apply(self, x: Array) -> Array:
        parts = B.stripes(self.A, self._stream)
        if x.shape[0] > 1 or len(parts) == 1:
            return _rows_times(self.A, x)
        z = B.empty((1, self.n), self.A)

        def part(rows: slice) -> None:
            z[:, rows] = _rows_times(self.A[rows, :], x)

        collections.deque(B.in_order(part, parts, self.A), maxlen=0)
        return z

    def adjoint_beside(self, v: Array, others: Callable[[], Sequence[Array]]) -> Array:
        """For one problem all in one sweep; what is found for the others is kept until the next time."""
        if v.shape[0] != 1:
            return self.adjoint(v)
        xp = namespace(v)
        vectors = [v, *others()]
        flat = [xp.reshape(u, (-1, self.n)) for u in vectors]
        (found,) = self.sweep(lambda rows, X: (B.times_rows(xp.concat([u[:, rows] for u in flat]), X),), once=True)
        ends = list(itertools.accumulate(one.shape[0] for one in flat))
        moments = [
            xp.reshape(found[end - one.shape[0] : end, :], (*u.shape[:-1], self.d))
            for u, one, end in zip(vectors, flat, ends, strict=True)
        ]
        self._moments.remember(vectors, moments)
        return moments[0]

    def adjoint(self, v: Array) -> Array:
        known = self._moments.of(v)
        if known is not None:
            return known
        xp = namespace(v)
        columns = xp.reshape(v, (-1, self.n))
        if columns.shape[0] > B.FEW_COLUMNS:
            product = columns @ self.A
        else:  # few columns: bound by reading the rows, which threads share
            (product,) = self.sweep(lambda rows, X: (B.times_rows(columns[:, rows], X),), once=True)
        return xp.reshape(product, (*v.shape[:-1], self.d))

    def sweep(self, function: Callable[[slice, Array], tuple[Array, ...]], *, once: bool = False) -> tuple[Array, ...]:
        """Return the sums of ``function(rows, A[rows])`` over blocks of rows: A is read once.

        ``once``: the function reads its block once, so that it need not fit a core's cache.
        """
        return self._sum(self._stream if once else B.sweep_rows(self.A), function)

    @property
    def _stream(self) -> int:
        return B.sweep_rows(self.A, nbytes=B.STREAM_BYTES)

    def _sum(self, step: int, function: Callable[[slice, Array], tuple[Array, ...]]) -> tuple[Array, ...]:
        def stripe(part: slice) -> tuple[Array, ...]:
            total: list[Array] = []
            for rows in B.blocks(part, step):
                terms = function(rows, self.A[rows, :])
                if not total:
                    total = list(terms)
                    continue
                for i, term in enumerate(terms):
                    total[i] += term
            return tuple(total)

        return B.sum_over(stripe, B.stripes(self.A, step), self.A)

    def blocks(self) -> Iterator[slice]:
        """Yield slices of rows, the blocks of a sweep."""
        yield from B.blocks(slice(0, self.n), B.sweep_rows(self.A))

    hands_out_rows = True

    def take_rows(self, which: slice | Array) -> Array:
        return self.A[which, :] if isinstance(which, slice) else namespace(self.A).take(self.A, which, axis=0)

    def of_rows(self, which: Array) -> DenseRows:
        return DenseRows(self.take_rows(which))

    @property
    def column_norms(self) -> Array:
        return self._norms[0]

    @property
    def largest_row_norm(self) -> Array:
        return self._norms[1]

    @functools.cached_property
    def _norms(self) -> tuple[Array, Array]:
        """The norms (d,) of the columns and the largest one () of a row: sums of squares from one read of A."""
        xp = namespace(self.A)
        step = min(B.sweep_rows(self.A), B.sweep_rows(self.A, nbytes=SQUARES_BYTES))
        ones = B.full((max(min(step, self.n), self.d),), 1.0, self.A)

        def merge(found: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
            return functools.reduce(lambda one, other: (one[0] + other[0], xp.maximum(one[1], other[1])), found)

        def block(rows: slice) -> tuple[Array, Array]:
            squares = self.A[rows, :] ** 2
            return B.dot(ones[: squares.shape[0]], squares), xp.max(B.dot(squares, ones[: self.d]))

        def stripe(part: slice) -> tuple[Array, Array]:
            return merge(map(block, B.blocks(part, step)))

        with B.quiet():
            columns, largest = merge(B.in_order(stripe, B.stripes(self.A, step), self.A))
            return xp.sqrt(columns), xp.sqrt(largest)

    @functools.cached_property
    def column_means(self) -> Array:
        """The plain means (d,) of the columns of A."""
        return namespace(self.A).mean(self.A, axis=0)

    def gram(self, D: Array, centre: Array | None = None, *, exact: bool = False) -> Array:
        mean = None if centre is None else self.adjoint(centre)
        if D.shape[0] >= 4 and self.d <= PACKED_COLUMNS and not exact:
            return self._gram_of_stack(D, centre, mean)
        return self.gram_about(D, mean)

    def gram_about(self, D: Array, mean: Array | None) -> Array:
        """Return (A - 1 mean^T)^T diag(D) (A - 1 mean^T), (k, d, d), for D (k, n) and a mean (k, d), or none."""
        return namespace(D).stack(
            [self._gram_of_one(D[i, :], None if mean is None else mean[i, :]) for i in range(D.shape[0])], axis=0
        )

    def _gram_of_one(self, D: Array, mean: Array | None) -> Array:
        step = B.gram_rows(self.A)
        return self._sum(step, lambda rows, X: (B.weighted_gram(X, D[rows], mean),))[0]

    def rough_gram(self, D: Array, centre: Array | None = None) -> Array:
        """Multiply in float32 what was centred and scaled in float64; blocks are added up in float64.

        Half the time on a CPU. On a GPU, where float64 is as fast or the copies cost more, it is `gram`.
        """
        if B.peek(D) is None or B.itemsize(D) == 4:
            return self.gram(D, centre)
        mean, xp = None if centre is None else self.adjoint(centre), namespace(D)

        def one(D: Array, mean: Array | None) -> Array:
            top = xp.max(xp.abs(D))
            D = D / B.safe_divisor(top)  # weights of 1/n^2 squared again would underflow

            def block(rows: slice, X: Array) -> tuple[Array]:
                Y = xp.astype(X if mean is None else X - mean, xp.float32)
                return (xp.astype(B.weighted_gram(Y, xp.astype(D[rows], xp.float32)), D.dtype),)

            return top * self._sum(B.gram_rows(self.A), block)[0]

        return xp.stack([one(D[i, :], None if mean is None else mean[i, :]) for i in range(D.shape[0])])

    def _gram_of_stack(self, D: Array, centre: Array | None, mean: Array | None) -> Array:
        """All Gram matrices of a stack: packed row products P (n, d(d+1)/2), then one product D @ P.

        A centred Gram is expanded about the plain mean of the rows. The few with the largest weights f are set apart,
        so that nothing cancels when f saturates on them: the others then carry all of what is left. When f sits on
        more rows than these, far from the rest, digits are lost.
        """
        xp = namespace(D)
        rows_i, _, unpack = self._packing
        if centre is None or mean is None:
            packed = B.zeros((D.shape[0], rows_i.shape[0]), self.A)
            for rows, _, products in self._packed(None):
                packed += D[:, rows] @ products
            return xp.reshape(xp.take(packed, unpack, axis=1), (-1, self.d, self.d))
        origin = self.column_means
        top, D_top, D = set_apart(D, centre)
        packed = B.zeros((D.shape[0], rows_i.shape[0]), self.A)
        moment = B.zeros((D.shape[0], self.d), self.A)
        for rows, X, products in self._packed(origin):
            packed += D[:, rows] @ products
            moment += D[:, rows] @ X
        G = xp.reshape(xp.take(packed, unpack, axis=1), (-1, self.d, self.d))
        a_top = xp.reshape(xp.take(self.A, xp.reshape(top, (-1,)), axis=0), (*top.shape, self.d)) - mean[:, None, :]
        mean = mean - origin
        half = moment - 0.5 * xp.sum(D, axis=-1, keepdims=True) * mean
        left = xp.concat([half[:, None, :], mean[:, None, :], D_top[:, :, None] * a_top], axis=1)
        right = xp.concat([-mean[:, None, :], -half[:, None, :], a_top], axis=1)
        return G + left.mT @ right

    def _packed(self, origin: Array | None) -> Iterator[tuple[slice, Array, Array]]:
        """Yield blocks of rows, less ``origin``, and their packed products; one block is kept for the next time."""
        kept = self._packed_block  # of all rows; another thread may drop it
        if origin is not None and kept is not None:
            yield kept
            return
        xp = namespace(self.A)
        rows_i, rows_j, _ = self._packing
        step = B.sweep_rows(self.A, rows_i.shape[0] * B.itemsize(self.A), PACKED_BYTES)
        for rows in B.blocks(slice(0, self.n), step):
            X = self.A[rows, :] if origin is None else self.A[rows, :] - origin
            block = rows, X, xp.take(X, rows_i, axis=1) * xp.take(X, rows_j, axis=1)
            if origin is not None and rows == slice(0, self.n):
                self._packed_block = block
            yield block

    def gram_operator(self, D: Array, centre: Array | None = None) -> Product:
        mean = None if centre is None else self.adjoint(centre)

        def product(v: Array) -> tuple[Array, Array]:
            Av = B.empty((v.shape[0], self.n), self.A)
            total, y_sum = self.gram_sums(D, v, mean, Av)
            return total if mean is None else total - mean * y_sum, Av

        stream = kernels.row_stream(self.A) if D.shape[0] == 1 else None
        if stream is None:
            return product

        def fused(v: Array) -> tuple[Array, Array | None]:
            if v.shape[0] > 1:
                return product(v)
            y = stream.gram_sums(self.A, D[0, :], v[0, :], centre=None if mean is None else mean[0, :]).y
            return namespace(D).astype(y, v.dtype, copy=False)[None, :], None

        return fused

    def gram_sums(self, D: Array, v: Array, mean: Array | None, Av: Array | None = None) -> tuple[Array, Array]:
        """Return A^T y (k, d) and the sum of y (k, 1), y = D*(A v - <mean, v>), from one read of A; fill ``Av`` (k, n)
        on the way.
        """
        xp, one = namespace(D), v.shape[0] == D.shape[0] == 1
        offset = None if mean is None else xp.sum(mean * v, axis=-1, keepdims=True)
        if one:  # without the axis of the stack: half the operations on a block
            v, D = v[0, :], D[0, :]
            Av, offset = (None if array is None else array[0, :] for array in (Av, offset))

        def block(rows: slice, X: Array) -> tuple[Array, ...]:
            y = B.dot(X, v) if one else v @ X.mT
            if Av is not None:
                Av[..., rows] = y
            if offset is not None:
                y -= offset
            y *= D[..., rows]
            return B.dot(y, X) if one else B.times_rows(y, X, cached=True), xp.sum(y, axis=-1)

        total, y_sum = self.sweep(block)
        return xp.reshape(total, (-1, self.d)), xp.reshape(y_sum, (-1, 1))

    @functools.cached_property
    def _packing(self) -> tuple[Array, Array, Array]:
        """Index arrays: the pairs i <= j of columns, and where the entry (i, j) of a (d, d) matrix is among them."""
        pairs = [(i, j) for i in range(self.d) for j in range(i, self.d)]
        place = {pair: p for p, pair in enumerate(pairs)}
        unpack = [place[min(i, j), max(i, j)] for i in range(self.d) for j in range(self.d)]
        integer = namespace(self.A).int64
        i, j = zip(*pairs, strict=True)
        return B.new(i, self.A, dtype=integer), B.new(j, self.A, dtype=integer), B.new(unpack, self.A, dtype=integer)


def _rows_times(X: Array, x: Array) -> Array:
    """X x: (k, d) -> (k, m). A matrix-vector product is cheaper than a one-row matrix product."""
    return B.dot(X, x[0, :])[None, :] if x.shape[0] == 1 else x @ X.mT
