"""The forward process, the exact mixture, and sampling from the exact score."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpreg import InvalidArgumentError, diffusion

MEANS = np.array([[-1.5, -1.0], [1.5, -1.0], [0.0, 1.5]])
SCALES = np.array([0.25, 0.35, 0.4])
WEIGHTS = np.array([0.2, 0.5, 0.3])


@pytest.fixture
def mixture(backend):
    return diffusion.GaussianMixture(backend.array(MEANS), backend.array(SCALES), backend.array(WEIGHTS))


def dense_density(x, t, scales=SCALES):
    """p_t(x) for one point, straight from the definition."""
    alpha, h = math.exp(-t / 2), 1 - math.exp(-t)
    v = alpha**2 * scales**2 + h
    q = np.sum((x - alpha * MEANS) ** 2, axis=1)
    return np.sum(WEIGHTS * np.exp(-0.5 * q / v) / (2 * np.pi * v))


def quadrature_posterior(x, t):
    """E[X_0 | X_t = x] and E[|X_0 - that|^2 | x] by integration over a grid of X_0."""
    alpha, h = math.exp(-t / 2), 1 - math.exp(-t)
    axis = np.linspace(-4, 4, 801)
    x0 = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    gap = np.sum((x0[:, None, :] - MEANS) ** 2, axis=2)
    prior = np.sum(WEIGHTS * np.exp(-0.5 * gap / SCALES**2) / SCALES**2, axis=1)
    p = prior * np.exp(-0.5 * np.sum((x - alpha * x0) ** 2, axis=1) / h)
    p /= p.sum()
    mean = p @ x0
    return mean, p @ np.sum((x0 - mean) ** 2, axis=1)


def test_noise_has_the_stated_mean_and_variance(backend):
    process = diffusion.OrnsteinUhlenbeck()
    x0 = backend.array(np.full((200_000, 1), 2.0))
    x = backend.numpy(process.noise(x0, 0.7, 1))
    assert x.mean() == pytest.approx(2.0 * math.exp(-0.35), abs=0.01)
    assert x.var() == pytest.approx(1 - math.exp(-0.7), rel=0.01)


def test_each_row_may_have_its_own_time(backend, mixture, rng):
    x, t = rng.normal(size=(5, 2)), np.array([0.01, 0.1, 1.0, 2.0, 5.0])
    together = backend.numpy(mixture.score(backend.array(x), backend.array(t)))
    for i in range(5):
        one = backend.numpy(mixture.score(backend.array(x[i : i + 1]), float(t[i])))
        np.testing.assert_allclose(together[i : i + 1], one, rtol=1e-13)


@pytest.mark.parametrize("t", [0.05, 0.5, 3.0])
def test_mixture_density_and_score_match_the_definition(backend, mixture, rng, t):
    x, step = rng.normal(size=(4, 2)), 1e-20
    p = np.array([dense_density(row, t) for row in x])
    np.testing.assert_allclose(backend.numpy(mixture.log_density(backend.array(x), t)), np.log(p), rtol=1e-12)
    gradient = [
        [np.imag(np.log(dense_density(row + 1j * step * axis, t))) / step for axis in np.eye(2)] for row in x
    ]  # complex step: exact to rounding
    np.testing.assert_allclose(backend.numpy(mixture.score(backend.array(x), t)), gradient, rtol=1e-11, atol=1e-12)


def test_posterior_mean_and_variance_match_quadrature(backend, mixture, rng):
    x, t = rng.normal(size=(3, 2)), 0.6
    mean = backend.numpy(mixture.posterior_mean(backend.array(x), t))
    variance = backend.numpy(mixture.posterior_variance(backend.array(x), t))
    for i, row in enumerate(x):
        expected_mean, expected_variance = quadrature_posterior(row, t)
        np.testing.assert_allclose(mean[i], expected_mean, rtol=1e-8, atol=1e-8)
        assert variance[i] == pytest.approx(expected_variance, rel=1e-8)


@pytest.mark.parametrize("t", [1e-14, 1e-6, 0.1, 5.0, 700.0])
def test_tweedie_holds_at_every_noise_level(backend, mixture, rng, t):
    x, process = backend.array(rng.normal(size=(20, 2))), diffusion.OrnsteinUhlenbeck()
    alpha, h = process.alpha(t), process.h(t)
    score, mean = backend.numpy(mixture.score(x, t)), backend.numpy(mixture.posterior_mean(x, t))
    x = backend.numpy(x)
    np.testing.assert_allclose(alpha * mean - x, h * score, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("t", [1e-12, 0.05, 3.0])
def test_mixture_is_finite_and_right_far_from_every_component(backend, mixture, t):
    far = 1e8 * np.array([[1.0, 0.0], [-0.6, 0.8]])
    score = backend.numpy(mixture.score(backend.array(far), t))
    variance = math.exp(-t) * SCALES.max() ** 2 - math.expm1(-t)  # the widest component, the last, wins
    np.testing.assert_allclose(score, (math.exp(-t / 2) * MEANS[-1] - far) / variance, rtol=1e-6, atol=1e-6)
    r = backend.numpy(mixture.responsibilities(backend.array(far), t))
    np.testing.assert_allclose(r.sum(axis=1), 1.0, rtol=1e-12)


def test_scales_may_differ_between_axes_and_be_zero(backend):
    means, scales = backend.array([[0.0, 0.0]]), backend.array([[0.0, 2.0]])
    mixture = diffusion.GaussianMixture(means, scales)
    h = -math.expm1(-1.0)
    score = backend.numpy(mixture.score(backend.array([[1.0, 1.0]]), 1.0))
    np.testing.assert_allclose(score, [[-1 / h, -1 / (math.exp(-1.0) * 4 + h)]], rtol=1e-13)


def test_mixture_sample_has_the_mixture_s_moments_and_weights(backend, mixture):
    x = mixture.sample(100_000, seed=3)
    shares = backend.numpy(mixture.responsibilities(x, 1e-9)).mean(axis=0)
    np.testing.assert_allclose(shares, WEIGHTS, atol=0.006)
    x = backend.numpy(x)
    np.testing.assert_allclose(x.mean(axis=0), backend.numpy(mixture.mean), atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), backend.numpy(mixture.covariance), atol=0.03)


def test_float32_stays_float32(backend):
    parts = (backend.array(v, dtype="float32") for v in (MEANS, SCALES, WEIGHTS))
    mixture = diffusion.GaussianMixture(*parts)
    x = mixture.sample(50, seed=0)
    assert x.dtype == mixture.means.dtype
    for t in (0.3, backend.array(np.full(50, 0.3), dtype="float32")):
        assert mixture.score(x, t).dtype == x.dtype
    assert diffusion.sample(mixture, 5, steps=3, t_min=0.1, t_max=2.0).dtype == x.dtype


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_exact_score_gives_true_samples(backend, mixture, method):
    steps = 60 if method == "sde" else 20
    y = diffusion.sample(mixture, 4000, steps=steps, seed=1, method=method, t_min=0.02, t_max=4.0)
    backend.assert_native(y)
    truth, other = mixture.sample(4000, seed=2), mixture.sample(4000, seed=3)
    distance = float(backend.numpy(diffusion.sliced_wasserstein(y, truth)))
    assert distance < 2.0 * float(backend.numpy(diffusion.sliced_wasserstein(other, truth))) + 0.01
    shares = backend.numpy(mixture.responsibilities(y, 1e-3)).mean(axis=0)
    np.testing.assert_allclose(shares, WEIGHTS, atol=0.03)


def test_ode_sampler_is_of_second_order():
    mixture = diffusion.GaussianMixture(MEANS, SCALES, WEIGHTS)

    def run(steps):
        return diffusion.sample(mixture, 200, steps=steps, seed=0, method="ode", t_min=0.05, t_max=3.0, to_zero=False)

    reference = run(3200)
    coarse, fine = (np.mean(np.abs(run(steps) - reference)) for steps in (100, 200))
    assert 3.0 < coarse / fine < 5.0


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_gaussian_data_come_out_with_their_variance(method):
    mixture = diffusion.GaussianMixture(np.array([[3.0]]), np.array([0.7]))
    x = diffusion.sample(mixture, 40_000, steps=200, seed=0, method=method, t_min=0.01, t_max=3.0)
    assert x.mean() == pytest.approx(3.0, abs=0.02)
    assert x.std() == pytest.approx(0.7, rel=0.02)


def test_sampling_is_seeded_and_can_be_stopped(backend, mixture):
    options = {"steps": 5, "t_min": 0.1, "t_max": 2.0}
    one, two, three = (backend.numpy(diffusion.sample(mixture, 10, seed=seed, **options)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - three).max() > 0.1
    seen = []

    def stop(record):
        seen.append(record.t)
        if record.nit == 2:
            raise StopIteration

    diffusion.sample(mixture, 10, callback=stop, **options)
    assert len(seen) == 3
    assert seen[0] == 2.0


def test_sliced_wasserstein_of_a_shift_is_its_length_over_sqrt_d(backend, rng):
    x = rng.normal(size=(50, 3))
    shift = np.array([1.0, 2.0, 2.0])
    found = diffusion.sliced_wasserstein(backend.array(x), backend.array(x + shift), projections=20_000)
    assert float(backend.numpy(found)) == pytest.approx(3.0 / math.sqrt(3), rel=0.02)


def test_nearest_finds_what_brute_force_finds(backend, rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(40, 3))
    gaps = np.linalg.norm(x[:, None] - y[None], axis=2)
    distances, indices = diffusion.nearest(backend.array(x), backend.array(y))
    np.testing.assert_allclose(backend.numpy(distances), gaps.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(backend.numpy(indices), gaps.argmin(axis=1))
    own = np.linalg.norm(y[:, None] - y[None], axis=2) + np.diag(np.full(40, np.inf))
    distances, _ = diffusion.nearest(backend.array(y), backend.array(y), exclude_self=True)
    np.testing.assert_allclose(backend.numpy(distances), own.min(axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": np.array([0.1, -0.2, 0.1])}, "scales ranges from -0.2"),
        ({"scales": np.ones(2)}, "scales has shape"),
        ({"weights": np.array([0.5, 0.4, 0.3])}, "sum 1 are needed"),
        ({"weights": np.array([1.2, -0.4, 0.2])}, "smallest entry -0.4"),
        ({"weights": np.array([np.nan, 0.5, 0.5])}, "weights has"),
        ({"means": np.array([[np.inf, 0.0]] * 3)}, "means has entries"),
        ({"means": np.zeros(3)}, "means has shape"),
    ],
)
def test_bad_mixtures_are_refused(backend, changes, message):
    parts = {"means": MEANS, "scales": SCALES, "weights": WEIGHTS} | changes
    with pytest.raises(InvalidArgumentError, match=message):
        diffusion.GaussianMixture(**{name: backend.array(v) for name, v in parts.items()})


def test_bad_times_and_options_are_refused(backend, mixture):
    x = backend.array(np.zeros((2, 2)))
    for t in (0.0, -1.0, math.nan, math.inf, backend.array([0.5, 0.0])):
        with pytest.raises(InvalidArgumentError, match="positive and finite times"):
            mixture.score(x, t)
    with pytest.raises(InvalidArgumentError, match="one time for every row"):
        mixture.score(x, backend.array([0.1, 0.2, 0.3]))
    with pytest.raises(InvalidArgumentError, match="needed for this mixture"):
        mixture.score(backend.array(np.zeros((2, 3))), 1.0)
    with pytest.raises(InvalidArgumentError, match="pass t_min"):
        diffusion.sample(mixture, 5, t_max=1.0)
    with pytest.raises(InvalidArgumentError, match="0 < t_min < t_max"):
        diffusion.sample(mixture, 5, t_min=1.0, t_max=1.0)
    with pytest.raises(InvalidArgumentError, match="'sde' or 'ode'"):
        diffusion.sample(mixture, 5, t_min=0.1, t_max=1.0, method="euler")
    with pytest.raises(InvalidArgumentError, match="n is 0"):
        diffusion.sample(mixture, 0, t_min=0.1, t_max=1.0)
    with pytest.raises(InvalidArgumentError, match="equally large"):
        diffusion.sliced_wasserstein(x, backend.array(np.zeros((3, 2))))


@pytest.mark.parametrize("size", [1e160, float("nan")])
def test_points_too_far_for_their_squares_are_an_error_not_a_nan(backend, size):
    mixture = diffusion.GaussianMixture(backend.array([[0.0, 0.0], [1.0, 1.0]]), backend.array([1.0, 0.5]))
    for call in (mixture.score, mixture.posterior_mean, mixture.log_density):
        with pytest.raises(ValueError, match="squares overflow"):
            call(backend.array([[size, 0.0]]), 1.0)


def test_very_long_times_overflow_nowhere():
    times = diffusion.sampling.time_grid(1000.0, 0.01, 10)
    assert times == sorted(times, reverse=True)
    assert np.isfinite(times).all()


def test_the_start_of_the_sampler_takes_a_singular_covariance(backend):
    means = backend.array([[0.0, 0.0], [1e4, 1e4]], "float32")
    mixture = diffusion.GaussianMixture(means, backend.array([0.0, 0.0], "float32"))
    x = backend.numpy(diffusion.sample(mixture, 2000, steps=1, seed=0, t_min=1e-6, t_max=1e-4, to_zero=False))
    assert abs(np.std(x[:, 0] - x[:, 1])) < 1.0
    assert 0.9 * 5e3 < np.std(x[:, 0]) < 1.1 * 5e3
