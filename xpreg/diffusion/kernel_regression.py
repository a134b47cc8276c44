"""Kernel regression with the limit kernel of the softmax network, in bounded memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from ..memory import require
from ..networks.linearise import block_slices

EXACT_LIMIT = 8192
"""Points up to which every point is a centre: their kernel takes 0.5 GB in float64, twice that with its factor."""

CENTRES = 1000
"""Centres beyond that: on the embedded sphere the kernel's eigenvalues fall fast, and more centres changed the error
of a 2-D mixture little (500, 1000, 2000 centres: 0.41, 0.41, 0.40 % of the label variance)."""


def limit_kernel(sigma: float, U: Array, V: Array) -> Array:
    """Return K(U, V) = <u, v> exp(sigma^2 <u, v>) (n, n2), for points U (n, p) and V (n2, p).

    It is the tangent kernel of an infinitely wide softmax network, of which every output has its own copy.
    """
    G = U @ V.T
    return G * B.namespace(U).exp(sigma**2 * G)


@dataclasses.dataclass(frozen=True)
class KernelExpansion:
    """F(u) = sum_j K(u, c_j) C_j.

    Attributes
    ----------
    centres : (M, p) c_j
    coefficients : (M, k) C_j
    sigma : of the kernel
    """

    centres: Array
    coefficients: Array
    sigma: float

    def predict(self, U: Array) -> Array:
        """Return F (n, k) for points U (n, p), tile by tile."""
        K = functools.partial(limit_kernel, self.sigma)
        parts = [K(U[I, :], self.centres) @ self.coefficients for I in block_slices(U, self.centres.shape[0])]
        return parts[0] if len(parts) == 1 else B.namespace(U).concat(parts, axis=0)


class NormalEquations:
    """(G + lambda I) z = r for kernel ridge regression on points U (n, p) with labels Y (n, k).

    With every point a centre: G = K, r = Y, and z are the coefficients. With M < n centres c (Nystrom's method):
    F(u) = K(u, c) P z with P P^T = K(c, c)^-1, so G = P^T K(c, U) K(U, c) P and r = P^T K(c, U) Y, added up over tiles
    of U. P = Q diag(e^-1/2) comes from the eigenvalues e of K(c, c) above rounding level, so that nearly equal centres
    do no harm. Memory: five M x M arrays at most (measured: 4.5) and a tile, whatever n.
    """

    def __init__(self, U: Array, Y: Array, *, centres: Array | None, sigma: float) -> None:
        xp = B.namespace(U)
        self.sigma, K = sigma, functools.partial(limit_kernel, sigma)
        M = U.shape[0] if centres is None else centres.shape[0]
        require(
            5 * M * M * B.itemsize(U),
            U,
            what=f"kernel regression with {M} centres",
            remedy="a smaller centres, or float32",
        )
        if centres is None:
            self.centres, self.lift = U, None
            self.G, self.r = K(U, U), Y
            return
        self.centres = centres
        e, Q = xp.linalg.eigh(K(centres, centres))
        smallest, largest = 8 * M * B.eps(U), float(B.read(e[-1])[0])
        (rank,) = B.read(xp.sum(xp.astype(e > smallest * largest, U.dtype)))
        keep = slice(M - int(rank), M)
        self.lift = Q[:, keep] / xp.sqrt(e[keep])
        self.G = self.r = 0.0
        self.add(U, Y)

    def add(self, U: Array, Y: Array) -> None:
        """Take further points and labels in; with centres only, since they stay what they are."""
        K = functools.partial(limit_kernel, self.sigma)
        for I in block_slices(U, self.centres.shape[0]):
            Phi = K(U[I, :], self.centres) @ self.lift
            self.G, self.r = self.G + Phi.T @ Phi, self.r + Phi.T @ Y[I, :]

    def solve(self, ridge: float) -> KernelExpansion:
        """Solve with lambda = ridge * k(u, u), where k(u, u) = exp(sigma^2) on the unit sphere.

        Raises
        ------
        InvalidArgumentError
            G + lambda I is not positive definite in this precision.
        """
        H = self.G + ridge * math.exp(self.sigma**2) * B.eye(self.G.shape[0], self.G)
        L, ok = B.cholesky(H)
        if not B.read(ok)[0]:
            raise InvalidArgumentError(
                f"ridge is {ridge:g}, but the kernel needs a larger one to be positive definite in {H.dtype}."
            )
        xp = B.namespace(H)
        z = xp.stack([B.solve_posdef(H, L, self.r[:, l]) for l in range(self.r.shape[1])], axis=1)
        return KernelExpansion(self.centres, z if self.lift is None else self.lift @ z, self.sigma)


def fit_kernel(
    U: Array,
    Y: Array,
    validation: tuple[Array, Array],
    *,
    sigma: float,
    ridges: Sequence[float],
    centres: int | None,
    seed: Any,
    callback: Callable[[int, float, float, float], Any],
) -> tuple[KernelExpansion, float]:
    """Fit with every ridge, keep the one of the lowest validation loss, and fit it once more on all the points.

    The ridge is to the kernel what the training time is to the network: gradient descent of length T shrinks what
    ridge 1/(step T) shrinks.

    Parameters
    ----------
    U, Y : (n, p) points and (n, k) labels
    validation : the same, held out
    sigma : of the kernel
    ridges : to try, in units of k(u, u); from the largest on
    centres : number of centres; None takes all points up to EXACT_LIMIT, else CENTRES of them
    seed : of the choice of centres
    callback : called with (number, ridge, loss, validation loss) after each, the losses being means of |F - y|^2;
        raising StopIteration leaves the other ridges out

    Returns
    -------
    The fitted expansion, and its ridge
    """
    xp, n = B.namespace(U), U.shape[0]
    if centres is None:
        centres = n if n <= EXACT_LIMIT else CENTRES
    chosen = None if centres >= n else xp.take(U, B.random_permutation(n, seed, U)[:centres], axis=0)
    equations = NormalEquations(U, Y, centres=chosen, sigma=sigma)
    best, lowest = 0.0, math.inf
    for nit, ridge in enumerate(sorted(ridges, reverse=True)):
        F = equations.solve(ridge)
        loss, held_out = (
            float(v) for v in B.read(*(xp.sum((F.predict(u) - y) ** 2) / u.shape[0] for u, y in ((U, Y), validation)))
        )
        if held_out < lowest:
            best, lowest = ridge, held_out
        try:
            callback(nit, ridge, loss, held_out)
        except StopIteration:
            break
    if chosen is None:
        everything = [xp.concat(pair) for pair in zip((U, Y), validation, strict=True)]
        equations = NormalEquations(*everything, centres=None, sigma=sigma)
    else:
        equations.add(*validation)
    return equations.solve(best), best
