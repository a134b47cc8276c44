"""method="auto" and the preconditioned Newton-CG behind it: what is chosen and why; the answer is the same."""

import numpy as np
import pytest
from support.problems import data, realisable

import xpreg
from xpreg.maps import DenseRows
from xpreg.regressions import LOSSES
from xpreg.solvers import auto
from xpreg.solvers.newton_cg import conjugate_gradients, ritz_condition


@pytest.fixture
def any_size_adapts(monkeypatch):
    monkeypatch.setattr(auto, "NARROW", 0)
    monkeypatch.setattr(auto, "SMALL", 0)


def softmax(rng, n=3000, d=40, condition=1.0, noise=0.1):
    A = rng.standard_normal((n, d))
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    A = (A * np.logspace(0, -np.log10(condition), d)) @ Q.T
    x = rng.standard_normal(d)
    z = A @ x
    f = np.exp(z / z.std() + noise * rng.standard_normal(n))
    return xpreg.SoftmaxRegression(A, f / f.sum())


def chosen(result):
    """The names of the methods, in the order in which they took over."""
    return [part.split(" (")[0] for part in result.message.split("chosen: ")[1].split("), then ")]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda rng: softmax(rng, n=200, d=5), "small"),
        (lambda rng: xpreg.SoftmaxRegression(rng.standard_normal((50, 4)), np.full((3, 50), 0.02)), "a stack"),
        (
            lambda rng: xpreg.SoftmaxReLURegression(
                rng.standard_normal((9, 4)), rng.standard_normal((20, 9)), np.full(20, 0.05)
            ),
            "two layers",
        ),
    ],
)
def test_small_problems_stacks_and_two_layers_get_exact_newton(rng, make, reason):
    result = xpreg.minimize(make(rng))
    assert f"chosen: newton ({reason}" in result.message


def test_too_little_memory_for_matrices_leaves_products(rng, monkeypatch):
    monkeypatch.setattr("xpreg.backend.free_memory", lambda like: 1000)
    result = xpreg.minimize(softmax(rng))
    assert result.success
    assert chosen(result) == ["newton-cg"]
    assert "6 (40, 40) arrays do not fit in" in result.message


def test_a_well_conditioned_problem_never_forms_a_hessian(rng, any_size_adapts):
    result = xpreg.minimize(softmax(rng))
    assert result.success
    assert chosen(result) == ["newton-cg"]


def test_an_ill_conditioned_problem_gets_a_preconditioner_after_one_step_and_says_why(rng, any_size_adapts):
    problem = softmax(rng, condition=1e3)
    result = xpreg.minimize(problem)
    assert result.success
    assert chosen(result) == ["newton-cg", "newton-pcg"]
    assert "condition number" in result.message
    assert any("newton-pcg (the scaled Hessian has a condition number" in r.direction for r in result.history)
    products = xpreg.minimize(problem, method="newton-cg").nhev
    assert result.nhev < products / 4


def test_many_wide_rows_are_sampled(rng, any_size_adapts, monkeypatch):
    monkeypatch.setattr(auto, "MANY_ROWS", 50)
    monkeypatch.setattr(auto, "WIDE", 20)
    result = xpreg.minimize(softmax(rng, condition=1e3))
    assert result.success
    assert chosen(result) == ["newton-cg", "approximate-newton"]
    assert "75 rows per column" in result.message


def test_a_hessian_that_stays_indefinite_brings_exact_steps(rng, any_size_adapts):
    problem = softmax(rng, n=3000, d=40, condition=30)
    p = rng.standard_normal(40)
    result = xpreg.minimize(problem, 40 * p / np.abs(problem.rows.A @ p).max())
    assert result.success
    assert "newton (the Hessian stays indefinite)" in result.message


@pytest.mark.parametrize("method", ["auto", "newton-pcg"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_solved_on_every_backend(backend, rng, any_size_adapts, loss, method):
    A, _, x = data(loss, rng, n=120, d=6)
    make = LOSSES[loss]
    b = realisable(loss, make, A, 0.5 * x)
    b = b + (1e-3 * np.abs(b).mean() * rng.random(b.shape) if "softmax" not in loss else 0.0)
    problem = make(backend.array(A), backend.array(b))
    start = backend.array(0.45 * x)
    result = xpreg.minimize(problem, start, method=method, tol=1e-9)
    exact = xpreg.minimize(problem, start, method="newton", tol=1e-11)
    assert result.success
    assert exact.success
    np.testing.assert_allclose(backend.numpy(result.x), backend.numpy(exact.x), rtol=0, atol=1e-6)


def test_the_same_run_takes_the_same_steps(rng, any_size_adapts):
    problem = softmax(rng, condition=1e2)
    first, second = (xpreg.minimize(problem) for _ in range(2))
    np.testing.assert_array_equal(first.x, second.x)
    assert [r.direction for r in first.history] == [r.direction for r in second.history]


def test_a_preconditioner_is_kept_while_it_is_good(rng):
    result = xpreg.minimize(softmax(rng, condition=1e3), method="newton-pcg")
    made = [record for record in result.history if "new preconditioner" in record.direction]
    assert result.success
    assert 1 <= len(made) < result.nit / 2


def test_a_stack_is_solved_with_one_preconditioner_each(rng):
    A, _, x = data("softmax", rng, n=60, k=4)
    problem = xpreg.SoftmaxRegression(A, realisable("softmax", xpreg.SoftmaxRegression, A, x))
    result = xpreg.minimize(problem, method="newton-pcg", tol=1e-10)
    assert result.success
    np.testing.assert_allclose(result.x, x, atol=1e-6)


def test_ritz_values_bound_the_condition_number_from_below_and_come_close(backend, rng):
    d = 30
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    H = backend.array((Q * np.linspace(1.0, 20.0, d)) @ Q.T)
    g, forcing = backend.array(rng.standard_normal((1, d))), backend.array([1e-12])
    seen = []
    for limit in (2, 4, 12):
        trace = []
        conjugate_gradients(lambda v: (v @ H, None), g, forcing, limit, trace)
        seen.append(ritz_condition(trace))
    assert 1.0 < seen[0] < seen[1] < seen[2] <= 20.0 * (1 + 1e-9)
    assert seen[2] > 18.0
    assert ritz_condition([]) == 1.0


@pytest.mark.parametrize("condition", [1.0, 1e2])
def test_a_preconditioner_in_float32_gives_float64_answers_in_about_as_many_products(rng, condition):
    problem = softmax(rng, n=4000, d=60, condition=condition)
    single, double = (
        xpreg.minimize(problem, method="newton-pcg", precision=precision, tol=1e-11)
        for precision in ("single", "double")
    )
    assert single.success
    assert double.success
    assert np.abs(single.grad).max() <= 1e-11 * single.history[0].grad_norm
    assert single.nhev <= 1.5 * double.nhev


def test_a_float32_preconditioner_that_is_no_good_gives_way_to_float64(rng):
    result = xpreg.minimize(softmax(rng, n=4000, d=60, condition=1e6), method="newton-pcg", precision="single")
    assert result.success
    made = [r.direction for r in result.history if ", new " in r.direction]
    assert "float32" in made[0]
    assert "float32" not in made[-1]


def test_a_rough_gram_matrix_is_that_of_float32(backend, rng):
    A, D, centre = rng.standard_normal((500, 60)) + 5, rng.random((1, 500)) * 1e-13, np.full((1, 500), 1 / 500)
    rows = DenseRows(backend.array(A))
    rough = backend.numpy(rows.rough_gram(backend.array(D), backend.array(centre)))
    exact = backend.numpy(rows.gram(backend.array(D), backend.array(centre)))
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert rough.dtype == np.float64
    assert 1e-9 < error < 1e-6 if backend.name == "numpy" else error == 0


def test_large_wide_problems_take_it(rng, any_size_adapts, monkeypatch):
    monkeypatch.setattr(auto, "SINGLE", 30)
    result = xpreg.minimize(softmax(rng, condition=1e2))
    assert result.success
    assert "preconditioner in float32" in result.message
