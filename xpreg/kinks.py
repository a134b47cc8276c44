"""Kinks: faces y_i = <a1_i, x> = 0 across which the gradient jumps, and what stationary means on them.

Where y_i grows through 0 the gradient jumps by c_i a1_i, c = A2^T g_z. For c_i > 0 the kink is convex: the slope
across it grows, and a minimiser can sit on it. For c_i < 0 it is concave: the loss lies below both linear models, so
a step never has to mind it, and a minimiser never sits on it.

References
----------
Clarke, Optimization and Nonsmooth Analysis (1983), section 2.3; MATH section 3.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from . import backend as B
from .backend import Array, namespace
from .maps import Chain, TwoLayer

if TYPE_CHECKING:
    from .problem import Point

TOUCH = 16.0
"""A point lies on a face when |y_i| <= TOUCH eps (|x| |a1_i| + 1/max|A2_ji|): the rounding error of a scalar product,
and what changes no exponent by more than rounding; with a margin."""

INTERIOR = 1e-9
"""A multiplier further than this from the ends of its interval, whose length is 1, is not at an end."""

FEWEST = 128
"""At least so many faces are looked at together, and at least 2 d: a minimiser lies on d unless it is degenerate; what
is left out makes a point look less stationary, never more."""

PROJECTED_ROUNDS = 12
"""Projected Newton steps in `least_in_box` before its active-set method."""


@dataclasses.dataclass(frozen=True)
class Faces:
    """Some faces of each problem of a stack: J of them, padded with faces that have V = 0.

    The subgradients that they allow are g + V^T mu, lo <= mu <= hi, with g the gradient `Point.step_grads`.

    Attributes
    ----------
    index : (k, J) which units
    V : (k, J, d) jumps of the gradient c_i a1_i
    r : (k, J) c_i y_i
    lo : (k, J) -1 where the unit is active, else 0; hi = lo + 1
    """

    index: Array
    V: Array
    r: Array
    lo: Array


def most_faces(layers: Chain) -> int:
    """Return how many faces are looked at together at most."""
    return min(layers.inner.n, max(2 * layers.d, FEWEST))


def layers_of(point: Point) -> TwoLayer:
    """Return the map of a point: only two layers have kinks."""
    assert isinstance(point.problem.rows, TwoLayer)
    return point.problem.rows


def choose(point: Point, wanted: Array, order: Array) -> Faces | None:
    """Return the ``wanted`` faces (k, n) bool, those of the least ``order`` (k, n) first; None where there are none.

    Reads one number per problem, where looking is not free.
    """
    xp = namespace(point.y)
    count = xp.sum(xp.astype(wanted, point.y.dtype), axis=-1)
    J = int(B.read(count)[0].max())
    if J == 0:
        return None
    layers = layers_of(point)
    J = min(J, most_faces(layers))
    index = xp.argsort(xp.where(wanted, order, xp.full_like(order, xp.inf)), axis=-1)[:, :J]
    c = xp.take_along_axis(xp.where(wanted, point.g_h, xp.zeros_like(order)), index, axis=-1)
    y = xp.take_along_axis(point.y, index, axis=-1)
    a = xp.take(layers.inner.A, xp.reshape(index, (-1,)), axis=0)
    V = c[:, :, None] * xp.reshape(a, (*index.shape, layers.d))
    return Faces(index, V, c * y, -xp.astype(y > 0, y.dtype))


def convex(point: Point) -> Array:
    """Return which units (k, n) have a convex kink."""
    return point.g_h > 0


def touching(point: Point) -> Array:
    """Return which faces (k, n) the points lie on, up to the rounding of y."""
    xp = namespace(point.x)
    eps = B.eps(point.x)
    layers = layers_of(point)
    size = xp.linalg.vector_norm(point.x, axis=-1, keepdims=True) * layers.row_norms + layers.unit_of_y
    return xp.abs(point.y) <= TOUCH * eps * size


@dataclasses.dataclass(frozen=True)
class Kinks:
    """The kinks that the points of a stack lie on.

    Attributes
    ----------
    faces : the convex ones, (k, J), or None
    mu : (k, J) multipliers of the subgradient of least norm, or None
    grads : (k, d) gradients where the units on concave kinks are active; a step may go by them, the loss lies below
    least_grads : (k, d) the subgradient of least norm, with the concave kinks taken so
    """

    faces: Faces | None
    mu: Array | None
    grads: Array
    least_grads: Array

    def slope(self, p: Array) -> Array:
        """Return <g, p> and what the convex kinks add to it, (k,): sum of max mu <V, p> over lo <= mu <= lo + 1."""
        xp = namespace(p)
        slope = xp.sum(self.grads * p, axis=-1)
        if self.faces is None:
            return slope
        low = self.faces.lo * product(self.faces.V, p)
        high = low + product(self.faces.V, p)
        return slope + xp.sum(xp.where(low > high, low, high), axis=-1)

    @functools.cached_property
    def tangent(self) -> Array | None:
        """The projectors (k, d, d) onto the directions that stay on the kinks whose multipliers are not at an end.

        Moving off such a kink raises the loss at first order. None where there are no convex kinks.
        """
        if self.faces is None:
            return None
        V, lo = self.faces.V, self.faces.lo
        xp = namespace(V)
        stay = (self.mu > lo + INTERIOR) & (self.mu < lo + (1.0 - INTERIOR))
        norm = xp.linalg.vector_norm(V, axis=-1)
        stay = stay & (norm > 0)
        unit = V / xp.where(stay, norm, xp.ones_like(norm))[:, :, None]
        unit = xp.where(stay[:, :, None], unit, xp.zeros_like(unit))
        values, vectors = xp.linalg.eigh(unit.mT @ unit)
        free = xp.astype(values < B.eps(V) ** 0.75, V.dtype)
        return (vectors * free[:, None, :]) @ vectors.mT


def kinks_at(point: Point) -> Kinks | None:
    """Return the kinks that the points lie on, with the subgradient of least norm; None where there are none."""
    xp = namespace(point.x)
    c, on = point.g_h, touching(point)
    if not B.read(xp.astype(xp.any(on & (c != 0)), c.dtype))[0]:
        return None
    concave = on & (c < 0) & (point.y <= 0)
    g = point.grads + point.rows.inner.adjoint(xp.where(concave, c, xp.zeros_like(c)))
    faces = choose(point, on & convex(point), -c)
    if faces is None:
        return Kinks(None, None, g, g)
    V = faces.V
    mu = least_in_box(V @ V.mT, product(V, g), faces.lo)
    return Kinks(faces, mu, g, g + product(V.mT, mu))


def least_in_box(Q: Array, w: Array, lo: Array) -> Array:
    """Minimise 0.5 <mu, Q mu> + <w, mu> over lo <= mu <= lo + 1, for a stack; mu = 0 lies in the box.

    A few projected Newton steps find most of the variables that end at a bound. Then comes an active-set method, which
    is finite: minimise over the free variables; stop at the first bound that is met and fix what met it; at a minimum
    free the variables whose gradient points into the box. Q may be singular: a step along its kernel meets a bound.

    Parameters
    ----------
    Q : (k, J, J) positive semidefinite
    w : (k, J)
    lo : (k, J)

    References
    ----------
    Bertsekas, SIAM J. Control Optim. 20 (1982), 221-246; Stark and Parker, Computational Statistics 10 (1995), 129-141.
    """
    xp = namespace(Q)
    eps = B.eps(Q)
    J = Q.shape[-1]
    hi, one, identity, size = lo + 1.0, xp.ones_like(w), B.eye(J, Q), xp.abs(Q)
    diagonal = xp.linalg.diagonal(Q)
    scale = xp.where(diagonal > 0, diagonal, one)

    def newton_step(free: Array, g: Array) -> Array:
        both = free[:, :, None] & free[:, None, :]
        M = xp.where(both, Q, 0.0 * Q) + identity * (scale * xp.where(free, 16.0 * J * eps * one, one))[:, None, :]
        return -xp.linalg.solve(M, xp.where(free, g, 0.0 * g)[..., None])[..., 0]

    def done(running: Array, round: int) -> bool:
        known = B.peek(running)
        if known is None and round % 4 == 3:
            known = B.read(xp.astype(running, Q.dtype))[0] != 0
        return known is not None and not known.any()

    mu = 0.0 * w
    for round in range(PROJECTED_ROUNDS):
        g = w + product(Q, mu)
        free = ~(((mu <= lo) & (g >= 0)) | ((mu >= hi) & (g <= 0)))
        noise = 16.0 * eps * (xp.abs(w) + product(size, xp.abs(mu)))
        if done(xp.any(free & (xp.abs(g) > noise), axis=-1), round):
            return mu
        newton = newton_step(free, g)
        steps = xp.stack([newton, 0.25 * newton, -g / scale, -0.1 * g / scale], axis=1)
        target = xp.maximum(
            xp.minimum(mu[:, None, :] + steps, hi[:, None, :]), lo[:, None, :]
        )  # clip would read the host
        move = target - mu[:, None, :]
        change = xp.sum(move * (g[:, None, :] + 0.5 * (move @ Q)), axis=-1, keepdims=True)
        best = (change <= xp.min(change, axis=1, keepdims=True)) & (change < 0)
        best = best & (xp.cumulative_sum(xp.astype(best, xp.int64), axis=1) == 1)
        mu = mu + xp.sum(xp.where(best, move, 0.0 * move), axis=1)
        mu = xp.where(mu < lo, lo, xp.where(mu > hi, hi, mu))
    free = (mu > lo) & (mu < hi)
    for round in range(4 * J + PROJECTED_ROUNDS):
        g = w + product(Q, mu)
        noise = 16.0 * eps * (xp.abs(w) + product(size, xp.abs(mu)))
        inward = ~free & xp.where(mu <= lo, g < -noise, g > noise)
        at_minimum = ~xp.any(free & (xp.abs(g) > noise), axis=-1, keepdims=True)
        if done(xp.any(inward, axis=-1) | ~at_minimum[:, 0], round):
            break
        free = free | (inward & at_minimum)
        newton = newton_step(free, g)
        moving = free & (newton != 0)
        room = xp.where(newton > 0, hi - mu, lo - mu) / xp.where(moving, newton, one)
        room = xp.where(moving, room, 2.0 * one)
        first = xp.min(room, axis=-1, keepdims=True)
        blocked = (room <= first) & (first < 1.0)
        mu = mu + xp.where(first < 1.0, first, one[:, :1]) * newton
        mu = xp.where(blocked, xp.where(newton > 0, hi, lo), mu)
        mu = xp.where(mu < lo, lo, xp.where(mu > hi, hi, mu))
        free = free & ~blocked
    return mu


def product(Q: Array, v: Array) -> Array:
    """Return Q v for stacks of matrices and vectors."""
    return (Q @ v[..., None])[..., 0]
