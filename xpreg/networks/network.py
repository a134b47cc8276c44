"""What the two networks share: F = readout(T), T = E C, E = exp(X W), row by row.

A network states four facts and nothing else: the columns C (m, c), its exponentials E (n, m), the readout
T (n, c) -> F (n, k), and the readout's derivative in both directions. Loss, gradient, Jacobian products, kernels
and training follow, because the derivative of every output with respect to W is one matrix in the span of E:

    dF_{l,i} / dw_r = P_{l,i,r} x_i,    P_{l,i,:} = E_i * (C Q_{l,i}),    Q_{l,i} = gradient of the readout

so that J^T V, J D and J J^T are matrix products of (n, m) arrays, and no Jacobian is ever formed.
"""

from __future__ import annotations

import abc
import copy
import math
from typing import Any, ClassVar, Self

from .. import backend as B
from ..arguments import require_flags, require_integers, require_number, require_one_of
from ..backend import Array
from ..errors import DomainError, InvalidArgumentError
from . import checks, kernels, memory
from .linearise import Linearisation, loss_and_grad


class TwoLayerNetwork(abc.ABC):
    """A two-layer network with trainable weights W (d, m) and fixed signs a; see its two subclasses."""

    W: Array
    a: Array
    sigma: float
    _one_output: ClassVar[bool]

    def __init__(self, W: Array, a: Array, *, sigma: float = 1.0, device: str | None = None) -> None:
        W, a = B.to_device(W, device), B.to_device(a, device)
        checks.weights(W, a, one_output=self._one_output)
        if not sigma > 0:
            raise InvalidArgumentError(f"sigma is {sigma}, but the standard deviation of the weights must be positive.")
        self.W, self.a, self.sigma = W, a, float(sigma)
        self._C = self._columns(a[:, None] if self._one_output else a)

    # -- what a network states ------------------------------------------------------------------

    @abc.abstractmethod
    def _columns(self, a: Array) -> Array:
        """C (m, c) from a (m, k)."""

    @abc.abstractmethod
    def _exponentials(self, Z: Array) -> Array:
        """E (n, m) from Z = X W."""

    @abc.abstractmethod
    def _readout(self, T: Array) -> Array:
        """F (n, k) from T = E C (n, c)."""

    @abc.abstractmethod
    def _readout_vjp(self, T: Array, R: Array) -> Array:
        """Q (n, c) = sum_l R_l dF_l/dT, for R (n, k)."""

    @abc.abstractmethod
    def _readout_jvp(self, T: Array, dT: Array) -> Array:
        """Return dF (n, k) for dT (n, c)."""

    @abc.abstractmethod
    def _limit_exponent(self, G: Array, q1: Array, q2: Array) -> Array:
        """Logarithm of the infinite-width kernel over <x_i, x_j>, from G_ij = <x_i, x_j>, q = |x|^2."""

    # -- sizes ----------------------------------------------------------------------------------

    @property
    def d(self) -> int:
        """Number of inputs."""
        return self.W.shape[0]

    @property
    def m(self) -> int:
        """Number of neurons."""
        return self.W.shape[1]

    @property
    def k(self) -> int:
        """Number of outputs."""
        return 1 if self._one_output else self.a.shape[1]

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters: d m. The signs a are fixed."""
        return self.d * self.m

    def footprint(self, n: int, n2: int | None = None) -> memory.Footprint:
        """Count parameters and bytes of the network on n points, before anything is computed."""
        return memory.footprint(self.d, self.m, self.k, n, n2, itemsize=B.itemsize(self.W))

    def __repr__(self) -> str:
        sizes = f"d={self.d}, m={self.m}" + ("" if self._one_output else f", k={self.k}")
        return f"{type(self).__name__}({sizes}, {self.W.dtype} {B.describe(self.W)}, {self.n_parameters} parameters)"

    # -- making networks --------------------------------------------------------------------------

    @classmethod
    def _initialise(
        cls,
        d: int,
        m: int,
        k: int | None,
        *,
        sigma: float,
        pairs: bool,
        seed: int,
        device: str | None,
        like: Any,
        dtype,
    ) -> Self:
        require_integers(d=d, m=m, **({} if k is None else {"k": k}))
        require_number("sigma", sigma, lambda v: 0 <= v < math.inf, "a number >= 0")
        require_flags(pairs=pairs)
        if like is None:
            require_one_of("dtype", dtype, ("float64", "float32"))
        if pairs and m % 2:
            raise InvalidArgumentError(f"m is {m}, but pairs=True needs an even number of neurons: m={m + 1}.")
        anchor = B.scratch(device, dtype) if like is None else B.to_device(like, device)
        memory.require(2 * d * m * 8, anchor, what=f"the weights ({d}, {m})", remedy="a smaller m")
        rng, width = B.generator(seed), m // 2 if pairs else m
        xp = B.namespace(anchor)
        W = sigma * B.random_normal((d, width), rng, anchor)
        uniform = B.random_uniform((width,) if k is None else (width, k), rng, anchor)
        a = xp.where(uniform < 0.5, B.full((), -1.0, anchor), B.full((), 1.0, anchor))
        if pairs:  # w_{2r} = w_{2r-1}, a_{2r} = -a_{2r-1}
            W = xp.reshape(xp.stack([W, W], axis=-1), (d, m))
            a = xp.reshape(xp.stack([a, -a], axis=1), (m, *a.shape[1:]))
        return cls(W, a, sigma=sigma)

    def with_weights(self, W: Array) -> Self:
        """Return the same network with other weights W (d, m); the array is kept, not copied."""
        if W.shape != self.W.shape or W.dtype != self.W.dtype:
            raise InvalidArgumentError(
                f"W is {W.dtype} {tuple(W.shape)}, but {self.W.dtype} {tuple(self.W.shape)} is needed."
            )
        other = copy.copy(self)
        other.W = W
        return other

    def to_device(self, device: str) -> Self:
        """Return the network with W and a on ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
        return type(self)(self.W, self.a, sigma=self.sigma, device=device)

    # -- values -----------------------------------------------------------------------------------

    def predict(self, X: Array) -> Array:
        """Evaluate the network.

        Parameters
        ----------
        X : (n, d) points

        Returns
        -------
        (n,) or (n, k)

        Raises
        ------
        DomainError
            The result overflows.
        """
        checks.points(self, X=X)
        with B.quiet():
            F = Linearisation(self, X).predict()
        self._require_finite(X, F)
        return self._from_columns(F)

    def loss(self, X: Array, y: Array) -> Array:
        """Return 0.5 sum (F - y)^2 for points X (n, d) and targets y, shaped as `predict` returns them."""
        checks.points(self, X=X, y=y)
        with B.quiet():
            R = Linearisation(self, X).predict() - self._to_columns(y)
            loss = 0.5 * B.namespace(X).sum(R * R)
        self._require_finite(X, loss)
        return loss

    def grad(self, X: Array, y: Array) -> Array:
        """Return the gradient (d, m) of the loss with respect to W, in closed form: J^T (F - y)."""
        return self.loss_and_grad(X, y)[1]

    def loss_and_grad(self, X: Array, y: Array) -> tuple[Array, Array]:
        """Return loss and gradient from one pass over the points."""
        checks.points(self, X=X, y=y)
        with B.quiet():
            loss, g = loss_and_grad(self, X, self._to_columns(y))
        self._require_finite(X, loss, g)
        return loss, g

    # -- kernels ----------------------------------------------------------------------------------

    def tangent_kernel(
        self, X: Array, X2: Array | None = None, *, out: Any = None, max_bytes: int | None = None
    ) -> Array:
        """Compute the finite-width tangent kernel H = J J^T / m at the present weights, tile by tile.

        With P_{l,i,r} the derivative of output l at point i with respect to <w_r, x_i>,

            H_{(l1,i),(l2,j)} = (1/m) <x_i, x_j> sum_r P_{l1,i,r} P_{l2,j,r}

        Each tile is one matrix product and one elementwise product; the Jacobian is never formed, and the
        symmetric case computes half of the tiles.

        Parameters
        ----------
        X : (n, d) points
        X2 : (n2, d) points; X itself when left out
        out : (k n, k n2) array to fill, in the library of X, or any NumPy array or memory map (tiles are then
            copied to the host)
        max_bytes : limit on the memory that this call allocates: the result (unless ``out`` is given) and the tiles.
            The default is what is free, of which tiles take at most 256 MiB. The result does not depend on it,
            up to rounding.

        Returns
        -------
        (k n, k n2), row index (l, i) with l major; ``out`` when it was given

        Raises
        ------
        NotEnoughMemoryError
            It cannot fit; the message says what would.
        DomainError
            The kernel overflows.
        """
        return kernels.compute(kernels.TangentKernel(self), X, X2, out, max_bytes)

    def limit_kernel(
        self, X: Array, X2: Array | None = None, *, out: Any = None, max_bytes: int | None = None
    ) -> Array:
        """Compute the kernel that `tangent_kernel` tends to at initialisation as m grows. Arguments as there."""
        return kernels.compute(kernels.LimitKernel(self), X, X2, out, max_bytes)

    # -- inside -------------------------------------------------------------------------------------

    def _to_columns(self, y: Array) -> Array:
        return y[:, None] if self._one_output else y

    def _from_columns(self, F: Array) -> Array:
        return F[:, 0] if self._one_output else F

    def _require_finite(self, X: Array, *results: Array) -> None:
        xp = B.namespace(X)
        if not all(B.read(*(xp.all(xp.isfinite(r)) for r in results))):
            raise self._overflow(X)

    def _overflow(self, X: Array) -> DomainError:
        xp = B.namespace(X)
        (largest,) = B.read(xp.max(X @ self.W))
        return DomainError(
            f"{type(self).__name__} overflows {X.dtype}: the largest activation max_ir <w_r, x_i> is {largest:.4g} "
            f"(exp stays finite below {checks.largest_exponent(X):.4g}, products of two below half of it). "
            "Scale the points X down, use a smaller sigma, or float64."
        )
