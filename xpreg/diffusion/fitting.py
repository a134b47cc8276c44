"""Denoising score matching: least squares from (t, X_t) to X_0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .. import backend as B
from ..arguments import require_integers, require_known, require_number, require_one_of
from ..backend import Array
from ..errors import InvalidArgumentError
from ..networks import SoftmaxNetwork, TrainRecord, TrainStatus, train
from .baseline import GaussianBaseline
from .embedding import Embedding
from .kernel_regression import fit_kernel
from .process import OrnsteinUhlenbeck, log_noise_to_signal, require_interval, require_points
from .score_model import ScoreModel, ScoreRecord

TIMES = ("uniform", "log")

RIDGES = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
"""Ridges that are tried, in units of k(u, u)."""

TRAINING: dict[str, Any] = {"step": None, "patience": 20, "checkpoint": None, "resume": False}

OPTIONS: dict[str, dict[str, Any]] = {
    "gradient-descent": {"maxiter": 300, "momentum": 0.98, "batch_size": None, **TRAINING},
    "gram-gauss-newton": {"maxiter": 5, "damping": 0.01, **TRAINING},
    "kernel": {"ridge": RIDGES, "centres": None},
}
"""The methods, and the options of each with their defaults."""

LEAST_POINTS = 10
"""Fewer data say nothing about a distribution."""


def noisy_pairs(
    X0: Array, draws: int, t_min: float, t_max: float, rng: Any, *, times: str = "uniform"
) -> tuple[Array, Array, Array]:
    """Noise every row of X0 ``draws`` times, each at its own time in [t_min, t_max].

    Parameters
    ----------
    X0 : (n, d)
    draws : noisy versions of each row
    t_min, t_max : interval of times
    rng : NumPy Generator, or a seed
    times : "uniform": t is uniform. "log": the logarithm of h/alpha^2 = e^t - 1 is

    Returns
    -------
    X0 (draws n, d) repeated, t (draws n,), X_t (draws n, d)
    """
    xp, rng = B.namespace(X0), B.generator(rng)
    X0 = xp.tile(X0, (draws, 1))
    share = B.random_uniform((X0.shape[0],), rng, X0)
    require_one_of("times", times, TIMES)
    require_interval(t_min, t_max)
    if times == "uniform":
        t = t_min + (t_max - t_min) * share
    else:
        low, high = log_noise_to_signal(t_min), log_noise_to_signal(t_max)
        u = low + (high - low) * share
        t = xp.logaddexp(u, xp.zeros_like(u))
    return X0, t, OrnsteinUhlenbeck().noise(X0, t, rng)


def fit_score(
    X0: Array,
    *,
    width: int = 512,
    t_min: float,
    t_max: float,
    method: str = "gradient-descent",
    validation: float | Array = 0.2,
    seed: int = 0,
    sigma: float = 1.0,
    draws: int = 8,
    times: str = "uniform",
    callback: Callable[[ScoreRecord], Any] | None = None,
    device: str | None = None,
    **options: Any,
) -> ScoreModel:
    """Learn the score of the noised data by denoising: least squares with inputs (t, X_t) and the noisy labels X_0.

    Parameters
    ----------
    X0 : (n, d) data, float32 or float64; about unit scale, since the noise has variance up to 1
    width : neurons of the network (even); the kernel method is its limit of infinite width and ignores it
    t_min, t_max : times that are learned, 0 < t_min < t_max
    method : ``"gradient-descent"`` or ``"gram-gauss-newton"`` on the softmax network, or ``"kernel"``: ridge
        regression with its limit kernel
    validation : share of the data that is held out, or held-out data (n', d). The network stops early on them, the
        kernel chooses its ridge. (The kernel is then fitted once more on all data.)
    seed : of everything random; the same numbers on every device
    sigma : standard deviation of the initial weights, and the sharpness of the kernel
    draws : noisy versions of each data point
    times : how their times are drawn. "uniform" on [t_min, t_max], as the theory has it, or "log": uniform in the
        logarithm of the noise-to-signal ratio h/alpha^2, as the steps of `sample` are: more small times, which a
        sampler needs
    callback : called with a `ScoreRecord` after each iteration (with batches: epoch) or ridge; raising
        StopIteration ends the fit
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``: moves X0 there, once
    **options : of the method; those of another one are refused.

        gradient-descent: ``batch_size=None, momentum=0.98``, as in `xpreg.networks.train`. Momentum is what makes it
        quick here: the eigenvalues of the tangent kernel spread over orders of magnitude. Batches cost less per step,
        but their noise does not average out at the step length that the default takes.

        gram-gauss-newton: ``damping=0.01``, as there: to it what the ridge is to the kernel, in units of the mean
        kernel diagonal. It gets further than gradient descent in the same time.

        Both: ``maxiter`` (300, gram-gauss-newton 5), ``step=None, patience=20, checkpoint=None, resume=False``, as
        there.

        kernel: ``ridge``, one or several to choose from, in units of k(u, u), default `RIDGES`; ``centres=None``, their
        number, see `KernelExpansion`: None takes every noisy point up to 8192, and 1000 of them beyond.

    Returns
    -------
    ScoreModel

    Raises
    ------
    InvalidArgumentError
        X0 is not finite, not (n, d), all rows equal, or has fewer than 10 rows; t_min and t_max are no interval
        above 0; validation is no share in (0, 1); an option is out of range.
    NotEnoughMemoryError
        The kernel of so many centres cannot fit.

    Notes
    -----
    arXiv 2405.03251 and 2401.15604. For every F,

        (h^2/alpha^2) E|s_F - score|^2 = E|F - X_0|^2 - E|X_0 - E[X_0|X_t]|^2,    s_F = (alpha F - x)/h

    so the denoising loss is the score error plus a constant, the variance of the labels. A fit that goes below that
    constant on its own data learns the labels' noise: hence early stopping. (t, x) enters through `Embedding`, and the
    labels through `GaussianBaseline`; both say why.

    Examples
    --------
    >>> import numpy as np
    >>> import xpreg.diffusion
    >>> mixture = xpreg.diffusion.GaussianMixture(np.array([[-1.0], [1.0]]), np.array([0.2, 0.2]))
    >>> model = fit_score(mixture.sample(1000, seed=0), t_min=0.05, t_max=3.0, method="kernel", draws=2)
    >>> x0, t, x = noisy_pairs(mixture.sample(1000, seed=1), 1, 0.05, 3.0, 2)
    >>> error = np.mean((model.denoise(x, t) - mixture.posterior_mean(x, t)) ** 2)
    >>> bool(error < 0.05 * np.mean(mixture.posterior_variance(x, t)))
    True
    """
    X0 = B.to_device(X0, device, "X0")
    validation = validation if isinstance(validation, float | int) else B.to_device(validation, device, "validation")
    require_interval(t_min, t_max)
    options = _options(method, options)
    _check(X0=X0, validation=validation, times=times, sigma=sigma, draws=draws)
    rng = B.generator(seed)
    train_X0, held_out = _split(X0, validation, rng)
    embedding = Embedding.of(train_X0, t_min, t_max, times=times)
    if not embedding.spread > 0.0:
        raise InvalidArgumentError("X0 has no spread: all its rows are equal, so there is nothing to learn.")

    covariance = _covariance(train_X0, embedding.centre)
    baseline = GaussianBaseline(embedding.centre, covariance)

    def dataset(X: Array) -> tuple[Array, Array]:
        X, t, x = noisy_pairs(X, draws, t_min, t_max, rng, times=times)
        G, c = baseline(x, t)
        return embedding(x, t), (X - G) / c

    (U, Y), (U_v, Y_v) = dataset(train_X0), dataset(held_out)
    history: list[ScoreRecord] = []

    def record(**numbers: Any) -> None:
        history.append(ScoreRecord(**numbers))
        if callback is not None:
            callback(history[-1])

    regressor: Any
    if method == "kernel":
        regressor, best = fit_kernel(
            U, Y, (U_v, Y_v), sigma=sigma, ridges=_ridges(options["ridge"]), centres=options["centres"], seed=rng,
            callback=lambda nit, ridge, loss, held_out: record(
                nit=nit, loss=loss, validation=held_out, ridge=ridge
            ),
        )  # fmt: skip
        message = f"ridge {best:g} k(u, u) had the lowest validation loss of {len(history)}"
    else:
        start = SoftmaxNetwork.initialise(U.shape[1], width, X0.shape[1], sigma=sigma, seed=seed, like=U)
        result = train(
            start, U, Y, method=method, validation=(U_v, Y_v), tol=0.0, seed=seed, checkpoint_every=1,
            callback=lambda r: record(**_per_point(r, U, U_v)), **options,
        )  # fmt: skip
        if result.status is TrainStatus.DIVERGED:
            given = " and ".join(f"{name} is {options[name]}" for name in ("step", "momentum") if name in options)
            raise InvalidArgumentError(f"{given}, but {result.message}.")
        regressor, message = result.network, f"{result.message}; the network is that of epoch {result.best_nit}"
        history = [ScoreRecord(**_per_point(r, U, U_v)) for r in result.history]
    return ScoreModel(
        regressor=regressor,
        embedding=embedding,
        covariance=covariance,
        radius=_radius(train_X0, embedding.centre),
        t_min=float(t_min),
        t_max=float(t_max),
        method=method,
        message=message,
        history=tuple(history),
    )


def _per_point(r: TrainRecord, U: Array, U_v: Array) -> dict[str, Any]:
    """0.5 sum |F - Y|^2 -> mean |F - Y|^2."""
    return {"nit": r.nit, "loss": 2.0 * r.loss / U.shape[0], "validation": 2.0 * r.validation / U_v.shape[0]}


def _split(X0: Array, validation: float | Array, rng: Any) -> tuple[Array, Array]:
    if not isinstance(validation, float | int):
        return X0, validation
    xp, n = B.namespace(X0), X0.shape[0]
    held_out = min(max(1, round(validation * n)), n - 1)
    order = B.random_permutation(n, rng, X0)
    return xp.take(X0, order[held_out:], axis=0), xp.take(X0, order[:held_out], axis=0)


def _covariance(X0: Array, mean: Array) -> Array:
    centred = X0 - mean
    return B.namespace(X0).matrix_transpose(centred) @ centred / X0.shape[0]


def _radius(X0: Array, mean: Array) -> float:
    xp = B.namespace(X0)
    return float(B.read(xp.sqrt(xp.max(xp.sum((X0 - mean) ** 2, axis=1))))[0])


def _ridges(ridge: float | Sequence[float]) -> tuple[float, ...]:
    return (float(ridge),) if isinstance(ridge, float | int) else tuple(float(v) for v in ridge)


def _options(method: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a method, its defaults for those that are not given."""
    require_one_of("method", method, OPTIONS)
    known = OPTIONS[method]
    require_known(given, method, known)
    options = known | given
    if method == "kernel":
        if options["centres"] is not None:
            require_integers(centres=options["centres"])
        ridges = _ridges(options["ridge"])
        if not ridges or not all(0.0 < v < math.inf for v in ridges):
            raise InvalidArgumentError(f"ridge is {options['ridge']}, but positive numbers are needed.")
    return options


def _check(*, X0, validation, times, sigma, draws) -> None:
    share = isinstance(validation, float | int)
    xp = B.common_namespace(X0=X0, validation=None if share else validation)
    require_points(X0=X0)
    n = X0.shape[0]
    if n < LEAST_POINTS:
        raise InvalidArgumentError(f"X0 has {n} rows, but at least {LEAST_POINTS} are needed to learn a distribution.")
    if share and not 0.0 < validation < 1.0:
        raise InvalidArgumentError(f"validation is {validation}, but a share in (0, 1) or held-out data are needed.")
    if not share and (validation.ndim != 2 or validation.shape[1] != X0.shape[1] or validation.shape[0] < 1):
        raise InvalidArgumentError(
            f"validation has shape {tuple(validation.shape)}, but (n, {X0.shape[1]}) with n >= 1 is needed."
        )
    arrays = {"X0": X0} if share else {"X0": X0, "validation": validation}
    for name, finite in zip(arrays, B.read(*(xp.all(xp.isfinite(v)) for v in arrays.values())), strict=True):
        if not finite:
            raise InvalidArgumentError(f"{name} has entries that are NaN or infinite, but finite numbers are needed.")
    require_one_of("times", times, TIMES)
    require_integers(draws=draws)
    require_number("sigma", sigma, lambda v: 0.0 < v < math.inf, "a positive number")
