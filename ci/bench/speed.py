"""Speed of xpreg on the CPU beside its peers and the ceilings of the machine: one script, one run, ratios.

    python ci/bench/speed.py                     about 25 minutes on 2 cores, up to 8 GB
    python ci/bench/speed.py --quick             tiny sizes, in seconds: tests this file, measures nothing
    python ci/bench/speed.py --part B C --sizes 200000x100

Parts: A ceilings; B derivatives; C solves; D solves against their own floor; E cost against n; F a small problem.
Everything in float64, on all cores; what is compared runs in turns, and medians over the turns are given. Writes
results/speed-DATE.txt, the numbers as speed-DATE.json, and, where matplotlib is installed, the picture speed.png.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import time
import warnings

# Several pools of threads share the cores here. Where those of OpenMP wait busily, all others wait for them: on a busy
# machine PyTorch and scikit-learn then take up to 40 times longer. To be set before they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import ceilings  # noqa: E402
import counting  # noqa: E402
import derivatives  # noqa: E402
import poisson  # noqa: E402
import solver_peers  # noqa: E402
import summary  # noqa: E402
from common import RESULTS, interleaved, machine, median_ratio, save  # noqa: E402
from tasks import KINDS, make_task  # noqa: E402

import xpreg  # noqa: E402

SIZES = [(200_000, 100), (1_000_000, 64), (100_000, 500), (20_000, 2000)]
SMALL = (20_000, 50)
ALL_SIZES = "condition 1e2"
"""The kind that is solved at every size, and against scikit-learn."""

ONE_SIZE = {"mild": 0, "condition 1e6": 2, "heavy tails": 0, "saturated start": 0}
"""The other kinds and the size, as an index, that they are solved at."""

HARD_SLOWER = 4.0
"""At these the peers get so many times our time, to save some."""

SCALING = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
SCALING_COLUMNS = 64

LEAST = 0.02
"""A measurement takes at least so many seconds."""

SOLVER_HEADER = f"{'method':<28}{'seconds':>9}{'/ auto':>9}{'iterations':>12}{'gradient':>11}{'runs':>6}"

WORTH_REPEATING = 2.0
"""Solvers up to so many times slower than ours run in every round, the others once."""


class Bench:
    """One run: its options, the ceilings, tables as lines and numbers as a dictionary."""

    def __init__(self, options):
        self.options = options
        self.lines, self.numbers = [], {"machine": machine(), "versions": versions()}
        self.ceilings = ceilings.ceilings(options.rounds, options.quick)
        self.begun = time.perf_counter()
        self.rehearsed = set()

    def say(self, *lines):
        self.lines += lines
        print("\n".join(lines), flush=True)

    def table(self, title, header, rows, notes=()):
        self.say("", f"{title}   [{time.perf_counter() - self.begun:.0f} s]", header, *rows, *(f"  {n}" for n in notes))

    # -- A, B, F: ceilings and derivatives -------------------------------------------------------

    def part_a(self):
        self.numbers["ceilings"] = self.ceilings
        self.say("", *ceilings.lines(self.ceilings))

    def part_b(self):
        for n, d in self.options.sizes:
            self.derivatives(make_task(n, d, "mild"))

    def derivatives(self, task):
        """Time every library's derivatives at one point, against a read of A or the flops of a symmetric update."""
        rng = np.random.default_rng(1)
        x, v = rng.standard_normal(task.d), rng.standard_normal(task.d)
        found, notes = derivatives.functions(task, x, v, self.options.hessian_limit)
        flat = {(operation, label): f for operation in found for label, f in found[operation].items()}
        flat |= {("read", label): f for label, f in ceilings.reads(task.A).items()}
        seconds = interleaved(flat, self.options.rounds, least=LEAST, budget=self.options.budget)
        read, how = ceilings.best({label: s for (kind, label), s in seconds.items() if kind == "read"})
        syrk = task.n * task.d**2 / self.ceilings["syrk"]
        rows, numbers = [], {"read": read, "syrk floor": syrk}
        for operation in derivatives.OPERATIONS:
            ideal, own = (syrk if operation == "hess" else read), seconds[operation, "xpreg"]
            numbers[operation] = {}
            for label in found[operation]:
                times = seconds[operation, label]
                median = statistics.median(times)
                ratio = median_ratio(own, times)
                numbers[operation][label] = {"seconds": median, "rounds": len(times), "xpreg / this": ratio}
                rows.append(
                    f"{operation:<16}{label:<26}{1e3 * median:>11.3f}{median / ideal:>9.2f}{ratio:>12.3f}"
                    f"{len(times):>8}"
                )
        self.numbers.setdefault("derivatives", {})[f"{task.n}x{task.d}"] = numbers
        self.table(
            f"Derivatives, n = {task.n:,}, d = {task.d}: one read of A {1e3 * read:.2f} ms ({how}), "
            f"syrk floor {1e3 * syrk:.2f} ms",
            f"{'operation':<16}{'library':<26}{'ms':>11}{'/ floor':>9}{'xpreg/this':>12}{'rounds':>8}",
            rows,
            notes,
        )

    # -- C, D, F: solves -------------------------------------------------------------------------

    def solve_tasks(self):
        sizes = self.options.sizes
        for kind in self.options.kinds:
            chosen = sizes if kind == ALL_SIZES else [sizes[min(ONE_SIZE[kind], len(sizes) - 1)]]
            yield from (make_task(n, d, kind) for n, d in chosen)

    def part_c_d(self):
        for task in self.solve_tasks():
            if "C" in self.options.part:
                self.solves(task)
                if task.kind == ALL_SIZES:
                    self.kullback_leibler(task)
            if "D" in self.options.part:
                self.floor(task)
            gc.collect()

    def solves(self, task):
        """Run every solver until it is there, or the time is up; the slow ones once."""
        solvers, notes = solver_peers.solvers()
        ours = "xpreg auto"
        runs = {label: [] for label in solvers}
        slower = self.options.slower if task.kind == ALL_SIZES else min(self.options.slower, HARD_SLOWER)
        self.rehearse(solvers, task)
        for turn in range(self.options.solve_rounds):
            for label, prepare in solvers.items():
                limit = self.options.cap
                if label != ours:
                    own = runs[ours][0]["seconds"]
                    limit = min(limit, max(slower * own, self.options.least_cap))
                    if turn and runs[label][0]["seconds"] > WORTH_REPEATING * own:
                        continue
                runs[label].append(self.run(prepare, task, limit))
        rows, numbers = [], {}
        loss, own = runs[ours][0]["loss"], [run["seconds"] for run in runs[ours]]
        for label, found in runs.items():
            last = found[-1]
            seconds = [run["seconds"] for run in found]
            numbers[label] = {**last, "seconds": statistics.median(seconds), "rounds": len(found)}
            numbers[label]["this / xpreg auto"] = median_ratio(seconds, own)
            remark = "" if last["converged"] else f"not converged ({last['why']})"
            if last["converged"] and abs(last["loss"] - loss) > 1e-6 * loss:
                remark = f"zero gradient elsewhere: loss {last['loss']:.3e} against {loss:.3e}"
            numbers[label]["solved"] = last["converged"] and last["loss"] <= loss * (1 + 1e-6)
            rows.append(solver_row(label, seconds, own, last["iterations"], last["gradient"]) + remark)
        self.numbers.setdefault("solves", {})[task.name] = numbers
        self.table(
            f"Solve to |g| <= {solver_peers.TOL:g} |g(x0)|, n = {task.n:,}, d = {task.d}, {task.kind}",
            SOLVER_HEADER,
            rows,
            notes,
        )

    def kullback_leibler(self, task):
        """The loss that scikit-learn can express."""
        title = f"Kullback-Leibler loss, n = {task.n:,}, d = {task.d}, {task.kind}"
        try:
            found = poisson.compare(task, self.options.solve_rounds)
        except ImportError:
            self.table(title, "scikit-learn: not installed", [])
            return
        self.numbers.setdefault("kullback-leibler", {})[task.name] = found
        own = found["xpreg auto"]["seconds"]
        self.table(
            title,
            SOLVER_HEADER,
            [
                solver_row(label, q["seconds"], own, q["iterations"], q["gradient"])
                + ("" if q["gradient"] <= 1.01 * solver_peers.TOL else "not converged")
                for label, q in found.items()
            ],
            ["PoissonRegressor(alpha=0) with an intercept has this loss; no model of scikit-learn has the squared one"],
        )

    def rehearse(self, solvers, task):
        """Take the first steps of every solver once per size: imports, compilation, memory."""
        for label, prepare in solvers.items():
            if (label, task.A.shape) not in self.rehearsed:
                self.rehearsed.add((label, task.A.shape))
                watch = solver_peers.Watch(task, solver_peers.REHEARSAL_SECONDS, solver_peers.REHEARSAL)
                with contextlib.suppress(solver_peers.Stop):
                    prepare(task, watch)()

    def run(self, prepare, task, limit):
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
        value, g = derivatives.BY_HAND.value_and_grad(task.A, task.b, np.asarray(watch.x))
        gradient = float(np.abs(g).max()) / task.start_gradient
        return {
            "seconds": seconds,
            "iterations": watch.iterations,
            "gradient": gradient,
            "loss": float(value),
            "converged": gradient <= 1.01 * solver_peers.TOL,
            "why": why,
        }

    def floor(self, task):
        """Time a solve, a Hessian and a read in turns, and compare with what the solve has counted."""
        result, counts = counting.count(task, tol=solver_peers.TOL)
        rounds = self.options.solve_rounds
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
        ideal = counts.grams * task.n * task.d**2 / self.ceilings["syrk"] + counts.passes * read
        self.numbers.setdefault("floors", {})[task.name] = {
            "seconds": solve, "floor": floor, "syrk floor": ideal, "gram": gram, "read": read,
            "grams": counts.grams, "passes": counts.passes, "iterations": result.nit,
        }  # fmt: skip
        self.table(
            f"xpreg auto against its own floor, n = {task.n:,}, d = {task.d}, {task.kind}",
            f"{'seconds':>10}{'floor':>10}{'/ floor':>10}{'/ syrk floor':>14}{'Grams':>8}{'passes':>8}"
            f"{'iterations':>12}",
            [
                f"{solve:>10.3f}{floor:>10.3f}{solve / floor:>10.2f}{solve / ideal:>14.2f}{counts.grams:>8.2f}"
                f"{counts.passes:>8.1f}{result.nit:>12}"
            ],
        )

    # -- E: cost against n -----------------------------------------------------------------------

    def part_e(self):
        d = SCALING_COLUMNS
        largest = make_task(self.options.scaling[-1], d, "mild")
        v = np.random.default_rng(1).standard_normal(d)
        rows, numbers = [], {}
        for n in self.options.scaling:
            problem = xpreg.SoftmaxRegression(largest.A[:n], largest.b[:n] / largest.b[:n].sum())
            x = np.full(d, 0.1)
            point = problem.at(x)
            seconds = interleaved(
                {
                    "value_and_grad": lambda: problem.value_and_grad(x),  # noqa: B023 - called in this turn
                    "hvp": lambda: point.hvp(v),  # noqa: B023
                    "hess": lambda: problem.hess(x),  # noqa: B023
                    "solve": lambda: xpreg.minimize(problem, tol=solver_peers.TOL),  # noqa: B023
                },
                self.options.rounds,
                least=LEAST,
            )
            numbers[n] = {name: statistics.median(times) for name, times in seconds.items()}
            rows.append(f"{n:>9}" + "".join(f"{1e9 * s / n:>16.1f}" for s in numbers[n].values()))
        self.numbers["scaling"] = {"d": d, "seconds": numbers}
        self.table(
            f"Cost against n, d = {d}: nanoseconds per row", f"{'n':>9}" + "".join(f"{q:>16}" for q in seconds), rows
        )


def solver_row(label, seconds, own, iterations, gradient):
    return (
        f"{label:<28}{statistics.median(seconds):>9.3f}{median_ratio(seconds, own):>9.2f}{iterations:>12}"
        f"{gradient:>11.1e}{len(seconds):>6}   "
    )


def versions():
    """Versions of the peers, and a word for those that are missing."""
    found = {}
    for name in ("scipy", "jax", "torch", "jaxopt", "optimistix", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def size(text):
    n, d = text.replace("_", "").split("x")
    return int(float(n)), int(d)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=size, default=SIZES, metavar="NxD")
    parser.add_argument("--part", nargs="+", choices=list("ABCDEF"), default=list("ABCDEF"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of the solves")
    parser.add_argument("--rounds", type=int, default=7, help="turns of the derivatives")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds after which a derivative sits out its turns")
    parser.add_argument("--solve-rounds", type=int, default=3, help="turns of the solvers that are not far slower")
    parser.add_argument("--slower", type=float, default=9.0, help="a solver is stopped at so many times our time")
    parser.add_argument("--cap", type=float, default=40.0, help="and at so many seconds")
    parser.add_argument("--least-cap", type=float, default=1.0, help="but not before so many")
    parser.add_argument("--hessian-limit", type=float, default=1e11, help="largest n d^2 of a Hessian by autodiff")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tests this file, measures nothing")
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder of the results (default ci/bench/results; out with --quick)"
    )
    options = parser.parse_args()
    options.out = options.out or (ROOT / "out" if options.quick else RESULTS)
    options.small, options.scaling = SMALL, SCALING
    if options.quick:
        options.sizes, options.small, options.scaling = [(2000, 12)], (2000, 12), [1000, 3000, 10_000]
        options.kinds = ["condition 1e2", "saturated start"]
        options.rounds, options.solve_rounds, options.least_cap = 2, 1, 0.2
    return options


def main():
    options = parse()
    print("\n".join(machine()), flush=True)
    bench = Bench(options)
    bench.say(
        "--quick: nothing here is a measurement" if options.quick else "",
        "peers: " + ", ".join(f"{name} {version}" for name, version in bench.numbers["versions"].items()),
    )
    if "A" in options.part:
        bench.part_a()
    if "B" in options.part:
        bench.part_b()
    if {"C", "D"} & set(options.part):
        bench.part_c_d()
    if "E" in options.part:
        bench.part_e()
    if "F" in options.part:
        task = make_task(*options.small, "mild")
        bench.derivatives(task)
        bench.solves(task)
    bench.say("", *summary.lines(bench.numbers))
    options.out.mkdir(parents=True, exist_ok=True)
    path = save("speed" + "-quick" * options.quick, bench.lines, options.out)
    path.with_suffix(".json").write_text(json.dumps(bench.numbers, indent=1) + "\n")
    try:
        importlib.import_module("figures").draw(bench.numbers, options.out / f"{path.stem[:-11]}.png")
    except ImportError:
        print("no picture: matplotlib is not installed")


if __name__ == "__main__":
    main()
