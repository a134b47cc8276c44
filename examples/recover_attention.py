"""Recover the queries of four real attention heads from their keys and their attention rows alone.

Row i of a head attends with b_i = softmax(scale * K q_i). Given K and b_i, softmax regression finds q_i: one problem
per row, all rows of a head in one call. 1,788 problems, each with a known answer.

    python examples/recover_attention.py [--device cuda] [--dtype float64] [--out recovered.png]
"""

import pathlib
import time

import numpy as np
import shared

import xpreg
from xpreg import backend, plotting

DATA = pathlib.Path(__file__).parent / "data" / "attention.npz"
RECOVERED = {"float64": 1e-6, "float32": 1e-2}
"""Relative error |x - q|/|q| up to which a query counts as recovered."""

COLOURS = ("#3264a8", "#c4432b", "#3c8c4a", "#8a56a8")


def load_heads(path, dtype):
    """Return the scaled keys (heads, n, d), queries (heads, n, d) and attention rows (heads, n, n)."""
    file = xpreg.io.load_arrays(path)
    if missing := {"keys", "queries", "scale", "layer_head"} - set(file):
        raise xpreg.InvalidArgumentError(f"{path} has no {', '.join(sorted(missing))}: see examples/data/README.md.")
    A = float(file["scale"]) * file["keys"].astype("float64")
    queries = file["queries"].astype("float64")
    names = [f"layer {layer}, head {head}" for layer, head in file["layer_head"]]
    z = queries @ A.swapaxes(1, 2)
    b = np.exp(z - z.max(axis=-1, keepdims=True))
    b /= b.sum(axis=-1, keepdims=True)
    return A.astype(dtype), queries, b.astype(dtype), names


def main():
    parser = shared.parser(__doc__, out="recovered_attention.png", quick=None)
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--data", type=pathlib.Path, default=DATA, help="default: %(default)s")
    return run(shared.parse(parser))


def run(options):
    A, queries, b, names = load_heads(options.data, options.dtype)
    total, recovered, worst, seconds = queries.shape[0] * queries.shape[1], 0, 0.0, 0.0
    results, errors = [], []
    print("head              solved  recovered  iterations  worst relative error   seconds")
    for name, keys, rows, q in zip(names, A, b, queries, strict=True):
        started = time.perf_counter()
        problem = xpreg.SoftmaxRegression(keys, rows, device=options.device)
        result = xpreg.minimize(problem, tol=1e-10)
        x = backend.to_numpy(result.x)
        elapsed = time.perf_counter() - started
        error = np.linalg.norm(x - q, axis=-1) / np.linalg.norm(q, axis=-1)
        good = int((error <= RECOVERED[options.dtype]).sum())
        solved = int(backend.to_numpy(result.converged).sum())
        counts = f"{solved:3d}/{len(q)}  {good:5d}/{len(q)}"
        print(f"{name:<16}  {counts}  {result.nit:10d}  {error.max():20.1e}  {elapsed:8.2f}")
        recovered, worst, seconds = recovered + good, max(worst, error.max()), seconds + elapsed
        results.append(result)
        errors.append(error)
    print(f"\nrecovered {recovered}/{total} queries, worst relative error {worst:.1e}, in {seconds:.2f} s")
    plotting.save_figure(draw(names, queries, b, results, errors, RECOVERED[options.dtype]), options.out)
    print(f"picture: {options.out}")
    return 0 if recovered == total else 1


def draw(names, queries, b, results, errors, recovered):
    """Attention maps above; below, what was recovered, how exactly, and how the solver got there."""
    figure = plotting.require_matplotlib().Figure(figsize=(13, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, 12, height_ratios=[1, 1.15])
    for h, name in enumerate(names):
        axes = figure.add_subplot(grid[0, 3 * h : 3 * h + 3])
        axes.imshow(np.sqrt(b[h]), cmap="magma", vmax=np.sqrt(np.quantile(b[h], 0.995)), interpolation="antialiased")
        axes.set_title(name, color=COLOURS[h], fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("key token", fontsize=9)
        axes.set_ylabel("query token" if h == 0 else "", fontsize=9)

    scatter, histogram, path = (figure.add_subplot(grid[1, 4 * i : 4 * i + 4]) for i in range(3))
    edges = np.logspace(-16, np.log10(recovered) + 1, 45)
    for h, (name, result, error) in enumerate(zip(names, results, errors, strict=True)):
        x = backend.to_numpy(result.x)
        scatter.plot(queries[h].ravel(), x.ravel(), ".", ms=1.5, alpha=0.5, color=COLOURS[h], rasterized=True)
        histogram.hist(
            np.clip(error, edges[0], edges[-1]), edges, histtype="step", color=COLOURS[h], label=name, lw=1.5
        )
        active = np.array([record.active for record in result.history if record.problems[0] == 0])
        path.plot(active / active[0], color=COLOURS[h], lw=1.8, drawstyle="steps-post")
    limits = [queries.min() * 1.05, queries.max() * 1.05]
    scatter.plot(limits, limits, color="black", lw=0.6)
    scatter.set(xlabel="query entry in the network", ylabel="entry recovered from keys and attention rows")
    scatter.set_title(f"{queries.size:,} entries of {queries.shape[0] * queries.shape[1]:,} queries", fontsize=11)
    histogram.axvline(recovered, color="black", ls=":", lw=1)
    histogram.annotate("recovered", (recovered, 0.97), xycoords=("data", "axes fraction"), ha="right", fontsize=8)
    histogram.set(xscale="log", xlabel="relative error of a query", ylabel="queries")
    histogram.set_title("how exactly", fontsize=11)
    path.set(xlabel="Newton iteration", ylabel="share of problems still running", ylim=(0, 1.03))
    path.set_title("finished problems leave the stack", fontsize=11)
    for axes in (scatter, histogram, path):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    shared.start(main)
