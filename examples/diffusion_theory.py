"""The theory of denoising, executed on a 2-D mixture whose score is known.

    python examples/diffusion_theory.py --out pictures

1. Identity: (h^2/alpha^2) E|s_F - s*|^2 = E|F - X_0|^2 - E Var(X_0|X_t), for a fitted model, level by level.
2. Early stopping: the score error against training time on few data, with the stop that held-out labels choose.
3. The error against sample size (kernel) and against width (network).
"""

import matplotlib
import numpy as np
import shared
from diffusion_mixture import BLUE, GREY, ORANGE, T_MAX, T_MIN, make_mixture, number, score_error
from tqdm import tqdm

from xpreg import backend, diffusion
from xpreg.networks import SoftmaxNetwork, train

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def check_identity(mixture, model, n):
    """Print both sides at several times, with the Monte Carlo error of the right one."""
    print("identity      t    score error   loss - variance   (standard error)")
    process = diffusion.OrnsteinUhlenbeck()
    for i, t in enumerate((0.05, 0.2, 0.6, 1.5, 3.0)):
        x0 = mixture.sample(n, seed=200 + i)
        x = process.noise(x0, t, 300 + i)
        alpha, h = process.alpha(t), process.h(t)
        gap = h / alpha * (model.score(x, t) - mixture.score(x, t))
        left = number((gap * gap).sum()) / n
        loss = ((model.denoise(x, t) - x0) ** 2).sum(axis=1) - ((mixture.denoise(x, t) - x0) ** 2).sum(axis=1)
        loss = backend.to_numpy(loss)
        print(f"          {t:5.2f}   {left:11.5f}   {loss.mean():15.5f}   ({loss.std() / n**0.5:.5f})")


def early_stopping(mixture, n, iterations, seed):
    """Train on n data with four noisy versions each; return score error, training and held-out loss by iteration."""
    X0, held_out, fresh = (mixture.sample(size, seed=seed + i) for i, size in enumerate((n, n // 2, 4000)))
    embedding = diffusion.Embedding.of(X0, T_MIN, T_MAX)
    centred = X0 - embedding.centre
    baseline = diffusion.GaussianBaseline(embedding.centre, centred.T @ centred / n)

    def dataset(x0, draws, rng, *, exact=False):
        x0, t, x = diffusion.noisy_pairs(x0, draws, T_MIN, T_MAX, rng)
        G, c = baseline(x, t)
        return embedding(x, t), ((mixture.posterior_mean(x, t) if exact else x0) - G) / c

    U, Y = dataset(X0, 4, 1)
    network = SoftmaxNetwork.initialise(U.shape[1], 256, X0.shape[1], sigma=1.0, seed=seed, like=U)
    runs = []
    for data in (dataset(held_out, 8, 2), dataset(fresh, 1, 3, exact=True)):
        # the same training twice: measured once on held-out labels, once on the exact posterior mean
        with tqdm(total=iterations, desc=f"train on {n}", leave=False) as bar:
            history = train(network, U, Y, validation=data, momentum=0.9, maxiter=iterations, patience=iterations + 1,
                            tol=0.0, callback=lambda _, bar=bar: bar.update()).history  # fmt: skip
        runs.append([2 * record.validation / data[0].shape[0] for record in history])
    held, error = (np.array(run) for run in runs)
    return error, held, np.array([2 * record.loss / U.shape[0] for record in history])


def draw(stopping, by_n, by_width, path):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for (n, (error, held, _)), color in zip(stopping.items(), (ORANGE, GREY, BLUE), strict=False):
        times, stop = np.arange(1, len(error)), int(np.argmin(held))
        left.plot(times, error[1:], color=color, label=f"n = {n}")
        left.plot(stop, error[stop], "o", ms=9, mfc="white", mew=2, color=color)
    left.plot([], [], "o", ms=9, mfc="white", mew=2, color="black", label="stop chosen by held-out labels")
    left.set(xscale="log", yscale="log", xlabel="training time (iterations)", ylabel=r"score error $E|F-F^*|^2/c^2$",
             title="With few data, training longer learns noise")  # fmt: skip
    middle.plot(list(by_n), list(by_n.values()), "o-", color=BLUE, label="kernel regression")
    middle.plot(list(by_n), [by_n[max(by_n)] * max(by_n) / n for n in by_n], ls="--", color=GREY, label="1/n")
    middle.set(xscale="log", yscale="log", xlabel="data n", ylabel="score error, % of E Var", title="Error against n")
    right.plot(list(by_width), list(by_width.values()), "o-", color=ORANGE, label="trained network")
    right.axhline(by_n[max(by_n)], ls="--", color=BLUE, label="kernel: infinite width")
    right.set(xscale="log", yscale="log", xlabel="width m", title=f"Error against width, n = {max(by_n)}")
    for ax, values in ((middle, by_n), (right, by_width)):
        ax.set_xticks(list(values), list(values))
        ax.minorticks_off()
        ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    for ax in (left, middle, right):
        ax.legend(frameon=False, fontsize=9)
        ax.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)


def main():
    parser = shared.parser(__doc__, out=".")
    parser.add_argument("--seed", type=int, default=0)
    arguments = shared.parse(parser, "diffusion_theory.png")
    quick = arguments.quick
    mixture = make_mixture(arguments.device)
    sizes, widths, iterations = ((100, 300), (16, 64), 30) if quick else ((250, 1000, 4000), (16, 64, 256), 150)
    common = {"t_min": T_MIN, "t_max": T_MAX, "draws": 4, "seed": arguments.seed}

    _, t, x = diffusion.noisy_pairs(mixture.sample(10_000, seed=102), 1, T_MIN, T_MAX, 103)
    variance = number(mixture.posterior_variance(x, t).mean())
    by_n, by_width = {}, {}
    for n in tqdm(sizes, desc="kernel", leave=False):
        model = diffusion.fit_score(mixture.sample(n, 1), method="kernel", sigma=2.0, centres=500, **common)
        by_n[n] = 100 * score_error(model, mixture, t, x) / variance
    check_identity(mixture, model, 4000 if quick else 20_000)
    for width in tqdm(widths, desc="network", leave=False):
        network = diffusion.fit_score(mixture.sample(sizes[-1], 1), width=width, maxiter=iterations, **common)
        by_width[width] = 100 * score_error(network, mixture, t, x) / variance
    print("\nscore error in % of E Var(X_0|X_t)")
    print("kernel,  n = " + "   ".join(f"{n}: {v:.2f}" for n, v in by_n.items()))
    print(f"network, n = {sizes[-1]}, width " + "   ".join(f"{m}: {v:.2f}" for m, v in by_width.items()))

    stopping = {
        n: early_stopping(mixture, n, 60 if quick else 800, arguments.seed)
        for n in (100, 200, 400)[: 1 if quick else 3]
    }
    print("\nearly stopping   n   stop at   error there   least error   error at the end")
    for n, (error, held, _) in stopping.items():
        stop = int(np.argmin(held))
        print(f"           {n:7} {stop:9}   {error[stop]:11.4f}   {error.min():11.4f}   {error[-1]:16.4f}")
    draw(stopping, by_n, by_width, arguments.out / "diffusion_theory.png")
    print(f"picture: {arguments.out / 'diffusion_theory.png'}")


if __name__ == "__main__":
    shared.start(main)
