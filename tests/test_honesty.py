"""No false success, no endless loop, no NaN: problems that once made a solver claim too much, or too little."""

import numpy as np
import pytest
from support import reference

import xpreg
from xpreg.solvers import METHODS

SECOND_ORDER = ("newton", "newton-cg")


@pytest.mark.parametrize("method", METHODS)
def test_curvature_that_overflows_is_no_false_success(backend, method):
    """The loss and its gradient are finite at the start, the Hessian is not, or hardly."""
    cases = [
        (xpreg.ExpRegression, [[10.0], [-10.0], [5.0]], [1.0, 2.0, 3.0], [35.35], "float64"),
        (xpreg.ExpRegression, [[1.0], [2.0]], [1.0, 1.0], [20.0], "float32"),
        (xpreg.ExpRegression, [[20.0], [15.0]], [1.0, 1.0], [353 / 20], "float64"),
        (xpreg.ExpRegression, [[5.0], [4.0]], [1.0, 1.0], [8.6], "float32"),
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


@pytest.mark.parametrize("k", [1, 3, 4, 8])
def test_a_maximum_is_left_alone_or_in_a_stack_of_any_size(backend, k):
    A, b = backend.array([[1.0], [0.5]]), backend.array(np.tile([3.0, 1.5], (k, 1)))
    result = xpreg.minimize(xpreg.CoshRegression(A, b), method="newton")
    assert result.success, result.message
    np.testing.assert_allclose(np.abs(backend.numpy(result.x)), 1.768, atol=1e-3)


def test_the_last_problem_of_a_stack_is_solved_like_the_others(backend, rng):
    """65 problems of 128 columns are factorised in parts, of which the last one is a single matrix."""
    A, x = rng.standard_normal((300, 128)) / 4, rng.standard_normal((65, 128))
    b = np.exp(x @ A.T)
    b /= b.sum(axis=1, keepdims=True)
    result = xpreg.minimize(xpreg.SoftmaxRegression(backend.array(A), backend.array(b)), method="newton", tol=1e-12)
    assert result.success, result.message
    assert np.abs(backend.numpy(result.x) - x).max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_rounding_in_the_kept_product_does_not_end_a_run(backend, rng, method, monkeypatch):
    """A x is kept and updated; should that have gone wrong, a run goes on from a fresh one, whatever its method."""
    A, x = rng.standard_normal((200, 3)), rng.standard_normal(3)
    b = np.exp(A @ x) / np.exp(A @ x).sum()
    problem = xpreg.SoftmaxRegression(backend.array(A), backend.array(b))
    moved = []

    def nudge(self, y):
        if not moved and self.n == 200:
            moved.append(True)
            return y * (1.0 + 1e-7)
        return y

    monkeypatch.setattr(type(problem.rows), "keep", nudge)
    result = xpreg.minimize(problem, method=method, tol=1e-9, maxiter=3000)
    assert moved
    assert result.success, result.message


@pytest.mark.parametrize("offset", [1e2, 1e7])
@pytest.mark.parametrize("far", [1, 2, 4])
def test_hessians_of_a_stack_keep_their_digits_when_the_weights_sit_on_few_far_rows(backend, rng, far, offset):
    A, u = rng.standard_normal((60, 4)), np.full(4, 0.5)
    A[:far] += offset * u
    x = 0.5 * rng.standard_normal((6, 4)) @ (np.eye(4) - np.outer(u, u)) + 30.0 / offset * u
    b = rng.dirichlet(np.ones(60), size=6)
    at = xpreg.SoftmaxRegression(backend.array(A), backend.array(b)).at(backend.array(x))
    solver, exact = backend.numpy(at.hessian().dense()), backend.numpy(at.hess())
    size = np.sqrt(np.abs(np.einsum("kii->ki", exact)))
    assert np.abs(solver - exact).max() > 0  # they do come from different sums
    assert (np.abs(solver - exact) / (size[:, :, None] * size[:, None, :])).max() < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "gradient-descent"])
def test_the_units_of_the_columns_do_not_matter(backend, rng, method, dtype):
    """A column of seconds or bytes beside shares: each is fitted, whatever the ratio of the units."""
    A = np.stack([rng.uniform(0.5, 5.0, 500), rng.random(500), rng.random(500)], axis=1)
    x = np.array([-1.0, 3.0, -2.0])
    b = np.exp(A @ x) / np.exp(A @ x).sum()
    for ratio in (1.0, 2.0**14, 2.0**33):
        units = np.array([ratio, 1.0, 1.0])
        problem = xpreg.SoftmaxRegression(backend.array(A * units, dtype), backend.array(b, dtype))
        result = xpreg.minimize(problem, method=method)
        assert result.success, result.message
        np.testing.assert_allclose(backend.numpy(result.x) * units, x, rtol=1e-2 if dtype == "float32" else 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["exp", "cosh", "sinh"])
def test_success_from_a_far_start_is_a_minimum(rng, loss, method):
    for _ in range(5):
        A, x = rng.standard_normal((26, 2)), np.array([0.3, -0.2])
        b = np.asarray(xpreg.regressions.LOSSES[loss](A, np.ones(26)).predict(x))
        start = rng.uniform(-5, 5, 2)
        problem = xpreg.regressions.LOSSES[loss](A, b)
        result = xpreg.minimize(problem, start, method=method, maxiter=300)
        assert not result.success or result.fun < 1e-3 * problem.value(start) * (loss == "cosh") + 1e-2, result.message


@pytest.mark.parametrize("length", [50.0, 300.0, 1000.0])
def test_a_saturated_resnet_softmax_is_not_a_solution(backend, rng, length):
    A = rng.standard_normal((12, 3))
    A -= A.mean(axis=0)
    problem = xpreg.ResNetSoftmaxRegression(backend.array(A), backend.array(rng.dirichlet(np.ones(12))))
    best = xpreg.minimize(problem).fun
    result = xpreg.minimize(problem, backend.array([length, -length, length]))
    assert not result.success or result.fun < 2 * best, result.message


@pytest.mark.parametrize(("size", "dtype"), [(1e200, "float64"), (1e19, "float32")])
def test_a_start_whose_square_overflows_is_not_a_solution(backend, rng, size, dtype):
    A, b = rng.standard_normal((12, 3)), rng.dirichlet(np.ones(12))
    problem = xpreg.SoftmaxRegression(backend.array(A, dtype), backend.array(b, dtype))
    result = xpreg.minimize(problem, backend.array(np.full(3, size), dtype))
    assert result.status == xpreg.Status.FLAT


@pytest.mark.parametrize(("seed", "loss", "weights"), [(245, "kl", 0.0), (245, "squared", 0.3), (358, "squared", 0.3)])
def test_softmax_relu_leaves_zero_where_it_goes_down_in_few_directions(backend, seed, loss, weights):
    rng = np.random.default_rng(seed)
    n, m, d = int(rng.integers(2, 12)), int(rng.integers(2, 10)), int(rng.integers(1, 6))
    A1, A2, b = rng.standard_normal((n, d)), rng.standard_normal((m, n)), rng.random(m)
    arrays = map(backend.array, (A1, A2, b / b.sum()))
    problem = xpreg.SoftmaxReLURegression(*arrays, loss=loss, weights=weights)
    result = xpreg.minimize(problem)
    assert result.success, result.message
    assert result.fun < float(problem.value(backend.array(np.zeros(d)))) - 1e-7


def test_a_saturated_resnet_softmax_keeps_the_digits_of_its_gradient(rng):
    A = rng.standard_normal((50, 4))
    A -= A.mean(axis=0)
    b, x = rng.dirichlet(np.ones(50)), np.array([1.0, 1.0, -1.0, 1.0])
    for length in (3.0, 5.0, 7.0):
        exact = xpreg.ResNetSoftmaxRegression(A, b).at(length * x).grad
        single = [v.astype("float32") for v in (A, b, length * x)]
        found = xpreg.ResNetSoftmaxRegression(*single[:2]).at(single[2]).grad
        reference = xpreg.SoftmaxRegression(*single[:2]).at(single[2]).grad
        limit = np.abs(reference - xpreg.SoftmaxRegression(A, b).at(length * x).grad).max() + 1e-6 * np.abs(exact).max()
        assert np.abs(found - exact).max() <= 30 * limit
