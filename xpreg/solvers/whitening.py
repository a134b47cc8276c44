"""Preconditioners T with T^T H~ T = I: what they whiten, and how the low rank of a curvature is taken in."""

from __future__ import annotations

from ..backend import Array, namespace
from ..curvature import Curvature, Hessian
from ..kinks import product
from ..maps import Map
from ..problem import Point
from ..scaling import REPAIR_SHIFT
from .newton_cg import Variables

FLOOR = 0.1
"""Smallest eigenvalue that the low-rank part may leave in a whitened sample; below, it is raised to this."""


Diagonal = tuple[Map, Array, Array | None]
"""Rows, weights D (k, n) >= 0 and their centre (k, n) or None: one term A_c^T diag(D) A_c of H_+."""


def repair_shift(G: Array) -> float:
    """Return the relative shift of a positive semidefinite stand-in that may be singular."""
    return REPAIR_SHIFT if G.dtype == namespace(G).float64 else REPAIR_SHIFT**0.5


def _positive(D: Array) -> Array:
    return namespace(D).where(D > 0, D, namespace(D).zeros_like(D))


def positive_diagonals(point: Point, curvature: Curvature) -> list[Diagonal]:
    """Return the diagonals of a curvature, made positive: D over A or N, and what two layers have over A1."""
    found: list[Diagonal] = [(point.rows, _positive(curvature.D), curvature.centre)]
    if curvature.inner is not None:
        found.append((point.rows.inner, _positive(curvature.inner), None))
    return found


def with_low_rank(T: Array, hessian: Hessian) -> tuple[Array, Array]:
    """Return T with the low-rank part taken in, and whether H~ was positive definite (k,).

    T^T (G + P^T K P) T = I + Q^T K Q, Q = P T (r, d): its eigenvalues 1 + lam off 1 are those of an (r, r) matrix.
    """
    xp = namespace(T)
    P, K = hessian.low_rank, hessian.curvature.K
    if P is None:
        return T, xp.ones_like(T[:, 0, 0]) > 0
    if P.shape[-2] > P.shape[-1]:  # fewer columns than the rank: d = 1
        lam, V = xp.linalg.eigh((P @ T).mT @ (K @ (P @ T)))
    else:
        O, R = xp.linalg.qr((P @ T).mT, mode="reduced")
        lam, V = xp.linalg.eigh(R @ K @ R.mT)
        V = O @ V  # (k, d, r)
    positive = xp.all(1.0 + lam > FLOOR, axis=-1)
    stretch = 1.0 / xp.sqrt(xp.where(1.0 + lam > FLOOR, 1.0 + lam, FLOOR * xp.ones_like(lam))) - 1.0
    return T + (T @ V) * stretch[:, None, :] @ V.mT, positive


def whitened(T: Array, ridge: Array) -> Variables:
    """Return the variables y with x = T y."""
    return Variables(lambda y: product(T, y), lambda g: product(T.mT, g), ridge)
