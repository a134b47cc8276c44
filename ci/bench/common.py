"""What the benchmarks share: interleaved timing, a description of the machine, and result files."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import time

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"


def interleaved(functions, rounds):
    """Time each function once per round, in turn: {name: [seconds, ...]}. Machines drift, ratios of neighbours less."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(a, b):
    """Median over rounds of a/b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


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
    threads = {k: v for k, v in os.environ.items() if k in ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE")}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return [
        f"date {datetime.date.today()}, commit {commit.stdout.strip() or 'unknown'}",
        f"{processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {threads or 'default threads'}",
        f"Python {platform.python_version()}, NumPy {np.__version__}, {blas['name']} {blas['version']}",
    ]


def write(name, lines):
    """Print the lines, and keep them under results/ with the date in the name."""
    text = "\n".join([*machine(), "", *lines]) + "\n"
    print(text)
    path = RESULTS / f"{name}-{datetime.date.today()}.txt"
    path.write_text(text)
    print(f"written: {path}")
