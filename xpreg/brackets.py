"""O(n) bounds of the eigenvalues of B, the second derivative of a loss in z."""

from __future__ import annotations

from typing import Any

from . import backend as B
from .backend import Array, namespace
from .curvature import Curvature, symmetric_2x2
from .heads.kl import SoftmaxKLPoint
from .heads.softmax import SoftmaxPoint


def bracket(curvature: Curvature, w2: Array | None = None) -> tuple[Array, Array]:
    """Return bounds (k,), (k,) of the eigenvalues of B + diag(w2) in O(n).

    B = diag(D) + U^T K U, so min D + min(0, rho) <= eig <= max D + max(0, rho) with the eigenvalues rho of U^T K U,
    which are those of an (r, r) matrix; r = 2 gives min D - (<h,v> + |h||v|) and max D + (|h||v| - <h,v>). With a
    centre C^T diag(D) C = diag(D) - D f^T - f D^T + sum(D) f f^T.
    """
    xp = namespace(curvature.D)
    D, U, K = curvature.D, curvature.U, curvature.K
    if curvature.centre is not None:
        one = xp.ones_like(D[..., 0])
        U = xp.stack([D, curvature.centre], axis=-2)
        K = symmetric_2x2(0.0 * one, -one, xp.sum(D, axis=-1))
    low, high = xp.min(D if w2 is None else D + w2, axis=-1), xp.max(D if w2 is None else D + w2, axis=-1)
    if U is not None:
        scale = xp.linalg.vector_norm(U, axis=-1)  # rows of U of one size: the (r, r) matrix then rounds less
        scale = B.safe_divisor(scale)
        L = B.lower_factor(U / scale[..., None])
        rho = xp.linalg.eigvalsh(L.mT @ (K * scale[..., :, None] * scale[..., None, :]) @ L)
        low = low + xp.where(rho[..., 0] < 0, rho[..., 0], xp.zeros_like(low))
        high = high + xp.where(rho[..., -1] > 0, rho[..., -1], xp.zeros_like(high))
        slack = 64.0 * B.eps(D) * xp.max(xp.abs(rho), axis=-1)
        low, high = low - slack, high + slack
    slack = 8.0 * B.eps(D) * xp.max(xp.abs(D), axis=-1)
    return low - slack, high + slack


def simplex_bounds(head: Any) -> tuple[Array, Array] | None:
    """Return bounds (k,), (k,) of the eigenvalues of B that use the variance bound |diag(f) - f f^T| <= 1/2.

    Softmax: B = C^T diag(f*e) C with e = 2f - b - s lies between min(0, min e)/2 and max(0, max e)/2, and between
    n|f|^2 times the extremes of q (with 0). KL: between 0 and sum(b)/2.
    """
    if isinstance(head, SoftmaxKLPoint):
        half = 0.5 * head.beta[..., 0] * (1.0 + 1e-6)
        return 0.0 * half, half
    if not isinstance(head, SoftmaxPoint):
        return None
    xp = namespace(head.f)
    e = 2.0 * head.f - head.b - head.s
    q = head.f * e
    factor = head.f.shape[-1] * xp.sum(head.f * head.f, axis=-1)
    zero = xp.zeros_like(factor)
    e_low, e_high = xp.minimum(xp.min(e, axis=-1), zero), xp.maximum(xp.max(e, axis=-1), zero)
    q_low, q_high = xp.minimum(xp.min(q, axis=-1), zero), xp.maximum(xp.max(q, axis=-1), zero)
    slack = 64.0 * B.eps(q) * xp.max(xp.abs(e), axis=-1)
    return (
        xp.maximum(0.5 * e_low, factor * q_low) - slack,
        xp.minimum(0.5 * e_high, factor * q_high) + slack,
    )
