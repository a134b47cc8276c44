"""Unnormalised regression 0.5 |g(z) - b|^2 with g = exp, cosh or sinh."""

from __future__ import annotations

from .. import backend as B
from ..activations import Activation
from ..backend import Array, namespace, quiet
from ..curvature import Curvature
from .base import Head, HeadPoint


class Elementwise(Head):
    """L = 0.5 |r|^2,  r = g(z) - b.

    References
    ----------
    arXiv 2303.15725 (exp, cosh and sinh regression); MATH section 2.
    """

    separable = True

    def __init__(self, name: str, activation: Activation):
        self.name, self.activation = name, activation

    def at(self, z: Array, b: Array) -> ElementwisePoint:
        return ElementwisePoint(self.activation, z, b)


class ElementwisePoint(HeadPoint):
    """Keeps g, g', g'' and r."""

    def __init__(self, activation: Activation, z: Array, b: Array):
        xp = namespace(z)
        with quiet():
            self.g, self.g1, self.g2 = activation(z)
            self.r = self.g - b
            value = 0.5 * B.row_sum(self.r * self.r)
            self.value = xp.where(xp.isfinite(value), value, xp.full_like(value, xp.inf))
            self.g_z = self.g1 * self.r

    def curvature(self) -> Curvature:
        """D = g'^2 + r g''."""
        with quiet():
            return Curvature(self.g1 * self.g1 + self.r * self.g2)

    def gauss_newton(self) -> Curvature:
        """D = g'^2."""
        with quiet():
            return Curvature(self.g1 * self.g1)

    def convexified(self) -> Curvature:
        """D = g'^2 + |r g''|: near z = 0 the Gauss-Newton part of cosh vanishes, and gives no scale for a step."""
        with quiet():
            return Curvature(self.g1 * self.g1 + namespace(self.r).abs(self.r * self.g2))

    def predict(self) -> Array:
        return self.g
