"""Jacobi scaling: what makes a Gram matrix, which squares a condition number, fit for a Cholesky factorisation."""

from __future__ import annotations

from . import backend as B
from .backend import Array, namespace

SHIFT = 8.0
"""The scaled Hessian (unit diagonal) gets SHIFT * d * eps on its diagonal, its own rounding error: so a Hessian that is
singular up to rounding (a duplicate or constant column) still has a factor, and a regular one does not notice."""

REPAIR_SHIFT = 1e-10
"""The same for a Gauss-Newton matrix far from the solution, which may be singular; its square root in float32."""


def jacobi(H: Array) -> Array:
    """Return s (k, d): s_i H_ij s_j has a unit diagonal, or a small one where H_ii is no more than rounding."""
    xp = namespace(H)
    diagonal = xp.linalg.diagonal(H)
    largest = xp.max(xp.abs(diagonal), axis=-1, keepdims=True)
    tiny = largest * float(xp.finfo(H.dtype).eps)
    usable = xp.where(diagonal > tiny, diagonal, xp.where(largest > 0, largest, xp.ones_like(largest)))
    return 1.0 / xp.sqrt(usable)


def whiten(G: Array, least: float = 0.0) -> tuple[Array, Array]:
    """Return T (k, d, d) and r (k, d) with T^T (G + diag(r)) T = I, for positive semidefinite G.

    r is the rounding error of G, relative to its diagonal, as in the exact method; or ``least`` times the diagonal,
    whichever is more.
    """
    xp = namespace(G)
    d = G.shape[-1]
    s = jacobi(G)
    G = s[:, :, None] * G * s[:, None, :]
    shift = max(least, SHIFT * d * float(xp.finfo(G.dtype).eps)) * xp.ones_like(G[:, :1, :1])
    while True:
        L, ok = B.cholesky(G + shift * B.eye(d, G))
        if bool(xp.all(ok)):
            with B.all_threads(L):
                return s[:, :, None] * xp.linalg.inv(L).mT, shift[:, 0, :] / (s * s)
        shift = xp.where(ok[:, None, None], shift, 100.0 * shift)  # rare: rounding made it indefinite
