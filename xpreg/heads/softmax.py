"""Softmax regression 0.5 |softmax(z) - b|^2."""

from __future__ import annotations

from .. import backend as B
from ..backend import Array, namespace
from ..curvature import Curvature
from .base import Head, HeadPoint


class Softmax(Head):
    """L = 0.5 |c|^2,  c = f - b,  f = softmax(z).

    References
    ----------
    arXiv 2304.10411 (softmax regression); MATH section 1, centred form.
    """

    name = "softmax"
    normalised, power = True, 1
    kernel = "softmax"

    def at(self, z: Array, b: Array) -> SoftmaxPoint:
        return SoftmaxPoint(z, b)


def softmax(z: Array) -> tuple[Array, Array, Array, Array]:
    """Return f = softmax(z) over the last axis, m = max z, log sum exp(z - m), and the index of m, (..., 1) each."""
    xp = namespace(z)
    top = B.row_argmax(z)
    m = xp.take_along_axis(z, top, axis=-1)
    f = B.exp_in_place(z - m)
    alpha = B.row_sum(f, keepdims=True)
    f /= alpha
    return f, m, xp.log(alpha), top


class SimplexPoint(HeadPoint):
    """A head whose prediction is f = softmax(z): shifting z by a constant changes nothing."""

    f: Array

    def predict(self) -> Array:
        return self.f

    def change(self, dz: Array) -> Array:
        """The largest deviation from the f-weighted mean: a common shift of z changes nothing."""
        return super().change(dz - B.row_dot(self.f, dz)[..., None])


class SoftmaxPoint(SimplexPoint):
    """Keeps f and g_z.

    The gradient f*(c - s), s = <c,f>, is invariant to a constant added to c. Taking the constant -c_top, where f is
    largest, keeps every digit when f saturates: c_top - s would cancel there.
    """

    def __init__(self, z: Array, b: Array):
        xp = namespace(z)
        self.f, _, _, top = softmax(z)
        c = self.f - b
        self.value = 0.5 * B.row_dot(c, c)
        c_top = xp.take_along_axis(c, top, axis=-1)
        c -= c_top
        s_rel = B.row_dot(c, self.f)[..., None]
        c -= s_rel
        c *= self.f
        self.g_z = c  # f*(c - s)
        self.s, self.b = c_top + s_rel, b

    def curvature(self) -> Curvature:
        """Centred at f: D = q = f*(2f - b - s)."""
        q = 2.0 * self.f
        q -= self.b
        q -= self.s
        q *= self.f
        return Curvature(q, centre=self.f)

    def gauss_newton(self) -> Curvature:
        """Centred at f: D = f*f."""
        return Curvature(self.f * self.f, centre=self.f)
