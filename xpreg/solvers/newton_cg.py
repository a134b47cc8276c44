"""Truncated Newton: conjugate gradients on Hessian-vector products at a kept z, without any (d, d) array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from .. import backend as B
from ..arguments import require_integers
from ..backend import Array, namespace
from ..curvature import Curvature
from ..kinks import product
from ..maps.base import Product
from ..problem import Point
from .base import Direction, Method
from .directions import escape, merge, take
from .kinked import downhill

ENOUGH = 0.1
"""A step leaves a residual of the gradient of at least this share of what the run asks for: it need not be smaller."""


@dataclasses.dataclass
class Variables:
    """x = T y, in which CG runs: y -> T y, g -> T^T g, and a diagonal (k, d) to add to H, its own rounding error."""

    to_x: Callable[[Array], Array]
    to_y: Callable[[Array], Array]
    ridge: Array | float = 0.0


class NewtonCG(Method):
    """Solve H p = -g up to |H p + g| <= min(0.5, sqrt(|g|/|g0|)) |g|, in variables scaled by the column norms of A.

    No step is solved further than a tenth of what ``tol`` asks for.

    Where they meet negative curvature, H gives way to the Gauss-Newton matrix, as in the exact method: a truncated
    step would have no scale. At a zero gradient they run on random right-hand sides, to see whether there is any.

    Parameters
    ----------
    max_products : limit of products per step; default 2 d, at most 1000
    """

    name: ClassVar[str] = "newton-cg"
    counters: ClassVar[tuple[str, ...]] = ("max_products",)
    forcing: ClassVar[float] = 0.5
    """Largest relative residual that a step is solved to."""

    def __init__(self, max_products: int | None = None):
        super().__init__()
        if max_products is not None:
            require_integers(max_products=max_products)
        self.max_products = max_products
        self.trace: list[tuple[Array, Array]] = []

    @property
    def limit(self) -> int | None:
        """Largest number of products in a step; None for 2 d, at most 1000."""
        return self.max_products

    def direction(self, point: Point, stationary: Any) -> Direction:
        xp = namespace(point.x)
        curvature = point.curvature()
        variables = self.variables(point, curvature)
        g_norm = scaled_norm(point)
        if "g0" not in self.state:
            self.state["g0"] = g_norm
        random = None
        if stationary.any():
            probing = B.new(stationary, point.x, dtype=xp.bool)
            random = xp.where(probing[:, None], B.random_normal(point.x.shape, 0, point.x), point.least_grads)
        found = self._solve(point, curvature, variables, self.state["g0"], random)
        p, convex, curvature, products = found.p, found.convex, found.curvature, found.products
        direction = Direction(p, convex, convex, q=found.q, label=f"cg ({products})", products=products)
        if random is not None:  # only to look for negative curvature: leave along it, or stay
            zero = xp.zeros_like(curvature)
            out = escape(point, xp.where(convex, zero, curvature), found.v, zero)
            direction.q = None
            direction.p = xp.where(probing[:, None], out.p, p)
            direction.bend = xp.where(probing, out.bend, xp.zeros_like(g_norm))
            direction.ok = convex | probing
        elif point.kinks is not None:
            direction.q, direction.p = None, downhill(point, p)
        return direction

    def repair(self, point: Point, direction: Direction, bad: Any, stationary: Any) -> Direction:
        some, g0 = take(point, bad), self.state["g0"]
        if some is not point:
            g0 = namespace(g0).take(g0, B.indices(bad, g0), axis=0)
        curvature = some.convexified()
        found = self._solve(some, curvature, self.variables(some, curvature, again=True), g0)
        ok = namespace(found.p).ones_like(found.convex)  # what rounding calls negative curvature of a Gauss-Newton
        merge(direction, bad, Direction(downhill(some, found.p), ok, ~ok, products=found.products))  # matrix is zero
        direction.label += f", gauss-newton cg ({found.products})"
        return direction

    def variables(self, point: Point, curvature: Curvature, again: bool = False) -> Variables:
        """Return the variables in which CG runs: here T is diagonal.

        ``again``: for the second curvature of an iteration, and perhaps for a part of the stack only.
        """
        scale = column_scale(point)
        return Variables(lambda y: scale * y, lambda g: scale * g)

    def _solve(
        self, point: Point, curvature: Curvature, variables: Variables, g0: Array, rhs: Array | None = None
    ) -> Solution:
        """Return what `conjugate_gradients` finds, in x."""
        xp = namespace(point.x)
        to_x, to_y, ridge, stay = variables.to_x, variables.to_y, variables.ridge, _on_kinks(point)
        g = to_y(stay(point.least_grads if rhs is None else rhs))
        relative = scaled_norm(point) / B.safe_divisor(g0)
        enough = ENOUGH * self.tol / B.safe_divisor(relative)
        forcing = xp.where(relative < self.forcing**2, xp.sqrt(relative), self.forcing * xp.ones_like(relative))
        forcing = xp.where((enough > forcing) & (enough < self.forcing), enough, forcing)
        multiply = point.hessian(curvature).operator()
        limit = self.limit or min(2 * point.problem.d, 1000)

        def product(y: Array) -> tuple[Array, Array | None]:
            v = stay(to_x(y))
            Hv, Av = multiply(v)
            return to_y(stay(Hv + ridge * v)), Av

        self.trace = []
        found = conjugate_gradients(product, g, forcing, limit, self.trace)
        return dataclasses.replace(found, p=stay(to_x(found.p)), v=stay(to_x(found.v)))


def _on_kinks(point: Point) -> Callable[[Array], Array]:
    """Return the projection onto the directions that stay on the kinks of a point."""
    T = None if point.kinks is None else point.kinks.tangent
    if T is None:
        return lambda v: v
    return lambda v: product(T, v)


def column_scale(point: Point) -> Array:
    """Return 1/|A_j| (d,): the diagonal T of x = T y, in which columns of A have length 1."""
    return 1.0 / B.safe_divisor(point.problem.rows.inner.column_norms)


def scaled_norm(point: Point) -> Array:
    """Return the 2-norms (k,) of the gradients in these variables."""
    return namespace(point.x).linalg.vector_norm(column_scale(point) * point.least_grads, axis=-1)


@dataclasses.dataclass(frozen=True)
class Solution:
    """What conjugate gradients end with.

    Attributes
    ----------
    p : (k, d); -g where the first curvature is negative
    convex : (k,) bool, False where negative curvature was met
    v, curvature : (k, d), (k,): the last search direction and <v, H v>
    q : (k, n), A p, added up from the products; None where they do not tell A v
    products : how many
    """

    p: Array
    convex: Array
    v: Array
    curvature: Array
    q: Array | None
    products: int


def conjugate_gradients(multiply: Product, g: Array, forcing: Array, limit: int, trace: list | None = None) -> Solution:
    """Solve H p = -g for a stack, each problem to its own relative residual, stopping at negative curvature.

    Parameters
    ----------
    multiply : v (k, d) -> H v, and A v or None
    g : (k, d)
    forcing : (k,) relative residual
    limit : products at most
    trace : gets, per product, the step length and the ratio of squared residuals (k,): what Ritz values are made of
    """
    xp = namespace(g)
    tiny = B.eps(g)
    p, r, v = xp.zeros_like(g), g, -g
    rr = xp.sum(r * r, axis=-1)
    target = rr * forcing * forcing
    running = rr > target
    convex = xp.ones_like(running)
    curvature = xp.zeros_like(rr)
    q: Array | None = None
    for products in range(1, limit + 1):
        Hv, Av = multiply(v)
        vHv = xp.sum(v * Hv, axis=-1)
        vv = xp.sum(v * v, axis=-1)
        noise = tiny * xp.sqrt(vv) * xp.linalg.vector_norm(Hv, axis=-1)
        curvature = xp.where(running, vHv, curvature)
        positive = (vHv > noise) & xp.isfinite(vHv)
        negative = running & ((vHv < -noise) | ~xp.isfinite(vHv))
        convex = convex & ~negative
        if products == 1:
            p = xp.where((running & ~positive)[:, None], -g, p)
        going = running & positive
        step = xp.where(going, rr / xp.where(going, vHv, xp.ones_like(vHv)), xp.zeros_like(rr))[:, None]
        p, r = p + step * v, r + step * Hv
        if Av is not None and q is not None:
            q = q + step * Av
        elif Av is not None:  # the first: where its curvature is not positive, p = -g = v
            q = xp.where((running & ~positive)[:, None], xp.ones_like(step), step) * Av
        rr_new = xp.sum(r * r, axis=-1)
        running = going & (rr_new > target)
        ratio = xp.where(running, rr_new / B.safe_divisor(rr), xp.zeros_like(rr))
        v = xp.where(running[:, None], ratio[:, None] * v - r, v)
        if trace is not None:
            trace.append((step[:, 0], ratio))
        rr = xp.where(running, rr_new, rr)
        known = B.look(running, products, g)
        if known is not None and not known.any():
            break
    return Solution(p, convex, v, curvature, q, products)


def ritz_condition(trace: list[tuple[Array, Array]]) -> float:
    """Return the quotient of the largest and the smallest Ritz value that conjugate gradients have met: one problem.

    It is a lower bound of the condition number, and close after few products when that is small. The products are
    those of a run, from `conjugate_gradients`; the Ritz values are the eigenvalues of its tridiagonal matrix (Golub and
    Van Loan, Matrix Computations (2013), section 11.3). One read of the host.
    """
    if not trace:
        return 1.0
    xp = namespace(trace[0][0])
    steps, ratios = (v.tolist() for v in B.read(*(xp.stack([pair[i][0] for pair in trace]) for i in (0, 1))))
    m = next((j for j, step in enumerate(steps) if not step > 0), len(steps))
    if m < 2:
        return 1.0
    T = [[0.0] * m for _ in range(m)]
    for j in range(m):
        T[j][j] = 1.0 / steps[j] + (ratios[j - 1] / steps[j - 1] if j else 0.0)
        if j:
            T[j][j - 1] = T[j - 1][j] = ratios[j - 1] ** 0.5 / steps[j - 1]
    values = xp.linalg.eigvalsh(B.new(T, trace[0][0]))
    low, high = B.read(values[0], values[-1])
    return float(high) / float(low) if low > 0 else float("inf")
