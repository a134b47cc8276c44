"""What the benchmarks share: interleaved timing, a description of the machine, and result files."""

from __future__ import annotations

import datetime
import math
import os
import pathlib
import platform
import statistics
import subprocess
import time

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"


def interleaved(functions, rounds, *, least=0.0, budget=math.inf):
    """Time each function once per round, in turn: {name: [seconds, ...]}. Machines drift, ratios of neighbours less.

    With ``least``, a call that is short against it only warms up, so that nobody pays for what a neighbour left in the
    caches, and the measurement is the mean over calls that take ``least`` seconds together. A function whose calls
    have taken ``budget`` seconds sits out the rounds that are left.
    """
    seconds = {name: [] for name in functions}
    spent = dict.fromkeys(functions, 0.0)
    for _ in range(rounds):
        for name, function in functions.items():
            if spent[name] > budget:
                continue
            taken = mean_seconds(function, 1)
            spent[name] += taken
            if taken < 20 * least:
                calls = math.ceil(least / max(taken, 1e-9))
                taken = mean_seconds(function, calls)
                spent[name] += calls * taken
            seconds[name].append(taken)
    return seconds


def mean_seconds(function, calls):
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def median_ratio(a, b):
    """Median of a/b over the rounds that both took part in."""
    return statistics.median(x / y for x, y in zip(a, b, strict=False))


def machine():
    """Lines that say what the numbers were measured on."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    processor = platform.processor() or platform.machine()
    for line in (
        pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    names = ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
    threads = {k: v for k, v in os.environ.items() if k in names}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return [
        f"date {datetime.date.today()}, commit {commit.stdout.strip() or 'unknown'}",
        f"{processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {threads or 'default threads'}",
        f"Python {platform.python_version()}, NumPy {np.__version__}, {blas['name']} {blas['version']}",
    ]


def save(name, lines, folder=RESULTS):
    """Keep the lines in a folder, with the machine above them and the date in the name; return where."""
    path = pathlib.Path(folder) / f"{name}-{datetime.date.today()}.txt"
    path.write_text("\n".join([*machine(), "", *lines]) + "\n")
    print(f"written: {path}")
    return path


def write(name, lines):
    """Print the lines, and keep them under results/."""
    print("\n".join([*machine(), "", *lines]))
    return save(name, lines)
