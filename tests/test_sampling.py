"""Leverage scores and SubSample: against a dense SVD, with the promised probability, the same on every backend."""

import numpy as np
import pytest

import xpreg
from xpreg import sampling
from xpreg.maps import DenseRows

CASES = ("gaussian", "heavy tails", "condition 1e6", "heavy tails, condition 1e6")


def rows(case, rng, n=3000, d=6):
    A = rng.standard_normal((n, d))
    if "heavy" in case:
        A *= np.abs(rng.standard_cauchy((n, 1)))
    if "1e6" in case:
        A = A * np.logspace(0, -6, d) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    return A


def exact_scores(A, D):
    U = np.linalg.svd(np.sqrt(D)[:, None] * A, full_matrices=False)[0]
    return np.sum(U * U, axis=1)


def spectrum(A, D, sample):
    """Eigenvalues of the sampled Gram matrix relative to the whole one, through an SVD."""
    _, s, Vt = np.linalg.svd(np.sqrt(D)[:, None] * A, full_matrices=False)
    X = np.sqrt(np.asarray(sample.D))[:, None] * A[np.asarray(sample.indices)] @ (Vt.T / s)
    return np.linalg.svd(X, compute_uv=False)[[-1, 0]] ** 2


@pytest.mark.parametrize("case", CASES)
def test_exact_scores_are_those_of_a_dense_factorisation(backend, rng, case):
    A, D = rows(case, rng, n=500), rng.random(500) ** 3
    tau = backend.numpy(sampling.leverage_scores(backend.array(A), backend.array(D)))
    np.testing.assert_allclose(tau, exact_scores(A, D), atol=2e-3 if case == CASES[3] else 1e-6)
    assert tau.sum() == pytest.approx(6, abs=1e-3)
    centred = sampling.leverage_scores(backend.array(A), backend.array(D), mean=backend.array(A.mean(0)))
    np.testing.assert_allclose(
        backend.numpy(centred), exact_scores(A - A.mean(0), D), atol=2e-3 if case == CASES[3] else 1e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_sketched_scores_are_upper_bounds(backend, rng, case):
    A, D = rows(case, rng, n=8000), rng.random(8000)
    upper = backend.numpy(sampling.leverage_scores(backend.array(A), backend.array(D), method="sketch"))
    assert (upper >= exact_scores(A, D) * (1 - 1e-3)).all()
    assert upper.sum() < 6 * 8
    assert upper.max() <= 1


@pytest.mark.parametrize("columns", ["duplicate", "zero", "constant, centred"])
def test_absent_directions_have_no_leverage(backend, rng, columns):
    A = rng.standard_normal((400, 4))
    extra = {"duplicate": A[:, :1], "zero": 0 * A[:, :1], "constant, centred": np.ones((400, 1))}[columns]
    B = np.concatenate([A, extra], axis=1)
    mean = backend.array(B.mean(0)) if columns.startswith("constant") else None
    tau = backend.numpy(sampling.leverage_scores(backend.array(B), backend.array(np.ones(400)), mean=mean))
    A = A - A.mean(0) if mean is not None else A
    np.testing.assert_allclose(tau, exact_scores(A, np.ones(400)), atol=1e-6)
    assert sampling.subsample(backend.array(B), backend.array(np.ones(400)), mean=mean, method="sketch").m <= 400


@pytest.mark.parametrize("eps", [0.5, 0.2, 0.1])
@pytest.mark.parametrize("case", CASES)
def test_the_sandwich_holds_in_the_promised_share_of_200_seeds(rng, case, eps):
    delta, n, d = 0.1, 3000, 3
    A, D = rows(case, rng, n, d), rng.random(n)
    for method in ("exact", "sketch"):
        held, kept = 0, 0
        for seed in range(200):
            sample = sampling.subsample(A, D, eps=eps, delta=delta, method=method, seed=seed)
            low, high = spectrum(A, D, sample)
            held += 1 - eps <= low and high <= 1 + eps
            kept += sample.m
        assert held >= (1 - delta) * 200, (method, held)
        if method == "exact":
            assert kept / 200 <= 1.1 * min(n, 3 * np.log(2 * d / delta) / eps**2 * d)
            assert kept / 200 < 0.9 * n  # something was left out, so that the sandwich is no tautology


def test_the_sample_is_unbiased(rng):
    A, D = rng.standard_normal((400, 3)), rng.random(400)
    total = np.zeros((3, 3))
    for seed in range(300):
        X = sampling.subsample(A, D, eps=0.9, delta=0.9, seed=seed).scaled_rows(DenseRows(A))
        total += X.T @ X / 300
    G = A.T @ (D[:, None] * A)
    assert np.abs(total - G).max() < 0.05 * np.abs(G).max()


@pytest.mark.parametrize("method", ["exact", "sketch"])
def test_one_seed_gives_one_sample_on_every_backend(backend, rng, method):
    A, D = rows("heavy tails", rng), rng.random(3000)
    there = sampling.subsample(A, D, eps=0.4, method=method, seed=7)
    here = sampling.subsample(backend.array(A), backend.array(D), eps=0.4, method=method, seed=7)
    np.testing.assert_array_equal(backend.numpy(here.indices), there.indices)
    np.testing.assert_allclose(backend.numpy(here.D), there.D, rtol=1e-8)
    other = sampling.subsample(backend.array(A), backend.array(D), eps=0.4, method=method, seed=8)
    assert other.m != here.m or not (backend.numpy(other.indices) == there.indices).all()


def test_the_sketch_gives_the_same_sample_as_its_own_exact_lengths(rng, monkeypatch):
    """Estimated lengths only single out candidates; who stays is decided by exact ones."""
    A, D = rows("gaussian", rng, 4000, 60), rng.random(4000)
    monkeypatch.setattr(sampling, "PILOT_FACTOR", 5)
    estimated = sampling.subsample(A, D, eps=0.9, delta=0.9, method="sketch", seed=3)
    draws = sampling.estimated_lengths

    def exact(rows, T, mean, columns, rng):
        draws(rows, T, mean, columns, rng)  # takes the same random numbers
        return sampling.lengths(rows, T, mean)

    monkeypatch.setattr(sampling, "estimated_lengths", exact)
    np.testing.assert_array_equal(
        sampling.subsample(A, D, eps=0.9, delta=0.9, method="sketch", seed=3).indices, estimated.indices
    )


def test_estimated_lengths_are_right_up_to_their_variance(backend, rng):
    A, T = rng.standard_normal((500, 40)), rng.standard_normal((40, 40))
    mean = rng.standard_normal(40)
    exact = np.sum(((A - mean) @ T) ** 2, axis=1)
    estimate = sampling.estimated_lengths(
        DenseRows(backend.array(A)), backend.array(T), backend.array(mean), 30, np.random.default_rng(0)
    )
    ratio = backend.numpy(estimate) / exact
    assert abs(ratio.mean() - 1) < 0.1
    assert ratio.std() < 1.5 * (2 / 30) ** 0.5


def test_the_oversampling_covers_the_lower_tail_of_chi_square():
    from scipy.stats import chi2

    for columns, failure in ((8, 1e-3), (60, 1e-8), (64, 0.1)):
        theta = sampling._oversampling(columns, failure)
        assert theta > 1
        assert chi2.cdf(columns / theta, columns) <= failure


def test_a_prescribed_number_of_rows_is_about_kept(backend, rng):
    A = backend.array(rows("heavy tails", rng, 5000, 5))
    D = backend.array(rng.random(5000))
    sample, _ = sampling.sample_about(DenseRows(A), D, 600, None, 16, np.random.default_rng(1))
    assert 500 < sample.m < 700
    assert sample.eps is None
    low, high = sampling.deviation(DenseRows(A), D, sample)
    assert 0.5 < float(low) <= 1 <= float(high) < 1.5
    nothing, _ = sampling.sample_about(DenseRows(A), 0.0 * D, 600, None, 16, np.random.default_rng(1))
    assert nothing.m == 0


def test_the_deviation_is_the_relative_spectrum(backend, rng):
    A, D = rows("condition 1e6", rng, 1000, 4), rng.random(1000)
    sample = sampling.subsample(backend.array(A), backend.array(D), eps=0.5, seed=2)
    there = sampling.subsample(A, D, eps=0.5, seed=2)
    found = [float(v) for v in sampling.deviation(DenseRows(backend.array(A)), backend.array(D), sample)]
    np.testing.assert_allclose(found, spectrum(A, D, there), rtol=1e-4)


def test_float32_stays_float32(backend, rng):
    A, D = backend.array(rng.standard_normal((300, 4)), "float32"), backend.array(rng.random(300), "float32")
    sample = sampling.subsample(A, D)
    assert sample.D.dtype == D.dtype
    assert sampling.leverage_scores(A, D, method="sketch").dtype == D.dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, "eps is 0.0"),
        ({"delta": 2}, "delta is 2"),
        ({"method": "guess"}, "method is 'guess'"),
        ({"D": np.array([1.0, -1.0, 1.0])}, "D has an entry -1"),
        ({"D": np.ones(2)}, r"D has shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(backend, arguments, message):
    D = backend.array(arguments.get("D", np.ones(3)))
    with pytest.raises(xpreg.InvalidArgumentError, match=message):
        sampling.subsample(backend.array(np.eye(3)), **(arguments | {"D": D}))
