"""The regressions, by name. A new head is one file in heads/ and a few lines here."""

from __future__ import annotations

from collections.abc import Callable

from . import activations
from . import backend as B
from .backend import Array
from .errors import InvalidArgumentError
from .heads import Elementwise, Head, Normalised, Rescaled, Softmax, SoftmaxKL
from .problem import Problem, check_rows

SHARED_PARAMETERS = """
    Parameters
    ----------
    A : array (n, d), the rows; shared by a stack
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
    """head o (z = A x) + regulariser, from plain arrays."""

    def __init__(self, head: Head, A: Array, b: Array, weights: float | Array, device: str | None):
        with B.using(device):
            A, b = B.to_device(A, device), B.to_device(b, device)
            weights = weights if isinstance(weights, int | float) else B.to_device(weights, device)
            super().__init__(head, check_rows(A), b, weights)


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
        heads: dict[str, Callable[[], Head]] = {"squared": Softmax, "kl": SoftmaxKL}
        if loss not in heads:
            raise InvalidArgumentError(f"loss is {loss!r}, but 'squared' or 'kl' is needed.")
        super().__init__(heads[loss](), A, b, weights, device)


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
        activation = type(self).activation
        head: Head = Rescaled(f"{self.name}-rescaled", activation) if rescaled else Elementwise(self.name, activation)
        super().__init__(head, A, b, weights, device)


_ELEMENTWISE = """min over x of 0.5 |g(A x) - b|^2, or with ``rescaled`` of 0.5 |u - <u,1> b|^2, u = g(A x), g = {g}.
    {shared}
    Other Parameters
    ----------------
    rescaled : True compares u with <u,1> b: the normalised problem without the division

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
