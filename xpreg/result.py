"""What a solver returns: the result, why it stopped, and one record per iteration."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Self

from . import backend as B
from .backend import Array


class Described(enum.IntEnum):
    """An integer enumeration whose members carry a text."""

    text: str

    def __new__(cls, value: int, text: str) -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.text = text
        return member

    @classmethod
    def of(cls, value: int) -> Self:
        """Return the member with this value, as it is read from an array or a file."""
        return next(member for member in cls if member == value)


class Status(Described):
    """Why a run stopped. The text says the cause and, where there is one, the remedy."""

    CONVERGED = 0, "the largest gradient entry fell below tol times the one at x0"
    PRECISION = (
        1,
        "the gradient is zero to working precision: tol asks for more digits than this dtype has "
        "(a float64 problem reaches further than a float32 one)",
    )
    MAXITER = 2, "the iteration limit was reached first: raise maxiter, or go on from this x"
    STALLED = (
        3,
        "no step decreases the loss any more although the gradient is above rounding level: "
        "scale the columns of A, use float64, or start elsewhere",
    )
    STOPPED = 4, "the callback asked to stop"
    FLAT = (
        5,
        "loss, gradient and curvature are constant to working precision here (a saturated start, or a loss that does "
        "not depend on x): start elsewhere, for example at x = 0",
    )

    @property
    def success(self) -> bool:
        """True when the point is a solution: to the tolerance, or to the last digit that the dtype has."""
        return self in (Status.CONVERGED, Status.PRECISION)


@dataclasses.dataclass(frozen=True, slots=True)
class IterationRecord:
    """One iteration, in plain numbers. For a stack: the worst problem of those still running.

    Attributes
    ----------
    nit : iteration, from 0 (the start)
    fun : loss (stack: the largest)
    grad_norm : largest absolute gradient entry (stack: the largest)
    step : accepted step length (stack: the smallest); nan at the start
    direction : which direction was taken: "newton", "gauss-newton", "negative curvature", "cg", "gradient", ...
    active : problems still running after this iteration
    nfev : losses evaluated so far
    seconds : since the start
    problems : the part (start, stop) of the stack that this iteration belongs to; large stacks are solved in parts
    """

    nit: int
    fun: float
    grad_norm: float
    step: float
    direction: str
    active: int
    nfev: int
    seconds: float
    problems: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The solution of one problem, or of a stack. Field names are SciPy's.

    Attributes
    ----------
    x : (d,) or (..., d) solution, in the library and on the device of the input
    fun : loss at x, float or (...)
    grad : gradient at x, like x; where the loss has kinks, its subgradient of least norm
    success : True when every problem converged (or is exact to working precision)
    status : `Status`, or an integer array (...) of its values
    converged : bool, or a bool array (...)
    message : which criterion fired, with its numbers
    nit, nfev, ngev, nhev : iterations, and evaluations of loss, gradient, Hessian (or Hessian-vector products); those
        of the sample that `"auto"` may begin with are not among them
    history : one `IterationRecord` per iteration
    certificate : the `Certificate` at x, where minimize was asked to certify, or None
    activation : for losses with units (two layers) int8 (..., n): 1 where a unit is active at x, -1 where it is not,
        0 where x lies on its kink up to rounding; else None
    """

    x: Array
    fun: Any
    grad: Array
    success: bool
    status: Any
    converged: Any
    message: str
    nit: int
    nfev: int
    ngev: int
    nhev: int
    history: tuple[IterationRecord, ...] = dataclasses.field(repr=False)
    certificate: Any = dataclasses.field(default=None, repr=False)
    activation: Array | None = dataclasses.field(default=None, repr=False)

    def to_device(self, device: str | None) -> Result:
        """Return the same result with its arrays on ``"cpu"``, ``"cuda"`` or ``"cuda:N"``."""
        moved = {
            name: B.to_device(getattr(self, name), device)
            for name in ("x", "fun", "grad", "status", "converged", "activation")
            if hasattr(getattr(self, name), "shape")
        }
        return dataclasses.replace(self, **moved)
