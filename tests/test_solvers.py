"""Solvers: what they reach, how they end, and that they say so; every method on every backend."""

import itertools

import numpy as np
import pytest
import scipy.optimize
from support import reference
from support.problems import data

import xpreg
from xpreg.regressions import LOSSES
from xpreg.solvers import METHODS

SOLVERS = [name for name in METHODS if name != "auto"]
SECOND_ORDER = [name for name in SOLVERS if name != "gradient-descent"]


def realisable(loss, backend, rng, n=40, d=4, k=None, dtype="float64", spread=1.0):
    """A problem whose exact fit x is known, with a start near it for the losses that have other minima."""
    A, b, x = data(loss, rng, n, d, k)
    x = spread * x / np.sqrt(d)
    b = np.asarray(LOSSES[loss](A, b).predict(x))
    problem = LOSSES[loss](backend.array(A, dtype), backend.array(b, dtype))
    return problem, x


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", SECOND_ORDER)
def test_second_order_methods_find_an_exact_fit(backend, rng, loss, method):
    problem, x = realisable(loss, backend, rng)
    start = backend.array(x + 0.05 * rng.standard_normal(x.shape))
    result = xpreg.minimize(problem, start, method=method, tol=1e-10)
    assert result.success, result.message
    assert result.status == xpreg.Status.CONVERGED
    if "cosh" not in loss and "sinh-rescaled" not in loss:  # those have symmetric or scaled twins
        np.testing.assert_allclose(backend.numpy(result.x), x, atol=1e-6)
    assert np.abs(backend.numpy(result.grad)).max() <= 1e-10 * result.history[0].grad_norm
    assert result.history[0].nit == 0
    assert result.nit == len(result.history) - 1


@pytest.mark.parametrize("loss", LOSSES)
def test_newton_from_zero_ends_at_a_local_minimum(backend, rng, loss):
    A, b, _ = data(loss, rng, 60, 5)
    problem = LOSSES[loss](backend.array(A), backend.array(b), weights=0.05)
    result = xpreg.minimize(problem)
    assert result.success, result.message
    x = backend.numpy(result.x)
    start = np.abs(reference.grad(loss, A, b, 0 * x, 0.05)).max()
    assert np.abs(reference.grad(loss, A, b, x, 0.05)).max() <= 1.01e-8 * max(start, 1e-3)
    assert np.linalg.eigvalsh(reference.hess(loss, A, b, x, 0.05))[0] > -1e-10
    assert result.fun == pytest.approx(reference.value(loss, A, b, x, 0.05), rel=1e-10)


@pytest.mark.parametrize("loss", ["softmax", "softmax-kl", "exp", "sinh"])
@pytest.mark.parametrize("method", SOLVERS)
def test_methods_agree_with_scipy(backend, rng, loss, method):
    A, b, _ = data(loss, rng, 50, 3)
    problem = LOSSES[loss](backend.array(A), backend.array(b), weights=0.1)
    result = xpreg.minimize(problem, method=method, tol=1e-9, maxiter=1000)
    assert result.success, result.message
    scipy_result = scipy.optimize.minimize(
        lambda x: reference.value(loss, A, b, x, 0.1),
        np.zeros(3),
        jac=lambda x: reference.grad(loss, A, b, x, 0.1),
        hess=lambda x: reference.hess(loss, A, b, x, 0.1),
        method="trust-exact",
        options={"gtol": 1e-12},
    )
    np.testing.assert_allclose(backend.numpy(result.x), scipy_result.x, atol=2e-7)


def test_newton_ends_quadratically(backend, rng):
    """Once close, a step at least squares the relative gradient up to a constant: log|g| doubles."""
    problem, _ = realisable("softmax", backend, rng, n=200, d=6)
    result = xpreg.minimize(problem, tol=1e-13)
    assert result.success, result.message
    g = np.array([record.grad_norm for record in result.history])
    g /= g.max()
    close = [(a, b) for a, b in itertools.pairwise(g) if 1e-6 < a < 3e-2]
    assert len(close) >= 1
    assert all(b < 30 * a * a for a, b in close)
    assert all(r.step == 1.0 and r.direction == "newton" for r in result.history[-2:])


# -- stacks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_a_stack_is_solved_as_its_problems_one_by_one(backend, rng, method):
    problem, x = realisable("softmax", backend, rng, k=12, spread=3.0)
    result = xpreg.minimize(problem, method=method)
    assert result.success, result.message
    assert tuple(result.converged.shape) == tuple(result.status.shape) == tuple(result.fun.shape) == (12,)
    np.testing.assert_allclose(backend.numpy(result.x), x, rtol=1e-5, atol=1e-6)
    A, b = problem.rows.A, problem.b
    for i in (0, 7):
        one = xpreg.minimize(xpreg.SoftmaxRegression(A, b[i, :]), method=method)
        np.testing.assert_allclose(backend.numpy(one.x), backend.numpy(result.x)[i], rtol=1e-5, atol=1e-6)


def test_finished_problems_leave_the_stack(backend, rng):
    problem, _ = realisable("softmax", backend, rng, k=32, spread=6.0)
    active = [record.active for record in xpreg.minimize(problem).history]
    assert active == sorted(active, reverse=True)
    assert active[0] == 32
    assert active[-1] == 0
    assert len(set(active)) > 3


def test_a_stack_keeps_its_shape_and_order_in_parts(backend, rng, monkeypatch):
    problem, x = realisable("softmax", backend, rng, k=12)
    whole = xpreg.minimize(problem)
    monkeypatch.setattr("xpreg.solvers.entry._part_size", lambda problem: 5)
    shaped = xpreg.SoftmaxRegression(problem.rows.A, backend.xp.reshape(problem.b, (3, 4, 40)))
    result = xpreg.minimize(shaped)
    assert tuple(result.x.shape) == (3, 4, 4)
    assert {record.problems for record in result.history} == {(0, 5), (5, 10), (10, 12)}
    np.testing.assert_allclose(backend.numpy(result.x).reshape(12, 4), backend.numpy(whole.x), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(backend.numpy(result.x).reshape(12, 4), x, atol=1e-5)


def test_several_starts_for_one_problem(backend, rng):
    problem, x = realisable("softmax", backend, rng)
    result = xpreg.minimize(problem, backend.array(rng.standard_normal((2, 3, 4)) * 0.3))
    assert tuple(result.x.shape) == (2, 3, 4)
    np.testing.assert_allclose(backend.numpy(result.x), np.broadcast_to(x, (2, 3, 4)), atol=1e-5)


# -- hard cases -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SECOND_ORDER)
@pytest.mark.parametrize("case", ["duplicate column", "constant column", "zero column", "n < d", "bad scale"])
@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax", "exp"])
def test_a_singular_hessian_is_no_obstacle(backend, rng, method, case, loss):
    n, d = (3, 6) if case == "n < d" else (40, 4)
    A, b, x = data(loss, rng, n, d)
    x = x / np.sqrt(d)
    if case == "duplicate column":
        A = np.concatenate([A, A[:, :1]], axis=1)
    elif case == "constant column":
        A = np.concatenate([A, np.ones((n, 1))], axis=1)
    elif case == "zero column":
        A = np.concatenate([A, np.zeros((n, 1))], axis=1)
    elif case == "bad scale":
        A, x = A * 10.0 ** np.arange(-4, 4, 2), x / 10.0 ** np.arange(-4, 4, 2)
    x = np.concatenate([x, np.zeros(A.shape[1] - d)])
    b = np.asarray(LOSSES[loss](A, b).predict(x))
    result = xpreg.minimize(LOSSES[loss](backend.array(A), backend.array(b)), method=method, maxiter=300)
    assert result.success, result.message
    assert result.fun < 1e-12
    assert np.isfinite(backend.numpy(result.x)).all()


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 3), (20, 1), (2, 2)])
def test_the_smallest_problems(backend, rng, method, n, d):
    for loss in ("softmax", "exp"):
        A, b, _ = data(loss, rng, n, d)
        result = xpreg.minimize(LOSSES[loss](backend.array(A), backend.array(np.abs(b))), method=method, maxiter=2000)
        assert np.isfinite(backend.numpy(result.x)).all()
        assert np.isfinite(result.fun)
        if method != "gradient-descent":
            assert result.success, (loss, result.message)


@pytest.mark.parametrize("start", [30.0, -200.0])
def test_a_saturated_start_never_ends_as_a_nan_or_a_false_success(backend, rng, start):
    A, b, x = data("softmax", rng, 40, 4)
    problem = xpreg.SoftmaxRegression(backend.array(A), backend.array(b), weights=1e-3)
    result = xpreg.minimize(problem, backend.array(start * x))
    assert np.isfinite(backend.numpy(result.x)).all()
    assert np.isfinite(result.fun)
    assert result.success, result.message
    assert np.linalg.eigvalsh(reference.hess("softmax", A, b, backend.numpy(result.x), 1e-3))[0] > -1e-9


@pytest.mark.parametrize("method", SECOND_ORDER)
@pytest.mark.parametrize("loss", ["softmax", "softmax-kl", "exp", "resnet-softmax"])
def test_float32_ends_at_the_best_point_of_its_precision(backend, rng, method, loss):
    problem, x = realisable(loss, backend, rng, dtype="float32")
    result = xpreg.minimize(problem, method=method, tol=1e-12)
    assert result.status == xpreg.Status.PRECISION, result.message
    assert result.success
    assert result.x.dtype == backend.xp.float32
    np.testing.assert_allclose(backend.numpy(result.x), x, atol=2e-4)
    assert result.nit < 40


def test_float64_with_zero_tolerance_ends_at_precision(backend, rng):
    problem, x = realisable("softmax", backend, rng)
    result = xpreg.minimize(problem, tol=0.0)
    assert result.status == (xpreg.Status.PRECISION if np.any(backend.numpy(result.grad)) else xpreg.Status.CONVERGED)
    np.testing.assert_allclose(backend.numpy(result.x), x, atol=1e-11)


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_a_zero_gradient_at_a_saddle_is_left(backend, rng, method):
    """cosh has a zero gradient at x = 0, which is a maximum when b > 1."""
    A = rng.standard_normal((30, 3)) * 0.5
    b = np.cosh(A @ np.array([1.0, -0.5, 0.8]))
    result = xpreg.minimize(xpreg.CoshRegression(backend.array(A), backend.array(b)), method=method, tol=1e-10)
    assert result.success, result.message
    assert result.fun < 1e-18
    assert any("negative curvature" in r.direction or "cg" in r.direction for r in result.history)


def test_a_zero_gradient_at_a_minimum_is_a_solution(backend):
    A, b = backend.array([[1.0], [-1.0]]), backend.array([0.5, 0.5])
    for method in SECOND_ORDER:
        result = xpreg.minimize(xpreg.SoftmaxRegression(A, b), method=method)
        assert result.success, result.message
        assert result.fun == 0


def test_a_step_cannot_jump_over_the_pole(backend, rng):
    """alpha = exp(z1) + z1 + ... changes sign along the ray; every accepted point keeps alpha > 0."""
    A = np.array([[1.0, 0.2], [0.8, -0.3], [1.2, 0.1], [0.5, 0.9]])
    for seed in range(20):
        b = np.random.default_rng(seed).dirichlet(np.ones(4))
        problem = xpreg.ResNetSoftmaxRegression(backend.array(A), backend.array(b))
        result = xpreg.minimize(problem, maxiter=50)
        z = A @ backend.numpy(result.x)
        for t in np.linspace(0, 1, 50):  # the domain is not convex, but these short paths from 0 stay inside it
            assert np.sum(np.exp(t * z) + t * z) > 0
        assert np.isfinite(result.fun)


def test_the_path_check_refuses_a_segment_across_the_pole(backend):
    """At both ends alpha > 0, but in between it is not."""
    head = xpreg.ResNetSoftmaxRegression(backend.array(np.eye(2)), backend.array([0.5, 0.5])).head
    b = backend.array([[0.5, 0.5]])
    z0, z1 = backend.array([[-3.0, 1.2]]), backend.array([[1.2, -3.0]])
    start, end = head.at(z0, b), head.at(z1, b)
    for z, sign in (([-3.0, 1.2], 1), ([-0.9, -0.9], -1), ([1.2, -3.0], 1)):
        assert np.sign(np.sum(np.exp(z) + z)) == sign
    assert np.isfinite([backend.numpy(p.value)[0] for p in (start, end)]).all()
    assert not backend.numpy(end.is_reachable_from(start, z1 - z0))[0]
    assert backend.numpy(start.is_reachable_from(start, z0 - z0))[0]


# -- endings --------------------------------------------------------------------------------------


def test_the_iteration_limit_is_an_honest_failure(backend, rng):
    problem, _ = realisable("softmax", backend, rng)
    result = xpreg.minimize(problem, maxiter=1)
    assert not result.success
    assert result.status == xpreg.Status.MAXITER
    assert "maxiter = 1" in result.message
    assert "raise maxiter" in result.message
    assert xpreg.minimize(problem, maxiter=0).nit == 0


def test_a_callback_sees_every_iteration_and_can_stop(backend, rng):
    problem, _ = realisable("softmax", backend, rng)
    records = []

    def callback(record):
        records.append(record)
        if record.nit == 2:
            raise StopIteration

    result = xpreg.minimize(problem, callback=callback)
    assert result.status == xpreg.Status.STOPPED
    assert not result.success
    assert [r.nit for r in records] == [0, 1, 2]
    assert tuple(records) == result.history
    assert records[2].fun < records[0].fun
    assert result.fun == pytest.approx(records[2].fun)


def test_a_stopped_stack_returns_every_problem(backend, rng, monkeypatch):
    monkeypatch.setattr("xpreg.solvers.entry._part_size", lambda problem: 5)
    problem, _ = realisable("softmax", backend, rng, k=12)

    def callback(record):
        raise StopIteration

    result = xpreg.minimize(problem, callback=callback)
    assert tuple(result.x.shape) == (12, 4)
    assert (backend.numpy(result.status) == xpreg.Status.STOPPED).all()
    assert "12 of 12 problems" in result.message


def test_results_live_where_the_input_lived(backend, rng):
    problem, _ = realisable("softmax", backend, rng, k=3)
    result = xpreg.minimize(problem)
    for array in (result.x, result.grad, result.fun, result.status, result.converged):
        backend.assert_native(array)


def test_the_message_has_the_numbers(backend, rng):
    problem, _ = realisable("softmax", backend, rng)
    result = xpreg.minimize(problem, tol=1e-6)
    g = np.abs(backend.numpy(result.grad)).max()
    assert f"largest gradient entry {g:.3g}" in result.message
    assert "tol 1e-06" in result.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "bfgs"}, "method is 'bfgs', but one of 'auto', 'newton'"),
        ({"tol": -1}, "tol is -1"),
        ({"tol": float("nan")}, "tol is nan"),
        ({"maxiter": 2.5}, "maxiter is 2.5"),
        ({"maxiter": True}, "maxiter is True, but an integer >= 0 is needed"),
        ({"tol": True}, "tol is True, but a number >= 0 is needed"),
        ({"certify": "no"}, "certify is 'no', but True or False is needed"),
        ({"resume": 1}, "resume is 1, but True or False is needed"),
        ({"method": ["newton"]}, "method is "),
        ({"callback": 3}, "callback is a int"),
        ({"x0": np.zeros((0, 4))}, r"x0 has shape \(0, 4\)"),
        ({"history_size": 3}, "history_size is no option of method 'auto'"),
        ({"method": "newton-cg", "max_products": 0}, "max_products is 0"),
        ({"x0": np.zeros(7)}, r"x0 has shape \(7,\)"),
        ({"x0": np.full(4, np.nan)}, "x0 has 4 entries"),
    ],
)
def test_bad_arguments_are_named(backend, rng, arguments, message):
    problem, _ = realisable("softmax", backend, rng)
    if "x0" in arguments:
        arguments = {"x0": backend.array(arguments["x0"])}
    with pytest.raises(ValueError, match=message):
        xpreg.minimize(problem, **arguments)


def test_a_start_outside_the_domain_is_an_error(backend):
    problem = xpreg.ResNetSoftmaxRegression(backend.array(np.ones((3, 1))), backend.array(np.ones(3) / 3))
    with pytest.raises(xpreg.DomainError, match="column means"):
        xpreg.minimize(problem, backend.array([-1.0]))
    with pytest.raises(ValueError, match="problem is a dict"):
        xpreg.minimize({})
