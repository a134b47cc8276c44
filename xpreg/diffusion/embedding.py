"""What a network sees of (t, x): a point of the unit sphere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

from .. import backend as B
from ..backend import Array
from .process import OrnsteinUhlenbeck, log_noise_to_signal, per_row, time_at

EXTRA_INPUTS = 3
"""Inputs beside x: a constant and two functions of the noise level."""

GRID = 1001
"""Times on which the mean and spread of the time features are taken."""


@dataclasses.dataclass(frozen=True)
class Embedding:
    """u(t, x) = e/|e| with e = (sqrt(2/d) (x - alpha c)/sqrt(alpha^2 s^2 + h), 1, tau_1(t), tau_2(t)).

    c and s are the mean and the overall standard deviation of the data, tau_1 and tau_2 are log h and sqrt h, with
    mean 0 and variance 1 over the times that are learned: uniform on [t_min, t_max], or on a logarithmic scale.

    Why so:

    - The division makes X_t equally large at every t (variance 1 an axis), and sqrt(2/d) makes x as large as the two
      time features together, in every dimension d.
    - The posterior of X_0 sharpens by the same factor whenever h halves, so log h is the natural clock of the small
      times. The raw t spends most of its range where nothing changes any more. sqrt h adds resolution at the noisy end.
    - The tangent kernel <u, u'> exp(sigma^2 <u, u'>) has the diagonal |u|^2 exp(sigma^2 |u|^2): off the sphere, the
      few outermost points dominate it by orders of magnitude, and no step size and no ridge suits all of them. The
      constant input keeps the length of x readable on the sphere.

    Attributes
    ----------
    centre : (d,) c
    spread : s
    log_h, sqrt_h : (mean, standard deviation) of the time features
    """

    centre: Array
    spread: float
    log_h: tuple[float, float]
    sqrt_h: tuple[float, float]

    @classmethod
    def of(cls, X0: Array, t_min: float, t_max: float, *, times: str = "uniform") -> Self:
        """Take the constants from the data X0 (n, d), the interval of times and their law, see `noisy_pairs`.

        With the moments of uniform times, log h would be many deviations from 0 at the small times that the
        logarithmic law learns, and take the length of u from x there.
        """
        xp = B.namespace(X0)
        centre = xp.mean(X0, axis=0)
        (spread,) = B.read(xp.sqrt(xp.mean((X0 - centre) ** 2)))
        shares = [i / (GRID - 1) for i in range(GRID)]
        if times == "uniform":
            grid = [t_min + (t_max - t_min) * share for share in shares]
        else:
            low, high = log_noise_to_signal(t_min), log_noise_to_signal(t_max)
            grid = [time_at(low + (high - low) * share) for share in shares]
        h = [OrnsteinUhlenbeck().h(t) for t in grid]
        return cls(centre, float(spread), _moments([math.log(v) for v in h]), _moments([math.sqrt(v) for v in h]))

    @property
    def size(self) -> int:
        """Number of inputs, d + 3."""
        return self.centre.shape[0] + EXTRA_INPUTS

    def __call__(self, x: Array, t: Any) -> Array:
        """Return u (n, d + 3) for x (n, d) and t, a positive number or (n,)."""
        xp, process = B.namespace(x), OrnsteinUhlenbeck()
        t = per_row(t, x)
        t = B.full((1, 1), t, x) if isinstance(t, float) else t
        alpha, h = process.alpha(t), process.h(t)
        d = self.centre.shape[0]
        scale = math.sqrt(2.0 / d) / xp.sqrt(alpha**2 * self.spread**2 + h)
        times = [
            xp.ones_like(h),
            (xp.log(h) - self.log_h[0]) / self.log_h[1],
            (xp.sqrt(h) - self.sqrt_h[0]) / self.sqrt_h[1],
        ]
        column = (x.shape[0], 1)
        e = xp.concat([(x - alpha * self.centre) * scale, *(xp.broadcast_to(v, column) for v in times)], axis=1)
        return e / xp.sqrt(xp.sum(e * e, axis=1, keepdims=True))


def _moments(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) or 1.0  # all equal: all noise
