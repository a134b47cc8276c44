"""Rescaled regression 0.5 |u - alpha b|^2: the normalised problem without the division, and so without a pole."""

from __future__ import annotations

from .. import backend as B
from ..activations import Activation
from ..backend import Array, namespace, quiet
from ..curvature import Curvature, symmetric_2x2
from ..errors import DomainError
from .base import Head, HeadPoint


class Rescaled(Head):
    """L = 0.5 |r|^2,  r = u - alpha b,  u = g(z),  alpha = <u,1>.

    References
    ----------
    arXiv 2305.00660 (rescaled hyperbolic and exponential regression); MATH section 2.
    """

    normalised = True

    def __init__(self, name: str, activation: Activation):
        self.name, self.activation = name, activation

    def scale(self, b: Array) -> Array:
        """0: the loss vanishes with u, whether u fits or not, so no loss counts as small."""
        return namespace(b).zeros_like(b[..., 0])

    def at(self, z: Array, b: Array) -> RescaledPoint:
        return RescaledPoint(self.activation, z, b)


class RescaledPoint(HeadPoint):
    """Keeps u, g', g'', alpha and r - <b,r>."""

    def __init__(self, activation: Activation, z: Array, b: Array):
        xp = namespace(z)
        self.b = b
        with quiet():
            self.u, self.g1, self.g2 = activation(z)
            self.alpha = B.row_sum(self.u, keepdims=True)
            r = self.u - self.alpha * b
            value = 0.5 * B.row_sum(r * r)
            self.value = xp.where(xp.isfinite(value), value, xp.full_like(value, xp.inf))
            self.r_b = r - B.row_sum(b * r, keepdims=True)
            self.g_z = self.g1 * self.r_b  # g'*(r - <b,r>)

    def _with_diagonal(self, D: Array) -> Curvature:
        xp = namespace(D)
        with quiet():
            U = xp.stack([self.g1, self.g1 * self.b], axis=-2)
            b2 = B.row_sum(self.b * self.b) * xp.ones_like(self.value)
            one = xp.ones_like(b2)
            return Curvature(D, U, symmetric_2x2(b2, -one, xp.zeros_like(b2)))

    def curvature(self) -> Curvature:
        """D = g''*(r - <b,r>) + g'^2,  U = [g', g'*b],  K = [[|b|^2, -1], [-1, 0]]."""
        with quiet():
            return self._with_diagonal(self.g2 * self.r_b + self.g1 * self.g1)

    def gauss_newton(self) -> Curvature:
        """D = g'^2 with the same U and K."""
        with quiet():
            return self._with_diagonal(self.g1 * self.g1)

    def convexified(self) -> Curvature:
        """D = g'^2 + |g''*(r - <b,r>)| with the same U and K."""
        with quiet():
            return self._with_diagonal(self.g1 * self.g1 + namespace(self.u).abs(self.g2 * self.r_b))

    def predict(self) -> Array:
        """The normalised u/alpha, which the loss compares with b; not defined where alpha is 0."""
        xp = namespace(self.alpha)
        if bool(xp.any(self.alpha == 0)):
            raise DomainError(
                "the normaliser alpha = sum g(A x) is 0 at x, so there is no prediction u/alpha (the rescaled loss has "
                "a trivial minimum where u vanishes): start elsewhere."
            )
        with quiet():
            return self.u / self.alpha
