"""Two layers: z = A2 relu(A1 x), or a smoothed relu. Inside an activation cell it is the linear map N = A2 S A1."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from .. import backend as B
from ..backend import Array, namespace, quiet
from ..errors import InvalidArgumentError
from .base import Chain, Map, Product
from .dense import DenseRows

BLOCK_BYTES = 4 * 2**20
"""Bytes of N in one block of rows."""

STACK_BYTES = 32 * 2**20
"""Bytes of S A1, and of a block of N, that the problems of a stack may take together in a Gram matrix."""


class TwoLayer(Chain):
    """z = A2 h(y), y = A1 x, with h = relu, or its smoothing h(y) = s log(1 + e^(y/s)) for s > 0.

    Parameters
    ----------
    A1 : (n, d)
    A2 : (m, n)
    smoothing : s

    References
    ----------
    arXiv 2308.08358 (softmax-ReLU regression); MATH section 3.
    """

    first, last = "A1", "A2"

    def __init__(self, A1: Array, A2: Array, smoothing: float = 0.0):
        self.A1, self.A2, self.smoothing = DenseRows(A1), DenseRows(A2), smoothing
        self.n, self.d = A2.shape[0], A1.shape[1]
        self.has_kinks = smoothing == 0

    @property
    def like(self) -> Array:
        return self.A1.A

    @property
    def inner(self) -> DenseRows:
        return self.A1

    @property
    def matrices(self) -> tuple[Map, ...]:
        return (self.A1, self.A2)

    def to_device(self, device: str | None) -> TwoLayer:
        return TwoLayer(B.to_device(self.A1.A, device), B.to_device(self.A2.A, device), self.smoothing)

    def outer(self, y: Array) -> Array:
        return self.A2.apply(self.units(y))

    def units(self, y: Array) -> Array:
        """Return h(y)."""
        xp = namespace(y)
        if self.has_kinks:
            return xp.where(y > 0, y, xp.zeros_like(y))
        return self.smoothing * xp.logaddexp(y / self.smoothing, xp.zeros_like(y))

    def slopes(self, y: Array) -> Array:
        """Return h'(y), the diagonal of S; 0 on the kink itself."""
        xp = namespace(y)
        if self.has_kinks:
            return xp.astype(y > 0, y.dtype)
        with quiet():
            return 1.0 / (1.0 + xp.exp(-y / self.smoothing))

    def tangent(self, y: Array) -> Cell:
        return Cell(self, self.slopes(y))

    def rounding(self, x: Array, y: Array) -> Array:
        xp = namespace(x)
        return self.A2.largest_row_norm * (self.A1.rounding(x, y) + xp.linalg.vector_norm(self.units(y), axis=-1))

    @functools.cached_property
    def row_norms(self) -> Array:
        """The 2-norms (n,) of the rows of A1."""
        xp = namespace(self.like)
        return xp.concat([xp.linalg.vector_norm(self.A1.A[rows, :], axis=-1) for rows in self.A1.blocks()])

    @functools.cached_property
    def unit_of_y(self) -> Array:
        """The changes (n,) of y_i that change an exponent by 1: 1/max_j |A2_ji|, and 0 for a unit without effect."""
        xp = namespace(self.like)
        blocks = [xp.max(xp.abs(self.A2.A[rows, :]), axis=0) for rows in self.A2.blocks()]
        largest = xp.max(xp.stack(blocks), axis=0)
        return xp.where(largest > 0, 1.0 / B.safe_divisor(largest), largest)


class Cell(Map):
    """N = A2 S A1, the derivative of the two layers, one S (k, n) for each problem of a stack."""

    hands_out_rows = True

    def __init__(self, layers: TwoLayer, S: Array):
        self.layers, self.S = layers, S
        self.A1, self.A2 = layers.A1, layers.A2
        self.n, self.d = layers.n, layers.d

    @property
    def like(self) -> Array:
        return self.A1.A

    @property
    def inner(self) -> DenseRows:
        return self.A1

    def to_device(self, device: str | None) -> Cell:
        return self if device is None else Cell(self.layers.to_device(device), B.to_device(self.S, device))

    def outer(self, y: Array) -> Array:
        return self.A2.apply(self.S * y)

    def apply(self, x: Array) -> Array:
        return self.outer(self.A1.apply(x))

    def pull(self, v: Array) -> Array:
        return self.A2.adjoint(v)

    def gate(self, c: Array) -> Array:
        return c * (self.S if c.ndim == 2 else self.S[:, None, :])

    def adjoint(self, v: Array) -> Array:
        return self.A1.adjoint(self.gate(self.pull(v)))

    def bend(self, c: Array) -> Array | None:
        """H'' c, h'' = h' (1 - h')/s; None for relu, which is straight almost everywhere."""
        return None if self.layers.has_kinks else self.S * (1.0 - self.S) * c / self.layers.smoothing

    def blocks(self) -> Iterator[tuple[slice, slice, Array]]:
        """Yield problems, rows, and those rows of their N: (problems, rows, d), a block at a time."""
        size = B.itemsize(self.like) * self.d
        step = max(1, STACK_BYTES // (size * max(self.A1.n, min(self.n, 256))))
        for start in range(0, self.S.shape[0], step):
            problems = slice(start, min(start + step, self.S.shape[0]))
            SA1 = self.S[problems, :, None] * self.A1.A
            for rows in B.blocks(slice(0, self.n), B.sweep_rows(self.A2.A, size * SA1.shape[0], BLOCK_BYTES)):
                yield problems, rows, self.A2.A[rows, :] @ SA1

    def gram(self, D: Array, centre: Array | None = None, *, exact: bool = False) -> Array:
        xp = namespace(D)
        mean = None if centre is None else self.adjoint(centre)[:, None, :]
        G: list[Array] = []
        for problems, rows, N in self.blocks():
            if mean is not None:
                N = N - mean[problems, :, :]
            part = N.mT @ (D[problems, rows][:, :, None] * N)
            if rows.start == 0:
                G.append(part)
            else:
                G[-1] += part
        G_all = xp.concat(G, axis=0)
        return 0.5 * (G_all + G_all.mT)

    def gram_operator(self, D: Array, centre: Array | None = None) -> Product:
        """Return the product; each call reads A1 and A2 twice, for N and for N^T."""

        def product(v: Array) -> tuple[Array, Array]:
            Nv = self.apply(v)
            if centre is None:
                return self.adjoint(D * Nv), Nv
            t = D * (Nv - B.row_dot(centre, Nv)[..., None])
            return self.adjoint(t - centre * B.row_sum(t, keepdims=True)), Nv

        return product

    def one(self, i: int) -> Cell:
        return Cell(self.layers, self.S[i : i + 1, :])

    @functools.cached_property
    def _SA1(self) -> Array:
        """S A1 (n, d) of one problem: rows of N are rows of A2 times it, and N itself is never held."""
        if self.S.shape[0] != 1:
            raise InvalidArgumentError(
                f"rows of N = A2 S A1 are wanted, but {self.S.shape[0]} problems have one N each: choose one problem."
            )
        return self.S[0, :, None] * self.A1.A

    def take_rows(self, which: slice | Array) -> Array:
        if isinstance(which, slice):
            return self.A2.A[which, :] @ self._SA1
        parts = B.blocks(slice(0, which.shape[0]), B.sweep_rows(self.A2.A, None, BLOCK_BYTES))
        taken = [self.A2.take_rows(which[rows]) @ self._SA1 for rows in parts]
        return namespace(which).concat(taken)

    def times(self, T: Array) -> Callable[[slice], Array]:
        SA1T = self._SA1 @ T
        return lambda rows: self.A2.A[rows, :] @ SA1T

    @functools.cached_property
    def column_norms(self) -> Array:
        """The 2-norms (k, d) of the columns of N."""
        xp = namespace(self.S)
        total = B.zeros((self.S.shape[0], self.d), self.S)
        for problems, _, N in self.blocks():
            total[problems, :] += xp.sum(N * N, axis=1)
        return xp.sqrt(total)

    @functools.cached_property
    def largest_row_norm(self) -> Array:
        """The largest 2-norm (k,) of a row of N."""
        xp = namespace(self.S)
        largest = B.zeros((self.S.shape[0],), self.S)
        for problems, _, N in self.blocks():
            norm = xp.max(xp.linalg.vector_norm(N, axis=-1), axis=-1)
            largest[problems] = xp.where(norm > largest[problems], norm, largest[problems])
        return largest
