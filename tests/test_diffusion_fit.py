"""Learning the score: accuracy, kernel regression against a dense solve, files, resuming, bad input."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from xpreg import InvalidArgumentError, SoftmaxNetwork, diffusion
from xpreg.diffusion import kernel_regression

MEANS = np.array([[-1.5, -1.0], [1.5, -1.0], [0.0, 1.5]])
SCALES = np.array([0.25, 0.35, 0.4])
WEIGHTS = np.array([0.2, 0.5, 0.3])
INTERVAL = {"t_min": 0.05, "t_max": 3.0}
KERNEL = {"method": "kernel", "centres": 30}
DESCENT = {"method": "gradient-descent", "width": 16, "maxiter": 4}


def method_of(options):
    return options["method"]


@pytest.fixture
def mixture(backend):
    return diffusion.GaussianMixture(backend.array(MEANS), backend.array(SCALES), backend.array(WEIGHTS))


def errors(backend, model, mixture, n=4000):
    """E|F - E[X_0|X_t]|^2, E|F - X_0|^2 and E Var(X_0|X_t), averaged over uniform times, on fresh points."""
    x0, t, x = diffusion.noisy_pairs(mixture.sample(n, seed=11), 1, 0.05, 3.0, 12)
    F, best = backend.numpy(model.denoise(x, t)), backend.numpy(mixture.posterior_mean(x, t))
    x0 = backend.numpy(x0)
    variance = backend.numpy(mixture.posterior_variance(x, t)).mean()
    return np.sum((F - best) ** 2) / n, np.sum((F - x0) ** 2) / n, variance


def fit(backend, mixture, n=300, **options):
    defaults = {"method": "kernel", "draws": 2}
    if options.get("method", "kernel") == "kernel":
        defaults |= {"centres": 150, "ridge": 0.1}
    return diffusion.fit_score(mixture.sample(n, seed=0), **INTERVAL, **defaults | options)


def test_kernel_score_is_within_two_percent_of_the_label_variance():
    mixture = diffusion.GaussianMixture(MEANS, SCALES, WEIGHTS)
    model = diffusion.fit_score(mixture.sample(4000, seed=0), **INTERVAL, method="kernel", draws=4, centres=400)
    error, _, variance = errors(_Plain, model, mixture)
    assert error < 0.02 * variance


def test_trained_network_is_within_five_percent_of_the_label_variance():
    mixture = diffusion.GaussianMixture(MEANS, SCALES, WEIGHTS)
    model = diffusion.fit_score(mixture.sample(4000, seed=0), **INTERVAL, width=128, draws=2, maxiter=60)
    error, _, variance = errors(_Plain, model, mixture)
    assert error < 0.05 * variance
    assert model.history[-1].validation < model.history[0].validation


class _Plain:
    numpy = staticmethod(np.asarray)


def test_denoising_loss_is_score_error_plus_label_variance(backend, mixture):
    model, n = fit(backend, mixture), 40_000
    x0, t, x = diffusion.noisy_pairs(mixture.sample(n, seed=1), 1, 0.05, 3.0, 2)
    process = diffusion.OrnsteinUhlenbeck()
    alpha, h = (backend.numpy(f(t))[:, None] for f in (process.alpha, process.h))
    gap = backend.numpy(model.score(x, t)) - backend.numpy(mixture.score(x, t))
    left = np.sum((h / alpha * gap) ** 2) / n
    F, x0 = backend.numpy(model.denoise(x, t)), backend.numpy(x0)
    best = backend.numpy(mixture.posterior_mean(x, t))
    differences = np.sum((F - x0) ** 2, axis=1) - np.sum((best - x0) ** 2, axis=1)
    assert left > 0.01
    assert differences.mean() == pytest.approx(left, abs=4 * differences.std() / math.sqrt(n))


def test_embedding_lies_on_the_sphere_and_separates_scales(backend, mixture):
    x0 = mixture.sample(500, seed=0)
    embedding = diffusion.Embedding.of(x0, 0.05, 3.0)
    _, t, x = diffusion.noisy_pairs(x0, 1, 0.05, 3.0, 1)
    u = backend.numpy(embedding(x, t))
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1.0, rtol=1e-14)
    twice = backend.numpy(embedding(2.0 * x, t))
    assert np.abs(u - twice).max() > 0.1


@pytest.mark.parametrize("times", ["uniform", "log"])
def test_time_features_have_mean_0_and_variance_1_over_the_learned_times(backend, mixture, times):
    x0 = mixture.sample(20_000, seed=0)
    embedding = diffusion.Embedding.of(x0, 0.02, 4.0, times=times)
    _, t, x = diffusion.noisy_pairs(x0, 1, 0.02, 4.0, 1, times=times)
    u = backend.numpy(embedding(x, t))
    features = u[:, -2:] / u[:, -3:-2]
    np.testing.assert_allclose(features.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(features.var(axis=0), 1.0, atol=0.05)


def test_full_kernel_regression_equals_the_dense_solve(backend, rng):
    U, Y = rng.normal(size=(60, 4)), rng.normal(size=(60, 2))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    V = rng.normal(size=(7, 4))
    G = U @ U.T
    K, ridge, sigma = G * np.exp(1.2**2 * G), 0.05, 1.2
    expected = (
        (V @ U.T) * np.exp(sigma**2 * (V @ U.T)) @ np.linalg.solve(K + ridge * math.exp(sigma**2) * np.eye(60), Y)
    )
    equations = kernel_regression.NormalEquations(backend.array(U), backend.array(Y), centres=None, sigma=sigma)
    F = equations.solve(ridge).predict(backend.array(V))
    np.testing.assert_allclose(backend.numpy(F), expected, rtol=1e-10, atol=1e-12)


def test_nystrom_with_every_point_a_centre_is_full_kernel_regression(backend, rng):
    U, Y = rng.normal(size=(80, 4)), backend.array(rng.normal(size=(80, 1)))
    U = backend.array(U / np.linalg.norm(U, axis=1, keepdims=True))
    full = kernel_regression.NormalEquations(U, Y, centres=None, sigma=1.0).solve(0.1)
    nystrom = kernel_regression.NormalEquations(U, Y, centres=U, sigma=1.0).solve(0.1)
    np.testing.assert_allclose(backend.numpy(nystrom.predict(U)), backend.numpy(full.predict(U)), rtol=1e-7, atol=1e-8)


def test_points_added_to_the_normal_equations_count_as_if_there_from_the_start(backend, rng):
    U, Y = rng.normal(size=(80, 4)), backend.array(rng.normal(size=(80, 2)))
    U = backend.array(U / np.linalg.norm(U, axis=1, keepdims=True))
    whole = kernel_regression.NormalEquations(U, Y, centres=U[:30, :], sigma=1.0)
    parts = kernel_regression.NormalEquations(U[:50, :], Y[:50, :], centres=U[:30, :], sigma=1.0)
    parts.add(U[50:, :], Y[50:, :])
    np.testing.assert_allclose(backend.numpy(parts.G), backend.numpy(whole.G), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(backend.numpy(parts.r), backend.numpy(whole.r), rtol=1e-12, atol=1e-12)


def test_ridge_is_chosen_on_held_out_data(backend, mixture):
    model = fit(backend, mixture, ridge=(1e-4, 0.1, 100.0))
    best = min(model.history, key=lambda record: record.validation)
    assert [record.ridge for record in model.history] == [100.0, 0.1, 1e-4]
    assert best.ridge == 0.1
    assert "0.1" in model.message


@pytest.mark.parametrize("options", [KERNEL, DESCENT], ids=method_of)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_models_run_everywhere_in_their_own_dtype_and_survive_the_disk(backend, rng, tmp_path, options, dtype):
    X0 = backend.array(rng.normal(size=(60, 3)), dtype=dtype)
    model = diffusion.fit_score(X0, **INTERVAL, **options, draws=2)
    x = backend.array(rng.normal(size=(9, 3)), dtype=dtype)
    t = backend.array(np.linspace(0.1, 2.0, 9), dtype=dtype)
    score = model.score(x, t)
    backend.assert_native(score)
    assert score.dtype == X0.dtype
    path = tmp_path / "model.npz"
    path.write_text("an older file")
    model.save(path)
    loaded = diffusion.load(path)  # NumPy, wherever it was saved
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    assert (loaded.method, loaded.message, loaded.t_min, loaded.radius) == (
        model.method, model.message, model.t_min, model.radius,
    )  # fmt: skip
    np.testing.assert_array_equal(
        [[r.nit, r.loss, r.validation, r.ridge] for r in loaded.history],
        [[r.nit, r.loss, r.validation, r.ridge] for r in model.history],
    )
    again = loaded.score(backend.numpy(x), backend.numpy(t))
    assert again.dtype == np.dtype(dtype)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(again, backend.numpy(score), rtol=tolerance, atol=tolerance)
    y = diffusion.sample(model, 6, steps=4, seed=0)
    backend.assert_native(y)
    assert np.all(np.isfinite(backend.numpy(y)))


@pytest.mark.parametrize("options", [KERNEL, DESCENT], ids=method_of)
def test_a_model_that_was_used_can_be_pickled(rng, options):
    model = diffusion.fit_score(rng.normal(size=(60, 2)), **INTERVAL, **options, draws=2)
    x = rng.normal(size=(5, 2))
    score = model.score(x, 0.4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).score(x, 0.4), score)


def test_the_kernel_is_the_limit_of_the_network(rng):
    U = rng.normal(size=(6, 3))
    network = SoftmaxNetwork.initialise(3, 2, 1, sigma=1.5)
    np.testing.assert_array_equal(kernel_regression.limit_kernel(1.5, U, U), network.limit_kernel(U))


def test_gram_gauss_newton_beats_gradient_descent_per_iteration(backend, mixture):
    options = {"n": 100, "width": 16, "maxiter": 2}
    newton = fit(backend, mixture, method="gram-gauss-newton", damping=0.1, **options)
    descent = fit(backend, mixture, method="gradient-descent", **options)
    assert newton.history[-1].loss < descent.history[-1].loss < descent.history[0].loss


@pytest.mark.parametrize("options", [KERNEL, DESCENT], ids=method_of)
def test_same_seed_gives_the_same_model_on_every_backend(backend, options):
    host = diffusion.GaussianMixture(MEANS, SCALES, WEIGHTS).sample(80, seed=0)
    x = np.array([[0.3, -0.2], [1.0, 1.0]])
    options = INTERVAL | options | {"draws": 2, "seed": 4}
    here = diffusion.fit_score(host, **options).score(x, 0.4)
    there = diffusion.fit_score(backend.array(host), **options).score(backend.array(x), 0.4)
    np.testing.assert_allclose(backend.numpy(there), here, rtol=1e-7, atol=1e-8)


def test_denoiser_never_leaves_the_data_s_ball(backend, mixture):
    model = fit(backend, mixture)
    far = backend.array([[1e6, 0.0], [0.0, -1e6]])
    length = np.linalg.norm(backend.numpy(model.denoise(far, 0.1)) - backend.numpy(model.mean), axis=1)
    assert np.all(length <= model.radius * (1 + 1e-12))


def test_interrupted_training_resumes_to_the_same_network(tmp_path):
    mixture = diffusion.GaussianMixture(MEANS, SCALES, WEIGHTS)
    X0, x = mixture.sample(60, seed=0), np.array([[0.2, 0.1]])
    options = INTERVAL | {"width": 16, "draws": 2, "patience": 100}
    straight = diffusion.fit_score(X0, maxiter=12, **options)
    path = tmp_path / "training.npz"
    diffusion.fit_score(X0, maxiter=5, checkpoint=path, **options)
    seen = []
    resumed = diffusion.fit_score(X0, maxiter=12, checkpoint=path, resume=True, callback=seen.append, **options)
    np.testing.assert_array_equal(resumed.score(x, 0.3), straight.score(x, 0.3))
    assert [record.nit for record in resumed.history] == list(range(13))
    assert [record.nit for record in seen] == list(range(6, 13))


@pytest.mark.parametrize("options", [KERNEL | {"ridge": (0.1, 1.0, 10.0)}, DESCENT], ids=method_of)
def test_callback_sees_each_step_and_can_stop(mixture, backend, options):
    seen = []

    def stop(record):
        seen.append(record)
        if len(seen) == 2:
            raise StopIteration

    model = fit(backend, mixture, n=50, callback=stop, **options)
    assert len(seen) == len(model.history) == 2


def test_held_out_data_may_be_given(backend, mixture):
    model = fit(backend, mixture, validation=mixture.sample(40, seed=5))
    assert math.isfinite(model.history[0].validation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_min": 0.0}, "0 < t_min < t_max"),
        ({"t_min": 3.0}, "0 < t_min < t_max"),
        ({"t_max": math.inf}, "0 < t_min < t_max"),
        ({"validation": 0.0}, r"share in \(0, 1\)"),
        ({"method": "adam"}, "method is 'adam'"),
        ({"times": "often"}, "times is 'often'"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"ridge": 0.0}, "positive numbers"),
        ({"draws": 0}, "draws is 0"),
        ({"centres": 0}, "centres is 0"),
        ({"width": 7, "method": "gradient-descent"}, "even number"),
        ({"momentum": 0.9}, "momentum is no option of method 'kernel', which has ridge, centres"),
        ({"ridge": 0.1, "method": "gradient-descent"}, "ridge is no option of method 'gradient-descent'"),
        ({"damping": 0.1, "method": "gradient-descent"}, "damping is no option"),
        ({"maxitre": 3, "method": "gram-gauss-newton"}, "maxitre is no option"),
    ],
)
def test_bad_options_are_refused(backend, mixture, changes, message):
    options = INTERVAL | {"method": "kernel"} | changes
    with pytest.raises(InvalidArgumentError, match=message):
        diffusion.fit_score(mixture.sample(20, seed=0), **options)


def test_bad_data_are_refused(backend, tmp_path):
    good = np.random.default_rng(0).normal(size=(20, 2))
    bad = good.copy()
    bad[3, 1] = np.nan
    for values, message in (
        (bad, "NaN or infinite"),
        (good[:5], "at least 10"),
        (good[:, 0], "X0 has shape"),
        (np.ones((20, 2)), "no spread"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            diffusion.fit_score(backend.array(values), **INTERVAL, method="kernel")
    with pytest.raises(InvalidArgumentError, match="validation has shape"):
        diffusion.fit_score(backend.array(good), **INTERVAL, validation=backend.array(good[:, :1]))
    path = tmp_path / "broken.npz"
    path.write_bytes(b"PK not really")
    for where in (path, tmp_path / "missing.npz"):
        with pytest.raises(InvalidArgumentError, match="cannot be read"):
            diffusion.load(where)
