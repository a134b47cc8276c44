"""Tables of whole solves: every solver in turns, scikit-learn's loss, and solves against their own floor."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings

import ceilings
import counting
import numpy as np
import poisson
import solver_peers
from common import interleaved, median_ratio
from tasks import BY_HAND

import xpreg

OURS = "xpreg auto"

ALL_SIZES = "condition 1e2"
"""The kind that is solved at every size, and against scikit-learn."""

HARD_SLOWER = 4.0
"""At these the peers get so many times our time, to save some."""

SOLVER_HEADER = f"{'method':<28}{'seconds':>9}{'/ auto':>9}{'iterations':>12}{'gradient':>11}{'runs':>6}"

WORTH_REPEATING = 3.0
"""Solvers up to so many times slower than ours run in every round, the others once."""

MOST_TURNS, SHORT = 21, 1.0
"""Short solves take more turns than --solve-rounds: until ours has taken SHORT seconds in all."""


def solves(bench, task):
    """Run every solver until it is there, or the time is up; the slow ones once."""
    solvers, notes = solver_peers.solvers()
    options, runs, first = bench.options, {label: [] for label in solvers}, {}  # first: seconds of the first runs
    slower = options.slower if task.kind == ALL_SIZES else min(options.slower, HARD_SLOWER)
    rehearse(bench, solvers, task)
    for turn in range(MOST_TURNS):
        if turn >= options.solve_rounds and (options.quick or turn * first[OURS] > SHORT):
            break
        for label, prepare in solvers.items():
            if label in first and first[label] > WORTH_REPEATING * first[OURS]:
                continue
            limit = min(options.cap, max(slower * first.get(OURS, options.cap), options.least_cap))
            runs[label].append(run(prepare, task, limit))
            first.setdefault(label, runs[label][0]["seconds"])
    rows, numbers = [], {}
    loss, own = runs[OURS][0]["loss"], [q["seconds"] for q in runs[OURS]]
    for label, found in runs.items():
        last = found[-1]
        seconds = [q["seconds"] for q in found]
        numbers[label] = {**last, "seconds": statistics.median(seconds), "rounds": len(found)}
        numbers[label]["this / xpreg auto"] = median_ratio(seconds, own)
        remark = "" if last["converged"] else f"not converged ({last['why']})"
        if last["converged"] and abs(last["loss"] - loss) > 1e-6 * loss:
            remark = f"zero gradient elsewhere: loss {last['loss']:.3e} against {loss:.3e}"
        numbers[label]["solved"] = last["converged"] and last["loss"] <= loss * (1 + 1e-6)
        rows.append(solver_row(label, seconds, own, last["iterations"], last["gradient"]) + remark)
    bench.numbers.setdefault("solves", {})[task.name] = numbers
    bench.table(
        f"Solve to |g| <= {solver_peers.TOL:g} |g(x0)|, n = {task.n:,}, d = {task.d}, {task.kind}",
        SOLVER_HEADER,
        rows,
        notes,
    )


def kullback_leibler(bench, task):
    """The loss that scikit-learn can express."""
    title = f"Kullback-Leibler loss, n = {task.n:,}, d = {task.d}, {task.kind}"
    try:
        found = poisson.compare(task, bench.options.solve_rounds)
    except ImportError:
        bench.table(title, "scikit-learn: not installed", [])
        return
    bench.numbers.setdefault("kullback-leibler", {})[task.name] = found
    own = found[OURS]["seconds"]
    bench.table(
        title,
        SOLVER_HEADER,
        [
            solver_row(label, q["seconds"], own, q["iterations"], q["gradient"])
            + ("" if q["gradient"] <= 1.01 * solver_peers.TOL else "not converged")
            for label, q in found.items()
        ],
        ["PoissonRegressor(alpha=0) with an intercept has this loss; no model of scikit-learn has the squared one"],
    )


def rehearse(bench, solvers, task):
    """Take the first steps of every solver once per size: imports, compilation, memory."""
    for label, prepare in solvers.items():
        if (label, task.A.shape) not in bench.rehearsed:
            bench.rehearsed.add((label, task.A.shape))
            watch = solver_peers.Watch(task, solver_peers.REHEARSAL_SECONDS, solver_peers.REHEARSAL)
            with contextlib.suppress(solver_peers.Stop, ArithmeticError, ValueError):
                prepare(task, watch)()


def run(prepare, task, limit):
    """Run one solver once; its final gradient is taken by NumPy."""
    watch = solver_peers.Watch(task, limit)
    solve = prepare(task, watch)
    why = "stopped by itself"
    watch.started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow on the way: what counts is the final gradient
        try:
            solve()
        except solver_peers.Stop:
            why = f"stopped at {limit:.3g} s"
        except (ArithmeticError, ValueError) as error:  # of peers that go on with a NaN
            why = f"failed: {error}"
    seconds = time.perf_counter() - watch.started
    value, g = BY_HAND.value_and_grad(task.A, task.b, np.asarray(watch.x))
    gradient = float(np.abs(g).max()) / task.start_gradient
    return {
        "seconds": seconds,
        "iterations": watch.iterations,
        "gradient": gradient,
        "loss": float(value),
        "converged": gradient <= 1.01 * solver_peers.TOL,
        "why": why,
    }


def own_floor(bench, task):
    """Time a solve, a Hessian and a read in turns, and compare with what the solve has counted."""
    result, counts = counting.count(task, tol=solver_peers.TOL)
    rounds = bench.options.solve_rounds
    problems = [xpreg.SoftmaxRegression(task.A, task.b) for _ in range(rounds)]  # they keep what they work out
    fresh, point = iter(problems), problems[0].at(task.x0)
    seconds = interleaved(
        {
            "solve": lambda: xpreg.minimize(next(fresh), task.x0, tol=solver_peers.TOL),
            "gram": point.hess,
            **ceilings.reads(task.A),
        },
        rounds,
    )
    solve, gram = (statistics.median(seconds.pop(name)) for name in ("solve", "gram"))
    read, _ = ceilings.best(seconds)
    floor = counts.grams * gram + counts.passes * read
    ideal = counts.grams * task.n * task.d**2 / bench.ceilings["syrk"] + counts.passes * read
    bench.numbers.setdefault("floors", {})[task.name] = {
        "seconds": solve, "floor": floor, "syrk floor": ideal, "gram": gram, "read": read,
        "grams": counts.grams, "passes": counts.passes, "iterations": result.nit,
    }  # fmt: skip
    bench.table(
        f"xpreg auto against its own floor, n = {task.n:,}, d = {task.d}, {task.kind}",
        f"{'seconds':>10}{'floor':>10}{'/ floor':>10}{'/ syrk floor':>14}{'Grams':>8}{'passes':>8}{'iterations':>12}",
        [
            f"{solve:>10.3f}{floor:>10.3f}{solve / floor:>10.2f}{solve / ideal:>14.2f}{counts.grams:>8.2f}"
            f"{counts.passes:>8.1f}{result.nit:>12}"
        ],
    )


def solver_row(label, seconds, own, iterations, gradient):
    return (
        f"{label:<28}{statistics.median(seconds):>9.3f}{median_ratio(seconds, own):>9.2f}{iterations:>12}"
        f"{gradient:>11.1e}{len(seconds):>6}   "
    )
