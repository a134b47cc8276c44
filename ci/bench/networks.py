"""Networks: cost of kernel tiles and of training passes, against the matrix products and exponentials in them.

    python ci/bench/networks.py [--device cuda] [--quick]

Every ratio is the median of interleaved runs in one process; absolute times depend on the machine and its load. With
OMP_NUM_THREADS=1 on the host the clock is CPU time, which other processes disturb less.
The memory line computes the tangent kernel of n = 5,000 points at m = 4,096 and shows the peak of what it allocates.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import tracemalloc

import numpy as np

import xpreg
from xpreg import backend as B
from xpreg.networks.linearise import loss_and_grad, responses

clock = time.perf_counter


def wait(result):
    """Let a GPU finish: one number is read."""
    B.read(result[..., -1:] if result.ndim else result)


def interleave(repeats, **runs):
    """Median seconds of each run, the runs taken in turns."""
    seconds = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            begun = clock()
            wait(run())
            seconds[name].append(clock() - begun)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def points(n, d, seed, device):
    X = np.random.default_rng(seed).standard_normal((n, d))
    return B.to_device(X / np.linalg.norm(X, axis=1, keepdims=True), device)


def bench_kernels(arguments):
    print("\nTangent kernels / a plain matrix product of the same flops (1.00 = nothing but the product);")
    print("responses: the exponentials of every point, computed once a point; tiles: the rest")
    print(
        f"{'network':<10}{'n':>7}{'n2':>7}{'d':>5}{'m':>7}{'k':>4}{'product s':>12}"
        f"{'kernel':>9}{'responses':>11}{'tiles':>8}"
    )
    sizes = [(1024, 1024, 10, 2048, 1), (2048, None, 10, 2048, 1), (2048, None, 64, 4096, 1), (600, None, 10, 2048, 4)]
    for n, n2, d, m, k in sizes[:2] if arguments.quick else sizes:
        X = points(n, d, 0, arguments.device)
        X2 = None if n2 is None else points(n2, d, 1, arguments.device)
        network = (
            xpreg.ExpNetwork.initialise(d, m, like=X) if k == 1 else xpreg.SoftmaxNetwork.initialise(d, m, k, like=X)
        )
        P = responses(network, X)
        P2 = P if X2 is None else responses(network, X2)
        found = interleave(
            arguments.repeats,
            product=lambda P=P, P2=P2: P @ P2.T,
            kernel=lambda network=network, X=X, X2=X2: network.tangent_kernel(X, X2),
            responses=lambda network=network, X=X: responses(network, X),
        )
        name, sides = "exp" if k == 1 else "softmax", 1 if X2 is None else 2
        product, kernel, panels = (found[run] for run in ("product", "kernel", "responses"))
        print(
            f"{name:<10}{n:>7}{n2 or 'same':>7}{d:>5}{m:>7}{k:>4}{product:>12.3f}{kernel / product:>9.2f}"
            f"{sides * panels / product:>11.2f}{(kernel - sides * panels) / product:>8.2f}"
        )


def bench_passes(arguments):
    print("\nOne pass (loss and gradient) / the exponentials of X W alone")
    print(f"{'network':<10}{'n':>8}{'d':>5}{'m':>7}{'k':>4}{'exp(XW) s':>12}{'pass':>8}")
    n, d, m = (20_000, 10, 1000) if not arguments.quick else (4_000, 10, 500)
    X = points(n, d, 0, arguments.device)
    xp = B.namespace(X)
    for cls, outputs in ((xpreg.ExpNetwork, ()), (xpreg.SoftmaxNetwork, (10,))):
        network = cls.initialise(d, m, *outputs, like=X)
        Y = B.random_normal((n, network.k), 0, X)
        found = interleave(
            arguments.repeats,
            exp=lambda network=network: xp.exp(X @ network.W),
            both=lambda network=network, Y=Y: loss_and_grad(network, X, Y)[1],
        )
        name = cls.__name__.removesuffix("Network").lower()
        print(f"{name:<10}{n:>8}{d:>5}{m:>7}{network.k:>4}{found['exp']:>12.3f}{found['both'] / found['exp']:>8.2f}")


def bench_memory(arguments):
    n, m = (1000, 1024) if arguments.quick else (5000, 4096)
    network = xpreg.ExpNetwork.initialise(8, m, sigma=0.3)
    X = points(n, 8, 0, None)
    tracemalloc.start()
    begun = time.perf_counter()
    H = network.tangent_kernel(X)
    seconds, peak = time.perf_counter() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\nTangent kernel of n = {n}, d = 8, m = {m} on the host: {seconds:.1f} s, at most {peak / 2**30:.2f} GiB")
    print(f"allocated (limit 1 GiB), of which {H.nbytes / 2**30:.2f} GiB are the result.", end=" ")
    print(f"The Jacobian would take {network.footprint(n).jacobian_bytes / 2**30:.1f} GiB.")
    return peak <= 2**30


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=None, help="cpu (default), cuda, cuda:1")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, OMP_NUM_THREADS={threads},", end=" ")
    if threads == "1" and (arguments.device or "cpu") == "cpu":
        global clock
        clock = time.process_time
    print(
        f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}, "
        f"device {arguments.device or 'cpu'}, {clock.__name__}"
    )
    bench_kernels(arguments)
    bench_passes(arguments)
    return 0 if bench_memory(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
