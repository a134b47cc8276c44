"""Second derivatives in z: a diagonal plus a low rank, and the Hessian that they give in x."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from .backend import Array, full, itemsize, namespace, row_dot, row_sum
from .memory import require

if TYPE_CHECKING:
    from .maps import Map
    from .maps.base import Product


LARGE = 256 * 2**20
"""Bytes from which on a Hessian is counted before it is formed."""


@dataclasses.dataclass(frozen=True)
class Curvature:
    """B = C^T diag(D) C + U^T K U, the second derivative of a loss in z; it is never formed as an (n, n) array.

    C = I - 1 f^T takes the f-weighted mean out of a vector; without ``centre`` it is the identity. The centred
    form of softmax does not cancel when f saturates or when A has a large common offset, where the equivalent
    diagonal plus rank two loses every digit.

    Attributes
    ----------
    D : (..., n) diagonal
    U : (..., r, n) low-rank rows, or None
    K : (..., r, r) their symmetric coupling, or None
    centre : (..., n) weights f that sum to 1, or None
    inner : (..., n) a second diagonal, in y = A1 x where the map goes on after it (two layers), or None
    """

    D: Array
    U: Array | None = None
    K: Array | None = None
    centre: Array | None = None
    inner: Array | None = None

    def plus_diagonal(self, w2: Array | None) -> Curvature:
        """Add diag(w2), w2 (n,): the regulariser.

        With a centre, W^2 = C^T W^2 C + w2 f^T + f w2^T - sum(w2) f f^T, so that one Gram matrix still does.
        """
        if w2 is None:
            return self
        if self.centre is None:
            return dataclasses.replace(self, D=self.D + w2)
        xp = namespace(self.D)
        U = xp.stack(xp.broadcast_arrays(w2, self.centre), axis=-2)
        zero, one = (full(self.D.shape[:-1], value, self.D) for value in (0.0, 1.0))
        K = symmetric_2x2(zero, one, -xp.sum(w2) * one)
        return dataclasses.replace(self, D=self.D + w2, U=U, K=K)

    def sensitivity(self) -> Array:
        """Return the size (..., n) of the diagonal part of B: how far an error of z_i moves the gradient in z_i.

        With a centre |D|*(1 - f): where f saturates, z itself does not matter any more.
        """
        D = namespace(self.D).abs(self.D)
        return D if self.centre is None else D * (1.0 - self.centre)

    def exact_sensitivity(self) -> Array:
        """Return the same with the diagonal of the low rank: without a centre, it is what cancels where f saturates."""
        if self.centre is not None or self.U is None or self.K is None:
            return self.sensitivity()
        total = 1.0 * self.D
        for i in range(self.U.shape[-2]):
            part = (self.K[..., i : i + 1, :] @ self.U)[..., 0, :]
            part *= self.U[..., i, :]
            total += part
        return namespace(total).abs(total)

    def product(self, t: Array) -> Array:
        """Return B t for t (..., n)."""
        if self.centre is None:
            y = self.D * t
        else:
            y = self.D * (t - row_dot(self.centre, t)[..., None])
            y -= self.centre * row_sum(y, keepdims=True)
        if self.U is not None:
            y += ((self.K @ row_dot(self.U, t[..., None, :])[..., None]).mT @ self.U)[..., 0, :]
        return y

    def quadratic(self, t: Array) -> Array:
        """Return <t, B t> (...) for t (..., n)."""
        return row_dot(t, self.product(t))


def symmetric_2x2(k11: Array, k12: Array, k22: Array) -> Array:
    """Assemble the (..., 2, 2) matrix [[k11, k12], [k12, k22]] from (...) entries."""
    xp = namespace(k11)
    return xp.stack([xp.stack([k11, k12], axis=-1), xp.stack([k12, k22], axis=-1)], axis=-2)


@dataclasses.dataclass(frozen=True)
class Hessian:
    """A^T B A in x, for a map A and a curvature B: dense, or as a product that reads A once.

    For two layers N^T B N + A1^T diag(inner) A1.

    Attributes
    ----------
    rows : the linear map x -> z
    curvature : B, with (k, n) diagonal
    """

    rows: Map
    curvature: Curvature

    @functools.cached_property
    def low_rank(self) -> Array | None:
        """P = U A (k, r, d), or None."""
        U = self.curvature.U
        return None if U is None else self.rows.adjoint(U)

    def dense(self, *, exact: bool = False) -> Array:
        """Return the (k, d, d) matrices; ``exact`` as in `Map.gram`."""
        B, d = self.curvature, self.rows.d
        nbytes = (B.D.shape[0] + 1) * d * d * itemsize(self.rows.like)
        if nbytes >= LARGE:
            require(
                nbytes, self.rows.like, what=f"the Hessian ({d}, {d}) and a block of its sum",
                remedy="hvp, which forms no (d, d) array, and method='newton-cg'",
            )  # fmt: skip
        H = self.rows.gram(B.D, B.centre, exact=exact)
        if B.inner is not None:
            H = H + self.rows.inner.gram(B.inner)
        P = self.low_rank
        if P is None:
            return H
        H = H + P.mT @ (B.K @ P)
        return 0.5 * (H + H.mT) if exact else H

    def quadratic(self, v: Array) -> Array:
        """Return <v, H v> (k,) for v (k, d)."""
        B = self.curvature
        total = B.quadratic(self.rows.apply(v))
        if B.inner is None:
            return total
        t = self.rows.inner.apply(v)
        return total + row_dot(B.inner * t, t)

    def operator(self) -> Product:
        """Return v -> H v, and A1 v where it is met on the way. What does not depend on v is worked out once."""
        B, P = self.curvature, self.low_rank
        multiply = self.rows.gram_operator(B.D, B.centre)
        inner = None if B.inner is None else self.rows.inner.gram_operator(B.inner)

        def product(v: Array) -> tuple[Array, Array | None]:
            Hv, y = multiply(v)
            if self.rows.inner is not self.rows:
                more, y = (0.0, None) if inner is None else inner(v)
                Hv = Hv + more
            if P is not None:
                Hv = Hv + (P.mT @ (B.K @ (P @ v[..., None])))[..., 0]
            return Hv, y

        return product
