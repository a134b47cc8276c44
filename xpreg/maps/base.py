"""What a map x -> z = A x must know."""

from __future__ import annotations

import abc
from collections.abc import Callable

from ..backend import Array


class Map(abc.ABC):
    """z = A x, A (n, d). Stacks have one leading axis k (and, in `adjoint`, any number of them)."""

    n: int
    d: int

    @property
    @abc.abstractmethod
    def like(self) -> Array:
        """An array in the library, on the device and in the dtype of the map."""

    @abc.abstractmethod
    def apply(self, x: Array) -> Array:
        """Return A x: (k, d) -> (k, n)."""

    @abc.abstractmethod
    def adjoint(self, v: Array) -> Array:
        """Return A^T v: (..., n) -> (..., d)."""

    @abc.abstractmethod
    def gram(self, D: Array, centre: Array | None = None) -> Array:
        """Return A_c^T diag(D) A_c, (k, n) -> (k, d, d), with A_c = A - 1 (A^T f)^T for a centre f (k, n)."""

    @abc.abstractmethod
    def gram_operator(self, D: Array, centre: Array | None = None) -> Callable[[Array], Array]:
        """Return the product v (k, d) -> A_c^T diag(D) A_c v; each call reads A once."""

    @property
    @abc.abstractmethod
    def column_norms(self) -> Array:
        """The 2-norms (d,) of the columns of A."""

    @property
    @abc.abstractmethod
    def largest_row_norm(self) -> Array:
        """The largest 2-norm () of a row of A."""

    @abc.abstractmethod
    def to_device(self, device: str | None) -> Map:
        """Move the rows."""
