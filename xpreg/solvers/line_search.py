"""Backtracking on the kept y: y(x + t p) = y + t A p, so a trial costs O(n) and never reads A.

For one layer z = y; for two a trial goes on from y and reads A2, not A1.
"""

from __future__ import annotations

import dataclasses
import math

from .. import backend as B
from ..backend import Array, namespace, quiet
from ..problem import Point
from .base import Direction
from .kinked import first_minimum

SUFFICIENT_DECREASE = 1e-4
"""Armijo's constant; Nocedal and Wright, Numerical Optimization (2006), section 3.1."""

LARGEST_CHANGE = 4.0
"""The first trial changes no exponent by more than this: beyond it a quadratic model of an exponential is worthless.
On 1,788 attention rows 3 to 5 are equally good; without a bound 4 % of the problems end at another stationary point."""

GROWTH = 4.0
"""The bound grows by this factor after a bounded step that went as well as the model promised, and falls back to
LARGEST_CHANGE after any other: so that a start far away, where only the regulariser acts, is left in few steps."""

MAX_TRIALS = 60


@dataclasses.dataclass
class Ray:
    """A point, a direction p, and q = A p: everything that the trials along it share."""

    point: Point
    direction: Direction
    running: Array  # (k,) bool
    reach: Array  # (k,) largest change of an exponent that the first trial may make

    def __post_init__(self) -> None:
        xp = namespace(self.point.x)
        p = self.direction.p
        with quiet():
            q = self.direction.q
            self.q = self.point.rows.inner.apply(p) if q is None else q
            slope = self.direction.slope
            self.slope = self.point.slope(p) if slope is None else slope
            bend = self.direction.bend
            self.bend = xp.zeros_like(self.slope) if bend is None else bend
            self.noise = value_noise(self.point)

    def first_step(self) -> Array:
        """Return 1, or less where that would change an exponent by more than ``reach``; 0 where nothing runs."""
        with quiet():
            rows, point = self.point.problem.rows, self.point
            self.change = point.head.change(self.q if point.rows is rows else rows.outer(point.y + self.q) - point.z)
            self.bounded = self.change > (math.inf if self.direction.unbounded else self.reach)
            xp = namespace(self.change)
            one = xp.ones_like(self.change)
            self.first = xp.where(self.bounded, self.reach / self.change, one)
            if (longest := self.direction.first) is not None:
                self.first = xp.where(longest < self.first, longest, self.first)
            if rows.has_kinks and self.direction.slope is None:
                kink = first_minimum(point, self.q, self.slope)
                self.first = xp.where(kink < self.first, kink, self.first)
            return xp.where(self.running & xp.isfinite(self.first), self.first, 0.0 * one)

    def trial(self, t: Array) -> Trial:
        """Evaluate at step lengths t (k,)."""
        xp = namespace(t)
        point = self.point
        with quiet():
            dy = t[:, None] * self.q
            new = point.problem.point(point.x + t[:, None] * self.direction.p, point.y + dy, shape=point.shape)
            dz = dy if point.rows is point.problem.rows else new.z - point.z
            predicted = t * self.slope + 0.5 * t * t * self.bend
            rise = new.values - point.values
            enough = (rise <= SUFFICIENT_DECREASE * predicted) & (predicted < 0)
            flat = (-predicted <= self.noise) & (rise <= self.noise)  # the loss cannot tell: its gradient decides
            reachable = new.head.is_reachable_from(point.head, dz) & xp.isfinite(new.values)
            accepted = (reachable & (enough | flat)) | ~self.running | (t == 0)
            quotient = -predicted * t / (2.0 * (rise - predicted))  # minimiser of the interpolating parabola
            shrunk = xp.where(quotient < 0.5 * t, quotient, 0.5 * t)
            shrunk = xp.where(reachable & (quotient > 0.1 * t), shrunk, 0.1 * t)
            well = accepted & self.bounded & (t == self.first) & (rise <= 0.4 * predicted)
            reach = xp.where(well, GROWTH * self.reach, xp.full_like(t, LARGEST_CHANGE))
        return Trial(new, accepted, flat & ~enough, t * self.change, xp.where(accepted, t, shrunk), reach)


@dataclasses.dataclass
class Trial:
    """One trial: the new point, whether it is accepted, whether only rounding decided, the largest change of an
    exponent, the next step length to try, and the reach of the next iteration.
    """

    point: Point
    accepted: Array
    flat: Array
    change: Array
    next_step: Array
    reach: Array


def z_noise(point: Point) -> Array:
    """Estimate the rounding error (k,) of an entry of z, in one layer eps (|x| max|a_i| + 8); 8 for the activation."""
    return B.eps(point.x) * (point.problem.rows.rounding(point.x, point.y) + 8.0)


def value_noise(point: Point) -> Array:
    """Estimate the rounding error (k,) of the loss: that of a perturbation of z, and of its own evaluation.

    dz |g_z|_1 + dz^2/2 |D|_1 + 4 eps |L|, D the Gauss-Newton diagonal.
    """
    dz = z_noise(point)
    D = point.gauss_newton().sensitivity()
    xp = namespace(D)
    first, second = B.row_sums(xp.abs(point.g_z), D)
    own = 4.0 * B.eps(point.x) * xp.abs(point.values)
    noise = own + dz * first + 0.5 * dz * dz * second
    w2 = _weights_in_y(point)
    return noise if w2 is None else noise + y_noise(point) * B.row_sum(xp.abs(w2 * point.y))


def grad_noise(point: Point) -> Array:
    """Estimate bounds (k, d) of the rounding errors of the gradient's entries: |A_j| dz (|D| + |g_z|).

    D adds up the exact and the Gauss-Newton diagonal: one of them can vanish where the other does not.
    """
    D = point.gauss_newton().exact_sensitivity() + point.curvature().exact_sensitivity()
    xp = namespace(D)
    norm = B.row_norm(D) + B.row_norm(point.g_z)
    noise = point.rows.column_norms * (z_noise(point) * norm)[:, None]
    w2 = _weights_in_y(point)
    if w2 is None:
        return noise
    return noise + point.rows.inner.column_norms * (y_noise(point) * xp.linalg.vector_norm(w2))[:, None]


def y_noise(point: Point) -> Array:
    """Estimate the rounding error (k,) of an entry of y."""
    return B.eps(point.x) * point.rows.inner.rounding(point.x, point.y)


def _weights_in_y(point: Point) -> Array | None:
    """Return the w^2 of a regulariser that is no function of z, which D and g_z do not know."""
    return None if point.rows is point.problem.rows else point.problem.w2
