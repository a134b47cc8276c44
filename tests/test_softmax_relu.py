"""Softmax-ReLU regression: derivatives, kinks, and solvers that end on them for the right reason."""

import numpy as np
import pytest
import scipy.optimize
from support.reference import complex_step
from support.relu import (
    assert_no_lower_point_nearby,
    build,
    clarke_distance,
    data,
    ref_grad,
    ref_hess,
    ref_value,
    units,
)

import xpreg
from xpreg.kinks import least_in_box
from xpreg.maps import two_layer
from xpreg.regressions import TWO_LAYER_LOSSES
from xpreg.solvers import METHODS

SOLVERS = [name for name in METHODS if name != "auto"]
SECOND_ORDER = ["newton", "newton-cg"]


def relative(got, want):
    return np.max(np.abs(got - want)) / np.max(np.abs(want))


# -- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", TWO_LAYER_LOSSES)
@pytest.mark.parametrize("weights", ["none", "scalar", "vector"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("n", "d", "m"), [(12, 4, 15), (5, 9, 3), (1, 1, 2), (600, 3, 40), (4, 3, 700)])
def test_derivatives_equal_an_independent_reference(backend, rng, loss, weights, smoothing, n, d, m):
    A1, A2, b, x = data(rng, n, d, m)
    if n == 1:
        x = np.abs(x) * np.sign(A1[0])
    v = rng.standard_normal(d)
    w = {"none": 0.0, "scalar": 0.3, "vector": rng.random(n)}[weights]
    given = w if isinstance(w, float) else backend.array(w)
    problem = build(backend, A1, A2, b, loss, weights=given, smoothing=smoothing)
    assert (problem.n, problem.d, problem.m) == (n, d, m)
    at = problem.at(backend.array(x))
    H = ref_hess(loss, A1, A2, b, x, w, smoothing)
    assert relative(backend.numpy(at.value), ref_value(loss, A1, A2, b, x, w, smoothing)) < 1e-10
    assert relative(backend.numpy(at.grad), ref_grad(loss, A1, A2, b, x, w, smoothing)) < 1e-10
    assert relative(backend.numpy(at.hess()), H) < 1e-10
    assert relative(backend.numpy(at.hvp(backend.array(v))), H @ v) < 1e-10
    u = np.exp(A2 @ units(A1 @ x, smoothing))
    np.testing.assert_allclose(backend.numpy(at.predict()), u / u.sum(), rtol=1e-12)


@pytest.mark.parametrize("loss", TWO_LAYER_LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_reference_gradient_is_the_derivative_of_the_reference_value(rng, loss, smoothing):
    A1, A2, b, x = data(rng)
    want = complex_step(lambda v: ref_value(loss, A1, A2, b, v, 0.3, smoothing), x)
    assert relative(ref_grad(loss, A1, A2, b, x, 0.3, smoothing), want) < 1e-12


def test_the_gradient_jumps_across_a_face_by_the_formula(backend, rng):
    A1, A2, b, x = data(rng)
    problem = build(backend, A1, A2, b, weights=0.2)
    for i in range(A1.shape[0]):
        on_face = x - A1[i] * (A1[i] @ x) / (A1[i] @ A1[i])
        step = 1e-9 * A1[i]
        low, high = (backend.numpy(problem.grad(backend.array(on_face + s * step))) for s in (-1, 1))
        f = backend.numpy(problem.predict(backend.array(on_face)))
        g_z = (np.diag(f) - np.outer(f, f)) @ (f - b)
        np.testing.assert_allclose(high - low, A1[i] * (A2.T @ g_z)[i], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("memory", ["ample", "scarce"])
def test_a_stack_equals_its_problems_one_by_one(backend, rng, monkeypatch, smoothing, memory):
    if memory == "scarce":  # two problems and 256 rows at a time
        monkeypatch.setattr(two_layer, "STACK_BYTES", 2 * 300 * 4 * 8)
        monkeypatch.setattr(two_layer, "BLOCK_BYTES", 1)
    A1, A2, b, x = data(rng, m=300, k=6)
    v = rng.standard_normal(x.shape)
    options = {"weights": 0.3, "smoothing": smoothing}
    at = build(backend, A1, A2, b.reshape(2, 3, -1), **options).at(backend.array(x.reshape(2, 3, -1)))
    hv = at.hvp(backend.array(v.reshape(2, 3, -1)))
    assert tuple(at.value.shape) == (2, 3)
    assert tuple(at.hess().shape) == (2, 3, 4, 4)
    for i in range(6):
        one = build(backend, A1, A2, b[i], **options).at(backend.array(x[i]))
        j = (*divmod(i, 3), ...)
        for got, want in (
            (at.value[j], one.value),
            (at.grad[j], one.grad),
            (at.hess()[j], one.hess()),
            (hv[j], one.hvp(backend.array(v[i]))),
            (at.predict()[j], one.predict()),
        ):
            assert relative(backend.numpy(got), backend.numpy(want)) < 1e-12


def test_the_tangent_map_is_the_dense_product_of_each_problem(backend, rng):
    A1, A2, b, x = data(rng, k=3)
    rows = build(backend, A1, A2, b).at(backend.array(x)).rows
    for i in range(3):
        N = A2 @ np.diag(1.0 * (A1 @ x[i] > 0)) @ A1
        np.testing.assert_allclose(backend.numpy(rows.apply(backend.array(x)))[i], N @ x[i], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(backend.numpy(rows.column_norms)[i], np.linalg.norm(N, axis=0), rtol=1e-12)
        np.testing.assert_allclose(backend.numpy(rows.largest_row_norm)[i], np.linalg.norm(N, axis=1).max(), rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_float32_stays_float32(backend, rng, smoothing):
    A1, A2, b, x = data(rng)
    at = build(backend, A1, A2, b, dtype="float32", smoothing=smoothing).at(backend.array(x, "float32"))
    for got in (at.value, at.grad, at.hess(), at.hvp(backend.array(x, "float32")), at.predict()):
        assert got.dtype == backend.xp.float32
    assert relative(backend.numpy(at.hess()), ref_hess("softmax-relu", A1, A2, b, x, 0.0, smoothing)) < 1e-4


def test_smoothing_is_within_s_log_2_and_does_not_overflow(backend, rng):
    A1, A2, b, x = data(rng)
    y = backend.array((A1 @ x)[None])
    sharp = build(backend, A1, A2, b).rows.units(y)
    for s in (1.0, 1e-2, 1e-4):
        smooth = build(backend, A1, A2, b, smoothing=s).rows.units(y)
        assert np.abs(backend.numpy(smooth) - backend.numpy(sharp)).max() <= s * np.log(2) * (1 + 1e-12)
    at = build(backend, A1, A2, b, smoothing=1e-4).at(backend.array(1e3 * x))
    assert all(np.isfinite(backend.numpy(a)).all() for a in (at.value, at.grad, at.hess()))


# -- the box-constrained problem behind kinks -----------------------------------------------------


@pytest.mark.parametrize(("J", "rank"), [(1, 1), (6, 10), (12, 4), (40, 15)])
@pytest.mark.parametrize("linear", [False, True])
def test_least_in_box_satisfies_the_conditions_of_a_minimum(backend, rng, J, rank, linear):
    """Compared with SciPy where that has the problem, and with the optimality conditions everywhere."""
    V, g = rng.standard_normal((5, J, rank)) * 10.0 ** rng.uniform(-3, 1, (5, J, 1)), rng.standard_normal((5, rank))
    Q, w = V @ np.swapaxes(V, 1, 2), (V @ g[..., None])[..., 0]
    if linear:
        w = w + 0.1 * rng.standard_normal(w.shape) * np.linalg.norm(V, axis=-1)
    lo = -1.0 * (rng.random((5, J)) < 0.5)
    mu = backend.numpy(least_in_box(backend.array(Q), backend.array(w), backend.array(lo)))
    assert ((mu >= lo) & (mu <= lo + 1)).all()
    gradient = w + (Q @ mu[..., None])[..., 0]
    noise = 1e-13 * (np.abs(w) + (np.abs(Q) @ np.abs(mu)[..., None])[..., 0])
    assert (gradient[mu > lo] <= noise[mu > lo]).all()
    assert (gradient[mu < lo + 1] >= -noise[mu < lo + 1]).all()
    if not linear:
        for i in range(5):
            other = scipy.optimize.lsq_linear(V[i].T, -g[i], (lo[i], lo[i] + 1), tol=1e-14)
            ours = 0.5 * np.sum((g[i] + V[i].T @ mu[i]) ** 2)
            assert ours <= other.cost * (1 + 1e-9) + 1e-14


# -- solvers --------------------------------------------------------------------------------------


def test_100_realisable_problems_never_end_at_a_false_solution(backend, rng, record_property):
    """b = f at a hidden x: most runs reach zero loss; the others end where no step goes down, or say they failed."""
    zero = success = 0
    problems = 10 if backend.name in ("strict", "fakegpu") else 100  # those are slow
    for _ in range(problems):
        A1, A2, b, hidden = data(rng, n=20, d=4, m=30)
        b = np.asarray(xpreg.SoftmaxReLURegression(A1, A2, b).predict(hidden))
        result = xpreg.minimize(build(backend, A1, A2, b))
        x = backend.numpy(result.x)
        zero += result.fun < 1e-14
        success += result.success
        if not result.success:
            continue
        assert clarke_distance(A1, A2, b, x, 0.0) <= 1.01e-8 * result.history[0].grad_norm
        assert_no_lower_point_nearby("softmax-relu", A1, A2, b, result, x, 0.0, rng)
    record_property("share that reaches zero loss", zero / problems)
    assert success >= 0.98 * problems
    assert zero >= 0.8 * problems


@pytest.mark.parametrize("method", SECOND_ORDER)
@pytest.mark.parametrize("loss", TWO_LAYER_LOSSES)
@pytest.mark.parametrize("weights", [0.0, 0.1])
def test_minimisers_on_kinks_are_found_and_known_as_such(backend, rng, method, loss, weights):
    """b at random: many minimisers lie on kinks. SciPy's solver and random steps confirm them."""
    kinks = 0
    for _ in range(10):
        A1, A2, b, _ = data(rng, n=20, d=4, m=30)
        result = xpreg.minimize(build(backend, A1, A2, b, loss, weights=weights), method=method)
        assert result.success, result.message
        x = backend.numpy(result.x)
        activation = backend.numpy(result.activation)
        kinks += (activation == 0).any()
        y = A1 @ x
        assert (np.sign(y)[activation != 0] == activation[activation != 0]).all()
        assert (np.abs(y)[activation == 0] < 1e-13).all()
        assert np.abs(backend.numpy(result.grad)).max() <= 1e-8 * result.history[0].grad_norm
        if loss == "softmax-relu":
            assert clarke_distance(A1, A2, b, x, weights) <= 1.01e-8 * result.history[0].grad_norm
        assert_no_lower_point_nearby(loss, A1, A2, b, result, x, weights, rng)
    assert kinks >= 3


def kink_in_the_middle():
    """Units e1 and -e1 both make the fit worse: the minimiser has x1 = 0, on two faces that are one."""
    A1 = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    A2 = np.array([[1.0, 0.0, 0.2], [0.0, 1.0, 0.0], [0.3, 0.0, 1.0], [-1.0, 0.5, -1.0]])
    u = np.exp(A2 @ np.array([-0.5, 1.0, -0.5]))
    b = u / u.sum()
    x2 = scipy.optimize.minimize_scalar(
        lambda t: ref_value("softmax-relu", A1, A2, b, np.array([0.0, t])), bracket=(0.5, 1.0, 2.0), tol=1e-12
    ).x
    return A1, A2, b, np.array([0.0, x2])


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("start", [None, (0.7, 0.4), (-1.5, 2.0), (0.0, 0.3)])
def test_a_constructed_minimiser_on_a_convex_kink_is_a_success(backend, method, start):
    A1, A2, b, x = kink_in_the_middle()
    start = None if start is None else backend.array(start)
    result = xpreg.minimize(build(backend, A1, A2, b), start, method=method, maxiter=500)
    assert result.status == xpreg.Status.CONVERGED, result.message
    np.testing.assert_allclose(backend.numpy(result.x), x, atol=1e-7)
    assert backend.numpy(result.activation).tolist() == [0, 1, 0]
    assert np.abs(backend.numpy(result.grad)).max() <= 1e-8 * result.history[0].grad_norm
    if method == "newton":
        assert result.nit <= 12


def test_float32_ends_on_the_kink_too(backend):
    A1, A2, b, x = kink_in_the_middle()
    result = xpreg.minimize(build(backend, A1, A2, b, dtype="float32"), tol=1e-12)
    assert result.success, result.message
    assert result.x.dtype == backend.xp.float32
    np.testing.assert_allclose(backend.numpy(result.x), x, atol=1e-3)
    assert backend.numpy(result.activation).tolist() == [0, 1, 0]


def test_a_stack_of_problems_on_and_off_kinks_is_solved_as_one_by_one(backend, rng):
    A1, A2, b, hidden = data(rng, n=20, d=4, m=30, k=8)
    b[::2] = [np.asarray(xpreg.SoftmaxReLURegression(A1, A2, b[0]).predict(h)) for h in hidden[::2]]
    result = xpreg.minimize(build(backend, A1, A2, b.reshape(2, 4, -1), weights=0.02))
    assert result.success, result.message
    assert tuple(result.activation.shape) == (2, 4, 20)
    for i in range(8):
        one = xpreg.minimize(build(backend, A1, A2, b[i], weights=0.02))
        j = (*divmod(i, 4), ...)
        np.testing.assert_allclose(backend.numpy(one.x), backend.numpy(result.x[j]), atol=1e-6)
        np.testing.assert_array_equal(backend.numpy(one.activation), backend.numpy(result.activation[j]))


def test_n_smaller_than_d_is_no_obstacle(backend, rng):
    for _ in range(5):
        A1, A2, b, hidden = data(rng, n=5, d=9, m=12)
        b = np.asarray(xpreg.SoftmaxReLURegression(A1, A2, b).predict(hidden))
        result = xpreg.minimize(build(backend, A1, A2, b))
        assert result.success, result.message


def test_the_default_start_is_better_than_zero_and_deterministic(backend, rng):
    A1, A2, b, _ = data(rng, k=10)
    problem = build(backend, A1, A2, b)
    start = backend.numpy(problem.default_start())
    np.testing.assert_array_equal(start, backend.numpy(problem.default_start()))
    at_zero = backend.numpy(problem.value(backend.array(0 * start)))
    assert (backend.numpy(problem.value(backend.array(start))) < at_zero).all()


def test_zero_is_left_when_a_unit_lowers_the_loss(backend, rng):
    """At x = 0 the gradient of the cell without active units is zero, but that is no reason to stop there."""
    for method in SECOND_ORDER:
        for _ in range(5):
            A1, A2, b, hidden = data(rng, n=20, d=4, m=30)
            b = np.asarray(xpreg.SoftmaxReLURegression(A1, A2, b).predict(hidden))
            problem = build(backend, A1, A2, b)
            result = xpreg.minimize(problem, backend.array(np.zeros(4)), method=method)
            assert result.fun < 0.9 * float(problem.value(backend.array(np.zeros(4))))


def test_a_minimiser_at_zero_is_recognised(backend, rng):
    """Every unit raises the loss: x = 0 is the minimiser, on all faces at once."""
    A1 = np.concatenate([np.eye(3), -np.eye(3)])
    A2 = np.concatenate([np.eye(6), -np.ones((1, 6))])
    b = np.zeros(7)
    b[6] = 1.0
    for start in (None, backend.array(np.zeros(3)), backend.array([0.5, -0.3, 0.2])):
        result = xpreg.minimize(build(backend, A1, A2, b, weights=0.1), start)
        assert result.success, result.message
        np.testing.assert_allclose(backend.numpy(result.x), 0, atol=1e-8)


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_a_smoothed_problem_has_no_kinks_and_tends_to_the_sharp_one(backend, method):
    A1, A2, b, x = kink_in_the_middle()
    distance = []
    for s in (0.3, 0.03, 0.003):
        result = xpreg.minimize(build(backend, A1, A2, b, smoothing=s), backend.array([0.3, 0.8]), method=method)
        assert result.success, result.message
        got = backend.numpy(result.x)
        grad = ref_grad("softmax-relu", A1, A2, b, got, 0.0, s)
        assert np.abs(grad).max() <= 1.1e-8 * result.history[0].grad_norm
        distance.append(np.abs(got - x).max())
    assert distance[2] < distance[1] < distance[0]
    assert distance[2] < 0.02


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A1": np.ones(3)}, r"A1 has shape \(3,\), but a matrix"),
        ({"A2": np.ones((5, 4))}, r"A2 has shape \(5, 4\), but A1 has 3 rows: A2 must have as many columns"),
        ({"A2": np.full((5, 3), np.nan)}, "A2 has 15 entries that are NaN"),
        ({"b": np.ones(3)}, r"b has shape \(3,\), but A2 has 5 rows"),
        ({"weights": np.ones(5)}, r"weights has shape \(5,\), .* of shape \(3,\)"),
    ],
)
def test_bad_arrays_are_named(backend, changes, message):
    arrays = {"A1": np.ones((3, 2)), "A2": np.ones((5, 3)), "b": np.ones(5) / 5, **changes}
    with pytest.raises(ValueError, match=message):
        xpreg.SoftmaxReLURegression(**{name: backend.array(a) for name, a in arrays.items()})


def test_bad_options_and_x_are_named(backend):
    A1, A2, b = np.ones((3, 2)), np.ones((5, 3)), np.ones(5) / 5
    with pytest.raises(ValueError, match="loss is 'hinge', but 'squared' or 'kl'"):
        xpreg.SoftmaxReLURegression(backend.array(A1), backend.array(A2), backend.array(b), loss="hinge")
    for smoothing in (-1.0, float("nan"), float("inf"), "much"):
        with pytest.raises(ValueError, match=f"smoothing is {smoothing!r}"):
            build(backend, A1, A2, b, smoothing=smoothing)
    with pytest.raises(ValueError, match=r"x has shape \(3,\), but A1 has 2 columns"):
        build(backend, A1, A2, b).value(backend.array(np.ones(3)))
    with pytest.raises(ValueError, match="divide b by its sum"):
        build(backend, A1, A2, 2 * b, "softmax-relu-kl")
    with pytest.raises(ValueError, match=r"A2 has dtype .*float32, but A1 has .*float64"):
        xpreg.SoftmaxReLURegression(backend.array(A1), backend.array(A2, "float32"), backend.array(b))
