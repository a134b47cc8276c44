"""Eigenvalues of the tangent kernel without the Jacobian."""

from __future__ import annotations

from .. import backend as B
from .linearise import Linearisation


def largest_eigenvalue(at: Linearisation, *, seed: int = 0, tol: float = 1e-2, maxiter: int = 100) -> float:
    """Estimate lambda_max(H) by power iteration on J^T J / m, which has the same positive eigenvalues as H.

    From a seeded start with |V| = 1 the estimate |J^T J V| / m is a lower bound that grows in every iteration, each
    one pass over the points. It stops when it grows by less than ``tol``, relatively.
    """
    xp = B.namespace(at.X)
    V, estimate = B.random_normal((at.network.d, at.network.m), seed, at.X), 0.0
    V = V / xp.sqrt(xp.sum(V * V))
    for _ in range(maxiter):
        U = at.push_pull(V)
        size = xp.sqrt(xp.sum(U * U))
        previous, estimate = estimate, float(B.read(size)[0]) / at.network.m
        if not estimate > (1.0 + tol) * previous:
            break
        V = U / size
    return estimate
