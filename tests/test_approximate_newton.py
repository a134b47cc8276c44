"""Approximate Newton: both readings, hard cases beside exact Newton, the same on every backend."""

import itertools

import numpy as np
import pytest

import xpreg
from xpreg.regressions import LOSSES

PAPERS = {"method": "approximate-newton", "reading": "papers"}
PRECONDITIONER = {"method": "approximate-newton"}


def softmax(z):
    u = np.exp(z - z.max())
    return u / u.sum()


def tall(rng, n=3000, d=6, case="plain"):
    """Rows and noisy targets: n is far above 40 d, so that rows are really sampled."""
    A = rng.standard_normal((n, d))
    if case == "heavy tails":
        A *= np.abs(rng.standard_cauchy((n, 1)))
        A /= np.percentile(np.abs(A), 99)
    if case == "condition 1e6":
        A = A * np.logspace(0, -6, d) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    b = softmax(A @ rng.standard_normal(d) * 0.4) * rng.exponential(size=n)
    return A, b / b.sum()


def rows_kept(result):
    """Numbers of rows, from the labels of the history."""
    return [int(word.split()[-2]) for r in result.history for word in r.direction.split(",") if word.endswith("rows")]


@pytest.mark.parametrize("case", ["plain", "heavy tails", "condition 1e6"])
def test_the_preconditioner_converges_to_any_tolerance(backend, rng, case):
    A, b = tall(rng, case=case)
    problem = xpreg.SoftmaxRegression(backend.array(A), backend.array(b))
    exact = xpreg.minimize(problem, tol=1e-11)
    result = xpreg.minimize(problem, **PRECONDITIONER, tol=1e-11)
    assert result.success, result.message
    assert result.fun == pytest.approx(exact.fun, rel=1e-9)
    assert 0 < max(rows_kept(result)) < 0.1 * len(b)


@pytest.mark.parametrize("loss", [name for name in LOSSES if "rescaled" not in name])
@pytest.mark.parametrize("options", [PRECONDITIONER, PAPERS], ids=["preconditioner", "papers"])
def test_every_loss_is_solved_with_sampled_rows(rng, loss, options):
    A = rng.standard_normal((2000, 4)) * 0.5
    A -= A.mean(axis=0)
    x = rng.standard_normal(4) * 0.5
    b = np.asarray(LOSSES[loss](A, np.full(2000, 1 / 2000)).predict(x))
    b = b * (1 + 0.1 * rng.standard_normal(2000))
    b = np.abs(b) / b.sum() if "softmax" in loss else b
    problem = LOSSES[loss](A, b, weights=1e-4)
    start = x + 0.1 * rng.standard_normal(4)
    exact = xpreg.minimize(problem, start)
    result = xpreg.minimize(problem, start, **options, maxiter=300)
    assert result.success, result.message
    assert result.fun == pytest.approx(exact.fun, rel=1e-7)


@pytest.mark.parametrize("weights", [0.0, 1e-3])
@pytest.mark.parametrize("case", ["plain", "heavy tails"])
@pytest.mark.parametrize("size", [0.0, 8.0, 25.0])
def test_on_hard_problems_it_never_ends_worse_than_exact_newton(rng, case, size, weights):
    """Heavy-tailed rows, starts that are saturated up to exponents of 25: f leaves 1e-11 to other rows."""
    A, b = tall(rng, 4000, 8, case)
    problem = xpreg.SoftmaxRegression(A, b, weights=weights)
    v = rng.standard_normal(8)
    start = size * v / np.abs(A @ v).max()
    exact = xpreg.minimize(problem, start, maxiter=200)
    result = xpreg.minimize(problem, start, **PRECONDITIONER, maxiter=200)
    assert result.success or not exact.success, result.message
    assert result.fun <= exact.fun + 1e-8 * problem.value(start)  # both stop at a gradient of 1e-8 of the first


def test_few_products_are_needed_where_plain_cg_needs_thousands(rng):
    A, b = tall(rng, 8000, 40, "condition 1e6")
    problem = xpreg.SoftmaxRegression(A, b)
    result = xpreg.minimize(problem, **PRECONDITIONER)
    plain = xpreg.minimize(problem, method="newton-cg", maxiter=15)
    assert result.success
    assert result.nhev < 60
    assert plain.nhev > 5 * result.nhev
    assert not plain.success


def test_the_rows_are_drawn_anew_only_when_the_weights_move(rng, monkeypatch):
    from xpreg import sampling

    draws = []
    draw = sampling.sample_about
    monkeypatch.setattr(sampling, "sample_about", lambda *a: draws.append(1) or draw(*a))
    A, b = tall(rng)
    result = xpreg.minimize(xpreg.SoftmaxRegression(A, b), **PRECONDITIONER, tol=1e-12)
    assert result.success
    assert 1 <= len(draws) < result.nhev / 2
    ends = rows_kept(result)[-3:]
    assert len(set(ends)) == 1


# -- the papers' reading --------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.5, 0.25, 0.1])
def test_the_papers_iteration_contracts_at_least_by_two_eps(rng, eps):
    """Kullback-Leibler: D > 0. Distances in the norm of the Hessian, where the sandwich is exact: eps/(1 - eps)."""
    A = rng.standard_normal((20000, 4))
    b = softmax(A @ rng.standard_normal(4) * 0.3) * rng.exponential(size=20000)
    problem = xpreg.SoftmaxRegression(A, b / b.sum(), loss="kl")
    solution = xpreg.minimize(problem, tol=1e-14).x
    H = problem.hess(solution)
    points = [solution + 1e-3 * rng.standard_normal(4)]
    for seed in range(8):
        result = xpreg.minimize(problem, points[-1], **PAPERS, eps=eps, maxiter=1, seed=seed)
        points.append(result.x)
    r = [np.sqrt((x - solution) @ H @ (x - solution)) for x in points]
    ratios = [after / before for before, after in itertools.pairwise(r) if before > 1e-7 * r[0]]
    assert len(ratios) >= 3
    assert max(ratios) <= min(2 * eps, eps / (1 - eps)) + 0.02


def test_sampling_the_regulariser_alone_is_linear_at_the_predicted_rate(rng):
    """At w^2 = 2.773 the step from W^2 leaves at most 1/9 (and eps) of the error in the norm of H: |B| <= 0.3082."""
    A = rng.standard_normal((5000, 3)) * 0.3
    b = np.eye(5000)[7]
    problem = xpreg.SoftmaxRegression(A, b, weights=2.773**0.5)
    result = xpreg.minimize(problem, rng.standard_normal(3), **PAPERS, diagonal="regulariser", eps=0.1)
    assert result.success, result.message
    g = [record.grad_norm for record in result.history if record.direction.startswith("sampled")]
    assert max(after / before for before, after in itertools.pairwise(g)) <= 1 / 9 + 0.12


def test_a_fresh_sample_is_drawn_in_every_step(rng):
    A, b = tall(rng)
    result = xpreg.minimize(xpreg.SoftmaxRegression(A, b), **PAPERS, eps=0.5)
    assert result.success
    sampled = [r.direction for r in result.history if r.direction.startswith("sampled")]
    assert len(set(sampled)) > 2


def test_a_stationary_point_is_examined_with_the_exact_hessian(rng):
    """cosh at x = 0 with b > 1: a zero gradient at a maximum; a sample of D_+ alone could not tell."""
    A = rng.standard_normal((3000, 3)) * 0.4
    b = np.cosh(A @ np.array([1.0, -0.5, 0.8]))
    for options in (PRECONDITIONER, PAPERS):
        result = xpreg.minimize(xpreg.CoshRegression(A, b), **options, tol=1e-9, maxiter=200)
        assert result.success, result.message
        assert result.fun < 1e-12


# -- backends, stacks, arguments ------------------------------------------------------------------


@pytest.mark.parametrize("options", [PRECONDITIONER, PAPERS], ids=["preconditioner", "papers"])
def test_one_seed_gives_one_run_on_every_backend(backend, rng, options):
    A, b = tall(rng, 1500, 4)
    here = xpreg.minimize(xpreg.SoftmaxRegression(backend.array(A), backend.array(b)), **options, seed=5)
    there = xpreg.minimize(xpreg.SoftmaxRegression(A, b), **options, seed=5)
    assert rows_kept(here) == rows_kept(there)
    assert here.nit == there.nit
    np.testing.assert_allclose(backend.numpy(here.x), there.x, rtol=1e-6, atol=1e-9)
    backend.assert_native(here.x)
    other = xpreg.minimize(xpreg.SoftmaxRegression(A, b), **options, seed=6)
    assert rows_kept(other) != rows_kept(there)


@pytest.mark.parametrize("options", [PRECONDITIONER, PAPERS], ids=["preconditioner", "papers"])
def test_a_stack_with_sampled_rows_is_solved_as_its_problems_one_by_one(backend, rng, options):
    A = rng.standard_normal((1500, 4))
    b = np.stack([softmax(A @ x) * rng.exponential(size=1500) for x in rng.standard_normal((5, 4)) * 0.5])
    b /= b.sum(axis=1, keepdims=True)
    stack = xpreg.minimize(xpreg.SoftmaxRegression(backend.array(A), backend.array(b), weights=1e-3), **options)
    assert stack.success, stack.message
    for i in (0, 4):
        one = xpreg.minimize(xpreg.SoftmaxRegression(A, b[i], weights=1e-3))
        np.testing.assert_allclose(backend.numpy(stack.x)[i], one.x, rtol=1e-4, atol=1e-5)


def test_float32_is_solved_in_float32(backend, rng):
    A, b = tall(rng)
    problem = xpreg.SoftmaxRegression(backend.array(A, "float32"), backend.array(b, "float32"))
    result = xpreg.minimize(problem, **PRECONDITIONER, tol=1e-3)
    assert result.success, result.message
    assert result.x.dtype == backend.xp.float32


def test_the_low_rank_part_is_taken_in_exactly(rng):
    """With all rows, the whitened H~ of diagonal plus low rank is the identity."""
    from xpreg.scaling import whiten
    from xpreg.solvers.whitening import with_low_rank

    for d in (1, 3):
        A, b = rng.standard_normal((50, d)) * 0.3, rng.dirichlet(np.ones(50))
        problem = xpreg.ResNetSoftmaxRegression(A - A.mean(0), b)
        point = problem.point(rng.standard_normal((1, d)))
        curvature = point.gauss_newton()
        T, _ = whiten(problem.rows.gram(curvature.D), problem.rows.column_squares)
        T, positive = with_low_rank(T, point.hessian(curvature))
        H = point.hessian(curvature).dense()
        np.testing.assert_allclose(T.mT @ H @ T, np.eye(d)[None], atol=1e-9)
        assert positive.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "novel"}, "reading is 'novel'"),
        ({"rows_per_column": 0}, "rows_per_column is 0"),
        ({"rows_per_column": float("inf")}, "rows_per_column is inf"),
        ({"reading": "papers", "eps": 1.5}, "eps is 1.5, but a number between 0 and 1"),
        ({"reading": "papers", "delta": 0}, "delta is 0"),
        ({"reading": "papers", "diagonal": "all"}, "diagonal is 'all'"),
        ({"reading": "papers", "scores": "none"}, "scores is 'none'"),
        ({"seed": -1}, "seed is -1"),
        ({"reading": "papers", "diagonal": "regulariser"}, "weights has a zero entry"),
        ({"eps": 0.5}, "eps is 0.5, but that is an option of reading='papers'"),
        ({"diagonal": "regulariser"}, "an option of reading='papers'"),
        ({"reading": "papers", "rows_per_column": 10}, "an option of reading='preconditioner'"),
        ({"reading": "papers", "max_products": 10}, "an option of reading='preconditioner'"),
    ],
)
def test_bad_options_are_named(options, message):
    problem = xpreg.SoftmaxRegression(np.eye(3), np.ones(3) / 3)
    with pytest.raises(xpreg.InvalidArgumentError, match=message):
        xpreg.minimize(problem, method="approximate-newton", **options)
