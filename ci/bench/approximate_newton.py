"""Approximate Newton against exact Newton on a tall, ill-conditioned softmax regression: interleaved runs, medians.

python ci/bench/approximate_newton.py                 n = 400,000, d = 500, condition number 1e6: 1.6 GB, minutes
python ci/bench/approximate_newton.py --n 20000 --d 50 --repeat 1 --out ""
"""

import argparse
import os
import pathlib
import platform
import statistics
import sys
import time

import numpy as np
from tasks import rotated_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import xpreg  # noqa: E402

METHODS = {
    "exact Newton (Cholesky)": {"method": "newton"},
    "approximate Newton (preconditioner)": {"method": "approximate-newton"},
}


def problem(n, d, condition, seed=0):
    """Rotated rows of a given condition number, b = softmax(A x) times exponential noise."""
    rng = np.random.default_rng(seed)
    A = rotated_rows(n, d, condition, rng)
    x = rng.standard_normal(d)
    z = A @ x
    b = np.exp(z / z.std()) * rng.exponential(size=n)
    return xpreg.SoftmaxRegression(A, b / b.sum())


def measure(task, options, tol):
    wall, cpu = time.perf_counter(), time.process_time()
    result = xpreg.minimize(task, tol=tol, **options)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def read_time(A):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        A @ np.ones(A.shape[1])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=400_000)
    parser.add_argument("--d", type=int, default=500)
    parser.add_argument("--condition", type=float, default=1e6)
    parser.add_argument("--tol", type=float, default=1e-8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", default=str(ROOT / "ci" / "bench" / "results" / "approximate_newton.md"))
    arguments = parser.parse_args()

    task = problem(arguments.n, arguments.d, arguments.condition)
    read = read_time(task.rows.A)
    runs = {name: [] for name in METHODS}
    load = []
    for _ in range(arguments.repeat):
        for name, options in METHODS.items():
            load.append(os.getloadavg()[0])
            runs[name].append(measure(task, options, arguments.tol))
            print(f"{name}: {runs[name][-1][1]:.2f} s wall, {runs[name][-1][2]:.2f} s CPU", flush=True)

    lines = [
        f"n = {arguments.n:,}, d = {arguments.d}, condition number {arguments.condition:g}, softmax regression, "
        f"float64, to a gradient of {arguments.tol:g} of the first; {arguments.repeat} interleaved runs, medians",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}, "
        f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE')}, "
        f"load average {min(load):.1f} to {max(load):.1f} "
        f"(above {os.cpu_count()}: a shared machine), one read of A {read:.2f} s",
        "",
        "| method | wall s | CPU s | iterations | Hessians or products | status | loss | gradient / first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in runs.items():
        result = measured[0][0]
        wall, cpu = (statistics.median(m[i] for m in measured) for i in (1, 2))
        gradient = np.abs(result.grad).max() / result.history[0].grad_norm
        lines.append(
            f"| {name} | {wall:.2f} | {cpu:.2f} | {result.nit} | {result.nhev} | {result.status.name} "
            f"| {result.fun:.12e} | {gradient:.1e} |"
        )
    exact, approximate = (runs[name] for name in METHODS)
    ratios = [statistics.median(m[i] for m in approximate) / statistics.median(m[i] for m in exact) for i in (1, 2)]
    lines += ["", f"ratio approximate / exact: {ratios[0]:.2f} wall, {ratios[1]:.2f} CPU"]
    lines += [
        "",
        "| iteration | exact: gradient | direction | approximate: gradient | direction |",
        "|---|---|---|---|---|",
    ]
    histories = [m[0][0].history for m in (exact, approximate)]
    for i in range(max(map(len, histories))):
        cells = [f"{h[i].grad_norm:.1e} | {h[i].direction}" if i < len(h) else " | " for h in histories]
        lines.append(f"| {i} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if arguments.out:
        pathlib.Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(arguments.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
