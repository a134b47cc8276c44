"""Gaussian mixtures: the data distribution whose score is known exactly at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

from .. import backend as B
from ..arguments import require_integers
from ..backend import Array
from ..errors import DomainError, InvalidArgumentError
from .process import OrnsteinUhlenbeck, per_row, require_points


class GaussianMixture:
    """X_0 ~ sum_k w_k N(m_k, diag(s_k^2)), noised by the Ornstein-Uhlenbeck process, in closed form.

    Parameters
    ----------
    means : (K, d) m_k
    scales : (K,), or (K, d) one for every axis: standard deviations s_k >= 0. Zeros are point masses: with the
        training points as means this is the minimiser of the empirical denoising loss, the denoiser that memorises
    weights : (K,) w_k, on the simplex; equal when left out
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``: moves the arrays there

    Raises
    ------
    InvalidArgumentError
        Wrong shapes, non-finite entries, a negative scale, weights that are not on the simplex.

    Notes
    -----
    With v_k = alpha^2 s_k^2 + h, component k of X_t is N(alpha m_k, diag(v_k)), and

        r_k(x)  = w_k N(x; alpha m_k, v_k) / sum_j w_j N(x; alpha m_j, v_j)
        score   = sum_k r_k (alpha m_k - x) / v_k
        E[X_0 | X_t = x] = sum_k r_k (h m_k + alpha s_k^2 x) / v_k

    No term is divided by h, so small t costs no digits. The r_k come from a shifted log-sum-exp: far from every
    component they stay a distribution.

    Examples
    --------
    >>> import numpy as np
    >>> mixture = GaussianMixture(np.array([[-1.0, 0.0], [1.0, 0.0]]), np.array([0.3, 0.3]))
    >>> mixture.posterior_mean(np.array([[0.0, 0.0], [30.0, 0.0]]), 3.0).round(3).tolist()
    [[0.0, 0.0], [1.626, 0.0]]
    >>> mixture.sample(3, seed=0).shape
    (3, 2)
    """

    def __init__(self, means: Array, scales: Array, weights: Array | None = None, *, device: str | None = None) -> None:
        means, scales = B.to_device(means, device), B.to_device(scales, device)
        weights = None if weights is None else B.to_device(weights, device)
        xp = B.common_namespace(means=means, scales=scales, weights=weights)
        require_points(means=means)
        K, d = means.shape
        if weights is None:
            weights = B.full((K,), 1.0 / K, means)
        if tuple(scales.shape) not in ((K,), (K, d)):
            raise InvalidArgumentError(f"scales has shape {tuple(scales.shape)}, but ({K},) or ({K}, {d}) is needed.")
        if tuple(weights.shape) != (K,):
            raise InvalidArgumentError(f"weights has shape {tuple(weights.shape)}, but ({K},) is needed.")
        with B.quiet():
            mean_size, scale_size, smallest_scale, smallest, total = (
                float(v)
                for v in B.read(
                    *(xp.max(xp.abs(means)), xp.max(scales), xp.min(scales), xp.min(weights), xp.sum(weights))
                )
            )
        if not mean_size < math.inf:
            raise InvalidArgumentError("means has entries that are NaN or infinite, but finite numbers are needed.")
        if not (smallest_scale >= 0.0 and scale_size < math.inf):
            raise InvalidArgumentError(
                f"scales ranges from {smallest_scale:g} to {scale_size:g}, but finite numbers >= 0 are needed."
            )
        if not (smallest >= 0.0 and abs(total - 1.0) <= 64 * K * B.eps(weights)):
            raise InvalidArgumentError(
                f"weights has the smallest entry {smallest:g} and the sum {total:.17g}, but no negative entry and the "
                "sum 1 are needed: weights / weights.sum()."
            )
        self.means, self.scales, self.weights = means, scales, weights / total
        self._variances = (scales if scales.ndim == 2 else xp.broadcast_to(scales[:, None], (K, d))) ** 2
        self._process = OrnsteinUhlenbeck()

    @property
    def d(self) -> int:
        """Dimension of the space."""
        return self.means.shape[1]

    @property
    def mean(self) -> Array:
        """(d,) E X_0."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Array:
        """(d, d) Cov X_0."""
        xp = B.namespace(self.means)
        centred = self.means - self.mean
        within = xp.sum(self.weights[:, None] * self._variances, axis=0)
        return xp.matrix_transpose(centred * self.weights[:, None]) @ centred + within * B.eye(self.d, self.means)

    def to_device(self, device: str) -> Self:
        """Return the mixture with its arrays on ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
        return type(self)(self.means, self.scales, self.weights, device=device)

    def sample(self, n: int, seed: Any) -> Array:
        """Draw X_0 (n, d). The same seed gives the same sample on every device."""
        require_integers(n=n)
        xp, rng = B.namespace(self.means), B.generator(seed)
        ends = xp.cumulative_sum(self.weights)
        which = xp.searchsorted(ends, B.random_uniform((n,), rng, self.means) * ends[-1], side="right")
        which = xp.minimum(which, B.full((), self.means.shape[0] - 1, which))
        scales = xp.take(xp.sqrt(self._variances), which, axis=0)
        return xp.take(self.means, which, axis=0) + scales * B.random_normal((n, self.d), rng, self.means)

    # -- everything below depends on x (n, d) and t, a positive number or (n,) --------------------

    def log_density(self, x: Array, t: Any) -> Array:
        """Return log p_t(x) (n,)."""

        def f(logits: Array, *_: Array) -> Array:
            xp = B.namespace(logits)
            top = xp.max(logits, axis=1)
            return top + xp.log(xp.sum(xp.exp(logits - top[:, None]), axis=1)) - 0.5 * self.d * math.log(2.0 * math.pi)

        return self._tiles(f, x, t)

    def responsibilities(self, x: Array, t: Any) -> Array:
        """Return r_k(x) (n, K), the probability that x at time t came from component k."""
        return self._tiles(lambda logits, *_: _softmax(logits), x, t)

    def score(self, x: Array, t: Any) -> Array:
        """Return the gradient (n, d) of log p_t at x."""

        def f(logits: Array, x: Array, alpha: Any, h: Any, v: Array) -> Array:
            r = _softmax(logits)[:, :, None]
            return B.namespace(x).sum(r * (alpha * self.means - x[:, None, :]) / v, axis=1)

        return self._tiles(f, x, t)

    def posterior_mean(self, x: Array, t: Any) -> Array:
        """Return E[X_0 | X_t = x] (n, d), the best denoiser."""

        def f(logits: Array, x: Array, alpha: Any, h: Any, v: Array) -> Array:
            r = _softmax(logits)[:, :, None]
            return B.namespace(x).sum(r * self._component_mean(x, alpha, h, v), axis=1)

        return self._tiles(f, x, t)

    denoise = posterior_mean

    def posterior_variance(self, x: Array, t: Any) -> Array:
        """Return E[|X_0 - E[X_0 | X_t]|^2 | X_t = x] (n,), the loss that no denoiser can beat."""

        def f(logits: Array, x: Array, alpha: Any, h: Any, v: Array) -> Array:
            xp, r = B.namespace(x), _softmax(logits)[:, :, None]
            mean = self._component_mean(x, alpha, h, v)
            spread = mean - xp.sum(r * mean, axis=1, keepdims=True)
            return xp.sum(r * (spread * spread + h * self._variances / v), axis=(1, 2))

        return self._tiles(f, x, t)

    # -- inside -------------------------------------------------------------------------------------

    def _component_mean(self, x: Array, alpha: Any, h: Any, v: Array) -> Array:
        """(h m_k + alpha s_k^2 x) / v_k  (n, K, d)."""
        return (h * self.means + alpha * self._variances * x[:, None, :]) / v

    def _tiles(self, f: Callable[..., Array], x: Array, t: Any) -> Array:
        """Call f(logits (n, K), x (n, d), alpha, h, v (., K, d)) on blocks of rows, and join the results."""
        xp = B.common_namespace(means=self.means, x=x)
        require_points(x=x)
        if x.shape[1] != self.d:
            raise InvalidArgumentError(f"x has shape {tuple(x.shape)}, but (n, {self.d}) is needed for this mixture.")
        largest = float(B.read(xp.max(xp.abs(x)))[0])
        limit = 1e-3 * float(xp.finfo(x.dtype).max) ** 0.5
        if not largest <= limit:
            raise DomainError(
                f"x has an entry of size {largest:.3g}, but finite entries up to {limit:.3g} are needed in {x.dtype}: "
                "their squares overflow."
            )
        t = per_row(t, x)
        rows = B.block_bytes(x, B.TILE_BYTES) // (B.itemsize(x) * self.means.shape[0] * self.d)
        results = []
        with B.quiet():
            log_w = xp.log(self.weights)
            for I in B.even_slices(x.shape[0], rows):
                x_I, t_I = x[I, :], t if isinstance(t, float) or t.shape[0] == 1 else t[I, :]
                t_I = t_I if isinstance(t_I, float) else t_I[:, :, None]
                alpha, h = self._process.alpha(t_I), self._process.h(t_I)
                v = alpha**2 * self._variances[None, :, :] + h
                distance = x_I[:, None, :] - alpha * self.means
                logits = log_w - 0.5 * xp.sum(distance * distance / v + xp.log(v), axis=2)
                results.append(f(logits, x_I, alpha, h, v))
        return results[0] if len(results) == 1 else xp.concat(results)


def _softmax(logits: Array) -> Array:
    xp = B.namespace(logits)
    r = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    return r / xp.sum(r, axis=1, keepdims=True)
