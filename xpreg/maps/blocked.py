"""Rows in blocks that are never in one place: files larger than memory, or Dask arrays. One pass, one sum per block."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from .. import backend as B
from ..backend import Array, namespace
from ..blocked.program import add, beside
from ..blocked.store import Store
from ..blocked.vector import Blocked
from ..errors import InvalidArgumentError
from .base import Map, Moments, Product
from .dense import DenseRows


class BlockRows(Map):
    """z = A x for rows in a store. Every method reads A once; x and what comes back for it are ordinary small arrays.

    Vectors over the rows, z and all that follows from it, are `xpreg.blocked.Blocked`.

    Parameters
    ----------
    store : holds the blocks, and runs on them what is asked for
    """

    def __init__(self, store: Store):
        self.store = store
        self.n, self.d = store.n, store.d
        self._moments = Moments()

    @property
    def like(self) -> Array:
        return self.store.like

    def to_device(self, device: str | None) -> BlockRows:
        if B.describe(B.to_device(self.like, device)) == B.describe(self.like):
            return self
        raise InvalidArgumentError(
            f"device is {device!r}, but the rows are in blocks that are worked on at {B.describe(self.like)}: "
            "give the device when the problem is made."
        )

    # -- vectors over the rows --------------------------------------------------------------------

    def hold(self, v: Array, name: str, matrix: str) -> Array:
        if isinstance(v, Blocked) and v.store is self.store:
            return v
        return self.full(1.0) * super().hold(v, name, matrix) if v.ndim == 0 else self.store.hold(v, name)

    def full(self, value: float) -> Array:
        return self.store.full(value)

    def keep(self, y: Array) -> Array:
        return self.store.keep(y)

    def release(self) -> None:
        self._moments.forget()

    # -- passes ---------------------------------------------------------------------------------

    def _pass(self, kernel: Callable[..., Any], *vectors: Blocked) -> Any:
        return self.store.reduce(add, kernel, *vectors, with_rows=True)

    def apply(self, x: Array) -> Array:
        return self.store.apply(_Apply(x), B.empty((*x.shape[:-1], 0), x))

    def adjoint(self, v: Array) -> Array:
        known = self._moments.of(v)
        return self._pass(_adjoint, v) if known is None else known

    def adjoint_beside(self, v: Array, others: Callable[[], Sequence[Array]]) -> Array:
        vectors = [v, *others()]
        found = self._pass(_adjoints, *vectors)
        self._moments.remember(vectors, found)
        return found[0]

    def gram(self, D: Array, centre: Array | None = None, *, exact: bool = False) -> Array:
        if centre is None:
            return self._pass(_Gram(exact), D)
        return self._pass(_CentredGram(self.adjoint(centre)), D)

    def gram_operator(self, D: Array, centre: Array | None = None) -> Product:
        mean = None if centre is None else self.adjoint(centre)

        def product(v: Array) -> tuple[Array, None]:
            total, y_sum = self._pass(_GramProduct(v, mean), D)
            return total if mean is None else total - mean * y_sum, None

        return product

    def combination(self) -> Array:
        return self._pass(_combination)

    @property
    def gram_products(self) -> float:
        return max(1.0, super().gram_products / self.store.slowness)

    # -- one pass at the beginning ------------------------------------------------------------------

    @functools.cached_property
    def _facts(self) -> tuple[Array, Array, Array]:
        return self.store.reduce(_merge_facts, _facts, with_rows=True)

    @property
    def bad_entries(self) -> int:
        """How many entries of A are NaN or infinite."""
        return int(self._facts[0])

    @functools.cached_property
    def column_norms(self) -> Array:
        return namespace(self.like).sqrt(self._facts[1])

    @functools.cached_property
    def largest_row_norm(self) -> Array:
        return namespace(self.like).sqrt(self._facts[2])


# -- what a pass does with a block: picklable, and arrays of the library that the block is of -------


@dataclasses.dataclass(frozen=True)
class _Apply:
    x: Array

    def __call__(self, start: int, A: Array) -> Array:
        x = beside(self.x, A)
        # in parts that threads take as they come: one product on all of BLAS's threads waits for the slowest, and one
        # of the cores is busy reading
        step = B.sweep_rows(A, nbytes=B.STREAM_BYTES)
        parts = B.in_order(lambda rows: DenseRows(A[rows, :]).apply(x), B.blocks(slice(0, A.shape[0]), step), A)
        return namespace(x).concat(list(parts), axis=-1)


def _adjoint(start: int, A: Array, v: Array) -> Array:
    return DenseRows(A).adjoint(v)


def _adjoints(start: int, A: Array, *vectors: Array) -> tuple[Array, ...]:
    """A^T of several vectors (..., n) from one read of the block."""
    xp = namespace(A)
    flat = [xp.reshape(v, (-1, A.shape[0])) for v in vectors]
    found = DenseRows(A).adjoint(xp.concat(flat, axis=0))
    out, first = [], 0
    for v, rows in zip(vectors, flat, strict=True):
        out.append(xp.reshape(found[first : first + rows.shape[0], :], (*v.shape[:-1], A.shape[1])))
        first += rows.shape[0]
    return tuple(out)


def _combination(start: int, A: Array) -> Array:
    v = B.random_normal((1, A.shape[0]), [0, start], A)
    return DenseRows(A).adjoint(v)[0, :]


@dataclasses.dataclass(frozen=True)
class _Gram:
    exact: bool

    def __call__(self, start: int, A: Array, D: Array) -> Array:
        return DenseRows(A).gram(D, exact=self.exact)


@dataclasses.dataclass(frozen=True)
class _CentredGram:
    """(A - 1 mean^T)^T diag(D) (A - 1 mean^T), one mean (d,) of all rows for each problem."""

    mean: Array

    def __call__(self, start: int, A: Array, D: Array) -> Array:
        return DenseRows(A).gram_about(D, beside(self.mean, A))


@dataclasses.dataclass(frozen=True)
class _GramProduct:
    """A^T y and the sum of y, y = D*(A v - <mean, v>)."""

    v: Array
    mean: Array | None

    def __call__(self, start: int, A: Array, D: Array) -> tuple[Array, Array]:
        mean = None if self.mean is None else beside(self.mean, A)
        return DenseRows(A).gram_sums(D, beside(self.v, A), mean)


def _facts(start: int, A: Array) -> tuple[Array, Array, Array]:
    """The number of entries that are not finite, the squared norms of the columns, the largest one of a row."""
    xp, block = namespace(A), DenseRows(A)
    bad = sum(xp.count_nonzero(~xp.isfinite(A[rows, :])) for rows in block.blocks())
    return bad, block.column_norms**2, block.largest_row_norm**2


def _merge_facts(a: tuple, b: tuple) -> tuple:
    return a[0] + b[0], a[1] + b[1], namespace(a[2]).maximum(a[2], b[2])
