"""Benchmarks on a GPU beside PyTorch and JAX, in one run; ci/bench/gpu.sh calls it.

Times are medians, between two device events, of rounds of calls that are enqueued together and then waited for: the
cost of the Python calls shows where they are slower than the GPU, as it does for users. They are given as fractions of
what this GPU does in the same run: one read of A at the rate of the measured device copy for value_and_grad and hvp,
n d^2 multiply-adds at the rate of the measured matrix product for hess. ``vs best peer`` is our time over that of the
fastest peer.

With ``--device cpu --quick`` everything runs on NumPy in seconds. That tests this file, and says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import pathlib
import statistics
import subprocess
import time

import numpy as np
import peers

import xpreg
from xpreg import backend as B
from xpreg import kernels

HERE = pathlib.Path(__file__).resolve().parent
SIZES = [(1_000_000, 64), (2_000_000, 128), (2_000_000, 256), (400_000, 1024)]
SOLVES = [(1_000_000, 64), (400_000, 256), (100_000, 1024)]
QUICK = [(2_000, 16), (500, 130)]


@dataclasses.dataclass
class Measured:
    """One operation of one library."""

    operation: str
    library: str
    seconds: float
    ideal: float  # seconds at the measured ceiling
    note: str = ""


class Clock:
    """Median seconds of a call, by device events (by the host's clock on the CPU)."""

    def __init__(self, device, rounds, calls):
        self.cupy = importlib.import_module("cupy") if device == "cuda" else None
        self.rounds, self.calls = rounds, calls

    def __call__(self, function, wait, *, calls=None):
        calls = calls or self.calls
        wait(function())  # compiles, and fills the memory pool
        return statistics.median(self._round(function, wait, calls) for _ in range(self.rounds))

    def _round(self, function, wait, calls):
        if self.cupy is None:
            start = time.perf_counter()
            for _ in range(calls):
                result = function()
            wait(result)
            return (time.perf_counter() - start) / calls
        self.cupy.cuda.Device().synchronize()
        start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        for _ in range(calls):
            result = function()
        wait(result)  # each library waits for its own stream
        stop.record()
        stop.synchronize()
        return self.cupy.cuda.get_elapsed_time(start, stop) / 1e3 / calls

    def wait(self, result=None):
        if self.cupy is not None:
            self.cupy.cuda.Device().synchronize()


class Ceilings:
    """Bytes per second of a device copy (read plus written), and multiply-adds per second of a matrix product."""

    def __init__(self, clock, device, dtype, quick):
        source = B.to_device(np.ones((4 if quick else 1024) * 2**20 // np.dtype(dtype).itemsize, dtype), device)
        X = B.to_device(np.ones((256 if quick else 8192,) * 2, dtype), device)
        copy = source.copy()

        def assign():
            copy[...] = source

        self.copy = 2 * source.nbytes / clock(assign, clock.wait)
        self.matmul = X.shape[0] ** 3 / clock(lambda: X @ X, clock.wait)


def problem_data(n, d, dtype, seed=0):
    """A mild problem with an exact fit: A, b = softmax(A x*), and a start near x*."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, d), dtype=np.float32).astype(dtype)
    x_star = rng.standard_normal(d) / np.sqrt(d)
    z = A @ x_star.astype(dtype)
    b = np.exp(z - z.max())
    x = (0.8 * x_star).astype(dtype)
    return A, (b / b.sum()).astype(dtype), x, rng.standard_normal(d).astype(dtype)


def operations(n, d, dtype, device, clock, ceilings, found):
    """value_and_grad, hvp and hess of every library on the same numbers."""
    host = problem_data(n, d, dtype)
    read, gram = host[0].nbytes / ceilings.copy, n * d * d / ceilings.matmul
    A, b, x, v = (B.to_device(q, device) for q in host)
    problem = xpreg.SoftmaxRegression(A, b)
    point = problem.at(x)
    rows = [
        Measured("value_and_grad", "xpreg", clock(lambda: problem.value_and_grad(x), clock.wait), read),
        Measured("hvp", "xpreg", clock(lambda: point.hvp(v), clock.wait), read),
        Measured("hess", "xpreg", clock(point.hess, clock.wait, calls=3), gram),
    ]
    if device == "cuda":
        stream = kernels.RowStream(B.cuda_module, B.multiprocessors)
        f = point.predict()
        shift = B.new(np.log(np.sum(np.exp(host[0].astype(np.float64) @ host[2].astype(np.float64)))), A)
        q = f * (2.0 * f - b - (f - b) @ f)
        abar = f @ A

        def fused():
            return kernels.finish(stream.normalised_sums(A, b, x, activation="softmax", shift=shift))

        rows += [
            Measured("value_and_grad", "xpreg fused", clock(fused, clock.wait), read),
            Measured("hvp", "xpreg fused", clock(lambda: stream.gram_sums(A, q, v, centre=abar), clock.wait), read),
        ]
        del f, q
    grad = B.to_numpy(problem.value_and_grad(x)[1]).astype(np.float64)
    for peer in found:
        rows += peer_operations(peer, host, clock, grad, read, gram)
    return rows


def peer_operations(peer, host, clock, grad, read, gram):
    """The same of one peer, whose gradient is compared with ours."""
    A, b, x, v = map(peer.array, host)
    f = peer.predict(A, x)
    q = peer.weights(f, b)
    note = f"gradients agree to {relative(peer.value_and_grad(A, b, x)[1], grad):.0e}"
    return [
        Measured("value_and_grad", peer.name, clock(lambda: peer.value_and_grad(A, b, x), peer.wait), read, note),
        Measured("hvp", peer.name, clock(lambda: peer.hvp(A, f, q, v), peer.wait), read),
        Measured("hess", peer.name, clock(lambda: peer.hess(A, f, q), peer.wait, calls=3), gram),
    ]


def relative(found, expected):
    """Relative difference of an array of any library from a NumPy array."""
    found = found.cpu().numpy() if hasattr(found, "cpu") else np.asarray(found)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def solves(n, d, dtype, device, clock, ceilings, found):
    """A whole solve, against its own Newton steps by the bare formulas of the peers: no checks and no line search."""
    host = problem_data(n, d, dtype)
    A, b = (B.to_device(q, device) for q in host[:2])
    problem = xpreg.SoftmaxRegression(A, b)
    tol = 1e-8 if np.dtype(dtype).itemsize == 8 else 1e-4
    result = xpreg.minimize(problem, tol=tol)
    # what the counts say it must cost: a Gram matrix per Hessian, and three reads of A per iteration beside it
    floor = result.nhev * n * d * d / ceilings.matmul + 3 * result.nit * A.nbytes / ceilings.copy
    note = f"{result.nit} iterations, {result.nhev} Hessians, success {result.success}"
    rows = [
        Measured("solve", "xpreg", clock(lambda: xpreg.minimize(problem, tol=tol), clock.wait, calls=1), floor, note)
    ]
    for peer in found:
        A_, b_, x_ = (peer.array(q) for q in host[:3])

        def steps(peer=peer, A_=A_, b_=b_, x_=x_):
            for _ in range(result.nhev):
                f_ = peer.predict(A_, x_)
                _, g_ = peer.value_and_grad(A_, b_, x_)
                H_ = peer.hess(A_, f_, peer.weights(f_, b_))
                step = peer.solve(H_, g_)
            return step

        rows.append(
            Measured("solve", peer.name, clock(steps, peer.wait, calls=1), floor, f"{result.nhev} bare Newton steps")
        )
    return rows


def attention(path, dtype, device, clock, found, heads):
    """Recover the 1,788 attention queries; on the GPU also against the CPU of the same machine."""
    data = np.load(path)
    keys, queries, scale = data["keys"].astype(np.float64), data["queries"].astype(np.float64), float(data["scale"])
    problems = []
    for K, Q in zip(keys[:heads], queries[:heads], strict=True):
        Z = scale * Q @ K.T
        F = np.exp(Z - Z.max(axis=1, keepdims=True))
        problems.append(((scale * K).astype(dtype), (F / F.sum(axis=1, keepdims=True)).astype(dtype)))
    tol = 1e-8 if np.dtype(dtype).itemsize == 8 else 1e-4

    def solve_on(place):
        moved = [xpreg.SoftmaxRegression(*(B.to_device(q, place) for q in pair)) for pair in problems]
        return lambda: [xpreg.minimize(problem, tol=tol) for problem in moved]

    results = solve_on(device)()
    count = sum(B.to_numpy(r.x).shape[0] for r in results)
    iterations = max(int(np.max(r.nit)) for r in results)
    solved = sum(int(np.sum(B.to_numpy(r.converged))) for r in results)
    note = f"{solved} of {count} converged, {iterations} iterations"
    rows = [Measured("attention", "xpreg", clock(solve_on(device), clock.wait, calls=1), np.nan, note)]
    if device == "cuda":
        host_clock = Clock("cpu", 3, 1)
        seconds = host_clock(solve_on("cpu"), host_clock.wait)
        rows.append(
            Measured(
                "attention",
                "xpreg on this machine's CPU",
                seconds,
                np.nan,
                f"{seconds / rows[0].seconds:.1f} x the GPU",
            )
        )
    for peer in found:
        pairs = [
            tuple(map(peer.array, (K, (K[:, :, None] * K[:, None, :]).reshape(len(K), -1), F))) for K, F in problems
        ]
        start = peer.array(np.zeros((problems[0][1].shape[0], problems[0][0].shape[1]), dtype))

        def steps(peer=peer, pairs=pairs, start=start):  # always from the start: without a line search they diverge
            for _ in range(iterations):
                last = [peer.newton_step(A_, P_, B_, start) for A_, P_, B_ in pairs]
            return last

        note = f"{iterations} bare Gauss-Newton steps of every problem"
        rows.append(Measured("attention", peer.name, clock(steps, peer.wait, calls=1), np.nan, note))
    return rows


def table(title, rows, ceiling):
    """Return the Markdown table of one size."""
    lines = [
        f"### {title}",
        "",
        f"| operation | library | ms | fraction of {ceiling} | vs best peer | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        others = [o.seconds for o in rows if o.operation == row.operation and not o.library.startswith("xpreg")]
        ratio = f"{row.seconds / min(others):.2f}" if others and row.library.startswith("xpreg") else ""
        fraction = "" if np.isnan(row.ideal) else f"{row.ideal / row.seconds:.2f}"
        lines.append(
            f"| {row.operation} | {row.library} | {1e3 * row.seconds:.4g} | {fraction} | {ratio} | {row.note} |"
        )
    return [*lines, ""]


def environment(device, found, missing):
    """Return what the numbers depend on, as Markdown."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": git.stdout.strip() or "not a git checkout",
        "device": device,
        "fused kernels": "on" if kernels.fused_is_on() else "off (their rows below call them directly)",
        **B.info(),
        **{peer.name: peer.version for peer in found},
        **dict.fromkeys(missing, "not installed: no comparison"),
    }
    return [*(f"- {name}: {fact}" for name, fact in facts.items()), ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tests this file, measures nothing")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divide n by this: the sizes need about 40 GB of GPU memory"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--attention", type=pathlib.Path, default=HERE.parents[1] / "examples/data/attention.npz")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder of the log")
    options = parser.parse_args()

    found, missing = peers.installed(options.device)
    lines = [f"# xpreg on {options.device}" + " (--quick: nothing here is a measurement)" * options.quick, ""]
    lines += environment(options.device, found, missing)
    clock = Clock(options.device, *((2, 2) if options.quick else (7, 10)))
    for dtype in options.dtypes:
        ceilings = Ceilings(clock, options.device, dtype, options.quick)
        lines += [
            f"## {dtype}",
            "",
            f"- device copy: {ceilings.copy / 1e9:.0f} GB/s, read plus written",
            f"- matrix product: {2 * ceilings.matmul / 1e12:.2f} TFLOP/s",
            "",
        ]
        sizes, solve_sizes = (QUICK, QUICK[:1]) if options.quick else (SIZES, SOLVES)
        for n, d in ((n // options.shrink, d) for n, d in sizes):
            rows = operations(n, d, dtype, options.device, clock, ceilings, found)
            lines += table(f"n = {n:,}, d = {d}", rows, "copy (hess: of the matrix product)")
        for n, d in ((n // options.shrink, d) for n, d in solve_sizes):
            rows = solves(n, d, dtype, options.device, clock, ceilings, found)
            lines += table(f"whole solve, n = {n:,}, d = {d}", rows, "its Gram matrices and reads")
        rows = attention(options.attention, dtype, options.device, clock, found, heads=1 if options.quick else 4)
        lines += table("attention queries", rows, "-")

    options.out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M")
    path = options.out / f"{options.device}-{stamp}{'-quick' * options.quick}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
