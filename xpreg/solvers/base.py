"""What a method must give to the shared loop: a direction at a point."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

from ..backend import Array, namespace
from ..problem import Point, Problem


@dataclasses.dataclass
class Direction:
    """A search direction for a stack of k problems.

    Attributes
    ----------
    p : (k, d)
    ok : (k,) bool, False where p is unusable and `Method.repair` must be asked
    convex : (k,) bool, True where no negative curvature was found: then a zero gradient is a minimum
    bend : (k,) negative curvature <p, H p> of escape directions, 0 elsewhere; or None
    slope : (k,) change of the loss along p at first order, kinks included; None where <g, p> is to be taken
    q : (k, n), A p (two layers: A1 p) where it is known; None where it is to be worked out
    unbounded : True where p leads to a point that is known to be good, and may change exponents by any amount
    first : (k,) the longest step to try, a part of p; None for 1
    label : what was done, for the record
    products : Hessians or Hessian-vector products that it took
    """

    p: Array
    ok: Array
    convex: Array
    bend: Array | None = None
    slope: Array | None = None
    first: Array | None = None
    q: Array | None = None
    unbounded: bool = False
    label: str = ""
    products: int = 1


class Method(abc.ABC):
    """A way to find directions.

    ``state`` holds (k, ...) arrays, which the loop thins out with the stack. Together with the plain numbers in the
    attributes named in ``counters`` it is all that directions may depend on beside the point: what a checkpoint keeps.
    """

    name: ClassVar[str]
    counters: ClassVar[tuple[str, ...]] = ()
    tol: float = 0.0
    """The relative gradient that a run asks for: no step need be more exact."""

    def __init__(self) -> None:
        self.state: dict[str, Array] = {}

    def start(self, problem: Problem) -> None:
        """Forget the last run."""
        self.state = {}

    @abc.abstractmethod
    def direction(self, point: Point, stationary: Any) -> Direction:
        """Return a direction at a point. ``stationary`` (k,), on the host, marks problems whose gradient is zero
        already and whose curvature has not been seen yet: there the direction must say ``convex`` or escape.
        """

    @property
    def working(self) -> Method:
        """The method that finds the directions: itself, unless it leaves that to another one."""
        return self

    def repair(self, point: Point, direction: Direction, bad: Any, stationary: Any) -> Direction:
        """Replace the direction of the problems ``bad``, a boolean array (k,) on the host."""
        return direction  # no other direction: the run ends here

    def accepted(self, gmax: Any, before: Any) -> None:  # noqa: B027 - most methods do not mind
        """Take note of a step, of the largest gradient entries (k,) after it and before, on the host."""

    def remembered(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the plain numbers that the next direction depends on beside the point."""
        return self.state, {name: getattr(self, name) for name in self.counters}

    def restore(self, arrays: dict[str, Array], numbers: dict[str, Any]) -> None:
        """Go on from what `remembered` returned, after `start`."""
        self.state = arrays
        for name, value in numbers.items():
            setattr(self, name, value)

    def account(self) -> str:
        """Return what a method decided by itself, for the message of the result; nothing by default."""
        return ""

    def thin(self, indices: Array) -> None:
        """Keep the problems with these indices."""
        self.state = {key: namespace(x).take(x, indices, axis=0) for key, x in self.state.items()}
