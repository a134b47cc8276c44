"""The two-layer softmax network."""

from __future__ import annotations

from typing import Any, Self

from .. import backend as B
from ..backend import Array
from .network import TwoLayerNetwork


class SoftmaxNetwork(TwoLayerNetwork):
    """F = m softmax_rows(X W) a, with trainable W and fixed signs a: attention with queries X and keys W^T.

    Parameters
    ----------
    W : (d, m) weights, float32 or float64
    a : (m, k) signs, +1 or -1
    sigma : standard deviation of the initial weights; only `limit_kernel` uses it
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``: moves W and a there

    Raises
    ------
    InvalidArgumentError
        Wrong shapes, signs that are not +-1, or non-finite weights.

    Notes
    -----
    Two-layer softmax networks, arXiv 2405.03251. With S_i = softmax(W^T x_i) and R = F - Y the gradient of the loss
    0.5 sum R^2 is X^T [m S * (R a^T - rowsum(R * (S a)) 1^T)]. The tangent kernel, with
    v_{l,r,i} = a_{r,l} - <a_l, S_i>,

        H_{(l1,i),(l2,j)} = (1/m) <x_i, x_j> sum_r v_{l1,r,i} m S_ir v_{l2,r,j} m S_jr

    tends to I_k kron [<x_i, x_j> exp(sigma^2 <x_i, x_j>)]. The exponents are shifted by their row maximum, so that
    no activation is too large.

    Examples
    --------
    >>> import numpy as np
    >>> import xpreg.networks
    >>> network = xpreg.networks.SoftmaxNetwork.initialise(2, 64, 3, seed=0)
    >>> X = np.array([[0.6, 0.8], [1.0, 0.0]])
    >>> network.predict(X).shape
    (2, 3)
    >>> network.tangent_kernel(X).shape
    (6, 6)
    """

    _one_output = False

    @classmethod
    def initialise(
        cls,
        d: int,
        m: int,
        k: int = 1,
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
        d, m, k : inputs, neurons, outputs
        sigma : standard deviation of the weights
        pairs : duplicate every neuron with the opposite signs, so that F(0) = 0 to rounding (m must be even)
        seed : of the random numbers, which are drawn on the host: one seed, one network, on every device
        device : where the network lives; NumPy when neither it nor ``like`` is given
        like : an array whose library, device and dtype the network takes
        dtype : "float64" or "float32", without ``like``
        """
        return cls._initialise(d, m, k, sigma=sigma, pairs=pairs, seed=seed, device=device, like=like, dtype=dtype)

    # T = E [a, 1] = (U, s):  F = m U / s, whatever shift E carries

    def _columns(self, a: Array) -> Array:
        return B.namespace(a).concat([a, B.full((a.shape[0], 1), 1.0, a)], axis=1)

    def _exponentials(self, Z: Array) -> Array:
        xp = B.namespace(Z)
        return xp.exp(Z - xp.max(Z, axis=1, keepdims=True))

    def _readout(self, T: Array) -> Array:
        return self.m * (T[:, :-1] / T[:, -1:])

    def _readout_vjp(self, T: Array, R: Array) -> Array:
        xp = B.namespace(T)
        U, s = T[:, :-1], T[:, -1:]
        return (self.m / s) * xp.concat([R, -xp.sum(R * (U / s), axis=1, keepdims=True)], axis=1)

    def _readout_jvp(self, T: Array, dT: Array) -> Array:
        U, s = T[:, :-1], T[:, -1:]
        return (self.m / s) * (dT[:, :-1] - (U / s) * dT[:, -1:])

    def _limit_exponent(self, G: Array, q1: Array, q2: Array) -> Any:
        return self.sigma**2 * G
