"""Gram-Gauss-Newton: a k n x k n solve with the tangent kernel instead of a d m x d m one."""

from __future__ import annotations

import math
from typing import Any

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from . import checks, kernels, memory
from .gradient_descent import HALVINGS, Move, stuck
from .linearise import Linearisation
from .network import TwoLayerNetwork
from .result import NAN, TrainStatus

DENSE_LIMIT = 10_000
"""Largest k n that ``gram="auto"`` factorises: beyond, the cube of it outweighs the products of an iterative solve."""

ARMIJO = 0.1
"""Fraction of the linear decrease that a step must give (Nocedal and Wright, section 3.1): not the customary 1e-4,
so that directions which the kernel promises and the network does not keep are left for a larger ridge."""

SHORT_SEARCH = 2
"""Step lengths that are tried before the ridge grows."""

RIDGE_FACTOR = 100.0
"""Growth and decay of the ridge, in multiples of the mean kernel diagonal, from rounding level ..."""

RIDGE_MAX = 1e-2
"""... to here, where directions are close to the gradient's and the step may become as short as it takes."""

LEAST_GAIN = 1e-6
"""An iteration on a singular kernel that lowers the loss by less, relatively, leaves what is out of reach."""

CG_TOL = 1e-3
"""Relative residual of the inner solve, times the outer relative residual below 1: a superlinear outer rate
(Dembo, Eisenstat and Steihaug 1982)."""

CG_MAXITER = 1000

STATE = ("dense", "ridge", "singular", "first")
"""Numbers that one iteration hands to the next."""


class GramGaussNewton:
    """W <- W - t J^T alpha,  (m H + damping * mean diagonal) alpha = F - y,  t from 1 by halving.

    Cholesky where the kernel fits, else conjugate gradients on products with J^T and J. A kernel that is not
    positive definite to working precision, or whose direction only a tiny step survives, gets a growing ridge, which
    the records show; full steps take it away again (Levenberg and Marquardt's rule).
    """

    noisy = False

    def __init__(
        self,
        network: TwoLayerNetwork,
        X: Array,
        Y: Array,
        *,
        step: float | None,
        damping: float,
        gram: str,
        max_bytes: int | None,
    ) -> None:
        if gram not in ("auto", "cholesky", "cg"):
            raise InvalidArgumentError(f"gram is {gram!r}, but 'auto', 'cholesky' or 'cg' is needed.")
        self.X, self.Y, self.step, self.damping, self.max_bytes = X, Y, step or 1.0, damping, max_bytes
        needed, size = network.footprint(X.shape[0]).gram_bytes, network.k * X.shape[0]
        available = memory.limit(X, max_bytes)
        fits = available is None or needed <= available
        if gram == "cholesky":
            memory.require(needed, X, what=f"the kernel (k n = {size}) and its factor", remedy="gram='cg'",
                           max_bytes=max_bytes)  # fmt: skip
        self.dense = gram == "cholesky" or (gram == "auto" and fits and size <= DENSE_LIMIT)
        self.ridge = self.singular = self.first = 0.0
        if not damping:
            checks.distinct(X)
            if size > network.n_parameters:
                raise InvalidArgumentError(
                    f"k n is {size} but d m is {network.n_parameters}: the kernel of more targets than parameters is "
                    f"singular. Take m >= {-(-size // network.d)}, or pass damping > 0."
                )

    def start(self, network: TwoLayerNetwork) -> Move:
        """Evaluate the start."""
        self.at, self.R, self.g, numbers = self._evaluate(network)
        self.first = self.first or math.sqrt(2 * numbers[0])
        return Move(network, *numbers)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, beside the weights."""
        return {name: float(getattr(self, name)) for name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of an earlier run, its choice between Cholesky and conjugate gradients included."""
        for name in STATE:
            setattr(self, name, float(state[name]))

    def advance(self, network: TwoLayerNetwork, nit: int, loss: float) -> Move:
        """Do one iteration from ``network``, whose loss is given."""
        H = self._kernel(network) if self.dense else None
        floor = 10 * B.eps(self.X) * self.R.shape[0] * self.R.shape[1]
        while True:
            last = self.ridge >= RIDGE_MAX
            D, inner = self._solve_cg(math.sqrt(2 * loss)) if H is None else (self._solve_dense(H), NAN)
            self.singular = 1.0 if D is None else self.singular * (self.ridge > 0)
            if D is not None:
                move = self._search(network, loss, D, inner, HALVINGS if last else SHORT_SEARCH)
                if move.status is None and move.step == self.step:
                    self.ridge = self.ridge / RIDGE_FACTOR if self.ridge > floor else 0.0
                if move.status is not TrainStatus.STALLED:
                    break
            if last:
                move = Move(network, loss, status=TrainStatus.STALLED)
                break
            self.ridge = max(RIDGE_FACTOR * self.ridge, floor)
        if self.singular and (move.status is not None or loss - move.loss < LEAST_GAIN * loss):
            return Move(network, loss, status=TrainStatus.SINGULAR)
        return move

    def _search(self, network: TwoLayerNetwork, loss: float, D: Array, inner: float, halvings: int) -> Move:
        """Halve the step along -D until the loss falls enough."""
        slope, t = -float(B.read(B.namespace(D).sum(self.g * D))[0]), self.step
        if stuck(loss, -slope, D) is TrainStatus.STATIONARY:
            return Move(network, loss, status=TrainStatus.STATIONARY)
        for _ in range(halvings):
            trial = network.with_weights(network.W - t * D)
            at, R, g, (loss_t, grad_norm) = self._evaluate(trial)
            if loss_t <= loss + ARMIJO * t * slope and loss_t < loss:
                self.at, self.R, self.g = at, R, g
                return Move(trial, loss_t, grad_norm, t, self.damping + self.ridge, inner)
            t /= 2
        return Move(network, loss, status=TrainStatus.STALLED)

    def _evaluate(self, network: TwoLayerNetwork) -> Any:
        xp = B.namespace(self.X)
        at = Linearisation(network, self.X, keep=True)
        R = at.predict() - self.Y
        g = at.pull(R)
        return at, R, g, [float(v) for v in B.read(0.5 * xp.sum(R * R), xp.max(xp.abs(g)))]

    def _kernel(self, network: TwoLayerNetwork) -> Array:
        return kernels.compute(kernels.TangentKernel(network), self.X, None, None, self.max_bytes)

    def _solve_dense(self, H: Array) -> Array | None:
        """D = J^T (m H + ridge)^-1 R, or None when the matrix is not positive definite to working precision."""
        xp = B.namespace(H)
        n, k = self.R.shape
        ridge = self.damping + self.ridge
        K = H + (ridge * xp.mean(xp.linalg.diagonal(H))) * B.eye(k * n, H) if ridge else H
        L, ok = B.cholesky(K)
        if not B.read(ok)[0]:
            return None
        alpha = B.solve_posdef(K, L, xp.reshape(self.R.T, (k * n,)) / self.at.network.m)
        return self.at.pull(xp.reshape(alpha, (k, n)).T)

    def _solve_cg(self, residual: float) -> tuple[Array, int]:
        """D (d, m) by conjugate gradients on min |J D - R|^2 + ridge |D|^2, and the iterations it took.

        From D = 0 their limit is J^T (J J^T + ridge)^-1 R. |J D - R| falls in every iteration, so that stopping
        early still gives a descent direction (conjugate gradients on the kernel itself would not).
        """
        xp = B.namespace(self.X)
        ridge = self.damping + self.ridge
        ridge = ridge * self._mean_diagonal() if ridge else 0.0
        tol = CG_TOL * min(1.0, residual / self.first)
        D, R, S = 0.0 * self.g, self.R, self.g
        Q, gamma = S, xp.sum(S * S)
        target_R, target_S = tol**2 * xp.sum(R * R), tol**4 * gamma
        iterations = 0
        while iterations < CG_MAXITER:
            iterations += 1
            JQ = self.at.push(Q)
            t = gamma / B.safe_divisor(xp.sum(JQ * JQ) + ridge * xp.sum(Q * Q))  # 0/0 when it has ended, unseen
            D, R = D + t * Q, R - t * JQ
            S = self.at.pull(R) - ridge * D
            gamma, previous = xp.sum(S * S), gamma
            if B.look((xp.sum(R * R) <= target_R) | ~(gamma > target_S), iterations, gamma):
                break
            Q = S + (gamma / B.safe_divisor(previous)) * Q
        return D, iterations

    def _mean_diagonal(self) -> Array:
        """Mean diagonal of J J^T: sum_l |P_{l,i}|^2 |x_i|^2 over k n."""
        xp, k = B.namespace(self.X), self.at.network.k
        total = B.zeros((), self.X)
        for block in self.at.blocks():
            q = xp.sum(block.X * block.X, axis=1)[:, None]
            for l in range(k):
                P = self.at.pull_block(block, xp.broadcast_to(B.eye(k, self.X)[l, :], (block.X.shape[0], k)))
                total = total + xp.sum(P * P * q)
        return total / (k * self.X.shape[0])
