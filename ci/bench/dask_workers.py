"""Rows on two Dask workers of this machine, one thread each, beside the same rows in memory on both cores.

    python ci/bench/dask_workers.py                      # 4 GB, twice in memory; some minutes
    python ci/bench/dask_workers.py --gigabytes 0.1      # a try

Both take turns in one process; what counts is the ratio of the medians. The last line compares the answers.
"""

import argparse
import itertools
import os
import statistics

import dask.array as da
import distributed
import numpy as np
from common import interleaved, median_ratio, write

import xpreg


def block(size, d, i):
    """The rows of block i, the same wherever they are made."""
    return np.random.default_rng(i).standard_normal((size, d)) * np.linspace(0.2, 1.0, d) / d**0.5


def per_iteration(problem, iterations):
    """Seconds of each Newton iteration."""
    result = xpreg.minimize(problem, method="newton", maxiter=iterations)
    seconds = [record.seconds for record in result.history]
    return [b - a for a, b in itertools.pairwise(seconds)]


def gap(pair, of):
    """The largest difference between memory and Dask, relative to the largest entry."""
    one, other = of(pair["memory"]), of(pair["dask"])
    return np.max(np.abs(other - one)) / np.max(np.abs(one))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-solve", action="store_true", help="leave out the comparison of whole solves")
    options = parser.parse_args()
    environment = dict(os.environ)
    d, size = options.columns, int(options.gigabytes * 1e9 / (8 * options.columns * options.blocks))
    n = size * options.blocks

    A = np.empty((n, d))
    for i in range(options.blocks):
        A[i * size : (i + 1) * size] = block(size, d, i)
    rng = np.random.default_rng(1)
    x_true, x, v = rng.standard_normal((3, d))
    b = np.exp(A @ x_true)
    b /= b.sum()

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        rows = da.map_blocks(
            lambda block_id: block(size, d, block_id[0]),
            chunks=((size,) * options.blocks, (d,)),
            dtype=float,
            meta=np.empty((0, 0)),
        )
        problems = {"memory": xpreg.SoftmaxRegression(A, b), "dask": xpreg.SoftmaxRegression(rows, b)}
        points = {name: problem.at(0.3 * x_true) for name, problem in problems.items()}
        products = {name: (lambda at=at: at.hvp(v)) for name, at in points.items()}
        gaps = {
            "value": gap(points, lambda at: at.value),
            "gradient": gap(points, lambda at: at.grad),
            "hvp": gap(points, lambda at: at.hvp(v)),
            "Hessian": gap(points, lambda at: at.hess()),
        }
        hvp = interleaved(products, 3 * options.rounds)
        gradients = interleaved({name: (lambda p=p: p.grad(0.1 * x)) for name, p in problems.items()}, options.rounds)
        iterations = {"memory": [], "dask": []}
        for _ in range(options.rounds):
            for name, problem in problems.items():
                iterations[name] += per_iteration(problem, options.iterations)
        if not options.no_solve:
            gaps["solution"] = gap(problems, lambda problem: xpreg.minimize(problem, tol=1e-10).x)
        hop = statistics.median(interleaved({"hop": lambda: client.submit(int, pure=False).result()}, 9)["hop"])

    lines = [
        f"A of {A.nbytes / 1e9:.2f} GB, {n} rows of {d} float64 in {options.blocks} blocks; two workers of one thread",
        "",
        f"{'':<22} {'memory':>10} {'dask':>10} {'dask/memory':>12}",
    ]
    for name, seconds in (("Newton iteration", iterations), ("hvp at a kept z", hvp), ("gradient from x", gradients)):
        one, other = (statistics.median(seconds[key]) for key in ("memory", "dask"))
        ratio = median_ratio(seconds["dask"], seconds["memory"])
        lines.append(f"{name:<22} {one:>8.3f} s {other:>8.3f} s {ratio:>12.2f}")
    lines += [
        "",
        f"an empty task, there and back: {1e3 * hop:.1f} ms",
        "relative differences: " + ", ".join(f"{name} {value:.1e}" for name, value in gaps.items()),
    ]
    os.environ.clear()
    os.environ.update(environment)  # Dask sets the number of threads of its workers there
    write("dask-workers", lines)


if __name__ == "__main__":
    main()
