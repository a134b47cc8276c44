"""The theory, executed: every bound of the convergence theorems beside what is measured, as a table and a picture.

python examples/theory_check.py --quick          under 20 s
python examples/theory_check.py --out theory.png
"""

import itertools
import math

import numpy as np
import shared

import xpreg
from xpreg import backend, sampling, theory
from xpreg.brackets import bracket


def parse():
    parser = shared.parser(__doc__, out="theory_check.png", quick="fewer random instances")
    parser.add_argument("--seed", type=int, default=0)
    return shared.parse(parser)


class Check:
    """Arrays on the chosen device, random numbers, and the rows of the table."""

    def __init__(self, device, seed, quick):
        self.device, self.rng, self.quick = device, np.random.default_rng(seed), quick
        self.rows = []

    def array(self, x):
        return backend.to_device(np.asarray(x, dtype=float), self.device)

    def softmax(self, A, b, **options):
        return xpreg.SoftmaxRegression(self.array(A), self.array(b), **options)

    def row(self, what, bound, measured, holds):
        self.rows.append((what, bound, measured, "holds" if holds else "FAILS"))


def random_simplex(rng, n, k):
    """Distributions (k, n): everything from nearly uniform to nearly a vertex."""
    concentration = 10.0 ** rng.uniform(-2, 1, (k, 1))
    draws = rng.standard_gamma(np.broadcast_to(concentration, (k, n))) + 1e-300
    return draws / draws.sum(axis=1, keepdims=True)


def eigenvalues(check):
    """Eigenvalues of B over random f, b (any n) and along the extremal family n = 2, b = (0, 1), f = (p, 1 - p)."""
    p = np.linspace(1e-4, 1 - 1e-4, 400)
    z = np.stack([np.log(p), np.log(1 - p)], axis=1)
    b = np.broadcast_to([0.0, 1.0], z.shape)
    H = backend.to_numpy(check.softmax(np.eye(2), b).hess(check.array(z)))
    family = np.trace(H, axis1=1, axis2=2)  # the other eigenvalue is 0
    k, lows, highs = (300 if check.quick else 5000), [], []
    for n in (2, 3, 5, 20):
        f, b = random_simplex(check.rng, n, k), random_simplex(check.rng, n, k)
        values = np.linalg.eigvalsh(backend.to_numpy(check.softmax(np.eye(n), b).hess(check.array(np.log(f)))))
        lows.append(values[:, 0])
        highs.append(values[:, -1])
    low, high = min(np.min(lows), family.min()), max(np.max(highs), family.max())
    check.row(
        "smallest eigenvalue of B (softmax)",
        f">= {theory.SOFTMAX_LOWEST:.4f} n",
        f"{low:.6f}",
        low >= theory.SOFTMAX_LOWEST,
    )
    w2 = 9.0 * high
    holds = w2 <= theory.SOFTMAX_SANDWICH
    check.row("w^2 with W^2 within 10 % of B + W^2", f"{theory.SOFTMAX_SANDWICH:.4f} n", f"{w2:.6f}", holds)
    return p, family, np.concatenate(lows), np.concatenate(highs)


def lipschitz(check):
    """|H(x) - H(y)| / (|A|^3 |x - y|) over random pairs; the largest approaches 0.5715."""
    k, ratios = (200 if check.quick else 4000), []
    for n in (2, 3, 4, 8):
        f, b = random_simplex(check.rng, n, k), random_simplex(check.rng, n, k)
        x, h = np.log(f), check.rng.standard_normal((k, n))
        h *= 1e-3 / np.linalg.norm(h, axis=1, keepdims=True)
        problem = check.softmax(np.eye(n), b)
        change = backend.to_numpy(problem.hess(check.array(x + h)) - problem.hess(check.array(x)))
        ratios.append(np.linalg.norm(change, 2, axis=(1, 2)) / 1e-3)
    largest = np.max(ratios)
    bound = theory.softmax_lipschitz(1.0)
    check.row(
        "Lipschitz constant of the Hessian / |A|^3",
        f"{bound:.2f} p, {theory.SOFTMAX_LIPSCHITZ} n",
        f"{largest:.4f}",
        largest <= theory.SOFTMAX_LIPSCHITZ,
    )
    return np.concatenate(ratios), bound


def shrinking(check):
    """Exact Newton from (l, M)-good starts: the distance after a step against the lemma's bound."""
    points = []
    for _ in range(30 if check.quick else 200):
        n, d = 4, 2
        A, truth = check.rng.standard_normal((n, d)), check.rng.standard_normal(d)
        f = np.exp(A @ truth)
        problem = check.softmax(A, f / f.sum())
        solution = xpreg.minimize(problem, tol=1e-13).x
        certificate = xpreg.certify(problem, solution)
        l, M = certificate.strong_convexity.value, certificate.lipschitz_sharp.value
        if l is None:
            continue
        direction = check.rng.standard_normal(d)
        r = 0.1 * l / M * check.rng.uniform(0.05, 1.0)
        x = solution + check.array(r * direction / np.linalg.norm(direction))
        step = np.linalg.solve(backend.to_numpy(problem.hess(x)), backend.to_numpy(problem.grad(x)))
        after = np.linalg.norm(backend.to_numpy(x - solution) - step)
        points.append((theory.contraction(l, M, r), after / r))
    bound, measured = np.array(points).T
    check.row(
        "shrinking lemma: contraction / bound", "<= 1", f"{np.max(measured / bound):.3f}", (measured <= bound).all()
    )
    return bound, measured


def sandwich(check):
    """Largest deviation of the sampled Gram matrix, against eps, for three kinds of rows."""
    n, d, seeds = 4000, 6, (5 if check.quick else 40)
    epsilons, found = (0.5, 0.3, 0.2, 0.1), {}
    gaussian = check.rng.standard_normal((n, d))
    rotation = np.linalg.qr(check.rng.standard_normal((d, d)))[0]
    cases = {
        "Gaussian rows": gaussian,
        "heavy-tailed rows": gaussian * np.abs(check.rng.standard_cauchy((n, 1))),
        "condition number 1e6": gaussian * np.logspace(0, -6, d) @ rotation,
    }
    D = check.array(check.rng.random(n))
    for name, A in cases.items():
        rows, inside, total = xpreg.maps.DenseRows(check.array(A)), 0, 0
        found[name] = []
        for eps in epsilons:
            deviations = []
            for seed in range(seeds):
                sample = sampling.subsample(rows, D, eps=eps, delta=0.1, method="exact", seed=seed)
                low, high = (float(v) for v in sampling.deviation(rows, D, sample))
                deviations.append(max(1 - low, high - 1))
            inside += sum(v <= eps for v in deviations)
            total += seeds
            found[name].append(deviations)
        check.row(
            f"sandwich 1 +- eps: {name}", ">= 90 % of seeds p", f"{100 * inside / total:.0f} %", inside >= 0.9 * total
        )
    return epsilons, found


def linear_rate(check):
    """Sampling W^2 alone: the rate is at most max|eig B|/w^2 (plus the sample's error)."""
    n, rates = 12, []
    weights = np.geomspace(0.5, 30, 5 if check.quick else 9)
    for w2 in weights:
        slowest = 0.0
        for p in ((15 - math.sqrt(33)) / 24, (15 + math.sqrt(33)) / 24):
            z = np.concatenate([np.log([p, 1 - p]), np.full(n - 2, -25.0)])
            problem = check.softmax(np.eye(n), np.eye(n)[1], weights=math.sqrt(w2))
            B = backend.to_numpy(problem.hess(check.array(z))) - w2 * np.eye(n)
            slowest = max(slowest, np.abs(np.linalg.eigvalsh(B)).max() / w2)
        rates.append(slowest)
    bound = theory.SOFTMAX_HIGHEST / weights
    at = np.interp(2.773, weights, rates)
    A = check.rng.standard_normal((3000, 4)) * 0.2
    problem = check.softmax(A, np.eye(3000)[0], weights=math.sqrt(2.773))
    run = xpreg.minimize(
        problem,
        check.array(check.rng.standard_normal(4)),
        method="approximate-newton",
        reading="papers",
        diagonal="regulariser",
        eps=0.1,
    )
    g = [r.grad_norm for r in run.history if r.direction.startswith(("start", "sampled"))]
    slowest = max(after / before for before, after in itertools.pairwise(g))
    exact = theory.extreme_eigenvalue((15 - math.sqrt(33)) / 24) / 2.773
    check.row("rate when W^2 alone is kept, w^2 = 2.773", "<= 1/9 n", f"{exact:.4f}", exact <= 1 / 9 + 1e-4)
    check.row("W^2 sampled, eps = 0.1, 3,000 Gaussian rows", "<= 1/9 + eps n", f"{slowest:.4f}", slowest <= 1 / 9 + 0.1)
    return weights, np.array(rates), bound, at, g


def pole(check):
    """ResNet-softmax without centred columns: the lowest eigenvalue of B as alpha/n goes to 0."""
    n = 10
    b = np.eye(n)[0]
    spread = 0.5 * check.rng.standard_normal(n)
    spread -= spread.mean()
    alpha = n * np.geomspace(1e-3, 3.0, 40)
    low, high = np.full(40, -5.0), np.full(40, 5.0)
    for _ in range(80):  # the offset t of z = t + spread with the wanted alpha, which grows with t
        t = 0.5 * (low + high)
        z = t[:, None] + spread
        above = (np.exp(z) + z).sum(axis=1) > alpha
        low, high = np.where(above, low, t), np.where(above, t, high)
    problem = xpreg.ResNetSoftmaxRegression(check.array(np.eye(n)), check.array(np.broadcast_to(b, z.shape)))
    H = backend.to_numpy(problem.hess(check.array(z)))
    low = np.linalg.eigvalsh(H)[:, 0]
    bounds = backend.to_numpy(bracket(problem.point(check.array(z)).curvature())[0])
    ratio = np.min(bounds / low)
    check.row("ResNet-softmax near the pole: bracket / eigenvalue", ">= 1 p", f"{ratio:.3f}", ratio >= 1 - 1e-9)
    close = alpha / n < 0.01
    slope = np.polyfit(np.log(alpha[close]), np.log(-low[close]), 1)[0]
    check.row("its growth with alpha/n: exponent", "about -3 n", f"{slope:.2f}", -4 < slope < -2)
    return alpha / n, -low, -bounds


def table(rows):
    head = ("claim", "bound (p proved, n numerical)", "measured", "")
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [head, *rows])


def draw(path, eigen, lip, shrink, sand, linear, poles):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    blue, red, grey = "#20639b", "#c0392b", "#8a8f98"

    ax = axes[0, 0]
    p, family, lows, highs = eigen
    ax.hist(
        lows[lows < -1e-4],
        bins=60,
        range=(-0.26, 0.34),
        color=grey,
        alpha=0.7,
        weights=np.full((lows < -1e-4).sum(), 1 / len(lows)),
    )
    ax.hist(highs, bins=60, range=(-0.26, 0.34), color=blue, alpha=0.6, weights=np.full(len(highs), 1 / len(highs)))
    ax.axvline(theory.SOFTMAX_LOWEST, color=red, ls="--")
    ax.axvline(theory.SOFTMAX_HIGHEST, color=red, ls="--")
    inset = ax.inset_axes([0.60, 0.50, 0.38, 0.42])
    inset.plot(p, family, color=blue)
    inset.axhline(theory.SOFTMAX_LOWEST, color=red, ls="--", lw=0.8)
    inset.axhline(theory.SOFTMAX_HIGHEST, color=red, ls="--", lw=0.8)
    inset.set_title("n = 2, b = (0, 1), f = (p, 1-p)", fontsize=7)
    inset.tick_params(labelsize=6)
    ax.set(
        title="Eigenvalues of B stay in [-0.2405, 0.3082]",
        xlabel="smallest (grey) and largest (blue) eigenvalue",
        ylabel="share",
        yscale="log",
    )

    ax = axes[0, 1]
    ratios, bound = lip
    ax.hist(ratios, bins=np.geomspace(1e-4, 6, 60), color=blue, alpha=0.7)
    ax.axvline(theory.SOFTMAX_LIPSCHITZ, color=red, ls="--", label="numerical supremum 0.5715")
    ax.axvline(bound, color="black", ls=":", label=f"proved {bound:.2f}")
    ax.set(
        title="Lipschitz constant of the Hessian",
        xlabel="|H(x) - H(y)| / (|A|³ |x - y|)",
        ylabel="random pairs",
        xscale="log",
    )
    ax.legend(frameon=False, fontsize=8, loc="upper left")

    ax = axes[0, 2]
    bound, measured = shrink
    ax.loglog(bound, measured, "o", color=blue, ms=4, label="exact Newton, (l, M)-good starts")
    line = np.array([bound.min(), bound.max()])
    ax.loglog(line, line, "--", color=red, label="the bound")
    ax.set(title="Shrinking lemma", xlabel="2 M r/(l - M r)", ylabel="distance after / before one step")
    ax.legend(frameon=False, fontsize=8)

    ax = axes[1, 0]
    epsilons, found = sand
    for i, (name, lists) in enumerate(found.items()):
        colour = (blue, "#3caea3", "#e67e22")[i]
        for eps, values in zip(epsilons, lists, strict=True):
            ax.plot(
                np.full(len(values), eps * 1.06 ** (i - 1)),
                values,
                "o",
                color=colour,
                ms=3,
                alpha=0.6,
                label=name if eps == epsilons[0] else None,
            )
    ax.plot(epsilons, epsilons, "--", color=red, label="promised")
    ax.set(
        title="Sampling sandwich, many seeds",
        xlabel="eps",
        ylabel="largest relative deviation",
        xscale="log",
        yscale="log",
    )
    ax.set_xticks(epsilons, [str(e) for e in epsilons])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)

    ax = axes[1, 1]
    weights, rates, bound, _, g = linear
    ax.loglog(weights, rates, "o", color=blue, label="extremal f and b")
    ax.loglog(weights, bound, "--", color=red, label="0.3082 / w²")
    ax.plot([2.773], [1 / 9], "s", color="black", label="w² = 2.773: 1/9")
    ax.set(title="W² in place of the Hessian: linear rate", xlabel="w²", ylabel="max |eig B| / w²")
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    inset = ax.inset_axes([0.62, 0.56, 0.36, 0.40])
    inset.semilogy(np.array(g) / g[0], "o-", color=blue, ms=3)
    inset.semilogy(np.arange(len(g)), (1 / 9) ** np.arange(len(g)), "--", color=red, lw=0.8)
    inset.set_title("a sampled run: gradient", fontsize=7)
    inset.tick_params(labelsize=6)

    ax = axes[1, 2]
    alpha, low, bounds = poles
    ax.loglog(alpha, np.maximum(low, 1e-6), "o", color=blue, ms=4, label="-lowest eigenvalue of B")
    ax.loglog(alpha, bounds, "-", color="black", lw=1, label="O(n) bracket")
    ax.axhline(0.2405, color=red, ls="--", label="0.2405, enough for centred columns")
    ax.set(
        title="The pole of ResNet-softmax",
        xlabel="alpha / n",
        ylabel="w² needed for a convex problem",
        ylim=(1e-4, None),
    )
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main():
    arguments = parse()
    check = Check(arguments.device, arguments.seed, arguments.quick)
    results = [part(check) for part in (eigenvalues, lipschitz, shrinking, sandwich, linear_rate, pole)]
    print(table(check.rows))
    draw(arguments.out, *results)
    print(f"picture: {arguments.out}")
    if any(row[3] == "FAILS" for row in check.rows):
        raise SystemExit("a bound does not hold")


if __name__ == "__main__":
    shared.start(main)
