"""What a map x -> z must know: a linear one, z = A x, or one that goes on after it, z = outer(A x)."""

from __future__ import annotations

import abc
import functools
import weakref
from collections.abc import Callable, Sequence

from .. import backend as B
from ..backend import Array, namespace
from ..errors import InvalidArgumentError

Product = Callable[[Array], tuple[Array, Array | None]]
"""v (k, d) -> H v, and A v (k, n) where that comes for free."""


class Moments:
    """A^T u of some vectors u that were worked out beside a gradient: its Hessian asks for them next.

    Known as long as the very same vectors are around, whoever shares the rows; a copy knows nothing.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref, Array]] = {}

    def remember(self, vectors: Sequence[Array], moments: Sequence[Array]) -> None:
        """Keep these, in the place of all others."""
        self._known = {id(u): (weakref.ref(u), a) for u, a in zip(vectors, moments, strict=True)}

    def of(self, v: Array) -> Array | None:
        """Return A^T v if it is known."""
        vector, moment = self._known.get(id(v), (None, None))
        return moment if vector is not None and vector() is v else None

    def forget(self) -> None:
        """Drop all."""
        self._known = {}

    def __reduce__(self) -> tuple:
        return Moments, ()


APART = 4
"""So many rows with the largest weights are set apart when a Gram matrix is expanded about a fixed point."""


def set_apart(D: Array, f: Array) -> tuple[Array, Array, Array]:
    """Return the rows (k, m) where f (k, n) is largest, their D (k, m), and D with 0 in their places."""
    xp = namespace(D)
    everyone, rows, weights = B.arange(D.shape[-1], D), [], []
    for _ in range(min(APART, D.shape[-1])):
        top = B.row_argmax(f)
        rows.append(top)
        weights.append(xp.take_along_axis(D, top, axis=-1))
        here = everyone == top
        f, D = xp.where(here, xp.full_like(f, -xp.inf), f), xp.where(here, xp.zeros_like(D), D)
    return xp.concat(rows, axis=-1), xp.concat(weights, axis=-1), D


class Chain(abc.ABC):
    """z = outer(y), y = inner x: a linear map and what follows it.

    Solvers keep y, which moves along a straight line when x does; everything else they ask of `tangent`.
    """

    n: int
    d: int
    first: str = "A"
    """What users call the matrix that x meets, for messages."""
    last: str = "A"
    """What users call the matrix whose rows belong to b, for messages."""
    has_kinks: bool = False
    """Whether the gradient jumps across the faces y_i = 0."""

    @property
    @abc.abstractmethod
    def like(self) -> Array:
        """An array in the library, on the device and in the dtype of the map."""

    @property
    @abc.abstractmethod
    def inner(self) -> Map:
        """The linear map x -> y."""

    @property
    def matrices(self) -> tuple[Map, ...]:
        """The linear maps with the matrices of the user, the first one first."""
        return (self.inner,)

    @abc.abstractmethod
    def outer(self, y: Array) -> Array:
        """Return z for y."""

    @abc.abstractmethod
    def tangent(self, y: Array) -> Map:
        """Return the derivative of x -> z at y, a linear map."""

    @abc.abstractmethod
    def rounding(self, x: Array, y: Array) -> Array:
        """Return the size (k,) that makes eps times it the rounding error of an entry of z."""

    def hold(self, v: Array, name: str, matrix: str) -> Array:
        """Return the user's array ``name``, (..., n) or (), as vectors are kept beside the rows of his ``matrix``."""
        B.common_namespace(**{matrix: self.like, name: v})
        return v

    def full(self, value: float) -> Array:
        """Return a vector (n,) with one value everywhere."""
        return B.full((self.n,), value, self.like)

    def keep(self, y: Array) -> Array:
        """Return y (k, n) in a form that is cheap to come back to."""
        return y

    def release(self) -> None:  # noqa: B027 - most maps keep nothing
        """Forget what was kept for speed only."""

    @abc.abstractmethod
    def to_device(self, device: str | None) -> Chain:
        """Move the arrays."""


class Map(Chain):
    """z = A x, A (n, d), y = z. Stacks have one leading axis k (and, in `adjoint`, any number of them)."""

    @property
    def inner(self) -> Map:
        return self

    def outer(self, y: Array) -> Array:
        return y

    def tangent(self, y: Array) -> Map:
        return self

    def rounding(self, x: Array, y: Array) -> Array:
        return namespace(x).linalg.vector_norm(x, axis=-1) * self.largest_row_norm

    def pull(self, v: Array) -> Array:
        """Return the gradient in the units h for one in z, (k, ...): `adjoint` begins so; A2^T v of two layers."""
        return v

    def gate(self, c: Array) -> Array:
        """Return the gradient in y for one in the units h: S c of two layers."""
        return c

    def bend(self, c: Array) -> Array | None:
        """Return the curvature in y, a diagonal, that h(y) brings in where the gradient in h is c; None for none."""
        return None

    @abc.abstractmethod
    def apply(self, x: Array) -> Array:
        """Return A x: (k, d) -> (k, n)."""

    @abc.abstractmethod
    def adjoint(self, v: Array) -> Array:
        """Return A^T v: (..., n) -> (..., d)."""

    def adjoint_beside(self, v: Array, others: Callable[[], Sequence[Array]]) -> Array:
        """Return A^T v; a map that is slow to read works out A^T u for the ``others`` too, which are wanted next."""
        return self.adjoint(v)

    @abc.abstractmethod
    def gram(self, D: Array, centre: Array | None = None, *, exact: bool = False) -> Array:
        """Return A_c^T diag(D) A_c, (k, n) -> (k, d, d), with A_c = A - 1 (A^T f)^T for a centre f (k, n).

        A map may work faster for a stack and lose digits where single rows lie far from the others, enough for a
        solver; ``exact`` asks for all digits.
        """

    def rough_gram(self, D: Array, centre: Array | None = None) -> Array:
        """Return the Gram matrix, in float32 arithmetic where that is twice as fast: enough for a preconditioner."""
        return self.gram(D, centre)

    @abc.abstractmethod
    def gram_operator(self, D: Array, centre: Array | None = None) -> Product:
        """Return the product v (k, d) -> A_c^T diag(D) A_c v, and A v if it is met on the way; a call reads A once."""

    hands_out_rows: bool = False
    """Whether `take_rows` gives single rows, which sampling needs."""

    def take_rows(self, which: slice | Array) -> Array:
        """Return some rows of A (m, d), by a slice or by their indices: what sampling needs."""
        raise self.no_rows()

    def of_rows(self, which: Array) -> Map:
        """Return the map of some rows, by their indices (m,)."""
        raise self.no_rows()

    @property
    def nbytes(self) -> int:
        """Bytes that a pass over the rows reads."""
        return self.n * self.d * B.itemsize(self.like)

    def no_rows(self) -> InvalidArgumentError:
        """Return the error of a map that cannot hand out single rows."""
        return InvalidArgumentError(
            f"the rows are held as {type(self).__name__}, which cannot hand out single rows, but sampling needs them: "
            "use method 'auto', 'newton', 'newton-pcg' or 'newton-cg'."
        )

    def times(self, T: Array) -> Callable[[slice], Array]:
        """Return the product rows -> A[rows] T for T (d, c)."""
        return lambda rows: self.take_rows(rows) @ T

    def one(self, i: int) -> Map:
        """Return the map of the i-th problem of a stack: this one, unless every problem has its own."""
        return self

    def combination(self) -> Array:
        """Return A^T v (d,) for a fixed random v (n,): it tells one A from another."""
        return self.adjoint(B.random_normal((1, self.n), 0, self.like))[0, :]

    @property
    def gram_products(self) -> float:
        """How many Hessian-vector products a Gram matrix costs, about: what a choice between the two goes by.

        For dense rows: measured on 2 cores with NumPy, and much the same on a GPU in float64, where the ratio of
        arithmetic to bandwidth is similar.
        """
        return 6 + self.d / 50

    @property
    @abc.abstractmethod
    def column_norms(self) -> Array:
        """The 2-norms (d,) of the columns of A."""

    @functools.cached_property
    def column_squares(self) -> Array:
        """The squared norms (d,) of the columns, 1 for those that are zero: the units of a Hessian's diagonal."""
        with B.quiet():
            return B.safe_divisor(self.column_norms) ** 2

    @property
    @abc.abstractmethod
    def largest_row_norm(self) -> Array:
        """The largest 2-norm () of a row of A."""
