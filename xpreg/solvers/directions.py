"""What the directions of several methods have in common: leaving a saddle, and mending some problems of a stack."""

from __future__ import annotations

from typing import Any

from .. import backend as B
from ..backend import Array, namespace
from ..problem import Point
from .base import Direction


def escape(point: Point, curvature: Array, v: Array, norm: Array) -> Direction:
    """Leave a stationary point along v (k, d) where its curvature is negative beyond rounding; stay elsewhere.

    The direction points downhill (or either way at a zero gradient), and changes an exponent by 1 at unit step.
    """
    xp = namespace(v)
    rounding = 64.0 * v.shape[-1] * B.eps(v)
    size = point.head.change(point.rows.apply(v))
    negative = (curvature < -rounding * norm) & (size > 0)
    slope = xp.sum(v * point.least_grads, axis=-1)
    uphill = slope > 0
    size = xp.where(negative, size, xp.ones_like(size))
    scale = xp.where(uphill, -1.0 / size, 1.0 / size)
    p = xp.where(negative[:, None], v * scale[:, None], xp.zeros_like(v))
    bend = xp.where(negative, curvature * scale * scale, xp.zeros_like(scale))
    slope = xp.where(negative, slope * scale, xp.zeros_like(scale)) if point.problem.rows.has_kinks else None
    return Direction(p, xp.ones_like(negative), ~negative, bend, slope)


def take(point: Point, mask: Any) -> Point:
    """Return the point of the problems in ``mask``, a boolean array on the host."""
    if mask.all():
        return point
    xp = namespace(point.x)
    indices = B.indices(mask, point.x)
    y = namespace(point.y).take(point.y, indices, axis=0)
    return point.problem.take(indices).point(xp.take(point.x, indices, axis=0), y)


def merge(direction: Direction, mask: Any, part: Direction) -> None:
    """Write the directions of the problems in ``mask`` back into those of the stack."""
    xp = namespace(direction.p)
    if mask.all():
        place = None
    else:
        position = mask.cumsum() - 1
        position[~mask] = 0
        place = B.new(position, direction.p, dtype=xp.int64)
    chosen = B.new(mask, direction.p, dtype=xp.bool)

    def put(old: Array, new: Array) -> Array:
        new = new if place is None else xp.take(new, place, axis=0)
        return xp.where(xp.reshape(chosen, (-1,) + (1,) * (new.ndim - 1)), new, old)

    direction.p, direction.q = put(direction.p, part.p), None
    direction.ok = put(direction.ok, part.ok)
    direction.convex = put(direction.convex, part.convex)
    if part.bend is not None:
        old = xp.zeros_like(direction.p[:, 0]) if direction.bend is None else direction.bend
        direction.bend = put(old, part.bend)
    if part.slope is not None and direction.slope is not None:
        direction.slope = put(direction.slope, part.slope)
    direction.products += part.products
