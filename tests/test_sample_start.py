"""The first step of method="auto" on many rows: to the fit of a sample of them. The answer is that of all rows."""

import numpy as np
import pytest
from support.problems import data

import xpreg
from xpreg import backend as B
from xpreg.regressions import LOSSES
from xpreg.solvers import auto, sample_start


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(sample_start, "SMALLEST", 0)
    monkeypatch.setattr(auto, "NARROW", 0)
    monkeypatch.setattr(auto, "SMALL", 0)


def softmax(rng, n=8000, d=10, condition=1.0, noise=0.05, make=xpreg.SoftmaxRegression):
    A = rng.standard_normal((n, d)) * np.logspace(0, -np.log10(condition), d)
    A = A @ np.linalg.qr(rng.standard_normal((d, d)))[0].T
    z = A @ rng.standard_normal(d)
    f = np.exp(z / z.std() + noise * rng.standard_normal(n))
    return make(A, f / f.sum())


def first_step(result):
    return result.history[1].direction


@pytest.mark.parametrize("weights", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
def test_of_rows_that_repeat_the_sample_is_the_same_problem_up_to_a_power_of_the_share(backend, rng, loss, weights):
    """omega copies of every row, and one of each drawn: L of the sample is omega^power L of all, regulariser too."""
    A, b, x = data(loss, rng, n=12, d=3)
    omega, share = 4, 1.0 if "softmax" not in loss and "rescaled" not in loss else 0.25
    w = weights * rng.random(12)
    rows = np.repeat(np.arange(12), omega)
    everything = LOSSES[loss](
        backend.array(A[rows]), backend.array(share * b[rows]), weights=backend.array(w[rows]) if weights else 0.0
    )
    sample = everything.of_rows(B.random_rows(12 * omega, 12, 0, backend.array(A)))
    x = backend.array(0.3 * x)
    L, g = (backend.numpy(v) for v in everything.value_and_grad(x))
    L_S, g_S = (backend.numpy(v) for v in sample.value_and_grad(x))
    gain = float(omega) ** everything.head.power
    np.testing.assert_allclose(L_S, gain * L, rtol=1e-12)
    np.testing.assert_allclose(g_S, gain * g, rtol=1e-10, atol=1e-14 * np.abs(g).max())


def test_random_rows_are_one_of_each_part(backend):
    n, m = 1000, 7
    rows = backend.numpy(B.random_rows(n, m, 3, backend.array(0.0)))
    assert rows.dtype == np.int64
    for j, i in enumerate(rows):
        assert j * n / m - 1 < i < (j + 1) * n / m


@pytest.mark.parametrize("condition", [1.0, 1e2])
def test_it_saves_iterations_and_does_not_change_the_answer(rng, monkeypatch, condition):
    problem = softmax(rng, condition=condition)
    with_it = xpreg.minimize(problem, tol=1e-10)
    monkeypatch.setattr(auto, "sample_size", lambda problem: 0)
    without = xpreg.minimize(problem, tol=1e-10)
    assert with_it.success
    assert without.success
    assert first_step(with_it).startswith("fit of 500 of 8000 rows")
    assert "chosen: a fit of 500 of 8000 rows" in with_it.message
    assert with_it.nit < without.nit
    assert with_it.nhev < without.nhev
    np.testing.assert_allclose(with_it.x, without.x, atol=1e-6 * np.abs(without.x).max())
    assert with_it.fun == pytest.approx(without.fun, rel=1e-10)


def test_the_same_sample_in_every_run(rng):
    problem = softmax(rng)
    first, second = (xpreg.minimize(problem) for _ in range(2))
    np.testing.assert_array_equal(first.x, second.x)
    assert [r.direction for r in first.history] == [r.direction for r in second.history]


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_run_goes_on_from_a_checkpoint_before_and_after_that_step(rng, tmp_path, stop_after):
    problem = softmax(rng, condition=1e2)

    def stop(record):
        if record.nit == stop_after:
            raise StopIteration

    whole = xpreg.minimize(problem)
    path = tmp_path / "run.npz"
    assert not xpreg.minimize(problem, checkpoint=path, callback=stop).success
    resumed = xpreg.minimize(problem, checkpoint=path, resume=True)
    np.testing.assert_array_equal(resumed.x, whole.x)
    assert [r.direction for r in resumed.history] == [r.direction for r in whole.history]


def test_a_start_as_good_as_the_fit_of_a_sample_is_kept(rng):
    problem = softmax(rng, noise=0.3)
    solution = xpreg.minimize(problem, tol=1e-10)
    again = xpreg.minimize(problem, solution.x + 1e-4 * rng.standard_normal(10))
    assert again.success
    assert "fit of" not in again.message
    at_the_solution = xpreg.minimize(problem, solution.x)
    assert at_the_solution.success
    assert "fit of" not in at_the_solution.message


@pytest.mark.parametrize("seed", range(10))
def test_rows_with_heavy_tails_are_solved_whether_the_sample_helps_or_not(seed):
    rng = np.random.default_rng(seed)
    n, d = 8000, 8
    A = rng.standard_normal((n, d)) / np.sqrt(rng.exponential(size=(n, 1)))
    z = A @ rng.standard_normal(d)
    f = np.exp(z * min(1 / z.std(), 8 / np.abs(z).max()))
    result = xpreg.minimize(xpreg.SoftmaxRegression(A, f / f.sum()))
    assert result.success, result.message
    assert result.fun < 1e-12


def test_a_saturated_start_is_not_judged_by_a_sample_that_does_not_see_the_rows_that_hold_f(rng):
    problem = softmax(rng)
    p = rng.standard_normal(10)
    result = xpreg.minimize(problem, 30 * p / np.abs(problem.rows.A @ p).max())
    assert result.success, result.message
    assert "fit of" not in result.message


def test_one_target_that_holds_everything_is_no_reason_for_a_sample(rng):
    """b on one row: a sample without it has no target at all."""
    A, b = rng.standard_normal((8000, 5)), np.zeros(8000)
    b[17] = 1.0
    result = xpreg.minimize(xpreg.SoftmaxRegression(A, b, weights=1e-3))
    assert result.success, result.message
    assert "fit of" not in result.message


def test_stacks_few_rows_and_rows_that_cannot_be_handed_out_start_as_before(rng, tmp_path):
    problem = softmax(rng)
    A = problem.rows.A
    np.save(tmp_path / "A.npy", A)
    stack = xpreg.SoftmaxRegression(A, np.stack([problem.b, np.full(len(A), 1 / len(A))]))
    few = xpreg.SoftmaxRegression(A[:1000], problem.b[:1000])
    stored = xpreg.SoftmaxRegression(xpreg.io.open_rows(tmp_path / "A.npy"), problem.b)
    for other in (stack, few, stored):
        assert sample_start.sample_size(other) == 0
    assert sample_start.sample_size(problem) == 500


def test_sparse_rows_are_sampled_too(rng):
    sparse = pytest.importorskip("scipy.sparse")

    def make(A, b):
        A[rng.random(A.shape) < 0.5] = 0.0
        return xpreg.SoftmaxRegression(sparse.csr_array(A), b)

    result = xpreg.minimize(softmax(rng, d=40, make=make))
    assert result.success
    assert first_step(result).startswith("fit of 800 of 8000 rows")


def test_a_regulariser_and_every_backend(backend, rng):
    problem = softmax(rng, n=2000, d=4)
    A, b = backend.array(problem.rows.A), backend.array(problem.b)
    mine = xpreg.SoftmaxRegression(A, b, weights=backend.array(1e-3 * rng.random(2000)))
    result = xpreg.minimize(mine, tol=1e-10)
    exact = xpreg.minimize(mine, method="newton", tol=1e-10)
    assert result.success
    assert first_step(result).startswith("fit of 125 of 2000 rows")
    np.testing.assert_allclose(backend.numpy(result.x), backend.numpy(exact.x), atol=1e-6)
