"""The forward process: how data become noise."""

from __future__ import annotations

import math
import numbers
from typing import Any

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError


class OrnsteinUhlenbeck:
    """X_t | X_0 ~ N(alpha X_0, h I) with alpha = e^(-t/2), h = 1 - e^(-t): the solution of dX = -X/2 dt + dB.

    Times are Python numbers, or arrays (n,) with one time for every row.

    References
    ----------
    Song et al., arXiv 2011.13456 (the "variance preserving" process); arXiv 2405.03251, section on diffusion.

    Examples
    --------
    >>> process = OrnsteinUhlenbeck()
    >>> f"{process.alpha(1.0):.4f} {process.h(1.0):.4f} {process.alpha(1.0) ** 2 + process.h(1.0):.4f}"
    '0.6065 0.6321 1.0000'
    """

    def alpha(self, t: Any) -> Any:
        """Return alpha = e^(-t/2), the share of X_0 that is left at time t."""
        return math.exp(-0.5 * t) if _is_number(t) else B.namespace(t).exp(-0.5 * t)

    def h(self, t: Any) -> Any:
        """Return h = 1 - e^(-t), the variance of the noise at time t, exact to the last digit for tiny t."""
        return -math.expm1(-t) if _is_number(t) else -B.namespace(t).expm1(-t)

    def noise(self, x0: Array, t: Any, rng: Any) -> Array:
        """Draw X_t given X_0 = x0.

        Parameters
        ----------
        x0 : (n, d)
        t : positive time, a number or (n,)
        rng : NumPy Generator, or a seed; the numbers are drawn on the host, so they do not depend on the device

        Returns
        -------
        (n, d)

        Raises
        ------
        InvalidArgumentError
            x0 is no (n, d), or a time is not positive and finite.
        """
        require_points(x0=x0)
        t = per_row(t, x0)
        return self.alpha(t) * x0 + self.h(t) ** 0.5 * B.random_normal(x0.shape, rng, x0)


def _is_number(t: Any) -> bool:
    return isinstance(t, numbers.Real)


def log_noise_to_signal(t: float) -> float:
    """Return log(h/alpha^2) = log(e^t - 1), for any t > 0."""
    return t + math.log(-math.expm1(-t))


def time_at(log_ratio: float) -> float:
    """Return the t with log(e^t - 1) = log_ratio."""
    return max(log_ratio, 0.0) + math.log1p(math.exp(-abs(log_ratio)))


def require_points(**named: Array) -> None:
    """Require one floating array (n, d) with n, d >= 1."""
    ((name, x),) = named.items()
    B.common_namespace(**named)
    if x.ndim != 2 or 0 in x.shape:
        raise InvalidArgumentError(f"{name} has shape {tuple(x.shape)}, but (n, d) with n, d >= 1 is needed.")


def per_row(t: Any, x: Array) -> Any:
    """Check the time t, and return it as a float, or as (n, 1) for the rows of x (n, d).

    Raises
    ------
    InvalidArgumentError
        A time is not positive and finite, or t is neither a number nor (n,).
    """
    if _is_number(t):
        low = high = float(t)
    else:
        xp = B.common_namespace(x=x, t=t)
        if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
            raise InvalidArgumentError(
                f"t has shape {tuple(t.shape)}, but a number or ({x.shape[0]},) is needed: one time for every row of x."
            )
        low, high = (float(v) for v in B.read(xp.min(t), xp.max(t)))
        t = xp.reshape(t, (-1, 1))
    if not (low > 0.0 and high < math.inf):
        raise InvalidArgumentError(
            f"t ranges from {low:g} to {high:g}, but positive and finite times are needed: at t = 0 there is no "
            "noise, and no denoising."
        )
    return float(t) if _is_number(t) else t


def require_interval(t_min: float, t_max: float) -> None:
    """Require numbers 0 < t_min < t_max < inf."""
    if not (_is_number(t_min) and _is_number(t_max) and 0.0 < t_min < t_max < math.inf):
        raise InvalidArgumentError(
            f"t_min is {t_min} and t_max is {t_max}, but 0 < t_min < t_max < inf is needed: the score of the data "
            "themselves (t = 0) cannot be learned by denoising."
        )
