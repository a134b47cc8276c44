"""Eigenvalues of the tangent kernel without the Jacobian."""

from __future__ import annotations

from .. import backend as B
from .linearise import Linearisation


def largest_eigenvalue(at: Linearisation, *, seed: int = 0, tol: float = 1e-3, maxiter: int = 100) -> float:
    """Estimate lambda_max(H) by power iteration from a seeded start.

    With |v| = 1 the Rayleigh quotient of H = J J^T / m is |J^T v|^2 / m: a lower bound that grows in every
    iteration. It stops when it grows by less than ``tol``, relatively.
    """
    xp = B.namespace(at.X)
    v = B.random_normal((at.X.shape[0], at.network.k), seed, at.X)
    estimate = 0.0
    for _ in range(maxiter):
        u = at.pull(v / xp.sqrt(xp.sum(v * v)))
        previous, estimate = estimate, float(B.read(xp.sum(u * u))[0]) / at.network.m
        if not estimate > (1.0 + tol) * previous:
            break
        v = at.push(u)
    return estimate
