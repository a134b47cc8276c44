"""The regressions, by name. A new head is one file in heads/ and a few lines here."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from . import activations
from . import backend as B
from .arguments import require_flags, require_number, require_one_of
from .backend import Array, namespace
from .checks import check_matrix, check_rows
from .errors import InvalidArgumentError
from .heads import Elementwise, Head, Normalised, Rescaled, Softmax, SoftmaxKL
from .kinks import touching
from .maps import TwoLayer
from .problem import Point, Problem

RANDOM_STARTS, SPHERE_STEPS = 16, 40
"""Random directions from which a start of softmax-ReLU is looked for where the usual ones go up, and the steps of each.
"""

SHARED_PARAMETERS = """
    Parameters
    ----------
    A : array (n, d), the rows; shared by a stack. Or a CSR matrix: of SciPy beside NumPy arrays, of cupyx beside
        CuPy's. Or rows that are never in one place: a memory map or `xpreg.io.open_rows` of files larger than memory,
        or a Dask array in blocks of whole rows
    b : array (n,), or (..., n) for a stack of independent problems
    weights : number or array (n,), the w of the regulariser 0.5 |diag(w) A x|^2
    device : ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` moves all arrays there first; None leaves them where they are

    Raises
    ------
    InvalidArgumentError
        An array has the wrong shape or dtype, or is not finite.
    DeviceMismatchError
        The arrays live in different libraries or on different devices, and ``device`` is not given.
    DeviceNotAvailableError
        ``device`` asks for a GPU that is not there.
"""


class LinearProblem(Problem):
    """head o (z = A x) + regulariser, from plain arrays, or with A in sparse rows."""

    def __init__(self, head: Head, A: Array, b: Array, weights: float | Array, device: str | None):
        with B.using(device):
            rows, b = check_rows(A, device), B.to_device(b, device, "b")
            weights = weights if isinstance(weights, numbers.Real) else B.to_device(weights, device, "weights")
            super().__init__(head, rows, b, weights)


def softmax_head(loss: str) -> Head:
    """Return the head of a softmax with the ``"squared"`` or the ``"kl"`` loss."""
    heads: dict[str, Callable[[], Head]] = {"squared": Softmax, "kl": SoftmaxKL}
    require_one_of("loss", loss, heads)
    return heads[loss]()


class SoftmaxRegression(LinearProblem):
    __doc__ = f"""min over x of 0.5 |softmax(A x) - b|^2, or of sum b log(b/softmax(A x)), plus a regulariser.
    {SHARED_PARAMETERS}
    Other Parameters
    ----------------
    loss : ``"squared"``, or ``"kl"`` (convex; b must be a distribution)

    References
    ----------
    arXiv 2304.10411 (softmax regression).

    Examples
    --------
    >>> import numpy as np, xpreg
    >>> A = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> problem = xpreg.SoftmaxRegression(A, np.array([0.5, 0.3, 0.2]))
    >>> float(problem.value(np.zeros(2))).__round__(6)
    0.023333
    >>> xpreg.minimize(problem).success
    True
    """

    def __init__(
        self,
        A: Array,
        b: Array,
        *,
        weights: float | Array = 0.0,
        loss: str = "squared",
        device: str | None = None,
    ):
        super().__init__(softmax_head(loss), A, b, weights, device)


class ResNetSoftmaxRegression(LinearProblem):
    __doc__ = f"""min over x of 0.5 |u/<u,1> - b|^2, u = exp(A x) + A x, plus a regulariser.

    Defined where <u,1> > 0; columns of A with zero mean make that hold for every x.
    {SHARED_PARAMETERS}
    References
    ----------
    arXiv 2309.13482 (ResNet-softmax regression).

    Examples
    --------
    >>> import numpy as np, xpreg
    >>> problem = xpreg.ResNetSoftmaxRegression(np.ones((3, 1)), np.ones(3) / 3)
    >>> problem.value(np.array([-1.0]))
    Traceback (most recent call last):
    xpreg.errors.DomainError: x lies outside the domain of the resnet-softmax loss: the normaliser alpha ...
    """

    def __init__(self, A: Array, b: Array, *, weights: float | Array = 0.0, device: str | None = None):
        super().__init__(Normalised("resnet-softmax", activations.exp_plus_linear), A, b, weights, device)


class _ElementwiseRegression(LinearProblem):
    name: str
    activation: Callable

    def __init__(
        self,
        A: Array,
        b: Array,
        *,
        weights: float | Array = 0.0,
        rescaled: bool = False,
        device: str | None = None,
    ):
        require_flags(rescaled=rescaled)
        activation = type(self).activation
        head: Head = Rescaled(f"{self.name}-rescaled", activation) if rescaled else Elementwise(self.name, activation)
        super().__init__(head, A, b, weights, device)


_ELEMENTWISE = """min over x of 0.5 |g(A x) - b|^2, or with ``rescaled`` of 0.5 |u - <u,1> b|^2, u = g(A x), g = {g}.
    {shared}
    Other Parameters
    ----------------
    rescaled : True compares u with <u,1> b: the normalised problem without the division. It is least, 0, where u
        vanishes too, whatever b is: for sinh at x = 0, where solvers start by default, so pass an x0

    References
    ----------
    arXiv 2303.15725 (exp, cosh and sinh regression), 2305.00660 (rescaled).

    Examples
    --------
    >>> import numpy as np, xpreg
    >>> A, x = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]]), np.array([0.3, -0.2])
    >>> result = xpreg.minimize(xpreg.{name}(A, np.{g}(A @ x)))
    >>> result.success, bool(result.fun < 1e-20)
    (True, True)
    """


class ExpRegression(_ElementwiseRegression):
    __doc__ = _ELEMENTWISE.format(g="exp", name="ExpRegression", shared=SHARED_PARAMETERS)
    name, activation = "exp", staticmethod(activations.exp)


class CoshRegression(_ElementwiseRegression):
    __doc__ = _ELEMENTWISE.format(g="cosh", name="CoshRegression", shared=SHARED_PARAMETERS)
    name, activation = "cosh", staticmethod(activations.cosh)


class SinhRegression(_ElementwiseRegression):
    __doc__ = _ELEMENTWISE.format(g="sinh", name="SinhRegression", shared=SHARED_PARAMETERS)
    name, activation = "sinh", staticmethod(activations.sinh)


class SoftmaxReLURegression(Problem):
    """min over x of 0.5 |softmax(A2 relu(A1 x)) - b|^2 + 0.5 |diag(w) A1 x|^2, or the same with sum b log(b/softmax).

    Between the faces <a1_i, x> = 0 it is softmax regression with the rows A2 S A1, S = diag(1[A1 x > 0]); across
    them the gradient jumps by a1_i (A2^T g_z)_i. `grad`, `hess` and `hvp` are those of the cell, at a face those of
    the side where its unit is not active. Solvers take a face with a convex kink for what it is: they measure
    the subgradient of least norm, which is zero at a minimiser on a kink, and return it as ``Result.grad``.
    ``Result.activation`` says which units are active.

    Parameters
    ----------
    A1 : array (n, d)
    A2 : array (m, n)
    b : array (m,), or (..., m) for a stack of independent problems
    weights : number or array (n,), the w of the regulariser 0.5 |diag(w) A1 x|^2
    loss : ``"squared"``, or ``"kl"`` (b must be a distribution; convex in z, but not in x)
    smoothing : s >= 0; s > 0 puts h(y) = s log(1 + e^(y/s)) in the place of relu, and the loss has no kinks.
        It differs from relu by at most s log 2.
    device : ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` moves all arrays there first; None leaves them where they are

    Raises
    ------
    InvalidArgumentError
        An array has the wrong shape or dtype, or is not finite; loss or smoothing is unknown.
    DeviceMismatchError
        The arrays live in different libraries or on different devices, and ``device`` is not given.
    DeviceNotAvailableError
        ``device`` asks for a GPU that is not there.

    Attributes
    ----------
    n, d : numbers of rows and columns of A1
    m : number of rows of A2

    References
    ----------
    arXiv 2308.08358 (softmax-ReLU regression); MATH section 3.

    Examples
    --------
    >>> import numpy as np, xpreg
    >>> A1 = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
    >>> A2 = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [-1.0, 0.5, 1.0]])
    >>> hidden = np.array([0.5, 1.0])
    >>> b = xpreg.SoftmaxReLURegression(A1, A2, np.ones(3) / 3).predict(hidden)
    >>> result = xpreg.minimize(xpreg.SoftmaxReLURegression(A1, A2, b))
    >>> result.success, result.x.round(6).tolist(), result.activation.tolist()
    (True, [0.5, 1.0], [1, 1, 1])
    """

    rows: TwoLayer

    def __init__(
        self,
        A1: Array,
        A2: Array,
        b: Array,
        *,
        weights: float | Array = 0.0,
        loss: str = "squared",
        smoothing: float = 0.0,
        device: str | None = None,
    ):
        with B.using(device):
            A1, A2, b = (B.to_device(v, device, name) for name, v in (("A1", A1), ("A2", A2), ("b", b)))
            weights = weights if isinstance(weights, numbers.Real) else B.to_device(weights, device, "weights")
            check_matrix(A1=A1, A2=A2)
            if A2.shape[1] != A1.shape[0]:
                raise InvalidArgumentError(
                    f"A2 has shape {tuple(A2.shape)}, but A1 has {A1.shape[0]} rows: A2 must have as many columns."
                )
            require_number("smoothing", smoothing, lambda v: 0 <= v < math.inf, "a number >= 0")
            super().__init__(softmax_head(loss), TwoLayer(A1, A2, float(smoothing)), b, weights)
        self.n, self.m = A1.shape[0], A2.shape[0]

    @property
    def kind(self) -> str:
        return self.head.name.replace("softmax", "softmax-relu")

    @property
    def _sizes(self) -> str:
        return f"m={self.m}, {super()._sizes}"

    def default_start(self) -> Array:
        """Return the best of some points (k, d) near x = 0, where no unit is active and nothing pulls.

        They lie along -A1^T A2^T g_z, g_z that of z = 0, which is downhill when half of the units are active; along
        the subgradient of least norm with all those units active that lower the loss; and along the row of A1 that
        pulls most; where they change an exponent by 1, 1/4, 1/16 and 1/64. Where none of these is better than x = 0,
        a downhill direction is searched from random ones, by subgradient steps on the sphere.
        A start that is better than x = 0 cannot end where all units are inactive.
        """
        rows = self.rows
        zero = self.point(super().default_start())
        xp = namespace(zero.x)
        c = zero.g_h
        row = xp.take(rows.inner.A, xp.argmin(c * rows.row_norms, axis=-1), axis=0)
        best = row, xp.full_like(zero.values, xp.inf)
        for p in (-rows.inner.adjoint(c), -zero.least_grads, row):
            best = self._better_along(p, zero, best)
        if bool(xp.any(best[1] >= zero.values)):
            rng = B.generator(0)
            for _ in range(RANDOM_STARTS):
                p = unit(B.random_normal(zero.x.shape, rng, zero.x))
                for i in range(SPHERE_STEPS):
                    g = rows.inner.adjoint(xp.where(rows.inner.apply(p) > 0, c, xp.zeros_like(c)))
                    p = unit(p - (0.3 / (1.0 + 0.1 * i)) * unit(g))
                best = self._better_along(p, zero, best)
        return best[0]

    def _better_along(self, p: Array, zero: Point, best: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return the better of the best point so far, with its loss, and some points along p (k, d)."""
        xp, (x, lowest) = namespace(p), best
        q = self.rows.inner.apply(p)
        change = zero.head.change(self.rows.outer(q))
        useful = xp.isfinite(change) & (change > 0)
        for t in (1.0, 0.25, 0.0625, 0.015625):
            step = xp.where(useful, t / xp.where(useful, change, xp.ones_like(change)), 0.0 * change)[:, None]
            values = xp.where(useful, self.point(step * p, step * q).values, xp.full_like(lowest, xp.inf))
            lower = values < lowest
            x, lowest = xp.where(lower[:, None], step * p, x), xp.where(lower, values, lowest)
        return x, lowest

    def active_units(self, x: Array) -> Array | None:
        point = self.point(x)
        xp = namespace(x)
        if not self.rows.has_kinks:
            return xp.astype(xp.sign(point.y), xp.int8)
        return xp.astype(xp.where(touching(point), xp.zeros_like(point.y), xp.sign(point.y)), xp.int8)


def unit(p: Array) -> Array:
    """Return p (k, d) over its length, 0 where it is 0."""
    return p / B.safe_divisor(namespace(p).linalg.vector_norm(p, axis=-1, keepdims=True))


LOSSES: dict[str, Callable[..., Problem]] = {
    "softmax": SoftmaxRegression,
    "softmax-kl": lambda *a, **k: SoftmaxRegression(*a, loss="kl", **k),
    "resnet-softmax": ResNetSoftmaxRegression,
    "exp": ExpRegression,
    "cosh": CoshRegression,
    "sinh": SinhRegression,
    "exp-rescaled": lambda *a, **k: ExpRegression(*a, rescaled=True, **k),
    "cosh-rescaled": lambda *a, **k: CoshRegression(*a, rescaled=True, **k),
    "sinh-rescaled": lambda *a, **k: SinhRegression(*a, rescaled=True, **k),
}
"""Every loss by its command-line name; tests run over this table, so a new loss is tested the day it is added."""

TWO_LAYER_LOSSES: dict[str, Callable[..., Problem]] = {
    "softmax-relu": SoftmaxReLURegression,
    "softmax-relu-kl": lambda *a, **k: SoftmaxReLURegression(*a, loss="kl", **k),
}
"""Those that take A1, A2, b in the place of A, b."""
