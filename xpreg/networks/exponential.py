"""The two-layer exponential network."""

from __future__ import annotations

from typing import Any, Self

from .. import backend as B
from ..backend import Array
from .network import TwoLayerNetwork


class ExpNetwork(TwoLayerNetwork):
    """F_i = sum_r a_r exp(<w_r, x_i>), with trainable W and fixed signs a.

    Parameters
    ----------
    W : (d, m) weights, float32 or float64
    a : (m,) signs, +1 or -1
    sigma : standard deviation of the initial weights; only `limit_kernel` uses it
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``: moves W and a there

    Raises
    ------
    InvalidArgumentError
        Wrong shapes, signs that are not +-1, or non-finite weights.

    Notes
    -----
    Over-parameterised exponential regression, arXiv 2303.16504. With E = exp(X W) the gradient of the loss
    0.5 sum (F - y)^2 is X^T diag(F - y) E diag(a), and the tangent kernel is

        H_ij = (1/m) <x_i, x_j> sum_r exp(<w_r, x_i + x_j>)  ->  <x_i, x_j> exp(sigma^2 |x_i + x_j|^2 / 2)

    Examples
    --------
    >>> import numpy as np
    >>> import xpreg.networks
    >>> network = xpreg.networks.ExpNetwork.initialise(2, 64, seed=0)
    >>> X = np.array([[0.6, 0.8], [1.0, 0.0]])
    >>> network.predict(X)
    array([0., 0.])
    >>> network.limit_kernel(X).round(2)
    array([[7.39, 2.97], [2.97, 7.39]])
    """

    _one_output = True

    @classmethod
    def initialise(
        cls,
        d: int,
        m: int,
        *,
        sigma: float = 1.0,
        pairs: bool = True,
        seed: int = 0,
        device: str | None = None,
        like: Array | None = None,
        dtype: str = "float64",
    ) -> Self:
        """Draw w_r ~ N(0, sigma^2 I) and random signs.

        Parameters
        ----------
        d, m : inputs and neurons
        sigma : standard deviation of the weights
        pairs : duplicate every neuron with the opposite sign, so that F(0) = 0 to rounding (m must be even)
        seed : of the random numbers, which are drawn on the host: one seed, one network, on every device
        device : where the network lives; NumPy when neither it nor ``like`` is given
        like : an array whose library, device and dtype the network takes
        dtype : "float64" or "float32", without ``like``
        """
        return cls._initialise(d, m, None, sigma=sigma, pairs=pairs, seed=seed, device=device, like=like, dtype=dtype)

    def _columns(self, a: Array) -> Array:
        return a

    def _exponentials(self, Z: Array) -> Array:
        return B.namespace(Z).exp(Z)

    def _readout(self, T: Array) -> Array:
        return T

    def _readout_vjp(self, T: Array, R: Array) -> Array:
        return R

    def _readout_jvp(self, T: Array, dT: Array) -> Array:
        return dT

    def _limit_exponent(self, G: Array, q1: Array, q2: Array) -> Any:
        return (0.5 * self.sigma**2) * (q1[:, None] + q2[None, :] + 2.0 * G)
