"""Jacobi scaling: what makes a Gram matrix, which squares a condition number, fit for a Cholesky factorisation."""

from __future__ import annotations

from . import backend as B
from .backend import Array, namespace

ROUNDING = 8.0
"""ROUNDING * d * eps is about the rounding error of a scaled Hessian (unit diagonal)."""

REPAIR_SHIFT = 1e-10
"""The same for a Gauss-Newton matrix far from the solution, which may be singular; its square root in float32."""


def rounding_shift(H: Array, eps: float | None = None) -> float:
    """Return the shift of the diagonal of a scaled H (..., d, d) that is its own rounding error.

    With it a Hessian that is singular up to rounding (a duplicate or constant column) still has a factor, and a regular
    one does not notice.
    """
    return ROUNDING * H.shape[-1] * (B.eps(H) if eps is None else eps)


def usable_diagonal(H: Array, squares: Array) -> Array:
    """Return the diagonal (k, d) of H = A^T B A (k, d, d); its largest entry where an entry is no more than rounding.

    Entries are compared in columns of length 1, whatever their units: ``squares`` (d,) are `Map.column_squares` of A.
    """
    xp = namespace(H)
    diagonal = xp.linalg.diagonal(H)
    largest = squares * xp.max(xp.abs(diagonal / squares), axis=-1, keepdims=True)
    return xp.where(diagonal > B.eps(H) * largest, diagonal, xp.where(largest > 0, largest, squares))


def jacobi(H: Array, squares: Array) -> Array:
    """Return s (k, d): s_i H_ij s_j has a unit diagonal, or a small one where H_ii is no more than rounding."""
    return 1.0 / namespace(H).sqrt(usable_diagonal(H, squares))


def whiten(G: Array, squares: Array, least: float = 0.0) -> tuple[Array, Array]:
    """Return T (k, d, d) and r (k, d) with T^T (G + diag(r)) T = I, G positive semidefinite, ``squares`` as there.

    r is the rounding error of G, relative to its diagonal, as in the exact method; or ``least`` times the diagonal,
    whichever is more. Where G is not finite T is NaN, and so is every direction made with it.
    """
    xp = namespace(G)
    d = G.shape[-1]
    finite = xp.all(xp.isfinite(G), axis=(-2, -1))[:, None, None]
    G = xp.where(finite, G, B.eye(d, G))
    s = jacobi(G, squares)
    G = s[:, :, None] * G * s[:, None, :]
    shift = max(least, rounding_shift(G)) * xp.ones_like(G[:, :1, :1])
    while True:
        L, ok = B.cholesky(G + shift * B.eye(d, G))
        if bool(xp.all(ok)):
            T = s[:, :, None] * B.inverse_transposed(L)
            return xp.where(finite, T, xp.full_like(T, xp.nan)), shift[:, 0, :] / (s * s)
        shift = xp.where(ok[:, None, None], shift, 100.0 * shift)  # rare: rounding made it indefinite
