"""What certificates need to know of the map at a point: singular values of the rows, where the activation cell ends.

For two layers H = N^T B N + A1^T E A1 with N = A2 S A1 and the diagonal E = W^2 + bend, inside the cell of the point.
"""

from __future__ import annotations

import functools
import math

from . import backend as B
from .backend import Array, namespace
from .maps import Map, TwoLayer
from .problem import Point


class Geometry:
    """The map at the points of a stack. Singular values are bounds that hold for every problem of it.

    Parameters
    ----------
    point : of a problem with one layer or two
    columns : up to so many, (d, d) matrices are formed for the singular values
    """

    def __init__(self, point: Point, columns: int):
        self.point, self.columns = point, columns
        self.layers = point.problem.rows if isinstance(point.problem.rows, TwoLayer) else None
        self.dense = point.problem.d <= columns

    @functools.cached_property
    def rows(self) -> tuple[float, float, float]:
        """Of A, or of N: bounds of the smallest and largest singular value, and the Frobenius norm."""
        return singular_values(self.point.rows, self.columns)

    @functools.cached_property
    def inner(self) -> tuple[float, float, float]:
        """The same of A1."""
        return singular_values(self.point.rows.inner, self.columns)

    @functools.cached_property
    def outer(self) -> float:
        """A bound of |A2|, so that N^T N <= |A2|^2 A1^T A1; 1 for one layer."""
        return 1.0 if self.layers is None else singular_values(self.layers.A2, self.columns)[1]

    @functools.cached_property
    def bend(self) -> list[float]:
        """The smallest entry of the diagonal that a smoothed relu brings in, of every problem; 0 without."""
        point = self.point
        bend = point.rows.bend(point.g_h)
        if bend is None:
            return [0.0] * point.x.shape[0]
        return [float(v) for v in B.read(namespace(bend).min(bend, axis=-1))[0]]

    @functools.cached_property
    def inner_range(self) -> tuple[list[float], list[float]]:
        """The smallest and the largest entry of E, of every problem; 0 for one layer, whose W^2 is part of B."""
        E = self.point.curvature().inner
        if E is None:
            zeros = [0.0] * self.point.x.shape[0]
            return zeros, zeros
        xp = namespace(E)
        low, high = B.read(xp.min(E, axis=-1), xp.max(E, axis=-1))
        return [float(v) for v in low], [float(v) for v in high]

    @functools.cached_property
    def reach(self) -> list[float]:
        """The distance min |y_i|/|a1_i| from every x to the next face of its cell; infinite without kinks."""
        point = self.point
        if self.layers is None or not self.layers.has_kinks:
            return [math.inf] * point.x.shape[0]
        xp = namespace(point.y)
        matters = (self.layers.unit_of_y > 0) & (self.layers.row_norms > 0)
        norms = xp.where(matters, self.layers.row_norms, xp.ones_like(self.layers.row_norms))
        distance = xp.min(xp.where(matters, xp.abs(point.y) / norms, xp.full_like(point.y, xp.inf)), axis=-1)
        return [float(v) for v in B.read(distance)[0]]

    def lower_bounds(self, low: list[float]) -> list[float]:
        """Return lower bounds of the eigenvalues of H, for lower bounds of those of B."""
        inner, _ = self.inner_range
        bounds = [_scaled(v, self.rows) for v in low]
        return [a + _scaled(v, self.inner) if v else a for a, v in zip(bounds, inner, strict=True)]

    def size(self, largest: float) -> float:
        """Return a bound of the trace norm of the terms of H, for a bound of |B|: what its rounding is relative to."""
        total = largest * self.rows[2] ** 2
        inner = max(max(abs(v) for v in part) for part in self.inner_range)
        return total + inner * self.inner[2] ** 2 if inner else total


def _scaled(v: float, values: tuple[float, float, float]) -> float:
    """Return the least eigenvalue that X^T diag(D) X with D >= v can have."""
    return v * (values[0] ** 2 if v >= 0 else values[1] ** 2)


def singular_values(rows: Map, columns: int) -> tuple[float, float, float]:
    """Return bounds of the smallest and the largest singular value of the rows, and the Frobenius norm, in n d^2.

    For d above ``columns`` 0 and the Frobenius norm. Where every problem of a stack has its own rows, the bounds hold
    for all of them.
    """
    xp, d = namespace(rows.like), rows.d
    eps = B.eps(rows.like)
    total: Array = xp.sum(rows.column_norms**2, axis=-1)
    if d > columns:
        frobenius = float(xp.max(total)) ** 0.5
        return 0.0, frobenius * (1 + 64 * eps), frobenius
    k = rows.column_norms.shape[0] if rows.column_norms.ndim == 2 else 1
    ones = rows.full(1.0)
    values = xp.linalg.eigvalsh(rows.gram(namespace(ones).broadcast_to(ones, (k, rows.n))))
    low, high, squares = (float(v) for v in B.read(xp.min(values), xp.max(values), xp.max(total)))
    slack = 16 * d * eps * squares
    return max(0.0, low - slack) ** 0.5, (high + slack) ** 0.5, squares**0.5
