"""What the machine can do: reading A, a matrix product, a symmetric rank-k update."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import os
import statistics

import numpy as np
from common import interleaved

CORES = os.cpu_count() or 1


def best(seconds):
    """Return the fastest of several ways: its median, and its name."""
    return min((statistics.median(times), name) for name, times in seconds.items())


def reads(A):
    """Ways to read all of A once, on all cores."""
    parts = np.array_split(A.reshape(-1), CORES)
    x, pool = np.ones(A.shape[1]), concurrent.futures.ThreadPoolExecutor(CORES)
    return {
        "A @ x": lambda: A @ x,
        "sum in threads": lambda: list(pool.map(np.sum, parts)),
        "max in threads": lambda: list(pool.map(np.max, parts)),
        "A . A": lambda: A.reshape(-1) @ A.reshape(-1),
    }


def read_seconds(A, rounds):
    """Seconds of one read of A, and how."""
    return best(interleaved(reads(A), rounds, least=0.02))


@functools.cache
def updates(quick):
    """Ways to a symmetric rank-k update A^T A of a well-shaped A, and its n d^2 flops."""
    n, d = (2_000, 100) if quick else (16_000, 1_000)
    A = np.random.default_rng(0).standard_normal((n, d))
    found = {"dsyrk, NumPy A.T @ A": lambda: A.T @ A}
    with contextlib.suppress(ImportError):
        dsyrk = importlib.import_module("scipy.linalg.blas").dsyrk
        found["dsyrk, SciPy"] = lambda: dsyrk(1.0, A.T)
    return found, n * d * d


def ceilings(rounds, quick):
    """Return {"read": bytes per second, "read by": how, "dgemm": flops per second, "syrk": the best of "dsyrk, ...}."""
    large = np.ones((2 if quick else 64) * 2**20)
    seconds, how = read_seconds(large.reshape(-1, 64), rounds)
    X = np.random.default_rng(0).standard_normal((200 if quick else 2_000,) * 2)
    ways, flops = updates(quick)
    times = interleaved({"dgemm": lambda: X @ X, **ways}, rounds, least=0.02)
    work = {"dgemm": 2 * X.shape[0] ** 3, **dict.fromkeys(ways, flops)}
    rates = {name: work[name] / statistics.median(times[name]) for name in times}
    return {"read": large.nbytes / seconds, "read by": how, "syrk": max(rates[name] for name in ways), **rates}


def lines(found):
    rates = "; ".join(f"{name} {rate / 1e9:.0f} GF/s" for name, rate in found.items() if name.startswith("d"))
    return [f"Ceilings: read {found['read'] / 1e9:.1f} GB/s ({found['read by']}); {rates}"]
