"""Our times over those of the others, with what was aimed at beside them: the short table at the end of speed.py.

python ci/bench/summary.py ci/bench/results/speed-DATE.json     the table of the README
"""

from __future__ import annotations

import json
import math
import pathlib
import sys

L_BFGS = ("SciPy L-BFGS-B", "torch.optim.LBFGS", "jaxopt.LBFGS", "optimistix.LBFGS", "optimistix.BFGS")
OURS = "xpreg auto"


def by_size(d, tall, wide):
    return tall if d <= 100 else wide


DERIVATIVES = [
    ("value_and_grad / best jax.jit", "value_and_grad", ("jax.jit",), lambda d: by_size(d, 0.67, 0.87)),
    ("value_and_grad / best torch", "value_and_grad", ("torch",), lambda d: 0.5),
    ("hvp / jax.jit(jvp(grad))", "hvp", ("jax.jit(jvp",), lambda d: 0.55),
    ("hvp / jax.linearize, kept", "hvp", ("jax.linearize",), lambda d: 1.0),
    ("hess / jax.jit, by hand", "hess", ("jax.jit, by hand",), lambda d: 0.5),
    ("hess / jax.hessian", "hess", ("jax.hessian",), lambda d: 0.1),
]
"""What, operation, labels of the peers, goal for d columns."""

SOLVES = [
    ("solve / SciPy trust-exact", ("SciPy trust-exact",), 0.4),
    ("solve / Newton, jax.hessian", ("Newton, jax.hessian",), 0.12),
    ("solve / best (L-)BFGS", L_BFGS, 0.15),
]
"""What, labels of the peers, goal at condition number 1e2."""


def syrk_goal(d):
    return 5.0 if d <= 100 else 1.9 if d < 2000 else 1.4


def columns(name):
    return int(name.split()[0].partition("x")[2])


def entries(numbers):
    """Yield (what, where, ratio, whether it is only an upper bound, goal)."""
    for name, found in numbers.get("derivatives", {}).items():
        d = columns(name)
        for what, operation, prefixes, goal in DERIVATIVES:
            ratios = [q["xpreg / this"] for label, q in found[operation].items() if label.startswith(prefixes)]
            if ratios:
                yield what, name, max(ratios), False, goal(d)
        yield "hess / syrk floor", name, found["hess"]["xpreg"]["seconds"] / found["syrk floor"], False, syrk_goal(d)
    for name, found in numbers.get("solves", {}).items():
        if name.endswith("condition 1e2"):
            for what, labels, goal in SOLVES:
                if any(label in found for label in labels):
                    yield what, name, *against(found, labels), goal
        own = [label for label in found if label.startswith("xpreg")]
        others = [label for label in found if label not in own]
        yield "solve / best of our methods", name, *against(found, own), 1.1
        if others:
            yield "solve / best peer", name, *against(found, others), 1.0
    for name, found in numbers.get("floors", {}).items():
        yield "solve / its own floor", name, found["seconds"] / found["floor"], False, 1.6


def against(found, labels):
    """Return ours over the best that solves it; where none does, over the longest time that one was given."""
    times = [found[label]["this / xpreg auto"] for label in labels if label in found and found[label]["solved"]]
    given = [found[label]["this / xpreg auto"] for label in labels if label in found]
    return (1 / min(times), False) if times else (1 / max(given), True)


def lines(numbers):
    rows = [
        f"{what:<30}{name:<30}{'< ' * bound + f'{ratio:.3f}':>10}{goal:>8.2f}   {'' if ratio <= goal else 'missed'}"
        for what, name, ratio, bound, goal in sorted(entries(numbers), key=lambda entry: entry[0])
    ]
    return [f"{'our time / theirs':<30}{'n x d':<30}{'ratio':>10}{'goal':>8}", *rows] if rows else []


README = [
    ("value and gradient: the best of jax.jit", "value_and_grad", ("jax.jit",)),
    ("value and gradient: the best of torch", "value_and_grad", ("torch",)),
    ("value and gradient: NumPy by hand", "value_and_grad", ("NumPy",)),
    ("Hessian-vector product at a kept z: jax.linearize", "hvp", ("jax.linearize",)),
    ("the same: torch.autograd, graph kept", "hvp", ("torch.autograd",)),
    ("the same: NumPy by hand", "hvp", ("NumPy",)),
    ("Hessian: jax.jit, by hand", "hess", ("jax.jit, by hand",)),
    ("Hessian: jax.hessian", "hess", ("jax.hessian",)),
]
"""Row, operation, labels of the peers."""

README_SOLVES = [
    ("solve, condition 1e2: SciPy trust-exact with our derivatives", ("SciPy trust-exact",)),
    ("solve: exact Newton with jax.hessian", ("Newton, jax.hessian",)),
    ("solve: the best of L-BFGS in SciPy, PyTorch, jaxopt, optimistix", L_BFGS),
]


def readme(numbers):
    """Return the table of the README, one column per size; bounds are rounded up."""
    sizes = list(numbers["derivatives"])
    rows = [f"| n x d | {' | '.join(size.split()[0] for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for what, operation, prefixes in README:
        ratios = [
            max(q["xpreg / this"] for label, q in numbers["derivatives"][size][operation].items()
                if label.startswith(prefixes))
            for size in sizes
        ]  # fmt: skip
        rows.append(f"| {what} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    solved = [numbers["solves"][name] for name in numbers["solves"] if name.endswith("condition 1e2")]
    for what, labels in README_SOLVES:
        cells = []
        for found in solved:
            ratio, bound = against(found, labels)
            cells.append(f"< {math.ceil(100 * ratio) / 100:.2f}" if bound else f"{ratio:.2f}")
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    print("\n".join(readme(json.loads(pathlib.Path(sys.argv[1]).read_text()))))
