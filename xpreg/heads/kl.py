"""Softmax regression with the Kullback-Leibler loss sum b log(b/softmax(z)): convex, with the same exact fits."""

from __future__ import annotations

from .. import backend as B
from ..backend import Array, namespace, quiet
from ..curvature import Curvature
from .base import Head, check_distribution
from .softmax import SimplexPoint, softmax


class SoftmaxKL(Head):
    """L = sum b log(b/f),  f = softmax(z),  for distributions b.

    Evaluated as sum [b log(b/f) - b + f], which is the same up to 1 - sum b.

    References
    ----------
    MATH section 1 (the convex companion of the squared loss).
    """

    name = "softmax-kl"
    normalised, power = True, 0

    def at(self, z: Array, b: Array) -> SoftmaxKLPoint:
        return SoftmaxKLPoint(z, b)

    def scale(self, b: Array) -> Array:
        """1: a factor of e between b and f everywhere."""
        return namespace(b).ones_like(b[..., 0])

    def check_b(self, b: Array) -> None:
        check_distribution(b, "KL")


class SoftmaxKLPoint(SimplexPoint):
    """Keeps f and g_z = beta f - b, beta = sum b."""

    def __init__(self, z: Array, b: Array):
        xp = namespace(z)
        self.f, m, log_alpha, _ = softmax(z)
        self.beta = B.row_sum(b, keepdims=True)
        self.g_z = self.beta * self.f - b
        # sum b log(b/f) = sum [b log(b/f) - b + f] for distributions; no term of the right is negative, and with
        # r = (f - b)/b it is b (r - log1p(r)), which does not cancel where f is close to b
        positive = b > 0
        with quiet():
            safe = xp.where(positive, b, xp.ones_like(b))
            r = (self.f - b) / safe
            close = b * (r - xp.log1p(r))
            far = b * (xp.log(safe) + log_alpha - (z - m)) - b + self.f
            terms = xp.where(xp.abs(r) < 0.5, close, far)
        self.value = B.row_sum(xp.where(positive, terms, self.f))

    def curvature(self) -> Curvature:
        """Centred at f: D = beta f."""
        return Curvature(self.beta * self.f, centre=self.f)

    gauss_newton = curvature
