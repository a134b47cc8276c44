"""Exponential and softmax networks, and their limit kernels, on real data beside standard baselines.

    python examples/network_regression.py [--out network_regression.png] [--device cuda] [--quick]

diabetes  442 patients, 10 measurements, disease progression a year later (Efron et al. 2004): test error as RMSE
digits    1,797 scanned digits of 8 x 8 pixels (UCI): ten outputs, test error as the share of wrong digits

Every model sees the same training, validation and test parts. Networks are trained by gradient descent with momentum
and stopped early on the validation part; kernel regression with the tangent kernels' infinite-width limits takes its
ridge from it, and so do the baselines their penalties.
"""

import time

import matplotlib
import numpy as np
import shared
import sklearn.datasets
import sklearn.kernel_ridge
import sklearn.linear_model

import xpreg
from xpreg import backend as B

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RIDGES = tuple(10.0**p for p in range(-6, 3))
COLOURS = {"exp": "#c44e52", "softmax": "#4c72b0"}


class Data:
    """Training, validation and test parts, in NumPy; features standardised, a constant appended, all of one length."""

    def __init__(self, name, X, Y, error, unit, length):
        order = np.random.default_rng(0).permutation(len(X))
        cuts = (int(0.6 * len(X)), int(0.8 * len(X)))
        parts = np.split(order, cuts)
        mean, spread = X[parts[0]].mean(0), X[parts[0]].std(0)
        X = (X - mean) / np.where(spread > 0, spread, 1.0)
        X = np.concatenate([X, np.full((len(X), 1), 0.5 * np.sqrt(X.shape[1]))], axis=1)
        X *= length / np.linalg.norm(X, axis=1, keepdims=True)
        self.name, self.error, self.unit = name, error, unit
        self.shift = Y[parts[0]].mean(0)
        self.scale = (Y[parts[0]] - self.shift).std()
        self.X, self.Y = ([V[part] for part in parts] for V in (X, (Y - self.shift) / self.scale))

    def test_error(self, F):
        """Error of standardised predictions on the test part, in the data's own units."""
        return self.error(F * self.scale + self.shift, self.Y[2] * self.scale + self.shift)


def load(length):
    diabetes = sklearn.datasets.load_diabetes(scaled=False)
    digits = sklearn.datasets.load_digits()
    rmse = lambda F, Y: float(np.sqrt(((F - Y) ** 2).mean()))  # noqa: E731
    wrong = lambda F, Y: 100 * float((F.argmax(1) != Y.argmax(1)).mean())  # noqa: E731
    return [
        Data("diabetes", diabetes.data, diabetes.target[:, None], rmse, "RMSE", length),
        Data("digits", digits.data, np.eye(10)[digits.target], wrong, "% wrong", length),
    ]


def train(cls, data, m, maxiter, device):
    """Train one softmax network, or one exponential network per output; predictions on the test part, and histories."""
    X, V, T = (B.to_device(part, device) for part in data.X)
    Y, YV = (B.to_device(part, device) for part in data.Y[:2])
    k = Y.shape[1]
    options = {"momentum": 0.9, "maxiter": maxiter, "patience": 100}
    if cls is xpreg.SoftmaxNetwork:
        network = cls.initialise(X.shape[1], m, k, like=X)
        result = xpreg.train(network, X, Y, validation=(V, YV), **options)
        return B.to_numpy(result.network.predict(T)), [result]
    results = [
        xpreg.train(cls.initialise(X.shape[1], m, seed=l, like=X), X, Y[:, l], validation=(V, YV[:, l]), **options)
        for l in range(k)
    ]
    return np.stack([B.to_numpy(result.network.predict(T)) for result in results], axis=1), results


def limit_kernel_regression(cls, data, device):
    """Regress with the limit kernel, the ridge chosen on the validation part; predictions on the test part."""
    X, V, T = (B.to_device(part, device) for part in data.X)
    network = cls.initialise(X.shape[1], 2, like=X)  # the limit depends on sigma alone
    H, HV, HT = (B.to_numpy(network.limit_kernel(part, X)) for part in (X, V, T))
    eigenvalues, U = np.linalg.eigh(H)
    projected = U.T @ data.Y[0]

    def alpha(ridge):
        return U @ (projected / (np.maximum(eigenvalues, 0.0) + ridge * eigenvalues[-1])[:, None])

    best = min(RIDGES, key=lambda ridge: ((HV @ alpha(ridge) - data.Y[1]) ** 2).sum())
    return HT @ alpha(best), best


def baselines(data):
    """Linear and Gaussian-kernel ridge regression of scikit-learn, tuned on the validation part."""
    (X, V, T), (Y, YV, _) = data.X, data.Y
    candidates = {
        "ridge (scikit-learn)": [sklearn.linear_model.Ridge(alpha=a, fit_intercept=False) for a in RIDGES],
        "Gaussian kernel ridge (scikit-learn)": [
            sklearn.kernel_ridge.KernelRidge(kernel="rbf", alpha=a, gamma=g)
            for a in 10.0 ** np.arange(-5, 2)
            for g in (0.03, 0.1, 0.3, 1.0, 3.0)
        ],
    }
    for name, models in candidates.items():
        fitted = [model.fit(X, Y) for model in models]
        best = min(fitted, key=lambda model: ((np.reshape(model.predict(V), YV.shape) - YV) ** 2).sum())
        yield name, np.reshape(best.predict(T), data.Y[2].shape)


def run(data, arguments):
    """Print the table of one data set; return its rows and the histories of the networks."""
    n, d = data.X[0].shape
    print(
        f"\n{data.name}: {n} training, {len(data.X[1])} validation, {len(data.X[2])} test points, {d} features, ",
        end="",
    )
    print(f"{data.Y[0].shape[1]} output(s); m = {arguments.m}")
    print(f"{'model':<40}{data.unit:>9}{'seconds':>9}  how it ended")
    rows, histories = [], {}

    def show(name, F, begun, remark):
        rows.append((name, data.test_error(F)))
        print(f"{name:<40}{rows[-1][1]:>9.2f}{time.perf_counter() - begun:>9.1f}  {remark}")

    begun = time.perf_counter()
    show("mean of the training targets", np.zeros_like(data.Y[2]), begun, "")
    for name, F in baselines(data):
        show(name, F, begun, "")
        begun = time.perf_counter()
    for cls, label in ((xpreg.ExpNetwork, "exp"), (xpreg.SoftmaxNetwork, "softmax")):
        begun = time.perf_counter()
        F, results = train(cls, data, arguments.m, arguments.maxiter, arguments.device)
        histories[label] = results[0].history
        endings = sorted({result.status.name for result in results})
        best = ", ".join(str(result.best_nit) for result in results[:3]) + (", ..." if len(results) > 3 else "")
        show(f"{label} network", F, begun, f"{'/'.join(endings)}, best iteration {best}")
        begun = time.perf_counter()
        F, ridge = limit_kernel_regression(cls, data, arguments.device)
        show(f"limit kernel of the {label} network", F, begun, f"ridge {ridge:.0e} lambda_max")
    return rows, histories


def draw(found, path):
    figure, axes = plt.subplots(len(found), 2, figsize=(12.5, 3.9 * len(found)), constrained_layout=True, squeeze=False)
    for (data, rows, histories), (bars, curves) in zip(found, axes, strict=True):
        names, errors = zip(*rows[1:], strict=True)
        colours = ["#c44e52" if "exp" in name else "#4c72b0" if "softmax" in name else "0.65" for name in names]
        bars.barh(names, errors, color=colours, height=0.65)
        bars.bar_label(bars.containers[0], fmt="%.2f", padding=3, fontsize=9)
        bars.invert_yaxis()
        bars.set_xlim(0, 1.15 * max(errors))
        bars.set(title=f"{data.name}: test error ({data.unit})")
        for label, history in histories.items():
            outputs = data.Y[0].shape[1] if label == "softmax" else 1
            t, sizes = [record.nit for record in history], [len(part) * outputs for part in data.X]
            first = " (first output)" if data.Y[0].shape[1] > outputs else ""
            for name, size, style in (("loss", sizes[0], ":"), ("validation", sizes[1], "-")):
                values = [2 * getattr(record, name) / size for record in history]
                curves.semilogy(t, values, style, color=COLOURS[label],
                                label=f"{label}{first}, {'training' if name == 'loss' else name}")  # fmt: skip
            best = min(history, key=lambda record: record.validation)
            curves.plot(best.nit, 2 * best.validation / sizes[1], "o", color=COLOURS[label])
        curves.set(
            title="the dot: least validation loss, returned",
            xlabel="iteration",
            ylabel="mean squared error",
        )
        curves.legend(fontsize=8)
        curves.grid(alpha=0.25, which="both", lw=0.5)
        for axis in (bars, curves):
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main():
    parser = shared.parser(__doc__, out="network_regression.png", quick="diabetes only, to see that it runs")
    parser.add_argument("--m", type=int, default=512, help="neurons")
    parser.add_argument("--maxiter", type=int, default=400)
    parser.add_argument("--length", type=float, default=1.0, help="length that every point is scaled to")
    arguments = shared.parse(parser)
    if arguments.quick:
        arguments.maxiter = 100
    found = []
    for data in load(arguments.length)[: 1 if arguments.quick else 2]:
        found.append((data, *run(data, arguments)))
    draw(found, arguments.out)
    print(f"\npicture: {arguments.out}")


if __name__ == "__main__":
    shared.start(main)
