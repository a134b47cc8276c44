"""Rows held as a sparse CSR matrix of SciPy or cupyx."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .. import backend as B
from ..backend import Array, namespace
from .base import Map, Product, set_apart

CANCELLED = 0.1
"""A column of which centring leaves less than this share of its squares is done again."""

RECENTRED = 8
"""Up to so many columns that cancel in it are done again as dense vectors; with more, all columns are."""


class SparseRows(Map):
    """z = A x for a CSR matrix A (n, d); its Gram matrices are dense (d, d). Nothing of the size n d is ever made.

    Parameters
    ----------
    A : what `xpreg.backend.csr` returns

    Notes
    -----
    A Gram matrix comes from a product of sparse matrices where that is cheaper (at most 5 % of the entries, on the
    CPU), and else from dense blocks of rows, as that of `DenseRows`.

    A sparse row cannot be centred, so the sparse product is expanded: with mu = A^T f and m = A^T D,
    A_c^T D A_c = A^T D A - m mu^T - mu m^T + (sum D) mu mu^T. That cancels where f saturates on few rows: the few
    rows of the largest f are set apart and centred, the others carry what is left. It also cancels in columns whose
    entries are nearly equal (an intercept): where sum |D| (a_ij - mu_j)^2 is below CANCELLED sum |D| a_ij^2, the column
    is done again, centred before it is squared. Measured in float64 for exponents up to 30 with f on two rows: errors
    below 2e-15 of sqrt(G_ii G_jj), as dense; with columns of mean 1e3 and deviation 1 up to 2e-11, 15 times as dense.
    """

    def __init__(self, A: Any):
        self.A = A
        self.n, self.d = A.shape

    @property
    def like(self) -> Array:
        return self.A.data

    def to_device(self, device: str | None) -> SparseRows:
        return SparseRows(B.csr_to_device(self.A, device))

    @property
    def gram_products(self) -> float:
        """Every entry of a row meets all the others of that row."""
        return 2 + self.like.shape[0] / self.n

    def apply(self, x: Array) -> Array:
        return (self.A @ x[0, :])[None, :] if x.shape[0] == 1 else (self.A @ x.mT).mT

    def adjoint(self, v: Array) -> Array:
        if v.ndim == 2 and v.shape[0] == 1:
            return (self.A.T @ v[0, :])[None, :]
        xp = namespace(v)
        flat = xp.reshape(v, (-1, self.n))
        return xp.reshape((self.A.T @ flat.mT).mT, (*v.shape[:-1], self.d))

    @property
    def nbytes(self) -> int:
        return 3 * self.like.shape[0] * B.itemsize(self.like) // 2  # with the indices

    hands_out_rows = True

    def take_rows(self, which: slice | Array) -> Array:
        return B.csr_dense(self.A[which])

    def of_rows(self, which: Array) -> SparseRows:
        return SparseRows(self.A[which])

    def times(self, T: Array) -> Callable[[slice], Array]:
        return lambda rows: self.A[rows] @ T

    @functools.cached_property
    def _AT(self) -> Any:
        return self.A.T.tocsr()

    @functools.cached_property
    def _squares(self) -> Any:
        return B.csr_like(self.A, self.A.data * self.A.data)

    def release(self) -> None:
        for name in ("_AT", "_squares"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def column_norms(self) -> Array:
        xp = namespace(self.like)
        return xp.sqrt(self._squares.T @ B.full((self.n,), 1.0, self.like))

    @functools.cached_property
    def largest_row_norm(self) -> Array:
        xp = namespace(self.like)
        return xp.sqrt(xp.max(self._squares @ B.full((self.d,), 1.0, self.like)))

    def gram(self, D: Array, centre: Array | None = None, *, exact: bool = False) -> Array:
        mean = None if centre is None else self.adjoint(centre)
        grams = []
        for i in range(D.shape[0]):
            if not B.csr_gram_pays(self.A):
                grams.append(self._dense_gram(D[i, :], None if mean is None else mean[i, :]))
            elif centre is None or mean is None:
                grams.append(B.csr_gram(self.A, self._AT, D[i, :]))
            else:
                grams.append(self._centred_gram(D[i, :], centre[i, :], mean[i, :]))
        return namespace(D).stack(grams, axis=0)

    def _dense_gram(self, D: Array, mean: Array | None) -> Array:
        blocks = B.blocks(slice(0, self.n), B.gram_rows(B.empty((0, self.d), self.like)))
        return B.sum_over(lambda r: (B.weighted_gram(self.take_rows(r), D[r], mean),), blocks, self.like)[0]

    def _centred_gram(self, D: Array, f: Array, mean: Array) -> Array:
        xp = namespace(D)
        top, D_top, rest = (v[0, :] for v in set_apart(D[None, :], f[None, :]))
        a_top = self.take_rows(top) - mean
        m = self.A.T @ rest
        half = m - 0.5 * xp.sum(rest) * mean
        G = B.csr_gram(self.A, self._AT, rest) - half[:, None] * mean - mean[:, None] * half
        G = G + (D_top[:, None] * a_top).mT @ a_top
        size = self._squares.T @ xp.abs(rest)
        centred = size - mean * (2.0 * (self.A.T @ xp.abs(rest)) - xp.sum(xp.abs(rest)) * mean)
        which = xp.nonzero(centred < CANCELLED * size)[0]
        if which.shape[0] > RECENTRED:
            return self._dense_gram(D, mean)
        if which.shape[0] == 0:
            return G
        Y = self._AT[which].toarray() - xp.take(mean, which)[:, None]  # (J, n), centred
        DY, y_top = rest * Y, xp.take(Y, top, axis=1)
        new = self.adjoint(DY) - xp.sum(DY, axis=1)[:, None] * mean + (D_top * y_top) @ a_top
        P = xp.astype(B.arange(self.d, D)[:, None] == which, D.dtype)  # (d, J) writes columns to their places
        both = P @ (DY @ Y.mT + (D_top * y_top) @ y_top.mT) @ P.mT
        other = (1.0 - xp.sum(P, axis=1))[:, None]
        one = (P @ new) * other.mT
        return G * (other @ other.mT) + one + one.mT + both

    def gram_operator(self, D: Array, centre: Array | None = None) -> Product:
        xp = namespace(D)
        mean = None if centre is None else self.adjoint(centre)

        def product(v: Array) -> tuple[Array, Array]:
            t = self.apply(v)
            if mean is None:
                return self.adjoint(D * t), t
            y = D * (t - xp.sum(mean * v, axis=-1, keepdims=True))
            return self.adjoint(y) - mean * B.row_sum(y, keepdims=True), t

        return product
