"""The picture of the README from the numbers of speed.py: times relative to xpreg, and cost against n.

python ci/bench/figures.py ci/bench/results/speed-DATE.json --out ci/bench/results/speed.png
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OPERATIONS = {
    "value_and_grad": "value and\ngradient",
    "hvp": "Hessian\ntimes vector",
    "hess": "Hessian",
    "solve": "whole\nsolve",
}

LIBRARIES = {
    "NumPy / SciPy": (("NumPy", "SciPy"), "#0072B2"),
    "JAX": (("jax", "Newton, jax", "Newton, JAX", "optimistix"), "#E69F00"),
    "PyTorch": (("torch",), "#009E73"),
}
"""Labels of the peers begin so; colours that colour-blind readers tell apart."""

OURS = "#333333"
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
LINES = {
    "value_and_grad": ("#0072B2", "o"),
    "hvp": ("#E69F00", "s"),
    "hess": ("#009E73", "^"),
    "solve": ("#333333", "D"),
}
SOLVED = "condition 1e2"


def relative_times(numbers):
    """Return {operation: {library: [(time of its best / ours, whether it got there), one per size]}}.

    Of a library that solves a task with none of its methods: how long it was given.
    """
    found = {operation: {library: [] for library in LIBRARIES} for operation in OPERATIONS}
    for sizes in numbers.get("derivatives", {}).values():
        for operation in ("value_and_grad", "hvp", "hess"):
            add(found[operation], {label: (q["seconds"], True) for label, q in sizes[operation].items()}, "xpreg")
    for name, labels in numbers.get("solves", {}).items():
        if name.endswith(SOLVED):
            add(
                found["solve"],
                {label: (q["this / xpreg auto"], q["solved"]) for label, q in labels.items()},
                "xpreg auto",
            )
    return found


def add(found, times, ours):
    for library, (prefixes, _) in LIBRARIES.items():
        its = [times[label] for label in times if label.startswith(prefixes)]
        solved = [seconds for seconds, there in its if there]
        if its:
            seconds = min(solved) if solved else max(seconds for seconds, _ in its)
            found[library].append((seconds / times[ours][0], bool(solved)))


def bars(axes, numbers):
    """One group per operation: bars are geometric means over the sizes, dots the sizes."""
    width = 0.24
    for group, libraries in enumerate(relative_times(numbers).values()):
        for place, (library, (_, colour)) in enumerate(LIBRARIES.items()):
            ratios, x = [ratio for ratio, _ in libraries[library]], group + (place - 1) * (width + 0.03)
            label = library if group == 0 else None
            if not ratios:
                axes.bar(x, 0, width, bottom=1, color=colour, label=label)
                continue
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            axes.bar(x, mean - 1, width, bottom=1, color=colour, label=label, zorder=2)
            axes.plot([x] * len(ratios), ratios, "o", color="white", mec=OURS, mew=0.7, ms=3.2, zorder=5, clip_on=False)
            text = f"{mean:.1f}" if mean < 9.95 else f"{mean:.0f}"
            axes.annotate(
                text if all(there for _, there in libraries[library]) else f">{text}", (x, max(1, *ratios)),
                xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8, color=OURS,
            )  # fmt: skip
    axes.axhline(1, color=OURS, lw=1.2, zorder=4)
    axes.annotate("xpreg", (1.005, 1), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=OURS)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [t for t in TICKS if low <= t <= high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(top=high * 1.25)
    axes.set_xticks(range(len(OPERATIONS)), OPERATIONS.values())
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("dots: sizes (n, d); bars and numbers: geometric means", fontsize=9, color="0.45")
    axes.set_ylabel("time / time of xpreg, best of each library")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 0.98), columnspacing=1.4)


def spread(values, distance):
    """Move sorted positions apart until neighbours are at least so far from each other; keep their mean."""
    moved = list(values)
    for _ in range(100):
        for i in range(len(moved) - 1):
            overlap = distance - (moved[i + 1] - moved[i])
            if overlap > 0:
                moved[i], moved[i + 1] = moved[i] - overlap / 2, moved[i + 1] + overlap / 2
    return moved


def growth(axes, scaling):
    """Seconds against n, and a straight line of slope 1 below them."""
    sizes = [int(n) for n in scaling["seconds"]]
    lowest = min(min(s.values()) / int(n) for n, s in scaling["seconds"].items())
    axes.plot(sizes, [0.5 * lowest * n for n in sizes], ls=(0, (4, 3)), lw=1, color="0.55")
    ends = [(0.5 * lowest * sizes[-1], "slope 1", "0.45")]
    for operation, (colour, marker) in LINES.items():
        seconds = [s[operation] for s in scaling["seconds"].values()]
        axes.plot(sizes, seconds, marker=marker, ms=4.5, lw=1.6, color=colour)
        ends.append((seconds[-1], OPERATIONS[operation].replace("\n", " "), colour))
    axes.set(xscale="log", yscale="log", xlabel="rows n", ylabel="seconds")
    low, high = map(math.log, axes.get_ylim())
    ends.sort()
    for place, (_, name, colour) in zip(
        spread([math.log(e[0]) for e in ends], 0.062 * (high - low)), ends, strict=True
    ):
        axes.annotate(
            name, (sizes[-1], math.exp(place)), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9,
            color=colour,
        )  # fmt: skip
    axes.set_title(f"Cost against n, d = {scaling['d']}", loc="left", fontsize=10.5)


def draw(numbers, path):
    """Write the picture; parts that were not run are left out."""
    panels = [(bars, numbers)] if numbers.get("derivatives") else []
    panels += [(growth, numbers["scaling"])] if numbers.get("scaling") else []
    if not panels:
        return False
    ratios = [1.55, 1][: len(panels)]
    figure, axes = plt.subplots(1, len(panels), figsize=(10.5, 3.9), width_ratios=ratios, squeeze=False)
    for place, (panel, data) in zip(axes[0], panels, strict=True):
        panel(place, data)
        place.spines[["top", "right"]].set_visible(False)
        place.grid(axis="y", color="0.9", lw=0.7, zorder=0)
        place.set_axisbelow(True)
    figure.tight_layout(w_pad=3.5)
    figure.savefig(path, dpi=160, bbox_inches="tight")
    plt.close(figure)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", type=pathlib.Path, help="speed-DATE.json")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("speed.png"))
    options = parser.parse_args()
    draw(json.loads(options.numbers.read_text()), options.out)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
