"""The choice of a method: from the size of a problem, the memory, and what the run shows."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import backend as B
from ..backend import Array
from ..maps import Map
from ..problem import Point, Problem
from .approximate_newton import ApproximateNewton
from .base import Direction, Method
from .newton import Newton
from .newton_cg import NewtonCG, ritz_condition, scaled_norm
from .newton_pcg import NewtonPCG
from .sample_start import SampleStart, sample_size, sample_start

NARROW = 32
"""Up to so many columns a Gram matrix costs hardly more than a few products."""

SMALL = 2**21
"""Bytes of rows up to which they stay in the cache of a core, and an exact step is a few calls."""

MATRICES = 6
"""(d, d) arrays that a method with Hessians holds at a time."""

PROBE = 4
"""Products of the first step: enough for Ritz values to show whether the condition is good."""

HARD = 3
"""After so many iterations in a row that needed another matrix than the Hessian, exact steps are the shorter way; after
one when that took products that cost half a Gram matrix."""

CLOSE = 0.2
"""A hard run has become easy when an exact Newton step has shrunk the gradient by this factor."""

CHEAP = 2.0
"""Products that a Gram matrix may cost to be taken in every step."""

PRODUCTS_PER_ROOT = 17.5
"""Products of a whole run with conjugate gradients, over the root of the condition number: a step takes 0.5 sqrt(kappa)
log(2/forcing), and over a run with forcing terms from 0.5 down to 1e-4 these logarithms add up to 35."""

PRODUCTS_WITH_PRECONDITIONER = 20
"""Products of a whole run when a Hessian of that run is the preconditioner, about: measured."""

AFTER_SAMPLE = 0.4
"""What of both is left after a fit of some of the rows."""

MANY_ROWS = 400
"""Rows per column from which on a sample of 20 d of them costs next to nothing beside a Gram matrix of all."""

SINGLE = 1000
"""Columns from which on a Gram matrix in float32 saves more than the products that it may cost."""

SINGLE_CONDITION = 1e6
"""Largest condition number of the scaled Hessian, as far as it was seen, for that."""

WIDE = 256
"""Columns from which on the sample's own costs (its scores, reading A four times) are small beside a Gram matrix."""

TAKEN: tuple[type[Method], ...] = (Newton, NewtonCG, NewtonPCG, ApproximateNewton)
"""The methods that can be chosen."""


class Auto(Method):
    """Exact Newton for stacks, two layers and what is small or read in passes; else conjugate gradients, with a
    preconditioner as soon as the run shows that it pays.

    The first step leads to the fit of a sample of the rows, where there are so many that it is all but free, and
    otherwise runs conjugate gradients. Ritz values then bound the condition number of the scaled Hessian from below.
    When what is left of the run would cost more with conjugate gradients than a Gram matrix does, a Hessian becomes the
    preconditioner; or, for many rows and columns, a sample of the rows. So it does when the products so far have cost
    more than that.
    What was chosen and why is in `Result.message` and in the history. The choice does not depend on timings, so that
    the same problem takes the same steps everywhere.
    """

    name: ClassVar[str] = "auto"
    counters: ClassVar[tuple[str, ...]] = (
        "adapts",
        "decided",
        "sample",
        "iterations",
        "repairs",
        "products",
        "last",
        "close",
        "times_hard",
        "condition",
        "reasons",
    )
    method: Method

    def start(self, problem: Problem) -> None:
        super().start(problem)
        self.problem, self.iterations, self.repairs, self.products, self.last = problem, 0, 0, 0, 0
        self.repaired = self.close = self.decided = False
        self.condition = 1.0
        self.times_hard = 0
        self.reasons: list[str] = []
        self._take(*self._by_size(problem))
        self.sample = sample_size(problem)

    def account(self) -> str:
        return "chosen: " + ", then ".join(self.reasons)

    def direction(self, point: Point, stationary: Any) -> Direction:
        sample, self.sample = self.sample, 0
        if sample and not stationary.any():
            start = sample_start(point, sample, NewtonPCG() if self.adapts else Newton())
            if start is not None:
                return self._begin(point, start)
        change = self._by_run()
        if change is not None:
            self._take(*change)
        self.iterations += 1
        self.repaired = False
        direction = self.method.direction(point, stationary)
        self.last = direction.products
        self.products += self.last
        if change is not None:
            direction.label += f" [{self.reasons[-1]}]"
        return direction

    def _begin(self, point: Point, start: SampleStart) -> Direction:
        """Take the step to the fit of a sample, whose Hessian shows the condition number of that of all rows."""
        self.method.state["g0"] = scaled_norm(point)
        self.iterations += 1
        self.reasons.insert(0, f"a {start.direction.label}")
        if self.adapts:
            self.reasons.pop()
            self.condition = start.condition()
            self._take(*(self._by_condition(AFTER_SAMPLE) or (NewtonCG(self._worth), self._seen(""))))
        self.decided = True
        return start.direction

    @property
    def working(self) -> Method:
        return self.method

    def repair(self, point: Point, direction: Direction, bad: Any, stationary: Any) -> Direction:
        self.repaired, before = True, direction.products
        repaired = self.method.repair(point, direction, bad, stationary)
        self.last += repaired.products - before
        self.products += repaired.products - before
        return repaired

    def accepted(self, gmax: Any, before: Any) -> None:
        self.repairs = self.repairs + 1 if self.repaired else 0
        self.close = not self.repaired and bool((gmax <= CLOSE * before).all())
        if self.adapts and not self.decided:
            self.condition = ritz_condition(self.method.trace) if isinstance(self.method, NewtonCG) else 1.0

    def remembered(self) -> tuple[dict[str, Array], dict[str, Any]]:
        arrays, numbers = self.method.remembered()
        return arrays, super().remembered()[1] | {"method": self.method.name, "of method": numbers}

    def restore(self, arrays: dict[str, Array], numbers: dict[str, Any]) -> None:
        own = {name: numbers[name] for name in self.counters}
        self._take(next(kind for kind in TAKEN if kind.name == numbers["method"])(), "")
        super().restore({}, own)
        self.method.restore(arrays, numbers["of method"])

    def thin(self, indices: Array) -> None:
        self.method.thin(indices)

    def _take(self, method: Method, reason: str) -> None:
        g0 = self.method.state.get("g0") if self.reasons else None
        self.method, method.tol = method, self.tol
        method.start(self.problem)
        if g0 is not None:
            method.state["g0"] = g0
        self.reasons.append(f"{method.name} ({reason})")

    def _by_size(self, problem: Problem) -> tuple[Method, str]:
        rows, d = problem.rows, problem.d
        size, free = B.itemsize(rows.like), B.free_memory(rows.like)
        self.adapts = False
        if free is not None and MATRICES * d * d * size > free:
            return NewtonCG(), f"{MATRICES} ({d}, {d}) arrays do not fit in {free / 2**30:.1f} GiB"
        if problem.size > 1:
            return Newton(), "a stack, whose Hessians share their products of rows"
        if not isinstance(rows, Map):
            return Newton(), "two layers"
        if d <= NARROW or rows.n * d * size <= SMALL:
            return Newton(), "small"
        if rows.gram_products <= CHEAP:
            return Newton(), "a Gram matrix costs no more than reading the rows"
        self.adapts = True
        return NewtonCG(PROBE), "large; its first step shows the condition"

    def _by_run(self) -> tuple[Method, str] | None:
        """Return what should take over; None for no change."""
        rows = self.problem.rows
        if not (self.iterations and self.adapts and isinstance(rows, Map)):
            return None
        if isinstance(self.method, Newton):
            leave = self.close and self.times_hard < 2  # a run that was hard twice goes to and fro otherwise
            return self._preconditioned("close to the solution") if leave else None
        if self.repairs >= (1 if 2 * self.last >= rows.gram_products else HARD):
            self.times_hard += 1
            return Newton(), "the Hessian stays indefinite"
        if type(self.method) is not NewtonCG:
            return None
        if not self.decided:
            self.decided, self.method.max_products = True, self._worth
            return self._by_condition(1.0)
        if self.products >= self._worth:
            return self._preconditioned(f"{self.products} products so far cost more than a Gram matrix would")
        return None

    @property
    def _worth(self) -> int:
        """Products that cost as much as a Gram matrix and what comes with it."""
        return int(self.problem.rows.inner.gram_products + PRODUCTS_WITH_PRECONDITIONER)

    def _by_condition(self, left: float) -> tuple[Method, str] | None:
        """Return what should take over when this share of a run is left; None for no change."""
        rows = self.problem.rows
        assert isinstance(rows, Map)
        without = left * PRODUCTS_PER_ROOT * self.condition**0.5
        if without > rows.gram_products + left * PRODUCTS_WITH_PRECONDITIONER:
            return self._preconditioned(self._seen(" or more"))
        return None

    def _seen(self, more: str) -> str:
        return f"the scaled Hessian has a condition number of {self.condition:.2g}{more}"

    def _preconditioned(self, reason: str) -> tuple[Method, str]:
        rows = self.problem.rows
        assert isinstance(rows, Map)
        if rows.hands_out_rows and rows.n >= MANY_ROWS * rows.d and rows.d >= WIDE:
            return ApproximateNewton(), f"{reason}; {rows.n // rows.d} rows per column"
        if rows.d >= SINGLE and self.condition < SINGLE_CONDITION:
            return NewtonPCG("single"), f"{reason}; preconditioner in float32"
        return NewtonPCG(), reason
