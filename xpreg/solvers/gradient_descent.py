"""Gradient descent with Barzilai-Borwein step lengths: the baseline."""

from __future__ import annotations

from typing import Any, ClassVar

from ..backend import namespace
from ..problem import Point
from .base import Direction, Method


class GradientDescent(Method):
    """p = -h g, h = <s,s>/<s,y> from the last step s and gradient change y; the Cauchy step |g|^2/<g,Hg> otherwise.

    It sees no curvature: a zero gradient counts as a solution.

    References
    ----------
    Barzilai and Borwein, IMA J. Numer. Anal. 8 (1988), 141-148.
    """

    name: ClassVar[str] = "gradient-descent"

    def direction(self, point: Point, stationary: Any) -> Direction:
        xp = namespace(point.x)
        g = point.least_grads
        gg = xp.sum(g * g, axis=-1)
        bend = point.hessian().quadratic(g)  # <g, H g> from q = A g
        one = xp.ones_like(gg)
        bend = xp.abs(bend)  # where the curvature is negative, its size still has the right unit
        fallback = xp.where(bend > 0, gg / xp.where(bend > 0, bend, one), one)
        step = fallback
        if self.state:
            s, y = point.x - self.state["x"], g - self.state["g"]
            sy = xp.sum(s * y, axis=-1)
            step = xp.where(sy > 0, xp.sum(s * s, axis=-1) / xp.where(sy > 0, sy, one), fallback)
        self.state = {"x": point.x, "g": g}
        yes = gg == gg
        return Direction(-step[:, None] * g, yes, yes, label="gradient")
