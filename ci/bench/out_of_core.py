"""A file larger than memory: how fast each pass over its rows is beside reading it, and how much memory that takes.

    python ci/bench/out_of_core.py --folder /tmp                      # 10 GB, a few minutes; needs that much room
    python ci/bench/out_of_core.py --folder /tmp --gigabytes 0.3      # a try

The file is thrown out of the file cache before every reading. A plain reading takes turns with the passes, in blocks of
the same size; what counts is the ratio. Memory is the peak above what the process has with imports, b and a small
solve.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
from common import median_ratio, write

import xpreg
from xpreg.blocked.files import BLOCK_BYTES


def make(path, n, d):
    """Write rows that are different everywhere, from one block of random numbers."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((max(1, 2**26 // (8 * d)), d))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (n, d)})
        for start in range(0, n, len(block)):
            (block[: n - start] * rng.uniform(0.5, 1.5, d)).tofile(file)
        file.flush()
        os.fsync(file.fileno())


def drop(path):
    """Throw a file out of the file cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read(path):
    """Read a file from beginning to end, and nothing else."""
    buffer = bytearray(BLOCK_BYTES)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    position = 0
    while count := os.preadv(descriptor, [buffer], position):
        position += count
    os.close(descriptor)


def cold(path, function):
    drop(path)
    return timed(function)


def timed(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def memory(field):
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure_passes(path, rows, x, rounds):
    z = rows.apply(x)
    multiply = rows.gram_operator(z)
    passes = {
        "read, nothing else": lambda: read(path),
        "z = A x": lambda: rows.apply(x),
        "A^T z": lambda: rows.adjoint(z),
        "A^T D A v": lambda: multiply(x),
    }
    seconds = {name: [] for name in passes}
    for _ in range(rounds):
        for name, function in passes.items():
            seconds[name].append(cold(path, function))
    seconds["Gram matrix"] = [cold(path, lambda: rows.gram(z))]
    return seconds


def measure(path, rounds, products):
    """Print the measurements as JSON: in a process of its own, whose peak of memory is theirs."""
    rng = np.random.default_rng(1)
    n, d = xpreg.io.open_rows(path).shape
    small = xpreg.SoftmaxRegression(rng.standard_normal((20 * d, d)), np.full(20 * d, 1 / (20 * d)))
    xpreg.minimize(small, np.full(d, 0.01), maxiter=1)
    xpreg.minimize(small, np.full(d, 0.01), maxiter=1, method="newton-cg")
    del small
    b = rng.random(n)
    b /= b.sum()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base = memory("VmHWM")

    problem = xpreg.SoftmaxRegression(xpreg.io.open_rows(path), b)
    rows, x = problem.rows, 0.02 * rng.standard_normal((1, d))
    seconds = measure_passes(path, rows, x, rounds)
    dropping = []
    stream = type(rows.store.source).stream

    def cold_stream(self):
        dropping.append(timed(lambda: drop(path)))
        return stream(self)

    type(rows.store.source).stream = cold_stream
    taken = timed(lambda: xpreg.minimize(problem, x[0, :], method="newton-cg", maxiter=2, max_products=products))
    solve = {"seconds": taken - sum(dropping), "passes": len(dropping)}
    print(json.dumps({"seconds": seconds, "solve": solve, "peak": memory("VmHWM") - base}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the file is made, and removed again")
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--products", type=int, default=4, help="products at most in a Newton-CG step")
    parser.add_argument("--measure", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.rounds, options.products)
        return
    n = int(options.gigabytes * 1e9 / (8 * options.columns))
    path = options.folder / "xpreg-out-of-core.npy"
    try:
        make(path, n, options.columns)
        nbytes = path.stat().st_size
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--measure", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr)
    finally:
        path.unlink(missing_ok=True)
    found = json.loads(done.stdout)
    raw = found["seconds"]["read, nothing else"]
    lines = [
        f"file of {nbytes / 1e9:.2f} GB, {n} rows of {options.columns} float64; medians of {options.rounds} rounds",
        "",
        f"{'pass':<20} {'GB/s':>6} {'of the reading':>15}",
    ]
    for name, seconds in found["seconds"].items():
        share = median_ratio(raw[: len(seconds)], seconds)
        lines.append(f"{name:<20} {nbytes / 1e9 / statistics.median(seconds):>6.2f} {share:>15.2f}")
    solve = found["solve"]
    share = solve["passes"] * statistics.median(raw) / solve["seconds"]
    lines.append(f"{'Newton-CG':<20} {solve['passes'] * nbytes / 1e9 / solve['seconds']:>6.2f} {share:>15.2f}")
    lines += [
        "",
        f"Newton-CG: two iterations, {solve['passes']} passes, {solve['seconds']:.1f} s, all cold",
        f"peak of memory: {found['peak'] / 2**20:.0f} MiB above the base ({found['peak'] / 1e6:.0f} MB)",
    ]
    write("out-of-core", lines)


if __name__ == "__main__":
    main()
