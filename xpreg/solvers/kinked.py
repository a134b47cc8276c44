"""Steps where the loss has kinks: the quadratic model keeps the convex kinks that it meets, so that it ends on them.

Plain Newton cycles between the two sides of a kink. Here the model at x is

    m(p) = <g, p> + 0.5 <p, H p> + sum over convex kinks of c_i excess_i(p),
    excess_i(p) = relu(y_i + q_i) - relu(y_i) - S_i q_i >= 0,  q = A1 p,

which is convex and exact to second order for steps that end on the kinks it ends on, so Newton stays quadratic there.
Its dual is a small problem in the multipliers of the kinks, which lie in boxes of length 1.
"""

from __future__ import annotations

from .. import backend as B
from ..backend import Array, namespace
from ..kinks import choose, convex, least_in_box, product, touching
from ..problem import Point
from ..scaling import rounding_shift

ROUNDS = 4
"""How often the faces that the last step crosses are added. What is still missing, the line search notices."""


def minimum_with_kinks(point: Point, H: Array, p: Array, ok: Array) -> tuple[Array, Array]:
    """Return the minimiser of m, (k, d), and the change of its terms of first order, (k,).

    Parameters
    ----------
    H : (k, d, d)
    p : (k, d) the minimiser without kinks, -H^-1 g
    ok : (k,) bool, whether H is positive definite; elsewhere the result means nothing
    """
    xp = namespace(p)
    y, g = point.y, point.step_grads
    p = xp.where(ok[:, None], p, xp.zeros_like(p))
    H = xp.where(ok[:, None, None], H, B.eye(H.shape[-1], H))
    s = 1.0 / xp.sqrt(xp.linalg.diagonal(H))
    H = s[:, :, None] * H * s[:, None, :] + _ridge(H)
    on, up = touching(point), convex(point)
    wanted, order = on & up, xp.where(on, -xp.ones_like(y), xp.full_like(y, xp.inf))
    free, slope = -s * xp.linalg.solve(H, (s * g)[..., None])[..., 0], xp.sum(g * p, axis=-1)
    for round in range(ROUNDS):
        q = point.rows.inner.apply(p)
        crossed = up & ~on & ((y > 0) != (y + q > 0))
        new = crossed & ~wanted
        if round > 0 and not B.read(xp.astype(xp.any(new), p.dtype))[0]:
            break
        size = xp.where(q != 0, xp.abs(q), xp.ones_like(q))
        order = xp.where(new, xp.abs(y) / size, order)
        wanted = wanted | new
        faces = choose(point, wanted, order)
        if faces is None:
            break
        Vs = faces.V * s[:, None, :]
        X = xp.linalg.solve(H, Vs.mT)
        r = faces.r
        mu = least_in_box(Vs @ X, -product(faces.V, free) - r, faces.lo)
        p = free - s * product(X, mu)
        slope = xp.sum(g * p, axis=-1) + xp.sum(mu * (r + product(faces.V, p)), axis=-1)
    return p, slope


def _ridge(H: Array) -> Array:
    """Return the rounding error of a matrix of unit diagonal, as one: no singular matrix is solved with."""
    return rounding_shift(H) * B.eye(H.shape[-1], H)


def on_kinks(point: Point, H: Array) -> Array:
    """Return T H T + h (I - T) for the projector T onto the kinks where the points stay, h = max|H_jj|.

    That is positive definite where H is along these kinks: across them the first-order terms decide.
    """
    T = None if point.kinks is None else point.kinks.tangent
    if T is None:
        return H
    xp = namespace(H)
    h = xp.max(xp.abs(xp.linalg.diagonal(H)), axis=-1)[:, None, None]
    return T @ H @ T + h * (B.eye(H.shape[-1], H) - T)


def downhill(point: Point, p: Array) -> Array:
    """Return p (k, d), or a steepest descent step where the kinks that the point lies on make p lead uphill."""
    if point.kinks is None:
        return p
    xp = namespace(p)
    g = point.least_grads
    gg, gHg = xp.sum(g * g, axis=-1), point.hessian(point.gauss_newton()).quadratic(g)
    step = gg / xp.where(gHg > 0, gHg, gg + xp.astype(gg == 0, gg.dtype))
    return xp.where((point.slope(p) < 0)[:, None], p, -step[:, None] * g)


def first_minimum(point: Point, q: Array, slope: Array) -> Array:
    """Return the step t (k,) to the first kink at which slope (1 - t) plus the jumps so far is no longer negative.

    That is where a ray whose model without kinks has its minimum at t = 1 finds one before; inf where it does not.
    The faces that the point lies on do not count.
    """
    xp = namespace(q)
    c, y = point.g_h, point.y
    inf = xp.full_like(y, xp.inf)
    crossing = (q != 0) & ((y > 0) != (q > 0)) & ~touching(point)
    t = xp.where(crossing, -y / xp.where(crossing, q, xp.ones_like(q)), inf)
    order = xp.argsort(t, axis=-1)
    t = xp.take_along_axis(t, order, axis=-1)
    jump = xp.take_along_axis(xp.where(crossing, xp.abs(q) * c, xp.zeros_like(q)), order, axis=-1)
    ahead = xp.where(t < 1.0, slope[:, None] * (1.0 - t), xp.zeros_like(t))
    turned = (t < 1.0) & (ahead + xp.cumulative_sum(jump, axis=-1) >= 0)
    return xp.min(xp.where(turned, t, inf), axis=-1)
