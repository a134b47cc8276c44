"""The best linear denoiser: what the learned part adds to."""

from __future__ import annotations

from typing import Any

from .. import backend as B
from ..backend import Array
from .process import OrnsteinUhlenbeck, per_row


class GaussianBaseline:
    """E[X_0 | X_t = x] if X_0 were N(m, C), and the size of what is left: the two frame the regression.

        G(t, x) = m + alpha C (alpha^2 C + h I)^-1 (x - alpha m),   C = Q diag(e) Q^T
        c(t)^2  = mean over the axes of the posterior variance e h / (alpha^2 e + h)

    The regressor F learns Y = (X_0 - G)/c, so that the denoiser is G + c F. Why so: F = 0, where the network starts,
    is then the best linear denoiser; the regressor need not spend its few directions on copying x at small t, where
    G tends to x; and its labels have about the same variance at every t, so that one step size or one ridge suits
    small and large times. At each t the minimiser is the same conditional mean as without the frame; over the times
    the squared error is weighted by 1/c^2.

    Parameters
    ----------
    mean, covariance : (d,) and (d, d)
    """

    def __init__(self, mean: Array, covariance: Array) -> None:
        xp = B.namespace(mean)
        e, self.Q = xp.linalg.eigh(covariance)
        self.e = xp.maximum(e, xp.zeros_like(e))
        self.mean = mean

    def __call__(self, x: Array, t: Any) -> tuple[Array, Any]:
        """Return G (n, d) and c, (1, 1) or (n, 1), for x (n, d) and t, a positive number or (n,)."""
        xp, process = B.namespace(x), OrnsteinUhlenbeck()
        t = per_row(t, x)
        alpha, h = process.alpha(t), process.h(t)
        v = alpha**2 * self.e[None, :] + h
        G = self.mean + (((x - alpha * self.mean) @ self.Q) * (alpha * self.e / v)) @ xp.matrix_transpose(self.Q)
        return G, xp.sqrt(xp.mean(h * self.e / v, axis=1, keepdims=True))
