"""No false success, no endless loop, no NaN: problems that once made a solver claim too much, or too little."""

import numpy as np
import pytest
from support import reference

import xpreg

SECOND_ORDER = ("newton", "newton-cg")


@pytest.mark.parametrize("method", ["newton", "newton-cg", "gradient-descent"])
def test_curvature_that_overflows_is_no_false_success(backend, method):
    """The loss and its gradient are finite at the start, the Hessian is not, or hardly."""
    cases = [
        (xpreg.ExpRegression, [[10.0], [-10.0], [5.0]], [1.0, 2.0, 3.0], [35.35], "float64"),
        (xpreg.ExpRegression, [[1.0], [2.0]], [1.0, 1.0], [20.0], "float32"),
        (xpreg.SoftmaxRegression, [[1e20], [-1e20], [3e19]], [0.2, 0.3, 0.5], [0.0], "float32"),
    ]
    for kind, A, b, x, dtype in cases:
        problem = kind(backend.array(A, dtype), backend.array(b, dtype))
        result = xpreg.minimize(problem, backend.array(x, dtype), method=method)
        assert np.isfinite(backend.numpy(result.x)).all()
        assert not result.success or result.fun < 1e-10, result.message


@pytest.mark.parametrize(
    ("A", "b", "x"),
    [
        ([[1e3], [-1e3]], [1.0, 1.0], [0.3545]),  # the gradient overflows
        ([[1.0], [2.0]], [1e200, 1.0], None),  # the loss overflows at x = 0
        ([[1e10], [-1e10]], [1.0, 1.0], [[350e-10]] * 6),
    ],
)
def test_a_start_that_is_not_finite_is_an_error(backend, A, b, x):
    problem = xpreg.ExpRegression(backend.array(A), backend.array(b))
    with pytest.raises(xpreg.DomainError, match="overflows"):
        xpreg.minimize(problem, None if x is None else backend.array(x))


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_a_gradient_that_is_zero_up_to_rounding_at_a_maximum_is_left(backend, method):
    A = np.array([[1.0], [-1.0], [0.1], [0.7], [-0.7], [-0.1]])  # symmetric: x = 0 is a maximum
    b = np.full(6, 3.0)
    result = xpreg.minimize(xpreg.ExpRegression(backend.array(A), backend.array(b)), method=method)
    assert result.success, result.message
    assert result.fun < 11.11
    assert reference.hess("exp", A, b, backend.numpy(result.x))[0, 0] > 0


@pytest.mark.parametrize("method", SECOND_ORDER)
@pytest.mark.parametrize("loss", ["exp", "softmax", "cosh"])
def test_success_is_a_minimum_on_symmetric_data(backend, loss, method):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        half = rng.standard_normal((4, 2))
        A, b = np.concatenate([half, -half]), np.full(8, 0.125 if loss == "softmax" else 3.0)
        b = b + 0.01 * rng.standard_normal(8) * (loss == "softmax")
        problem = xpreg.regressions.LOSSES[loss](backend.array(A), backend.array(b))
        result = xpreg.minimize(problem, method=method, maxiter=300)
        assert result.success, result.message
        H = reference.hess(loss, A, b, backend.numpy(result.x))
        assert np.linalg.eigvalsh(H)[0] > -1e-8 * np.linalg.norm(H)


@pytest.mark.parametrize("start", [0.0, 5.0, 20.0])
def test_a_huge_first_gradient_does_not_make_a_small_one(backend, start):
    """tol is relative to the gradient at the start; far out that alone would accept anything."""
    A = np.random.default_rng(0).standard_normal((50, 3))
    b = np.exp(A @ np.ones(3)) + np.random.default_rng(1).standard_normal(50)
    problem = xpreg.ExpRegression(backend.array(A), backend.array(b))
    result = xpreg.minimize(problem, backend.array(np.full(3, start)), maxiter=300)
    assert result.success, result.message
    assert result.fun == pytest.approx(18.333528558718797, rel=1e-8)


@pytest.mark.parametrize("gap", [60.0, 100.0, 400.0, 800.0])
def test_a_saturated_softmax_is_not_a_solution(backend, gap):
    problem = xpreg.SoftmaxRegression(backend.array(np.eye(3)[:, :2]), backend.array([0.2, 0.3, 0.5]))
    result = xpreg.minimize(problem, backend.array([gap, -gap]))
    assert not result.success
    assert result.status in (xpreg.Status.STALLED, xpreg.Status.FLAT)
    assert result.nit < 10


@pytest.mark.parametrize("loss", ["squared", "kl"])
def test_a_vertex_is_reached_up_to_the_tolerance(backend, rng, loss):
    """The solution lies at infinity: the gradient falls for ever, and the loss with it."""
    A, b = rng.standard_normal((30, 4)), np.zeros(30)
    A[3] *= 4
    b[3] = 1.0
    result = xpreg.minimize(xpreg.SoftmaxRegression(backend.array(A), backend.array(b), loss=loss))
    assert result.success, result.message
    assert result.fun < 1e-7
    assert result.nit < 40


def test_rounding_of_the_loss_does_not_stall_a_solution(backend):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        A, b = rng.integers(-9, 10, (2, 2)) * 1e-3, rng.dirichlet(np.ones(2))
        for weights in (0.0, 1.0):
            problem = xpreg.SoftmaxRegression(backend.array(A), backend.array(b), weights=weights)
            result = xpreg.minimize(problem)
            assert result.success, (seed, result.message)


def test_cosh_does_not_crawl_near_zero(backend):
    A, b = np.array([[-3.0, -1.0], [2.0, -1.0]]), np.array([3.0, -1.0])
    problem = xpreg.CoshRegression(backend.array(A), backend.array(b))
    for start in (None, backend.array([0.01, 0.01])):
        result = xpreg.minimize(problem, start)
        assert result.success, result.message
        assert result.fun == pytest.approx(2.0)
        assert result.nit < 20


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_a_solution_as_the_start_is_a_solution(backend, rng, method):
    A = rng.standard_normal((30, 3))
    x = rng.standard_normal(3)
    b = np.asarray(xpreg.SoftmaxRegression(A, np.full(30, 1 / 30)).predict(x))
    result = xpreg.minimize(
        xpreg.SoftmaxRegression(backend.array(A), backend.array(b)), backend.array(x), method=method
    )
    assert result.success, result.message
    assert result.nit <= 3
