"""Learn the score of a 2-D Gaussian mixture, compare it with the exact one, and sample from it.

    python examples/diffusion_mixture.py --out pictures
    python examples/diffusion_mixture.py --device cuda --samples 20000

Prints the score error of kernel regression and of a softmax network trained in two ways, and how far their samples
are from the truth. Draws the score fields, the samples, and the error at every noise level. A few minutes on two CPU
cores. The samples of the kernel and of the network that Gram-Gauss-Newton has trained lie within twice the distance of
a true sample; gradient descent, with half of the neurons, ends at about three times it, with a score error below 1 %.
"""

import time

import matplotlib
import numpy as np
import shared
from tqdm import tqdm

from xpreg import backend, diffusion

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEANS = [[-1.5, -1.0], [1.5, -1.0], [0.0, 1.5], [1.6, 1.4], [-1.4, 0.9]]
SCALES = [0.25, 0.35, 0.40, 0.20, 0.30]
WEIGHTS = [0.25, 0.25, 0.20, 0.10, 0.20]
T_MIN, T_MAX = 0.05, 3.0
BLUE, ORANGE, GREEN, GREY = "#2c6fbb", "#d9722b", "#2f8f5b", "#7a7a7a"


def make_mixture(device):
    return diffusion.GaussianMixture(np.array(MEANS), np.array(SCALES), np.array(WEIGHTS), device=device)


def number(x):
    return float(backend.read(x)[0])


def score_error(model, mixture, t, x):
    """Return (h^2/alpha^2) E|s - s*|^2 over the points, which is E|F - E[X_0|X_t]|^2."""
    gap = model.denoise(x, t) - mixture.posterior_mean(x, t)
    return number((gap * gap).sum()) / x.shape[0]


def error_by_level(model, mixture, times, n):
    x0 = mixture.sample(n, seed=101)
    process = diffusion.OrnsteinUhlenbeck()
    return [score_error(model, mixture, t, process.noise(x0, t, i)) for i, t in enumerate(times)]


def fit(name, X0, total, **options):
    begun = time.perf_counter()
    with tqdm(total=total, desc=f"fit {name}", leave=False) as bar:
        model = diffusion.fit_score(X0, t_min=T_MIN, t_max=T_MAX, callback=lambda _: bar.update(), **options)
    return model, time.perf_counter() - begun


def draw_fields(models, mixture, path, device):
    """Score arrows on the density: exact, and learned with the error behind."""
    times = (0.1, 0.5, 1.5)
    fine, coarse = np.linspace(-3, 3, 121), np.linspace(-2.7, 2.7, 16)
    grid, arrows = (np.stack(np.meshgrid(a, a), axis=-1).reshape(-1, 2) for a in (fine, coarse))
    figure, axes = plt.subplots(1 + len(models), 3, figsize=(10.5, 3.5 * (1 + len(models))), layout="constrained")
    for column, t in enumerate(times):
        alpha, h = np.exp(-t / 2), -np.expm1(-t)
        points = backend.to_device(grid, device)
        exact = backend.to_numpy(mixture.score(backend.to_device(arrows, device), t))
        density = np.exp(backend.to_numpy(mixture.log_density(points, t)))
        likely = (np.exp(backend.to_numpy(mixture.log_density(backend.to_device(arrows, device), t)))
                  > 0.004 * density.max())  # fmt: skip
        length = np.quantile(np.linalg.norm(exact[likely], axis=1), 0.9)
        for row, (name, model) in enumerate([("exact", mixture), *models.items()]):
            ax = axes[row, column]
            score = backend.to_numpy(model.score(backend.to_device(arrows, device), t))
            if row == 0:
                ax.contourf(fine, fine, density.reshape(121, 121), levels=14, cmap="Blues")
            else:
                gap = backend.to_numpy(model.denoise(points, t) - mixture.posterior_mean(points, t))
                error = np.where(density > 0.004 * density.max(), np.linalg.norm(gap, axis=1), np.nan)
                image = ax.imshow(error.reshape(121, 121), extent=(-3, 3, -3, 3), origin="lower", cmap="Oranges",
                                  vmin=0, vmax=0.5)  # fmt: skip
                ax.contour(fine, fine, density.reshape(121, 121), levels=5, colors=GREY, linewidths=0.5)
            ax.quiver(*arrows[likely].T, *score[likely].T, scale=12 * length, width=0.005, color="#222222")
            ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
            if row == 0:
                ax.set_title(f"t = {t}, noise {h**0.5:.2f}, signal {alpha:.2f}")
            if column == 0:
                ax.set_ylabel(name, fontsize=12)
    figure.colorbar(image, ax=axes[1:, :], shrink=0.6, label=r"denoiser error  $(h/\alpha)\,|s - s^*|$")
    figure.suptitle("Score fields where the noised density is not negligible")
    figure.savefig(path, dpi=130)


def draw_samples(samples, path):
    figure, axes = plt.subplots(1, len(samples), figsize=(3.5 * len(samples), 3.9), layout="constrained")
    for ax, (name, (x, label)) in zip(axes, samples.items(), strict=True):
        ax.scatter(*x.T, s=2, alpha=0.35, color=GREY if name == "truth" else BLUE, linewidths=0)
        ax.set(xlim=(-3, 3), ylim=(-2.6, 3.2), aspect="equal", title=name, xlabel=label)
    figure.savefig(path, dpi=130)


def draw_levels(times, errors, variances, path):
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    ax.plot(times, variances, color=GREY, ls="--", label=r"label variance $E\,\mathrm{Var}(X_0|X_t)$")
    for (name, values), color in zip(errors.items(), (BLUE, ORANGE, GREEN), strict=True):
        ax.plot(times, values, "o-", ms=4, color=color, label=f"score error, {name}")
    ax.set(xscale="log", yscale="log", xlabel="time t  (little noise $\\to$ much noise)",
           ylabel=r"$(h^2/\alpha^2)\;E|s - s^*|^2$", title="Error at every noise level, on fresh points")  # fmt: skip
    ax.legend(frameon=False)
    ax.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main():
    parser = shared.parser(__doc__, out=".")
    parser.add_argument("--samples", type=int, default=4000, help="training data (default 4000)")
    parser.add_argument("--width", type=int, default=256, help="neurons, twice as many with Newton (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = shared.parse(parser, "diffusion_mixture_samples.png")
    n, draws, iterations = (600, 2, 40) if arguments.quick else (arguments.samples, 4, 200)

    mixture = make_mixture(arguments.device)
    X0 = mixture.sample(n, arguments.seed)
    common = {"times": "log", "seed": arguments.seed, "draws": draws}
    descent = {"width": arguments.width, "sigma": 2.0, "maxiter": iterations}
    newton = {
        "width": 2 * arguments.width,
        "method": "gram-gauss-newton",
        "sigma": 2.0,
        "damping": 0.003,
        "maxiter": 1 if arguments.quick else 2,
    }
    models, seconds = {}, {}
    for name, options in (
        ("kernel", {"method": "kernel", "sigma": 2.0, "draws": 2 * draws, "centres": 200 if arguments.quick else None}),
        ("network, descent", descent),
        ("network, Newton", newton),
    ):
        models[name], seconds[name] = fit(name, X0, options.get("maxiter"), **common | options)

    fresh, t, x = diffusion.noisy_pairs(mixture.sample(20_000, seed=102), 1, T_MIN, T_MAX, 103)
    variance = number(mixture.posterior_variance(x, t).mean())
    count = 1000 if arguments.quick else 4000
    truths = [mixture.sample(count, seed=110 + i) for i in range(10)]
    distance = diffusion.sliced_wasserstein
    floor = np.mean([number(distance(a, b)) for a, b in zip(truths[:5], truths[5:], strict=True)])
    print(f"{n} data, {draws} noisy versions of each (kernel: {2 * draws}), t in [{T_MIN}, {T_MAX}]")
    print(f"E Var(X_0|X_t) = {variance:.4f}; sliced Wasserstein distance of true samples of {count}: {floor:.4f}\n")
    print("model              score error   denoising loss   fit s   sampler   SW / true   worst mode weight")
    drawn = {"truth": (truths[0], f"{count} points")}
    for name, model in models.items():
        error = score_error(model, mixture, t, x)
        loss = number(((model.denoise(x, t) - fresh) ** 2).sum()) / x.shape[0]
        for method, steps in (("sde", 100), ("ode", 50)):
            y = diffusion.sample(model, count, steps=steps, seed=106, method=method)
            ratio = np.mean([number(distance(y, truth)) for truth in truths]) / floor
            shares = backend.to_numpy(mixture.responsibilities(y, 1e-3)).mean(axis=0)
            worst = 100 * np.abs(shares - WEIGHTS).max()
            print(f"{name:17} {100 * error / variance:8.2f} %  {loss:12.4f}  {seconds[name]:9.1f}   "
                  f"{method} {steps:4}  {ratio:9.2f}  {worst:11.1f} points")  # fmt: skip
            drawn[f"{name}, {method}"] = (y, f"SW {ratio:.2f} times that of a true sample")
    for model in models.values():
        print(f"{model.method}: {model.message}")
    times = np.geomspace(T_MIN, T_MAX, 15).tolist()
    size = 1000 if arguments.quick else 4000
    noise, x0 = diffusion.OrnsteinUhlenbeck().noise, mixture.sample(size, seed=101)
    variances = [number(mixture.posterior_variance(noise(x0, t, i), t).mean()) for i, t in enumerate(times)]
    errors = {name: error_by_level(model, mixture, times, size) for name, model in models.items()}
    draw_levels(times, errors, variances, arguments.out / "diffusion_mixture_error.png")
    draw_fields(models, mixture, arguments.out / "diffusion_mixture_score.png", arguments.device)
    draw_samples({name: (backend.to_numpy(v), label) for name, (v, label) in drawn.items() if "sde" not in name},
                 arguments.out / "diffusion_mixture_samples.png")  # fmt: skip
    for name, model in models.items():
        model.save(arguments.out / f"diffusion_mixture_{name.split()[-1]}.npz")
    print(f"pictures and models: {arguments.out}")


if __name__ == "__main__":
    shared.start(main)
