"""The reverse process: how noise becomes data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .. import backend as B
from ..arguments import require_flags, require_integers, require_one_of
from ..backend import Array
from ..errors import InvalidArgumentError
from .process import OrnsteinUhlenbeck, log_noise_to_signal, require_interval, time_at


class Denoiser(Protocol):
    """What `sample` needs: an estimate of E[X_0 | X_t], and the first two moments of X_0."""

    @property
    def mean(self) -> Array:
        """(d,) E X_0."""

    @property
    def covariance(self) -> Array:
        """(d, d) Cov X_0."""

    def denoise(self, x: Array, t: Any) -> Array:
        """Return E[X_0 | X_t = x] (n, d)."""


class SampleRecord(NamedTuple):
    """One step of the reverse process.

    Attributes
    ----------
    nit : step, from 0
    t : time before the step
    x : (n, d) X_t
    """

    nit: int
    t: float
    x: Array


def time_grid(t_max: float, t_min: float, steps: int) -> list[float]:
    """Return steps + 1 times from t_max down to t_min, uniform in the logarithm of h/alpha^2 = e^t - 1.

    That is the noise-to-signal ratio: every step removes the same share of the noise.
    """
    low, high = log_noise_to_signal(t_min), log_noise_to_signal(t_max)
    inner = [time_at(high + (low - high) * i / steps) for i in range(1, steps)]
    return [float(t_max), *inner, float(t_min)]


def sample(
    model: Denoiser,
    n: int,
    *,
    steps: int = 100,
    seed: Any = 0,
    method: str = "sde",
    t_min: float | None = None,
    t_max: float | None = None,
    to_zero: bool = True,
    callback: Callable[[SampleRecord], Any] | None = None,
    device: str | None = None,
) -> Array:
    """Draw from the distribution that a score describes, by running the noising backwards from t_max to t_min.

    Parameters
    ----------
    model : a `ScoreModel`, a `GaussianMixture` (its exact score), or anything with ``denoise``, ``mean``,
        ``covariance``
    n : number of samples
    steps : steps from t_max to t_min, each one call of ``model.denoise``
    seed : of the start and, for the SDE, of the noise
    method : ``"sde"``, dY = (Y/2 + score(T-t, Y)) dt + dB, or ``"ode"``, the probability flow
        dY = (Y + score(T-t, Y))/2 dt, which has the same marginals and is a function of its start
    t_min, t_max : where to stop and to start; those of the model when left out
    to_zero : go from t_min to t = 0 in one last step of the probability flow. False returns X_{t_min}, noise included
    callback : called with a `SampleRecord` before each step; raising StopIteration ends the run with this X_t
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``: moves the model there

    Returns
    -------
    (n, d)

    Raises
    ------
    InvalidArgumentError
        n or steps is no positive integer; method is unknown; t_min and t_max are no interval above 0.

    Notes
    -----
    Both methods hold D = E[X_0 | X_t] during a step from t to s and solve the rest, which is linear, exactly; they are
    stable for every step length.

        sde   X_s ~ N((h_s a x + h_r alpha_s D)/h_t, h_s h_r/h_t I),  a = e^(-(t-s)/2), h_r = 1 - a^2: the law of X_s
              given X_t = x and X_0 = D. First order (weak).
        ode   x_s = b x + (alpha_s - b alpha_t) D,  b = sqrt(h_s/h_t), with D extrapolated to the middle of the step
              from this and the previous one: second order (DPM-Solver++(2M), arXiv 2211.01095).

    Start: the Gaussian with the first two moments of X_{t_max}, N(alpha m, alpha^2 C + h I). Last step: for
    xi = x/alpha and rho = h/alpha^2 the flow is d xi/d rho = (xi - D)/(2 rho), and the right side is -score/2, finite
    where the density is smooth: x_0 = (xi + D)/2, with an error of second order in rho.

    Examples
    --------
    >>> import numpy as np
    >>> import xpreg.diffusion
    >>> mixture = xpreg.diffusion.GaussianMixture(np.array([[-1.0], [2.0]]), np.array([0.1, 0.1]))
    >>> x = xpreg.diffusion.sample(mixture, 1000, steps=50, seed=0, t_min=0.01, t_max=5.0)
    >>> round(float(np.mean(x < 0.5)), 1)
    0.5
    """
    if device is not None:
        if not hasattr(model, "to_device"):
            raise InvalidArgumentError(
                f"device is {device!r}, but a {type(model).__name__} has no to_device: move it there yourself."
            )
        model = model.to_device(device)
    require_integers(n=n, steps=steps)
    require_one_of("method", method, ("sde", "ode"))
    require_flags(to_zero=to_zero)
    t_min, t_max = _limit(model, "t_min", t_min), _limit(model, "t_max", t_max)
    require_interval(t_min, t_max)
    rng, times = B.generator(seed), time_grid(t_max, t_min, steps)
    x, previous = _start(model, n, t_max, rng), None
    for nit, (t, s) in enumerate(itertools.pairwise(times)):
        try:
            if callback is not None:
                callback(SampleRecord(nit, t, x))
        except StopIteration:
            return x
        D = model.denoise(x, t)
        if method == "sde":
            x = _sde_step(x, D, t, s, B.random_normal(x.shape, rng, x))
        else:
            middle = D if previous is None else 1.5 * D - 0.5 * previous
            x, previous = _ode_step(x, middle, t, s), D
    return 0.5 * (x / OrnsteinUhlenbeck().alpha(t_min) + model.denoise(x, t_min)) if to_zero else x


def _limit(model: Denoiser, name: str, value: float | None) -> float:
    value = getattr(model, name, None) if value is None else value
    if value is None:
        raise InvalidArgumentError(f"{name} is None, but this model has none of its own: pass {name}.")
    return value


def _start(model: Denoiser, n: int, t: float, rng: Any) -> Array:
    """X_t ~ N(alpha m, alpha^2 C + h I), by the symmetric root of its covariance: C may be singular."""
    process, mean = OrnsteinUhlenbeck(), model.mean
    alpha, h = process.alpha(t), process.h(t)
    xp = B.namespace(mean)
    e, Q = xp.linalg.eigh(model.covariance)
    root = (Q * xp.sqrt(alpha**2 * xp.maximum(e, xp.zeros_like(e)) + h)) @ Q.mT
    return alpha * mean + B.random_normal((n, mean.shape[0]), rng, mean) @ root


def _sde_step(x: Array, D: Array, t: float, s: float, noise: Array) -> Array:
    """X_s ~ N((h_s a x + h_r alpha_s D)/h_t, h_s h_r/h_t I)."""
    process = OrnsteinUhlenbeck()
    h_t, h_s, h_r, a = process.h(t), process.h(s), process.h(t - s), process.alpha(t - s)
    mean = (h_s * a / h_t) * x + (h_r * process.alpha(s) / h_t) * D
    return mean + math.sqrt(h_s * h_r / h_t) * noise


def _ode_step(x: Array, D: Array, t: float, s: float) -> Array:
    """x_s = b x + (alpha_s - b alpha_t) D,  b = sqrt(h_s/h_t)."""
    process = OrnsteinUhlenbeck()
    b = math.sqrt(process.h(s) / process.h(t))
    return b * x + (process.alpha(s) - b * process.alpha(t)) * D
