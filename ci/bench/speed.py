"""Speed of xpreg on the CPU beside its peers and the ceilings of the machine: one script, one run, ratios.

    python ci/bench/speed.py                     about 40 minutes on 2 cores, up to 8 GB
    python ci/bench/speed.py --quick             tiny sizes, in seconds: tests this file, measures nothing
    python ci/bench/speed.py --part B C --sizes 200000x100

Parts: A ceilings; B derivatives; C solves; D solves against their own floor; E cost against n; F a small problem.
Everything in float64, on all cores; what is compared runs in turns, and medians over the turns are given. Writes
results/speed-DATE.txt, the numbers as speed-DATE.json, and, where matplotlib is installed, the picture speed.png.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import time

# Several pools of threads share the cores here. Where those of OpenMP wait busily, all others wait for them: on a busy
# machine PyTorch and scikit-learn then take up to 40 times longer. To be set before they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # OpenBLAS's spin for 25 ms after a product otherwise

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import ceilings  # noqa: E402
import derivatives  # noqa: E402
import solver_peers  # noqa: E402
import solves  # noqa: E402
import summary  # noqa: E402
from common import RESULTS, interleaved, machine, median_ratio, save  # noqa: E402
from tasks import KINDS, make_task  # noqa: E402

import xpreg  # noqa: E402

SIZES = [(200_000, 100), (1_000_000, 64), (100_000, 500), (20_000, 2000)]
SMALL = (20_000, 50)
ONE_SIZE = {"mild": 0, "condition 1e6": 2, "heavy tails": 0, "saturated start": 0}
"""The other kinds and the size, as an index, that they are solved at."""

SCALING = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
SCALING_COLUMNS = 64

LEAST = 0.02
"""A measurement takes at least so many seconds."""


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

    def derivatives(self, task, part="derivatives"):
        """Time every library's derivatives at one point, against a read of A or the flops of a symmetric update."""
        rng = np.random.default_rng(1)
        x, v = rng.standard_normal(task.d), rng.standard_normal(task.d)
        found, notes = derivatives.functions(task, x, v, self.options.hessian_limit)
        flat = {(operation, label): f for operation in found for label, f in found[operation].items()}
        flat |= {("read", label): f for label, f in ceilings.reads(task.A).items()}
        updates, flops = ceilings.updates(self.options.quick)
        flat |= {("syrk", label): f for label, f in updates.items()}
        seconds = interleaved(flat, self.options.rounds, least=LEAST, budget=self.options.budget)
        (read, how), (syrk, _) = (
            ceilings.best({label: times for (kind, label), times in seconds.items() if kind == ceiling})
            for ceiling in ("read", "syrk")
        )
        syrk *= task.n * task.d**2 / flops
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
        self.numbers.setdefault(part, {})[f"{task.n}x{task.d}"] = numbers
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
            chosen = sizes if kind == solves.ALL_SIZES else [sizes[min(ONE_SIZE[kind], len(sizes) - 1)]]
            yield from (make_task(n, d, kind) for n, d in chosen)

    def part_c_d(self):
        for task in self.solve_tasks():
            if "C" in self.options.part:
                solves.solves(self, task)
                if task.kind == solves.ALL_SIZES:
                    solves.kullback_leibler(self, task)
            if "D" in self.options.part:
                solves.own_floor(self, task)
            gc.collect()

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

    # -- all of it -------------------------------------------------------------------------------

    def measure(self):
        part = self.options.part
        if "A" in part:
            self.part_a()
        if "B" in part:
            self.part_b()
        if {"C", "D"} & set(part):
            self.part_c_d()
        if "E" in part:
            self.part_e()
        if "F" in part:
            task = make_task(*self.options.small, "mild")
            self.derivatives(task, "small derivatives")  # no part of the summary and the picture
            solves.solves(self, task)

    def finish(self):
        """Add the summary, and write tables, numbers and the picture."""
        self.say("", *summary.lines(self.numbers))
        self.options.out.mkdir(parents=True, exist_ok=True)
        path = save("speed" + "-quick" * self.options.quick, self.lines, self.options.out)
        path.with_suffix(".json").write_text(json.dumps(self.numbers, indent=1) + "\n")
        try:
            importlib.import_module("figures").draw(self.numbers, path.with_name(f"{path.stem[:-11]}.png"))
        except ImportError:
            print("no picture: matplotlib is not installed")


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
    try:
        bench.measure()
    finally:  # an interrupted run keeps what it has
        bench.finish()


if __name__ == "__main__":
    main()
