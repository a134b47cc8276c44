"""Generate handwritten digits: scikit-learn's 1,797 images of 8 x 8 pixels, in the space of their first principal axes.

    python examples/diffusion_digits.py --out pictures
    python examples/diffusion_digits.py --device cuda --axes 20

Fits the score by kernel regression with the softmax network's limit kernel and by the trained network, samples from
both, and sets the generated digits beside their nearest training images. Held-out real digits say how near an image
that is no copy lies. In all 64 pixels the labels leave the two-layer model too little signal for every axis; the
principal axes carry the shapes. About two minutes on two CPU cores.
"""

import argparse
import pathlib
import time

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from xpreg import backend, diffusion

matplotlib.use("Agg")
import matplotlib.pyplot as plt

T_MIN, T_MAX = 0.02, 4.0


class PrincipalAxes:
    """Images (n, 64) in [0, 1] to coordinates (n, p) of variance 1 on average, and back."""

    def __init__(self, images, p):
        self.mean = images.mean(axis=0)
        self.axes = np.linalg.svd(images - self.mean, full_matrices=False)[2][:p]
        self.scale = np.sqrt(((images - self.mean) @ self.axes.T).var())

    def forward(self, images):
        return (images - self.mean) @ self.axes.T / self.scale

    def back(self, z):
        return self.scale * z @ self.axes + self.mean


def draw(images, generated, path):
    """Real digits on top; below, pairs of rows: generated, and the nearest training image of each."""
    columns = 16
    rows = [("real, as they are", images["real"]), ("real, on the axes", images["projected"])]
    for name, (x, neighbours) in generated.items():
        for k in range(2):
            part = slice(k * columns, (k + 1) * columns)
            rows += [(f"{name}", x[part]), ("  nearest real", neighbours[part])]
    figure, axes = plt.subplots(len(rows), columns, figsize=(0.55 * columns + 1.6, 0.6 * len(rows)))
    figure.subplots_adjust(left=0.15, right=0.99, top=0.98, bottom=0.02, wspace=0.06, hspace=0.1)
    for row, (label, pictures) in zip(axes, rows, strict=True):
        real = "real" in label
        for ax, picture in zip(row, pictures, strict=False):
            ax.imshow(picture.reshape(8, 8), cmap="gray_r" if real else "Blues", vmin=0, vmax=1,
                      interpolation="bicubic")  # fmt: skip
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(
            label, rotation=0, ha="right", va="center", fontsize=9, color="#555555" if real else "#2c6fbb"
        )
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="folder for the picture")
    parser.add_argument("--axes", type=int, default=16, help="principal axes (default 16: 85 %% of the variance)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args()
    draws, iterations, centres, count = (1, 10, 150, 64) if arguments.quick else (6, 120, 1000, 300)

    data = load_digits()
    order = np.random.default_rng(arguments.seed).permutation(len(data.data))
    images = data.data[order] / 16.0
    train, held_out = images[count:], images[:count]
    axes = PrincipalAxes(train, arguments.axes)
    Z = backend.to_device(axes.forward(train), arguments.device)
    Z_held = backend.to_device(axes.forward(held_out), arguments.device)
    kept = axes.forward(train).var() * arguments.axes * axes.scale**2 / train.var(axis=0).sum()
    print(f"{len(train)} digits, {arguments.axes} principal axes with {100 * kept:.0f} % of the variance")

    real, _ = diffusion.nearest(Z_held, Z)
    floor = float(backend.read(diffusion.sliced_wasserstein(Z_held, Z[:count, :]))[0])
    between, _ = diffusion.nearest(Z, Z, exclude_self=True)
    summary = [("held-out digits", backend.to_numpy(real), floor, backend.to_numpy(Z_held).var())]
    settings = {
        "kernel": {"method": "kernel", "sigma": 3.0, "centres": centres, "ridge": (0.1, 0.3, 1.0), "draws": 3 * draws},
        "network": {"width": 512, "sigma": 2.0, "draws": draws, "maxiter": iterations, "patience": 20},
    }
    generated = {}
    for name, options in settings.items():
        begun = time.perf_counter()
        with tqdm(desc=f"fit {name}", leave=False) as bar:
            model = diffusion.fit_score(Z, t_min=T_MIN, t_max=T_MAX, times="log", seed=arguments.seed,
                                        callback=lambda _, bar=bar: bar.update(), **options)  # fmt: skip
        print(f"{name}: {time.perf_counter() - begun:.0f} s, {model.message}")
        y = diffusion.sample(model, count, steps=100, seed=arguments.seed)
        distances, indices = diffusion.nearest(y, Z)
        distance = float(backend.read(diffusion.sliced_wasserstein(y, Z_held))[0])
        y = backend.to_numpy(y)
        summary.append((name, backend.to_numpy(distances), distance, y.var()))
        generated[name] = (axes.back(y[:32]), train[backend.to_numpy(indices)[:32]])
    copies = np.quantile(backend.to_numpy(between), 0.01)
    print("\nsample           distance to the nearest training digit     nearer than    sliced  variance")
    print(f"                   5 %   median    95 %                           {copies:.2f}  Wasserst.")
    for name, distances, distance, variance in summary:
        low, middle, high = np.quantile(distances, [0.05, 0.5, 0.95])
        share = 100 * np.mean(distances < copies)
        print(f"{name:16} {low:6.2f} {middle:8.2f} {high:8.2f} {'':15} {share:12.1f} % {distance:8.3f} {variance:8.2f}")
    print(f"({copies:.2f}: nearer than 99 % of the training digits are to each other)")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        real = {"real": held_out[:16], "projected": axes.back(axes.forward(held_out[:16]))}
        draw(real, generated, arguments.out / "diffusion_digits.png")
        print(f"picture: {arguments.out / 'diffusion_digits.png'}")


if __name__ == "__main__":
    main()
