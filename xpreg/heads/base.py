"""What a head must know: the loss at z, its gradient in z, and its curvature in z."""

from __future__ import annotations

import abc

from .. import backend as B
from ..backend import Array, namespace, quiet
from ..curvature import Curvature
from ..errors import InvalidArgumentError


class HeadPoint(abc.ABC):
    """A loss at a fixed z (..., n).

    Attributes
    ----------
    value : (...) loss; +inf where it is not defined or overflows
    g_z : (..., n) gradient in z; meaningless where the loss is not defined
    """

    value: Array
    g_z: Array

    @abc.abstractmethod
    def curvature(self) -> Curvature:
        """The exact second derivative in z."""

    @abc.abstractmethod
    def gauss_newton(self) -> Curvature:
        """Its Gauss-Newton part, which is positive semidefinite."""

    def convexified(self) -> Curvature:
        """A positive semidefinite stand-in for an indefinite curvature: Gauss-Newton, unless a head knows better."""
        return self.gauss_newton()

    @abc.abstractmethod
    def predict(self) -> Array:
        """What the model predicts for b, (..., n)."""

    def change(self, dz: Array) -> Array:
        """Return how far a step dz goes, (...): the largest change of an exponent, which is 1 when e^z grows e-fold."""
        return B.row_max(namespace(dz).abs(dz))

    def is_reachable_from(self, start: HeadPoint, dz: Array) -> Array:
        """Return whether the loss is defined on the whole segment from ``start``, dz = z - z_start: (...) bool.

        A point that is not finite is never reachable; heads with poles say more.
        """
        return namespace(dz).isfinite(self.value)


class Head(abc.ABC):
    """A loss as a function of z and b."""

    name: str
    undefined: str = "the loss overflows: the entries of z = A x are too large for this dtype"
    """Why a value can be infinite; for the error message."""

    separable: bool = False
    """Whether the loss is a sum over rows, so that a block of them can be evaluated without the others."""

    normalised: bool = False
    """Whether b is compared with u over its sum: then those of a sample of the rows are larger."""

    power: int = -1
    """The loss of one row in omega, as `of_rows` has it, is about omega^power times that of all: -1 for a sum."""

    kernel: str | None = None
    """The activation of `xpreg.kernels` that is this loss, where there is one."""

    @abc.abstractmethod
    def at(self, z: Array, b: Array) -> HeadPoint:
        """Evaluate at z (..., n) with b (..., n)."""

    def of_rows(self, b: Array, which: Array) -> Array:
        """Return the b (k, m) of some rows whose fit estimates that of all; what all rows fit exactly, these do too."""
        xp = namespace(b)
        some = xp.take(b, which, axis=-1)
        if not self.normalised:
            return some
        with quiet():
            return some * (B.row_sum(b, keepdims=True) / B.row_sum(some, keepdims=True))

    def scale(self, b: Array) -> Array:
        """Return the loss (...) that a prediction without any fit has: by it a loss is small."""
        return 0.5 * B.row_dot(b, b)

    def check_b(self, b: Array) -> None:  # noqa: B027 - most losses accept any finite b
        """Refuse a ``b`` that this loss has no meaning for."""


def check_distribution(b: Array, loss: str) -> None:
    """Refuse a ``b`` (..., n) that has a negative entry or does not sum to 1.

    Raises
    ------
    InvalidArgumentError
        Naming the smallest entry, or the sum that is furthest from 1.
    """
    xp = namespace(b)
    lowest, error = B.read(xp.min(b), xp.max(xp.abs(xp.sum(b, axis=-1) - 1.0)))
    if lowest < 0:
        raise InvalidArgumentError(
            f"b has an entry {lowest:.3g}, but the {loss} loss needs a distribution: no negative entries."
        )
    if error > max(1e-6, B.eps(b) ** 0.5):
        raise InvalidArgumentError(
            f"b sums to 1 only up to {error:.3g}, but the {loss} loss needs a distribution: divide b by its sum "
            "over the last axis."
        )
