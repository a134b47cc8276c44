"""Over-parametrisation, watched: what the theory of wide two-layer networks promises, at growing width m.

    python examples/overparametrisation.py [--out overparametrisation.png] [--device cuda] [--quick]

Three networks (exponential, softmax, and the classical ReLU network, which lives in this script) are fitted to the
same n points by gradient descent with the step 1/(m lambda_max(H)), once with duplicate initialisation ("pairs") and
once with independent signs. For every width the table shows

    kernel error   |H(0) - H_inf| / |H_inf|, median of several draws: falls like 1/sqrt(m), for the exponential
                   networks from the width on where their heavy tails are sampled
    displacement   the largest |w_r(T) - w_r(0)|: like 1/m with pairs, where |F(0) - y| = |y|; at most like 1/sqrt(m)
                   without, where |F(0)| grows like sqrt(m), and in the end too far to be trained in time
    drift          |H(T) - H(0)| / |H(0)| once trained. Twins move in opposite directions, so that smooth kernels
                   feel only the square of the displacement: 1/m^2 with pairs, where ReLU has 1/m
    rate           the residual's last contraction, beside 1 - lambda_min/lambda_max, that of the linear theory with the
                   kernel at the start: it bounds the rate of wide networks; the kernels of narrow ones change
    t(0.1) t(0.01) iterations until |F - y| <= eps |y|; "-" where they were not enough

On the unit sphere the limit kernels of the exponential and the softmax network are proportional, so that the two train
alike once they are wide.

Sources: arXiv 2303.16504 (exponential), arXiv 2405.03251 (softmax), arXiv 1810.02054 (ReLU).
"""

import dataclasses
import math

import matplotlib
import numpy as np
import shared

import xpreg
from xpreg import backend as B

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EPSILONS = (0.1, 0.01)
NAMES = ("kernel_error", "drift")
COLOURS = {"exp": "#c44e52", "softmax": "#4c72b0", "relu": "#6b8e23"}


class ReLUNetwork:
    """F_i = sum_r a_r relu(<w_r, x_i>): the network most theory is about, for comparison."""

    def __init__(self, W, a):
        self.W, self.a, self.m = W, a, W.shape[1]

    @classmethod
    def initialise(cls, d, m, *, pairs, seed, like):
        twin = xpreg.ExpNetwork.initialise(d, m, pairs=pairs, seed=seed, like=like)
        return cls(twin.W, twin.a)

    def _active(self, X):
        xp = B.namespace(X)
        return xp.astype(X @ self.W > 0, X.dtype)

    def predict(self, X):
        return (self._active(X) * (X @ self.W)) @ self.a

    def grad(self, X, y):
        R = (self.predict(X) - y)[:, None]
        return X.T @ (R * self._active(X) * self.a)

    def tangent_kernel(self, X):
        P = self._active(X)
        return (X @ X.T) * (P @ P.T) / self.m

    def limit_kernel(self, X):
        xp, G = B.namespace(X), X @ X.T
        q = xp.sqrt(xp.linalg.diagonal(G))
        cosine = xp.clip(G / (q[:, None] * q[None, :]), -1.0, 1.0)
        return G * (math.pi - xp.acos(cosine)) / (2 * math.pi)

    def train(self, X, y, maxiter, target):
        """Gradient descent, as xpreg.train does it for the other two."""
        largest = np.linalg.eigvalsh(B.to_numpy(self.tangent_kernel(X)))[-1]
        network, residuals = self, []
        while True:
            residuals.append(norm(network.predict(X) - y))
            if residuals[-1] <= target or len(residuals) > maxiter:
                return network, residuals
            network = ReLUNetwork(network.W - network.grad(X, y) / (self.m * largest), self.a)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    kind: str
    pairs: bool
    m: int
    kernel_error: float
    drift: float
    displacement: float
    rate: float
    bound: float
    times: tuple
    residuals: list


def norm(x):
    return float(np.linalg.norm(B.to_numpy(x)))


def make(kind, d, m, pairs, seed, X):
    if kind == "softmax":
        return xpreg.SoftmaxNetwork.initialise(d, m, 1, pairs=pairs, seed=seed, like=X)
    return {"exp": xpreg.ExpNetwork, "relu": ReLUNetwork}[kind].initialise(d, m, pairs=pairs, seed=seed, like=X)


def fit(network, X, y, maxiter, target):
    """The trained network and its residuals."""
    if isinstance(network, ReLUNetwork):
        return network.train(X, y, maxiter, target)
    y = y if isinstance(network, xpreg.ExpNetwork) else y[:, None]
    start = norm(network.predict(X) - y)
    result = xpreg.train(network, X, y, maxiter=maxiter, tol=target / start)
    return result.network, [record.residual for record in result.history]


def study(kind, pairs, m, X, y, maxiter, seeds):
    d, size, limit = X.shape[1], norm(y), None
    errors = []
    for seed in range(seeds):
        network = make(kind, d, m, pairs, seed, X)
        limit = B.to_numpy(network.limit_kernel(X)) if limit is None else limit
        errors.append(np.linalg.norm(B.to_numpy(network.tangent_kernel(X)) - limit) / np.linalg.norm(limit))
    network = make(kind, d, m, pairs, 0, X)
    H = B.to_numpy(network.tangent_kernel(X))
    eigenvalues = np.linalg.eigvalsh(H)
    trained, residuals = fit(network, X, y, maxiter, EPSILONS[-1] * size)
    change = B.to_numpy(trained.W) - B.to_numpy(network.W)
    times = tuple(next((t for t, r in enumerate(residuals) if r <= eps * size), None) for eps in EPSILONS)
    return Row(
        kind=kind,
        pairs=pairs,
        m=m,
        kernel_error=float(np.median(errors)),
        drift=norm(B.to_numpy(trained.tangent_kernel(X)) - H) / np.linalg.norm(H),
        displacement=float(np.linalg.norm(change, axis=0).max()),
        rate=(residuals[-1] / residuals[-1 - min(10, len(residuals) - 1)]) ** (1 / max(1, min(10, len(residuals) - 1))),
        bound=1 - max(0.0, eigenvalues[0]) / eigenvalues[-1],
        times=times,
        residuals=residuals,
    )


def print_table(rows, n, d):
    print(f"n = {n} points on the unit sphere in d = {d}; residual targets eps |y|\n")
    print(
        f"{'network':<9}{'init':<12}{'m':>6}{'m d/n':>8}{'kernel error':>14}{'drift':>10}{'displacement':>14}", end=""
    )
    print(f"{'rate':>9}{'linear':>9}{'t(0.1)':>8}{'t(0.01)':>9}")
    before = None
    for row in rows:
        if before is not None and (row.kind, row.pairs) != before:
            print()
        before = (row.kind, row.pairs)
        times = "".join(f"{'-' if t is None else t:>{w}}" for t, w in zip(row.times, (8, 9), strict=True))
        print(
            f"{row.kind:<9}{'pairs' if row.pairs else 'independent':<12}{row.m:>6}{row.m * d / n:>8.1f}"
            f"{row.kernel_error:>14.4f}{row.drift:>10.1e}{row.displacement:>14.4f}{row.rate:>9.4f}{row.bound:>9.4f}{times}"
        )
    print("\nslopes against log(m) over the wider half; theory: kernel error -0.5; drift with pairs -2, ReLU -1")
    for kind in COLOURS:
        slopes = []
        for pairs in (True, False):
            chosen = [row for row in rows if row.kind == kind and row.pairs is pairs]
            wide = chosen[len(chosen) // 2 :]
            log_m = np.log([row.m for row in wide])
            slopes += [np.polyfit(log_m, np.log([getattr(row, name) for row in wide]), 1)[0] for name in NAMES]
        (e1, d1, e2, d2) = (f"{slope:+.2f}" for slope in slopes)
        print(f"  {kind:<9}kernel error {e1} (pairs) {e2} (independent)   drift {d1} (pairs) {d2} (independent)")
    print("\nsmallest m (over-parametrisation m d/n) from which on every wider network reached the target")
    for kind in COLOURS:
        for pairs in (True, False):
            chosen = [row for row in rows if row.kind == kind and row.pairs is pairs]
            found = []
            for e, eps in enumerate(EPSILONS):
                enough = None
                for row in reversed(chosen):
                    if row.times[e] is None:
                        break
                    enough = row.m
                reached = "not reached" if enough is None else f"m = {enough} ({enough * d / n:.1f})"
                found.append(f"eps {eps}: {reached}")
            print(f"  {kind:<9}{'pairs' if pairs else 'independent':<13}{'   '.join(found)}")


def draw(rows, limits, X, y, path):
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), constrained_layout=True)
    (error, drift), (residual, time) = axes
    size = norm(y)
    for kind, colour in COLOURS.items():
        for pairs, style in ((True, "-o"), (False, "--s")):
            chosen = [row for row in rows if row.kind == kind and row.pairs is pairs]
            m = [row.m for row in chosen]
            label = f"{kind}, {'pairs' if pairs else 'independent signs'}"
            error.loglog(m, [row.kernel_error for row in chosen], style, color=colour, ms=4, label=label)
            drift.loglog(m, [row.drift for row in chosen], style, color=colour, ms=4, label=label)
            for e, alpha in ((0, 0.4), (1, 1.0)):
                reached = [(row.m, row.times[e]) for row in chosen if row.times[e] is not None]
                if reached:
                    time.loglog(*zip(*reached, strict=True), style, color=colour, ms=4, alpha=alpha,
                                label=f"{label}, eps = {EPSILONS[e]}" if e else None)  # fmt: skip
        widest = [row for row in rows if row.kind == kind and row.pairs][-1]
        t = np.arange(len(widest.residuals))
        residual.semilogy(t, np.array(widest.residuals) / size, color=colour, lw=2.5, alpha=0.6,
                          label=f"{kind}, m = {widest.m}, with pairs")  # fmt: skip
        eigenvalues, V = np.linalg.eigh(limits[kind])
        parts = V.T @ B.to_numpy(y)
        linear = [np.linalg.norm((1 - eigenvalues / eigenvalues[-1]) ** s * parts) / size for s in t]
        residual.semilogy(t, linear, color=colour, lw=1, ls="--")
        residual.semilogy(t, (1 - eigenvalues[0] / eigenvalues[-1]) ** t, color=colour, lw=1, ls=":")
    m = np.array(sorted({row.m for row in rows}), dtype=float)
    first = next(row for row in rows if row.kind == "softmax")
    error.loglog(
        m, first.kernel_error * np.sqrt(first.m / m), color="0.6", lw=5, alpha=0.4, zorder=0, label="1/sqrt(m)"
    )
    for kind, power, label in (("softmax", 2, "1/m^2"), ("relu", 1, "1/m")):
        last = [row for row in rows if row.kind == kind and row.pairs][-1]
        guide = last.drift * (last.m / m) ** power
        drift.loglog(m[guide < 1], guide[guide < 1], color="0.6", lw=5, alpha=0.4, zorder=0, label=label)
    residual.set_ylim(0.5 * EPSILONS[-1], 1.3)
    residual.plot([], [], color="0.3", lw=1, ls="--", label="linear theory, limit kernel")
    residual.plot([], [], color="0.3", lw=1, ls=":", label="$(1 - \\lambda_{min}/\\lambda_{max})^t$")
    error.set(title="The kernel converges to its limit", xlabel="width m", ylabel="$|H(0) - H_\\infty| / |H_\\infty|$")
    drift.set(title="With pairs it stays where it was", xlabel="width m", ylabel="drift $|H(T) - H(0)| / |H(0)|$")
    residual.set(title="The residual follows the kernel's eigenvalues", xlabel="iteration", ylabel="$|F - y| / |y|$")
    time.set(title="Iterations until |F - y| = eps |y| (pale: eps = 0.1)", xlabel="width m", ylabel="iterations")
    for axis in axes.flat:
        axis.grid(alpha=0.25, which="both", lw=0.5)
        axis.legend(fontsize=7.5, framealpha=0.9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Over-parametrised two-layer networks: n = {X.shape[0]} points in d = {X.shape[1]}", fontsize=13)
    figure.savefig(path, dpi=130)


def main():
    parser = shared.parser(__doc__, out="overparametrisation.png", quick="fewer widths, to see that it runs")
    parser.add_argument("--maxiter", type=int, default=2000)
    arguments = shared.parse(parser)
    n, d = 30, 10
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, d))
    X = B.to_device(X / np.linalg.norm(X, axis=1, keepdims=True), arguments.device)
    y = B.to_device(rng.choice([-1.0, 1.0], n), arguments.device)
    widths = [16, 128, 1024] if arguments.quick else [4, 16, 64, 256, 1024, 4096, 16384]
    rows = [
        study(kind, pairs, m, X, y, arguments.maxiter, seeds=3 if arguments.quick else 25)
        for kind in COLOURS
        for pairs in (True, False)
        for m in widths
    ]
    print_table(rows, n, d)
    limits = {kind: B.to_numpy(make(kind, d, 2, True, 0, X).limit_kernel(X)) for kind in COLOURS}
    draw(rows, limits, X, y, arguments.out)
    print(f"\npicture: {arguments.out}")


if __name__ == "__main__":
    shared.start(main)
