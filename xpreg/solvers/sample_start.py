"""A first step from a fit of some of the rows: far from the solution, they say what all of them say.

One row in 16 costs a 16th of everything. Its fit ends about sqrt(d/m) times the noise away from the fit of all n rows,
and these take two or three iterations from there instead of seven. The step ends in the same line search as any other.
"""

from __future__ import annotations

import dataclasses

from .. import backend as B
from ..backend import Array, namespace, quiet
from ..maps import Map
from ..problem import Point, Problem
from .base import Direction, Method
from .loop import Counts, Loop
from .newton_cg import column_scale, conjugate_gradients, ritz_condition

ONE_IN = 16
"""One row in so many is fitted, if these are PER_COLUMN rows per column at least."""

PER_COLUMN = 20
"""Fewer rows per column end far from the solution of all rows."""

LARGEST_SHARE = 8
"""No more than one row in so many is fitted: the fit takes several Gram matrices of them."""

SMALLEST = 2**22
"""Bytes of rows from which on a fit of some of them costs less than the iterations that it saves."""

TOL = 1e-2
"""The gradient of the sample falls to this share: below, it is noise."""

MAXITER = 30

AGREEMENT = 0.7
"""Least cosine between the gradients of the sample and of all rows at the start. It is less when the start is as close
to the solution as a fit of the sample would be, or when few rows decide that the sample has missed."""

SAME_LOSS = 2.0
"""Largest factor between the losses of the sample and of all rows at the start: it is more where few rows hold most of
f, a saturated start, which a sample does not see as it is."""

PROBE = 12
"""Products with the Hessian of the sample that show its condition number."""


@dataclasses.dataclass(frozen=True)
class SampleStart:
    """A direction to the fit of some rows, and that fit."""

    direction: Direction
    fit: Point

    def condition(self) -> float:
        """Estimate the condition number of the scaled Hessian of the sample, or of what stands in for it where it is
        indefinite.
        """
        scale, trace = column_scale(self.fit), list[tuple[Array, Array]]()
        multiply = self.fit.hessian(self.fit.convexified()).operator()
        v = B.random_normal(self.fit.x.shape, 0, self.fit.x)
        conjugate_gradients(lambda v: (scale * multiply(scale * v)[0], None), v, 0.0 * v[:, 0], PROBE, trace)
        return ritz_condition(trace)


def sample_size(problem: Problem) -> int:
    """Return how many rows to fit first; 0 where that does not pay."""
    rows = problem.rows
    if problem.size > 1 or not isinstance(rows, Map) or not rows.hands_out_rows:
        return 0
    m = max(problem.n // ONE_IN, PER_COLUMN * problem.d)
    large = rows.nbytes >= SMALLEST
    return m if large and m * LARGEST_SHARE <= problem.n else 0


def sample_start(point: Point, m: int, method: Method) -> SampleStart | None:
    """Return the way from a point to the fit of m rows by a method; None where it does not lead down, or says nothing.

    The rows are one of each n/m in a row, at random, the same in every run.
    """
    problem, xp = point.problem, namespace(point.x)
    sample = problem.of_rows(B.random_rows(problem.n, m, 0, point.x))
    there = sample.point(point.x)
    scale, gain = column_scale(there), (problem.n / m) ** problem.head.power
    cosine = _cosine(scale * point.grads, scale * there.grads)
    found = B.read(there.values[0], point.values[0], cosine[0])
    loss, expected, cosine = float(found[0]), gain * float(found[1]), float(found[2])
    if not (expected <= SAME_LOSS * loss <= SAME_LOSS**2 * expected and cosine >= AGREEMENT):
        return None
    loop = Loop(sample, point.x, method, TOL, Counts(), (0, 1))
    (fit,) = loop.run(MAXITER, lambda record: None)
    p = fit.x - point.x
    slope = point.slope(p)
    if not float(B.read(slope[0])[0]) < 0:
        return None
    label = f"fit of {m} of {problem.n} rows ({loop.nit} iterations)"
    ok = xp.ones_like(slope) > 0
    direction = Direction(p, ok, ok, label=label, products=0, unbounded=True)
    return SampleStart(direction, sample.point(fit.x))


def _cosine(u: Array, v: Array) -> Array:
    """Return <u,v>/(|u| |v|), (k,); NaN where one of them is 0."""
    xp = namespace(u)
    with quiet():
        return xp.vecdot(u, v) / (xp.linalg.vector_norm(u, axis=-1) * xp.linalg.vector_norm(v, axis=-1))
