"""A problem is head o map + regulariser: min over x of L(z, b) + 0.5 |diag(w) y|^2, z = y = A x or z = outer(y)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from . import backend as B
from . import one_pass
from .backend import Array, namespace, quiet
from .checks import check_b, check_finite, check_weights
from .curvature import Curvature, Hessian
from .errors import DomainError, InvalidArgumentError
from .heads import Head, HeadPoint
from .kinks import Kinks, kinks_at
from .maps import Chain, Map
from .maps.base import Product


class Problem:
    """A loss over x (d,), or a stack of losses over x (..., d) that share the rows A.

    Users make one through its subclasses, for example `SoftmaxRegression`.

    Parameters
    ----------
    head : the loss in z
    rows : the map z = A x, or z = outer(y) with y = A1 x
    b : (n,), or (..., n) for a stack of independent problems
    weights : scalar or (n,), the w of the regulariser 0.5 sum w_i^2 y_i^2, y = A x (two layers: A1 x)

    Attributes
    ----------
    n, d : numbers of rows and columns of A
    shape : the leading shape of the stack, () for one problem
    """

    def __init__(self, head: Head, rows: Chain, b: Array, weights: float | Array = 0.0):
        self.head, self.rows = head, rows
        self.n, self.d = rows.n, rows.d
        self.w2 = check_weights(weights, rows.inner, rows.first)
        b = check_b(b, rows)
        head.check_b(b)
        self.shape: tuple[int, ...] = tuple(b.shape[:-1])
        self._b = namespace(b).reshape(b, (-1, rows.n))  # (1, n) or (k, n)

    @property
    def kind(self) -> str:
        """What people call the loss."""
        return self.head.name

    @property
    def _sizes(self) -> str:
        return f"n={self.n}, d={self.d}"

    def __repr__(self) -> str:
        stack = f", stack of {self.shape}" if self.shape else ""
        return f"<{self.kind} regression, {self._sizes}{stack}, {B.describe(self.rows.like)}>"

    @property
    def b(self) -> Array:
        """The targets (..., n)."""
        return namespace(self._b).reshape(self._b, (*self.shape, self.rows.n))

    # -- what users call ------------------------------------------------------------------------

    def at(self, x: Array) -> Point:
        """Fix x and keep z = A x: every value, gradient and product at the returned point shares it.

        Parameters
        ----------
        x : (d,) or (..., d)

        Raises
        ------
        InvalidArgumentError
            x has the wrong shape, dtype or place, or is not finite.
        DomainError
            The loss is not defined at x (a normaliser that is not positive, an overflow).
        """
        return self._at(self.check_x(x, "x"))

    def _at(self, x: Array) -> Point:
        shape = self.stack_shape(x)
        problem = self if self.shape in ((), shape) else self.stacked(shape)
        with B.shared(self.rows.like), quiet():
            point = problem.point(flatten(x, shape), shape=shape)
            values = B.read(point.values)[0]
        if not all(math.isfinite(v) for v in values):
            bad = (
                "" if len(values) == 1 else f" in {sum(not math.isfinite(v) for v in values)} of {len(values)} problems"
            )
            raise DomainError(f"x lies outside the domain of the {self.head.name} loss{bad}: {self.head.undefined}.")
        return point

    def value(self, x: Array) -> Array:
        """Return the loss (...) at x (..., d)."""
        return self.at(x).value

    def grad(self, x: Array) -> Array:
        """Return the gradient (..., d) at x (..., d)."""
        return self.value_and_grad(x)[1]

    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        """Return the loss (...) and the gradient (..., d) at x (..., d).

        For one problem a large A is read once where that is faster: in files and on Dask workers, in memory where the
        rows are narrow or the loss is a sum over them, and by the fused kernels of a GPU.
        """
        x = self.check_x(x, "x")
        with B.shared(self.rows.like), quiet():
            found = one_pass.value_and_grad(self, x)
        if found is not None and math.isfinite(float(B.read(found[0])[0])):
            return found
        point = self._at(x)
        with B.shared(self.rows.like), quiet():
            return point.value, point.shaped(self.rows.inner.adjoint(point.g_y))

    def hess(self, x: Array) -> Array:
        """Return the Hessian (..., d, d) at x (..., d)."""
        return self.at(x).hess()

    def hvp(self, x: Array, v: Array) -> Array:
        """Return the Hessian at x (..., d) times v (..., d)."""
        return self.at(x).hvp(v)

    def predict(self, x: Array) -> Array:
        """Return what the model predicts for b, (..., n), at x (..., d)."""
        return self.at(x).predict()

    def to_device(self, device: str | None) -> Problem:
        """Return the same problem on ``"cpu"``, ``"cuda"`` or ``"cuda:N"``."""
        rows = self.rows.to_device(device)
        if device is None or rows is self.rows:
            return self
        return self._replace(
            rows=rows,
            _b=B.to_device(self._b, device),
            w2=B.to_device(self.w2, device),
        )

    # -- what solvers call ----------------------------------------------------------------------

    def default_start(self) -> Array:
        """Return where a solver starts when it is not told: x = 0, (k, d)."""
        return B.zeros((self.size, self.d), self.rows.like)

    def active_units(self, x: Array) -> Array | None:
        """Return which units are active at x (k, d), for maps that have units: (k, n) of 1, 0 on the kink, and -1."""
        return None

    @property
    def size(self) -> int:
        """How many problems the stack holds."""
        return math.prod(self.shape)

    def point(self, x: Array, y: Array | None = None, *, shape: tuple[int, ...] | None = None) -> Point:
        """Evaluate at x (k, d) without any check; ``y`` (k, n), the kept A x, when it is known."""
        y = self.rows.inner.apply(x) if y is None else self.rows.inner.keep(y)
        return Point(self, x, y, self.shape if shape is None else shape)

    def take(self, indices: Array) -> Problem:
        """Return the stack of the problems with these indices (an integer array on the device)."""
        xp = namespace(self._b)
        b = self._b if self._b.shape[0] == 1 and self.size == 1 else xp.take(self._b, indices, axis=0)
        return self._replace(_b=b, shape=(indices.shape[0],))

    def slice(self, start: int, stop: int) -> Problem:
        """Return the stack of the problems start, ..., stop - 1."""
        return self._replace(_b=self._b[start:stop, :], shape=(min(stop, self.size) - start,))

    def of_rows(self, which: Array) -> Problem:
        """Return the problem of a sample of the rows, by their indices (m,): its solution estimates this one's."""
        assert isinstance(self.rows, Map)
        xp = namespace(self._b)
        rows = self.rows.of_rows(which)
        # the regulariser of the sample is 1/omega of it, and must be omega^power of it, as the loss is
        gain = (self.n / rows.n) ** (self.head.power + 1)
        w2 = None if self.w2 is None else gain * xp.take(self.w2, which)
        return self._replace(rows=rows, n=rows.n, _b=self.head.of_rows(self._b, which), w2=w2)

    def stacked(self, shape: tuple[int, ...]) -> Problem:
        """Return the same problem repeated over a leading ``shape``: one b, many starts."""
        if shape == self.shape:
            return self
        xp = namespace(self._b)
        b = xp.reshape(xp.broadcast_to(self.b, (*shape, self.rows.n)), (-1, self.rows.n))
        return self._replace(_b=b, shape=tuple(shape))

    def _replace(self, **changes: Any) -> Problem:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **changes)
        return other

    def stack_shape(self, x: Array) -> tuple[int, ...]:
        """Return the leading shape that x (..., d) and b (..., n) have together."""
        lead = tuple(x.shape[:-1])
        try:
            shape = namespace(x).broadcast_shapes(lead, self.shape)
        except ValueError as error:
            raise InvalidArgumentError(
                f"x has shape {tuple(x.shape)}, but b has shape {(*self.shape, self.rows.n)}: their leading axes, "
                f"{lead} and {self.shape}, do not fit each other."
            ) from error
        return tuple(shape)

    def check_x(self, x: Array, name: str) -> Array:
        """Refuse an x of the wrong shape, place, precision or values."""
        A = self.rows.first
        B.require_array(x, name)
        B.common_namespace(**{A: self.rows.like, name: x})
        if x.ndim == 0 or x.shape[-1] != self.d or 0 in x.shape:
            raise InvalidArgumentError(
                f"{name} has shape {tuple(x.shape)}, but {A} has {self.d} columns: {name} must have shape "
                f"({self.d},), or (..., {self.d}) for a stack."
            )
        check_finite(**{name: x})
        return x


def flatten(x: Array, shape: tuple[int, ...]) -> Array:
    """Bring x (..., d) to (k, d) over the leading ``shape``."""
    xp = namespace(x)
    return xp.reshape(xp.broadcast_to(x, (*shape, x.shape[-1])), (-1, x.shape[-1]))


class Point:
    """A problem at a fixed x, with y = A x kept.

    Attributes
    ----------
    x : (k, d)
    y : (k, n), what the linear part of the map gives; it moves along a line when x does
    z : (k, n), what the head gets: y itself, or outer(y) (two layers: (k, m))
    """

    def __init__(self, problem: Problem, x: Array, y: Array, shape: tuple[int, ...]):
        self.problem, self.shape = problem, shape
        self.x, self.y, self.z = x, y, problem.rows.outer(y)
        self.head: HeadPoint = problem.head.at(self.z, problem._b)

    def shaped(self, y: Array) -> Array:
        """Give (k, ...) the leading shape of x."""
        return namespace(y).reshape(y, (*self.shape, *y.shape[1:]))

    # -- stacks of k: what solvers use ----------------------------------------------------------

    @functools.cached_property
    def values(self) -> Array:
        """Losses (k,)."""
        w2 = self.problem.w2
        if w2 is None:
            return self.head.value
        with quiet():
            return self.head.value + 0.5 * B.row_dot(w2 * self.y, self.y)

    @functools.cached_property
    def rows(self) -> Map:
        """The derivative of x -> z here, a linear map."""
        return self.problem.rows.tangent(self.y)

    @functools.cached_property
    def g_h(self) -> Array:
        """Gradients (k, n) in the units: A2^T g_z for two layers, g_z itself for one; without the regulariser."""
        with quiet():
            return self.rows.pull(self.head.g_z)

    @functools.cached_property
    def g_y(self) -> Array:
        """Gradients (k, n) in y, the regulariser included."""
        w2 = self.problem.w2
        g = self.rows.gate(self.g_h)
        return g if w2 is None else g + w2 * self.y

    @property
    def g_z(self) -> Array:
        """Gradients (k, n) in z, the regulariser included where it is a function of z."""
        return self.g_y if self.rows is self.problem.rows else self.head.g_z

    @functools.cached_property
    def grads(self) -> Array:
        """Gradients (k, d) in x: A^T g_y. At a kink, those of the side where the unit is not active."""
        with quiet():
            return self.rows.inner.adjoint_beside(self.g_y, self._wanted_next)

    def _wanted_next(self) -> list[Array]:
        """The columns of the exact curvature: the Hessian, in whatever form, begins with A^T times them."""
        if self.rows.inner is not self.rows:  # two layers: those are columns of another matrix
            return []
        curvature = self.curvature()
        return [columns for columns in (curvature.centre, curvature.U) if columns is not None]

    @functools.cached_property
    def kinks(self) -> Kinks | None:
        """The kinks that the points lie on up to rounding; None where there are none."""
        return kinks_at(self) if self.problem.rows.has_kinks else None

    @property
    def step_grads(self) -> Array:
        """The gradients (k, d) that models are built on: `grads`, but with units on concave kinks active."""
        return self.grads if self.kinks is None else self.kinks.grads

    @property
    def least_grads(self) -> Array:
        """The subgradients (k, d) of least norm: `grads` where there is no kink, zero where the loss is stationary."""
        return self.grads if self.kinks is None else self.kinks.least_grads

    def slope(self, p: Array) -> Array:
        """Return the derivatives (k,) of the losses along p (k, d); at kinks an upper bound of the one-sided ones."""
        return namespace(p).sum(self.grads * p, axis=-1) if self.kinks is None else self.kinks.slope(p)

    def curvature(self) -> Curvature:
        """Exact second derivative in z, the regulariser and what the map adds in y included."""
        return self._curvature

    @functools.cached_property
    def _curvature(self) -> Curvature:
        return self._in_y(self.head.curvature(), self.rows.bend(self.g_h))

    def gauss_newton(self) -> Curvature:
        """Its Gauss-Newton part, the regulariser included: positive semidefinite."""
        return self._in_y(self.head.gauss_newton(), None)

    def convexified(self) -> Curvature:
        """A positive semidefinite stand-in where the exact one is indefinite, the regulariser included."""
        return self._in_y(self.head.convexified(), None)

    def _in_y(self, curvature: Curvature, bend: Array | None) -> Curvature:
        w2 = self.problem.w2
        if self.rows.inner is self.rows:  # y = z: one Gram matrix does for all
            return curvature.plus_diagonal(w2)
        terms = [term for term in (w2, bend) if term is not None]
        return dataclasses.replace(curvature, inner=sum(terms, 0.0 * self.y) if terms else None)

    def hessian(self, curvature: Curvature | None = None) -> Hessian:
        """Return the exact Hessian, or the one of another curvature, as an operator on (k, d)."""
        return Hessian(self.rows, self.curvature() if curvature is None else curvature)

    # -- the shapes of x: what users use --------------------------------------------------------

    @property
    def value(self) -> Array:
        """The loss (...)."""
        return self._handed_out(self.values)

    def _handed_out(self, y: Array) -> Array:
        """Return a copy for the user, who may change it."""
        return namespace(y).asarray(self.shaped(y), copy=True)

    @property
    def grad(self) -> Array:
        """The gradient (..., d)."""
        with B.shared(self.problem.rows.like):
            return self._handed_out(self.grads)

    def hess(self) -> Array:
        """Return the Hessian (..., d, d). Where it overflows though the loss does not, it is not finite."""
        with B.shared(self.problem.rows.like), quiet():
            return self.shaped(self.hessian().dense(exact=True))

    @functools.cached_property
    def _operator(self) -> Product:
        return self.hessian().operator()

    def hvp(self, v: Array) -> Array:
        """Return the Hessian times v (..., d); each call reads A once. At a single x any number of v goes."""
        v = self.problem.check_x(v, "v")
        xp = namespace(v)
        try:
            flat = flatten(v, self.shape) if self.shape else xp.reshape(v, (-1, self.problem.d))
        except ValueError as error:
            raise InvalidArgumentError(
                f"v has shape {tuple(v.shape)}, but x has shape {(*self.shape, self.problem.d)}: v must have that "
                f"shape, or ({self.problem.d},) for all problems."
            ) from error
        with B.shared(self.problem.rows.like), quiet():
            Hv = self._operator(flat)[0]
            return self.shaped(Hv) if self.shape else xp.reshape(Hv, v.shape)

    def predict(self) -> Array:
        """Return what the model predicts for b, (..., n)."""
        return self._handed_out(self.head.predict())
