"""The loop that every method shares: directions, line search, convergence per problem, one host read an iteration."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from .. import backend as B
from ..backend import Array, namespace, quiet
from ..errors import DomainError
from ..problem import Point, Problem
from ..result import IterationRecord, Status
from .base import Direction, Method
from .line_search import LARGEST_CHANGE, MAX_TRIALS, Ray, Trial, grad_noise

THIN_OUT = 0.25
"""A stack is thinned out when this share of it has finished: the rest then costs at most a third too much."""

PROGRESS = 0.5
"""Where rounding hides the change of the loss, a step must shrink the gradient at least by this factor to go on."""

SMALL_CHANGE = (1e-3, 0.1)
"""A run converges only where the whole step would change no exponent by more than sqrt(tol), within these bounds, or
where the loss is below tol times that of no fit at all. A gradient alone is also small where the first one was huge."""

HOST_ARRAYS = (
    "f",
    "gmax",
    "threshold",
    "scale",
    "ids",
    "finished",
    "stalled",
    "lost",
    "suspect",
    "convex",
    "small",
    "running",
)

MAX_RESUMED = 3
"""How often a run goes on because the kept z had drifted from A x."""


@dataclasses.dataclass
class Counts:
    """Evaluations so far, summed over the parts of a stack."""

    nfev: int = 0
    ngev: int = 0
    nhev: int = 0
    started: float = dataclasses.field(default_factory=time.perf_counter)


@dataclasses.dataclass
class Finished:
    """Final numbers of some problems: device arrays x, grad; the rest on the host."""

    ids: Any
    x: Array
    grad: Array
    fun: Any
    status: Any
    gmax: Any
    threshold: Any


class Loop:
    """One run over a stack of k problems. Host arrays (k,), named in HOST_ARRAYS:

    f, gmax, threshold, scale : loss, largest gradient entry, where it counts as zero, what counts as a large loss
    ids, finished, running : which problems these are, which have finished, which took part in the last iteration
    stalled, suspect : no step helps; and it is not yet known whether that is a minimum
    lost : no finite direction was found
    convex, small : no negative curvature was met in the last step; it was small
    """

    def __init__(self, problem: Problem, x: Array, method: Method, tol: float, counts: Counts, part: tuple[int, int]):
        self.method, self.tol, self.counts, self.part = method, tol, counts, part
        method.tol = tol
        method.start(problem)
        self.point = problem.point(x)
        with quiet():
            self.f, self.gmax = (v.copy() for v in B.read(self.point.values, largest(self.point.least_grads)))
        outside = (~((self.f < math.inf) & (self.gmax < math.inf))).nonzero()[0]
        if len(outside):
            raise DomainError(
                f"loss and gradient are not finite at the start{_number(outside, self.f)}: {problem.head.undefined}."
            )
        self.threshold = tol * self.gmax
        self.scale = self.f * 0 + B.to_numpy(problem.head.scale(problem._b))
        self.reach = namespace(x).full_like(self.point.values, LARGEST_CHANGE)
        self.ids = (self.f == self.f).nonzero()[0]  # 0, ..., k - 1
        self.finished = self.f != self.f
        self.stalled, self.lost, self.suspect, self.convex, self.small = (self.finished.copy() for _ in range(5))
        self.running = ~self.finished
        self.largest_change = min(max(tol**0.5, SMALL_CHANGE[0]), SMALL_CHANGE[1])
        self.nit, self.resumed = -1, 0
        self.done: list[Finished] = []
        counts.nfev, counts.ngev = counts.nfev + 1, counts.ngev + 1

    def run(self, maxiter: int, notify: Callable[[IterationRecord], None]) -> list[Finished]:
        """Iterate until every problem has finished, or ``maxiter``, or ``notify`` raises StopIteration."""
        ending = Status.MAXITER
        try:
            if self.nit < 0:
                self.nit = 0
                notify(self.record(float("nan"), "start"))
            elif self.settle():  # of a checkpoint
                return self.done
            while self.nit < maxiter:
                with quiet():
                    step, label = self.iterate()
                self.nit += 1
                notify(self.record(step, label))
                if self.settle():
                    return self.done
        except StopIteration:
            ending = Status.STOPPED
        with quiet():
            self.retire(ending)
        return self.done

    def settle(self) -> bool:
        """Take finished problems out of the stack when there are enough of them; return whether none is left."""
        if self.finished.sum() >= max(1, THIN_OUT * len(self.ids)):
            with quiet():
                self.retire()
        return len(self.ids) == 0

    def iterate(self) -> tuple[float, str]:
        """Take one step with every running problem; return the smallest accepted step length and the label."""
        point = self.point
        self.running = running = ~self.finished
        far = self.convex & ~self.small  # a gradient that is small beside a huge first one: more steps, not a probe
        stationary = running & ((self.gmax <= self.threshold) & ~far | self.suspect)
        direction = self.method.direction(point, stationary)
        self.counts.nhev += direction.products
        self.check(direction)
        known = B.peek(direction.ok)
        if known is not None and not (known | self.finished).all():
            self.repair(direction, running & ~known, stationary)
        trial, read = self.search(point, direction, stationary, running)

        xp = namespace(point.x)
        ok, f, gmax, step, flat, convex, change = read
        flat, convex = (flat != 0) & running, convex != 0
        worse = flat & (gmax > self.gmax)
        self.point, self.reach = trial.point, trial.reach
        if worse.any():  # rounding: the old point was better
            back = B.new(worse, point.x, dtype=xp.bool)[:, None]
            x, y = xp.where(back, point.x, trial.point.x), namespace(point.y).where(back, point.y, trial.point.y)
            self.point = point.problem.point(x, y, shape=point.shape)
        shrink = PROGRESS if direction.first is None else 1.0 - (1.0 - PROGRESS) * step  # short steps promise less
        stuck = running & ((flat & ~(gmax < shrink * self.gmax)) | (step == 0))
        self.lost |= running & (ok == 0)
        self.stalled |= self.lost | (stuck & (convex | stationary))
        self.suspect = stuck & ~self.stalled  # a zero gradient up to rounding: is there negative curvature?
        self.method.accepted(gmax[running], self.gmax[running])
        self.f[running & ~worse] = f[running & ~worse]
        self.gmax[running & ~worse] = gmax[running & ~worse]
        unset = self.threshold == 0  # a zero gradient at the start sets no scale: take the first one that is not
        self.threshold[unset] = self.tol * self.gmax[unset]
        self.convex[running] = convex[running]
        self.small[running] = ((change <= self.largest_change) | (self.f <= self.tol * self.scale))[running]
        self.finished |= self.stalled | (running & (self.gmax <= self.threshold) & convex & self.small)
        return float(step[running].min()), direction.label

    def check(self, direction: Direction) -> None:
        """Count a direction that is not finite as unusable."""
        xp = namespace(direction.p)
        direction.ok = direction.ok & xp.all(xp.isfinite(direction.p), axis=-1)

    def repair(self, direction: Direction, bad: Any, stationary: Any) -> None:
        """Ask the method for other directions; where it has none, stay."""
        before = direction.products
        self.method.repair(self.point, direction, bad, stationary)
        self.counts.nhev += direction.products - before
        self.check(direction)
        xp = namespace(direction.p)
        direction.p, direction.q = xp.where(direction.ok[:, None], direction.p, xp.zeros_like(direction.p)), None

    def search(
        self, point: Point, direction: Direction, stationary: Any, running: Any, repaired: bool = False
    ) -> tuple[Trial, list]:
        """Backtrack until every running problem accepts. One host read, when the first trial is accepted."""
        xp = namespace(point.x)
        mask = xp.ones_like(direction.ok) if running.all() else B.new(running, point.x, dtype=xp.bool)
        ray = Ray(point, direction, mask, self.reach)
        t = ray.first_step()
        tries = 0
        while True:
            trial = ray.trial(t)
            tries += 1
            self.counts.nfev += 1
            seen = B.peek(trial.accepted)
            if seen is None or seen.all():
                self.counts.ngev += 1
                accepted, ok, *read = B.read(
                    xp.astype(trial.accepted, t.dtype),
                    xp.astype(direction.ok, t.dtype),
                    trial.point.values,
                    largest(trial.point.least_grads),
                    t,
                    xp.astype(trial.flat, t.dtype),
                    xp.astype(direction.convex, t.dtype),
                    ray.change,
                )
                unusable = running & (ok == 0)
                if unusable.any() and seen is None and not repaired:  # known only now, on a GPU: mend, search again
                    self.repair(direction, unusable, stationary)
                    return self.search(point, direction, stationary, running, repaired=True)
                if accepted.all():
                    return trial, [ok, *read]
            t = trial.next_step
            if tries >= MAX_TRIALS:  # give up: stay there
                t = xp.where(trial.accepted, t, xp.zeros_like(t))

    def retire(self, ending: Status | None = None) -> None:
        """Take the finished problems out of the stack, with numbers from a fresh z = A x; with ``ending``, all of them.

        The kept z collects rounding errors. Should that have hidden that a problem is not there yet, it goes on.
        """
        xp = namespace(self.point.x)
        mask = self.finished | (ending is not None)
        index = None if mask.all() else B.indices(mask, self.point.x)
        problem, x = self.point.problem, self.point.x
        fresh = problem.point(x) if index is None else problem.take(index).point(xp.take(x, index, axis=0))
        g, noise = xp.abs(fresh.least_grads), grad_noise(fresh)
        within = xp.astype(xp.all(g <= noise, axis=-1), g.dtype)
        fun, gmax, rounding, within = (
            v.copy() for v in B.read(fresh.values, xp.max(g, axis=-1), xp.max(noise, axis=-1), within)
        )
        precise = (within != 0) & (rounding < math.inf)
        self.counts.nfev, self.counts.ngev = self.counts.nfev + 1, self.counts.ngev + 1

        threshold, finished, stalled = self.threshold[mask], self.finished[mask], self.stalled[mask]
        drifted = finished & ~stalled & (gmax > threshold) & ~precise
        if ending is None and drifted.any() and self.resumed < MAX_RESUMED:
            self.resumed += 1
            self.point = problem.point(x)
            again = mask.nonzero()[0][drifted]
            self.f[again], self.gmax[again] = fun[drifted], gmax[drifted]
            self.finished[again] = self.suspect[again] = self.small[again] = False
            return
        status = self.ids[mask] * 0 + int(Status.STALLED)
        status[precise] = int(Status.PRECISION)
        status[(gmax <= threshold) & self.small[mask]] = int(Status.CONVERGED)
        if not problem.rows.has_kinks:
            status[(gmax == 0) & ~(rounding > 0) & (fun > self.tol * self.scale[mask])] = int(Status.FLAT)
        status[self.lost[mask] | ~(gmax < math.inf)] = int(Status.STALLED)
        if ending is not None:
            solved = self.convex[mask] & ((gmax <= threshold) & self.small[mask] | precise)
            status[~finished & ~solved] = int(ending)
        self.done.append(Finished(self.ids[mask], fresh.x, fresh.least_grads, fun, status, gmax, threshold))
        self.keep(~mask)

    def keep(self, mask: Any) -> None:
        for name in HOST_ARRAYS:
            setattr(self, name, getattr(self, name)[mask])
        if mask.any():
            xp = namespace(self.point.x)
            index = B.indices(mask, self.point.x)
            problem = self.point.problem.take(index)
            x, y = self.point.x, self.point.y
            self.point = problem.point(xp.take(x, index, axis=0), namespace(y).take(y, index, axis=0))
            self.reach = xp.take(self.reach, index, axis=0)
            self.method.thin(index)

    def record(self, step: float, label: str) -> IterationRecord:
        return IterationRecord(
            nit=self.nit,
            fun=float(self.f[self.running].max()),
            grad_norm=float(self.gmax[self.running].max()),
            step=step,
            direction=label,
            active=int((~self.finished).sum()),
            nfev=self.counts.nfev,
            seconds=time.perf_counter() - self.counts.started,
            problems=self.part,
        )


def largest(g: Array) -> Array:
    """Return the largest absolute entry (k,) of g (k, d)."""
    xp = namespace(g)
    return xp.max(xp.abs(g), axis=-1)


def _number(which: Any, among: Any) -> str:
    return (
        "" if len(among) == 1 else f" of problem {which[0]}" + (f" and {len(which) - 1} more" if len(which) > 1 else "")
    )
