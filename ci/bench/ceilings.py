"""What the machine can do: reading A, a matrix product, a symmetric rank-k update."""

from __future__ import annotations

import concurrent.futures
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


def products(n, d):
    """A product of square matrices of d columns, and A^T A of an (n, d) matrix as NumPy and SciPy do it."""
    rng = np.random.default_rng(0)
    X, A = rng.standard_normal((2 * d, 2 * d)), rng.standard_normal((n, d))
    found = {"dgemm": lambda: X @ X, "dsyrk, NumPy A.T @ A": lambda: A.T @ A}
    try:
        from scipy.linalg.blas import dsyrk
    except ImportError:
        return found
    return {**found, "dsyrk, SciPy": lambda: dsyrk(1.0, A.T)}


def flop_rates(rounds, quick):
    """Return flops per second by name: 2 n^3 of a product, n d^2 of a rank-k update."""
    n, d = (2_000, 100) if quick else (16_000, 1_000)
    seconds = interleaved(products(n, d), rounds, least=0.02)
    work = {name: 2 * (2 * d) ** 3 if name == "dgemm" else n * d * d for name in seconds}
    return {name: work[name] / statistics.median(times) for name, times in seconds.items()}


def ceilings(rounds, quick):
    """Return {"read": bytes per second, "read by": how, "dgemm": ..., "syrk": the faster of the two, ...}."""
    large = np.ones((2 if quick else 64) * 2**20)
    seconds, how = read_seconds(large.reshape(-1, 64), rounds)
    rates = flop_rates(rounds, quick)
    syrk = max(rate for name, rate in rates.items() if name.startswith("dsyrk"))
    return {"read": large.nbytes / seconds, "read by": how, "syrk": syrk, **rates}


def lines(found):
    rates = "; ".join(f"{name} {rate / 1e9:.0f} GF/s" for name, rate in found.items() if name.startswith("d"))
    return [f"Ceilings: read {found['read'] / 1e9:.1f} GB/s ({found['read by']}); {rates}"]
