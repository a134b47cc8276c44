"""Normalised regression 0.5 |g(z)/<g(z),1> - b|^2 with any convex activation g; ResNet-softmax is g = exp(z) + z."""

from __future__ import annotations

from .. import backend as B
from ..activations import Activation, exp_plus_linear
from ..backend import Array, namespace, quiet
from ..curvature import Curvature, symmetric_2x2
from .base import Head, HeadPoint


class Normalised(Head):
    """L = 0.5 |c|^2,  c = f - b,  f = u/alpha,  u = g(z),  alpha = <u,1>.

    Defined where alpha > 0. For ResNet-softmax exp(t) + t < 0 below t = -0.567143, so alpha can vanish: a pole.

    References
    ----------
    arXiv 2309.13482 (ResNet-softmax regression); MATH section 1.
    """

    normalised, power = True, 1
    undefined = (
        "the normaliser alpha = sum g(z) is not positive, so the loss is not defined there: start closer to x = 0 "
        "(where alpha > 0), or subtract the column means from A, which makes alpha >= n for every x"
    )

    def __init__(self, name: str, activation: Activation):
        self.name, self.activation = name, activation
        self.kernel = "resnet" if activation is exp_plus_linear else None

    def at(self, z: Array, b: Array) -> NormalisedPoint:
        return NormalisedPoint(self.activation, z, b)


class NormalisedPoint(HeadPoint):
    """Keeps f, c - s, v = u1/alpha and u2/alpha; everything is times e^-m inside, so that nothing overflows.

    c - s is taken relative to the c of the largest f, as in `SoftmaxPoint`: f sums to 1, so that changes nothing but
    the digits when f saturates.
    """

    def __init__(self, activation: Activation, z: Array, b: Array):
        xp = namespace(z)
        top = B.row_argmax(z)
        largest = xp.take_along_axis(z, top, axis=-1)
        m = xp.where(largest > 0, largest, xp.zeros_like(largest))
        with quiet():
            u, u1, u2 = activation(z, m)
            alpha = B.row_sum(u, keepdims=True)
            self.m, self.alpha = m, alpha
            defined = alpha > 0
            safe = xp.where(defined, alpha, xp.ones_like(alpha))
            self.f, self.v, self.u2_alpha = u / safe, u1 / safe, u2 / safe
            c = self.f - b
            value = 0.5 * B.row_dot(c, c)
            c_top = xp.take_along_axis(c, top, axis=-1)
            c -= c_top
            s_rel = B.row_dot(c, self.f)[..., None]
            c -= s_rel
            self.s, self.c_s = c_top + s_rel, c
            self.value = xp.where(defined[..., 0] & xp.isfinite(value), value, xp.full_like(value, xp.inf))
            self.b = b
            self.g_z = self.v * self.c_s  # v*(c - s)

    def _rank_two(self, D: Array, e: Array, k11: Array) -> Curvature:
        xp = namespace(e)
        U = xp.stack([self.v, self.v * e], axis=-2)
        one = xp.ones_like(k11)
        return Curvature(D, U, symmetric_2x2(k11, -one, xp.zeros_like(k11)))

    def curvature(self) -> Curvature:
        """D = (u2/alpha)*(c - s) + v*v,  U = [v, v*e],  e = 2f - b,  K = [[2s + |f|^2, -1], [-1, 0]]."""
        f2 = B.row_dot(self.f, self.f)
        D = self.u2_alpha * self.c_s + self.v * self.v
        return self._rank_two(D, 2.0 * self.f - self.b, 2.0 * self.s[..., 0] + f2)

    def gauss_newton(self) -> Curvature:
        """D = v*v,  U = [v, v*f],  K = [[|f|^2, -1], [-1, 0]]."""
        f2 = B.row_dot(self.f, self.f)
        return self._rank_two(self.v * self.v, self.f, f2)

    def predict(self) -> Array:
        return self.f

    def is_reachable_from(self, start: HeadPoint, dz: Array) -> Array:
        """Prove alpha > 0 on the segment: alpha is convex along it, so it lies above its tangents at both ends.

        Where the tangents meet below zero nothing is proved, and the answer is no: the caller takes a shorter step,
        for which the proof succeeds in the end. So a line search cannot jump over the pole.
        """
        xp = namespace(dz)
        assert isinstance(start, NormalisedPoint)
        with quiet():
            m = xp.where(start.m > self.m, start.m, self.m)
            scale0, scale1 = xp.exp(start.m - m)[..., 0], xp.exp(self.m - m)[..., 0]
            a0, a1 = start.alpha[..., 0] * scale0, self.alpha[..., 0] * scale1
            d0, d1 = a0 * B.row_dot(start.v, dz), a1 * B.row_dot(self.v, dz)
            meet = a0 + d0 * ((a1 - d1 - a0) / (d0 - d1))
            return xp.isfinite(self.value) & ((d0 >= 0) | (d1 <= 0) | (meet > 0))
