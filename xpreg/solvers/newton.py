"""Exact Newton: the closed-form Hessian, Jacobi-scaled and factorised, with Gauss-Newton where it is indefinite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from .. import backend as B
from ..backend import Array, namespace
from ..problem import Point, Problem
from ..scaling import rounding_shift, usable_diagonal
from .base import Direction, Method
from .directions import escape, merge, take
from .kinked import minimum_with_kinks, on_kinks

LEAST_SHIFT = 2.0
"""The diagonal of the Hessian grows at least by LEAST_SHIFT * eps of itself, which is less than its rounding error."""

HARMLESS = 1e-12
"""A relative shift that no condition number below 1e12 notices. In float64 that of rounding is, and is there from the
start; in float32 it would slow down ill-conditioned problems, and is tried before a Hessian without a factor counts as
indefinite."""

REPAIR_TRIALS = 4
"""How often the stand-in for an indefinite Hessian is factorised. It is singular when n < d, and gets a relative shift
of 1e-10 (float32: 1e-5), 100 times more after each failure. What then still fails is not finite."""


class Newton(Method):
    """p = -H^-1 g with the exact Hessian; -(G + shift)^-1 g with a positive semidefinite stand-in G (Gauss-Newton, or
    what the head knows better) where H is indefinite; the most negative eigenvector of H where the gradient is zero
    but H is indefinite.
    """

    name: ClassVar[str] = "newton"

    def start(self, problem: Problem) -> None:
        super().start(problem)
        _ = problem.rows.inner.column_squares  # once, and not within the first iteration

    def direction(self, point: Point, stationary: Any) -> Direction:
        self.H = on_kinks(point, point.hessian().dense())
        p, ok, slope = _solve_shifted(point, self.H, _shifts(self.H)[0])
        return Direction(p, ok, ok, slope=slope, label="newton")

    def repair(self, point: Point, direction: Direction, bad: Any, stationary: Any) -> Direction:
        first, larger = _shifts(self.H)
        steps: list[tuple[Callable[[Point, Any], Direction], Any, str]] = []
        if larger > first:
            steps.append((self._shifted, bad, ""))
        steps.append((self._escape, bad & stationary, "negative curvature"))
        steps += [(self._gauss_newton(trial), bad & ~stationary, "gauss-newton") for trial in range(REPAIR_TRIALS)]
        for method, where, label in steps:
            mask = where & (B.to_numpy(direction.ok) == 0)
            if mask.any():
                merge(direction, mask, method(take(point, mask), mask))
                if label and not direction.label.endswith(label):
                    direction.label += f", {label}" if mask.size == 1 else f", {label} ({int(mask.sum())})"
        return direction

    def _shifted(self, point: Point, mask: Any) -> Direction:
        H = _rows(self.H, mask)
        p, ok, slope = _solve_shifted(point, H, _shifts(H)[1])
        return Direction(p, ok, ok, slope=slope, products=0)

    def _gauss_newton(self, trial: int) -> Callable[[Point, Any], Direction]:
        """Return a method that solves with the positive semidefinite stand-in G and the shift of this trial."""

        def solve(point: Point, mask: Any) -> Direction:
            G = point.hessian(point.convexified()).dense()
            shift = (1e-10 if B.eps(G) < 1e-10 else 1e-5) * 100.0**trial
            p, ok, slope = _solve_shifted(point, G, shift)
            return Direction(p, ok, namespace(ok).zeros_like(ok), slope=slope)

        return solve

    def _escape(self, point: Point, mask: Any) -> Direction:
        H = _rows(self.H, mask)
        xp = namespace(H)
        finite = xp.isfinite(xp.sum(H, axis=(-2, -1), keepdims=True))  # LAPACK refuses what is not
        direction = escape(point, *lowest_eigenpair(xp.where(finite, H, xp.zeros_like(H))))
        direction.products = 0
        return direction


def _shifts(H: Array) -> tuple[float, float]:
    """Return the first relative shift of H, and the larger one (maybe the same) before H counts as indefinite."""
    larger = rounding_shift(H)
    return max(LEAST_SHIFT * B.eps(H), min(larger, HARMLESS)), larger


def _rows(H: Array, mask: Any) -> Array:
    if mask.all():
        return H
    return namespace(H).take(H, B.indices(mask, H), axis=0)


def lowest_eigenpair(H: Array) -> tuple[Array, Array, Array]:
    """Return the lowest eigenvalue (k,), its eigenvector (k, d), and the spectral norm (k,) of H (k, d, d)."""
    xp = namespace(H)
    values, vectors = xp.linalg.eigh(H)
    return values[:, 0], vectors[:, :, 0], xp.max(xp.abs(values), axis=-1)


def _solve_shifted(point: Point, H: Array, shift: float) -> tuple[Array, Array, Array | None]:
    """Return -(H + shift diag(H))^-1 g, whether that matrix is positive definite, and None.

    Where the loss has kinks, return the minimiser of the model that has them too, and its first-order change.

    This is a shift of the Jacobi-scaled Hessian, which has a unit diagonal: the scale of a column of A does not matter.
    A diagonal entry that is not positive counts as the largest one.
    """
    xp = namespace(H)
    shifts = shift * usable_diagonal(H, point.problem.rows.inner.column_squares)
    p, ok = B.solve_if_posdef(H, point.step_grads, shifts)
    ok = ok & xp.isfinite(shifts[:, 0])  # all of them are infinite where one entry of the diagonal is
    if not point.problem.rows.has_kinks:
        return -p, ok, None
    p, slope = minimum_with_kinks(point, H + B.eye(H.shape[-1], H) * shifts[:, None, :], -p, ok)
    return p, ok, slope
