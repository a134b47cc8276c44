"""Every loss, on every backend: exact derivatives, stacks, stability, and what bad input gets."""

import concurrent.futures
import pickle

import numpy as np
import pytest
from support import reference
from support.problems import data

import xpreg
from xpreg.regressions import LOSSES

WEIGHTS = {"none": 0.0, "scalar": 0.3, "vector": None}


def build(loss, backend, A, b, weights=0.0, dtype="float64"):
    weights = weights if isinstance(weights, float) else backend.array(weights, dtype)
    return LOSSES[loss](backend.array(A, dtype), backend.array(b, dtype), weights=weights)


def relative(got, want):
    return np.max(np.abs(got - want)) / np.max(np.abs(want))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("n", "d"), [(30, 5), (3, 7), (1, 1), (700, 3)])
def test_derivatives_equal_an_independent_reference(backend, rng, loss, weights, n, d):
    A, b, x = data(loss, rng, n, d)
    x, v = x / np.sqrt(d), rng.standard_normal(d)
    w = rng.random(n) if weights == "vector" else WEIGHTS[weights]
    problem = build(loss, backend, A, b, w)
    value, grad = problem.value_and_grad(backend.array(x))
    H, hv = problem.hess(backend.array(x)), problem.hvp(backend.array(x), backend.array(v))
    want = reference.value(loss, A, b, x, w), reference.grad(loss, A, b, x, w), reference.hess(loss, A, b, x, w)
    if n == 1 and loss in ("softmax", "softmax-kl", "resnet-softmax"):  # f = 1 whatever x is
        np.testing.assert_allclose(backend.numpy(H), want[2], atol=1e-14)
        return
    assert relative(backend.numpy(value), want[0]) < 1e-10
    assert relative(backend.numpy(grad), want[1]) < 1e-10
    assert relative(backend.numpy(H), want[2]) < 1e-10
    assert relative(backend.numpy(hv), want[2] @ v) < 1e-10
    np.testing.assert_array_equal(backend.numpy(problem.value(backend.array(x))), backend.numpy(value))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_reference_gradient_is_the_derivative_of_the_reference_value(rng, loss):
    A, b, x = data(loss, rng)
    want = reference.complex_step(lambda y: reference.value(loss, A, b, y, 0.3), x)
    assert relative(reference.grad(loss, A, b, x, 0.3), want) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", [0.0, 0.3])
def test_a_stack_equals_its_problems_one_by_one(backend, rng, loss, weights):
    A, b, x = data(loss, rng, k=6)
    v = rng.standard_normal(x.shape)
    shape = (2, 3)
    stack = build(loss, backend, A, b.reshape(*shape, -1), weights)
    at = stack.at(backend.array(x.reshape(*shape, -1)))
    hv = at.hvp(backend.array(v.reshape(*shape, -1)))
    assert tuple(at.value.shape) == shape
    assert tuple(at.hess().shape) == (*shape, 5, 5)
    for i in range(6):
        one = build(loss, backend, A, b[i], weights).at(backend.array(x[i]))
        j = (*divmod(i, 3), ...)
        for got, want in (
            (at.value[j], one.value),
            (at.grad[j], one.grad),
            (at.hess()[j], one.hess()),
            (hv[j], one.hvp(backend.array(v[i]))),
            (at.predict()[j], one.predict()),
        ):
            assert relative(backend.numpy(got), backend.numpy(want)) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_one_b_with_a_stack_of_x(backend, rng, loss):
    A, b, x = data(loss, rng)
    problem = build(loss, backend, A, b)
    X = np.stack([x, 0.5 * x, 0 * x])
    got = backend.numpy(problem.grad(backend.array(X)))
    for i in range(3):
        np.testing.assert_allclose(got[i], backend.numpy(problem.grad(backend.array(X[i]))), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_stays_float32(backend, rng, loss):
    A, b, x = data(loss, rng)
    problem = build(loss, backend, A, b, dtype="float32")
    at = problem.at(backend.array(x, "float32"))
    for got in (at.value, at.grad, at.hess(), at.hvp(backend.array(x, "float32")), at.predict()):
        assert got.dtype == backend.xp.float32
    assert relative(backend.numpy(at.hess()), reference.hess(loss, A, b, x)) < 2e-5


@pytest.mark.parametrize("loss", ["softmax", "softmax-kl", "resnet-softmax"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_normalised_losses_are_finite_at_z_of_several_thousand(backend, rng, loss, dtype):
    A, b, x = data(loss, rng)
    problem = build(loss, backend, A, b, 0.1, dtype)
    at = problem.at(backend.array(5000 * x, dtype))
    for got in (at.value, at.grad, at.hess(), at.predict()):
        assert np.isfinite(backend.numpy(got)).all()


def test_a_saturated_softmax_keeps_its_digits(backend):
    """f = (1 - 1e-13, 1e-13): gradient and Hessian are of that size, and still exact to 1e-10."""
    t = -np.log(1e-13)
    A, b = np.array([[1.0, 3.0], [0.0, 1.0]]), np.array([0.3, 0.7])
    x = np.array([t, 0.0])
    f2 = 1 / (1 + np.exp(t))
    f1 = 1 - f2
    slope = f1 * f2 * ((f1 - b[0]) - (f2 - b[1]))  # d/dt of the loss along z1 - z2 = t, by hand
    p = f1 * f2
    second = p * (f2 - f1) * (f1 - b[0] - f2 + b[1]) + 2 * p * p
    difference = A[0] - A[1]
    for stack in (None, 5):
        at = build("softmax", backend, A, b if stack is None else np.tile(b, (stack, 1))).at(backend.array(x))
        grad, H = backend.numpy(at.grad), backend.numpy(at.hess())
        if stack:
            grad, H = grad[2], H[2]
        assert relative(grad, slope * difference) < 1e-10
        assert relative(H, second * np.outer(difference, difference)) < 1e-10


def test_a_large_common_offset_of_the_rows_does_not_cancel(backend, rng):
    A, b, x = data("softmax", rng, k=5)
    want = backend.numpy(build("softmax", backend, A, b).hess(backend.array(x)))
    got = backend.numpy(build("softmax", backend, A + 2.0**20, b).hess(backend.array(x)))
    one = backend.numpy(build("softmax", backend, A + 2.0**20, b[0]).hess(backend.array(x[0])))
    assert relative(got, want) < 1e-7  # A + 2^20 itself keeps about 9 digits of A
    assert relative(one, want[0]) < 1e-7


def test_the_hessian_of_a_stack_keeps_its_digits_when_f_sits_on_far_rows(backend, rng):
    A = rng.standard_normal((12, 3))
    A[:2] += 1e4
    b, x = rng.dirichlet(np.ones(12), 5), np.tile([30 / 1e4, 0, 0], (5, 1))
    stack = backend.numpy(build("softmax", backend, A, b).hess(backend.array(x)))
    for i in range(5):
        one = backend.numpy(build("softmax", backend, A, b[i]).hess(backend.array(x[i])))
        assert relative(stack[i], one) < 1e-12


def test_what_predict_returns_is_the_callers_own(backend, rng):
    A, b, x = data("softmax", rng)
    at = build("softmax", backend, A, b).at(backend.array(x))
    before = backend.numpy(at.hess()).copy()
    f = at.predict()
    f -= 1.0
    np.testing.assert_array_equal(backend.numpy(at.hess()), before)


def test_gauss_newton_is_positive_semidefinite_and_agrees_at_an_exact_fit(backend, rng):
    for loss in LOSSES:
        A, b, x = data(loss, rng)
        at = build(loss, backend, A, b).at(backend.array(x))
        G = backend.numpy(at.hessian(at.gauss_newton()).dense())[0]
        assert np.linalg.eigvalsh(G)[0] > -1e-12 * np.linalg.norm(G)
        if "rescaled" in loss and loss != "exp-rescaled":
            continue  # sinh and cosh: the prediction u/alpha need not be a sensible b
        exact = build(loss, backend, A, backend.numpy(at.predict())).at(backend.array(x))
        H, G = backend.numpy(exact.hess()), backend.numpy(exact.hessian(exact.gauss_newton()).dense())[0]
        assert relative(H, G) < 1e-12


# -- bad input ------------------------------------------------------------------------------------


def test_resnet_softmax_says_where_it_is_not_defined(backend):
    problem = xpreg.ResNetSoftmaxRegression(backend.array(np.ones((3, 1))), backend.array(np.ones(3) / 3))
    for call in (problem.value, problem.grad, problem.hess, problem.predict, problem.at):
        with pytest.raises(xpreg.DomainError, match=r"alpha = sum g\(z\) is not positive.*column means"):
            call(backend.array([-1.0]))


def test_an_overflowing_loss_says_so(backend):
    problem = xpreg.ExpRegression(backend.array(np.ones((3, 1))), backend.array(np.ones(3)))
    with pytest.raises(xpreg.DomainError, match="overflows"):
        problem.grad(backend.array([5000.0]))


@pytest.mark.parametrize(
    ("A", "b", "message"),
    [
        (np.ones((3, 2)), np.ones(4) / 4, r"b has shape \(4,\), but A has 3 rows"),
        (np.ones((3, 2)), np.ones((4, 5)), r"b has shape \(4, 5\), but A has 3 rows"),
        (np.ones((3, 2)), np.ones(()), r"b has shape \(\)"),
        (np.ones((3, 2)), np.ones((0, 3)), r"b has shape \(0, 3\)"),
        (np.ones(3), np.ones(3), r"A has shape \(3,\), but a matrix \(n, d\)"),
        (np.ones((0, 2)), np.ones(0), r"A has shape \(0, 2\)"),
        (np.ones((3, 0)), np.ones(3), r"A has shape \(3, 0\)"),
        (np.array([[1.0], [np.nan]]), np.ones(2), r"A has 1 entries that are NaN or infinite"),
        (np.ones((2, 1)), np.array([np.inf, 0]), r"b has 1 entries that are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("loss", ["softmax", "exp"])
def test_bad_arrays_are_named(backend, loss, A, b, message):
    with pytest.raises(ValueError, match=message):
        build(loss, backend, A, b)


def test_bad_weights_loss_and_x_are_named(backend):
    A, b = backend.array(np.ones((3, 2))), backend.array(np.ones(3) / 3)
    with pytest.raises(ValueError, match=r"weights has shape \(2,\)"):
        xpreg.SoftmaxRegression(A, b, weights=backend.array(np.ones(2)))
    for bad in (float("nan"), 1e200):
        with pytest.raises(ValueError, match="weights is "):
            xpreg.SoftmaxRegression(A, b, weights=bad)
    for bad in (None, "heavy"):
        with pytest.raises(ValueError, match="weights is a"):
            xpreg.SoftmaxRegression(A, b, weights=bad)
    xpreg.SoftmaxRegression(A, b, weights=np.int64(1))
    for bad in (0, "cuda:²", "gpu"):
        with pytest.raises(ValueError, match="'cpu', 'cuda' or 'cuda:N'"):
            xpreg.SoftmaxRegression(A, b, device=bad)
    with pytest.raises(ValueError, match="loss is 'hinge', but 'squared' or 'kl'"):
        xpreg.SoftmaxRegression(A, b, loss="hinge")
    problem = xpreg.SoftmaxRegression(A, b)
    with pytest.raises(ValueError, match=r"x has shape \(3,\), but A has 2 columns"):
        problem.value(backend.array(np.ones(3)))
    with pytest.raises(ValueError, match="x has 1 entries that are NaN"):
        problem.value(backend.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"x has dtype .*float32, but A has .*float64"):
        problem.value(backend.array([1.0, 2.0], "float32"))
    with pytest.raises(ValueError, match=r"v has shape"):
        problem.hvp(backend.array([1.0, 2.0]), backend.array([1.0]))
    stack = xpreg.SoftmaxRegression(A, backend.array(np.ones((4, 3)) / 3))
    with pytest.raises(ValueError, match=r"leading axes, \(5,\) and \(4,\)"):
        stack.value(backend.array(np.ones((5, 2))))


@pytest.mark.parametrize(
    ("b", "message"),
    [([0.5, 0.6, -0.1], "no negative entries"), ([0.5, 0.6, 0.1], "divide b by its sum")],
)
def test_the_kl_loss_needs_a_distribution(backend, b, message):
    with pytest.raises(ValueError, match=message):
        xpreg.SoftmaxRegression(backend.array(np.ones((3, 2))), backend.array(b), loss="kl")


@pytest.mark.parametrize(("b_lead", "x_lead"), [((4,), (3, 4)), ((4, 1), (1, 5)), ((), (2, 3)), ((2, 1), (3,))])
def test_leading_axes_broadcast(backend, rng, b_lead, x_lead):
    A, b, x = rng.standard_normal((9, 3)), rng.random((*b_lead, 9)), rng.standard_normal((*x_lead, 3))
    at = xpreg.ExpRegression(backend.array(A), backend.array(b)).at(backend.array(x))
    shape = np.broadcast_shapes(b_lead, x_lead)
    b, x = np.broadcast_to(b, (*shape, 9)), np.broadcast_to(x, (*shape, 3))
    one = [xpreg.ExpRegression(A, b[i]).at(x[i]) for i in np.ndindex(*shape)]
    for name in ("value", "grad"):
        found = backend.numpy(getattr(at, name))
        assert found.shape[: len(shape)] == shape
        expected = np.array([getattr(p, name) for p in one]).reshape(found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(
        backend.numpy(at.hess()).reshape(-1, 3, 3), np.array([p.hess() for p in one]), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", [0.0, 0.3])
def test_the_hessian_times_several_vectors_at_one_x(backend, rng, loss, weights):
    A, b, x = data(loss, rng, 30, 4)
    at = LOSSES[loss](backend.array(A), backend.array(b), weights=weights).at(backend.array(x))
    H = backend.numpy(at.hess())
    np.testing.assert_allclose(backend.numpy(at.hvp(backend.array(np.eye(4)))), H, rtol=1e-10, atol=1e-12)
    V = rng.standard_normal((2, 3, 4))
    np.testing.assert_allclose(backend.numpy(at.hvp(backend.array(V))), V @ H, rtol=1e-9, atol=1e-11)
    with pytest.raises(xpreg.InvalidArgumentError, match=r"v has shape"):
        at.hvp(backend.array(np.ones(3)))


@pytest.mark.parametrize("weights", [0.0, 0.3])
def test_the_hessian_times_several_vectors_for_all_kinds_of_rows(rng, tmp_path, weights):
    A, b, x = data("softmax", rng, 30, 4)
    A1, A2 = rng.standard_normal((6, 4)), rng.standard_normal((30, 6))
    np.save(tmp_path / "A.npy", A)
    sparse = pytest.importorskip("scipy.sparse")
    for at in (
        xpreg.SoftmaxRegression(xpreg.io.open_rows(tmp_path / "A.npy"), b, weights=weights).at(x),
        xpreg.SoftmaxRegression(sparse.csr_array(A), b, weights=weights).at(x),
        xpreg.SoftmaxReLURegression(A1, A2, b, weights=weights).at(x),
        xpreg.SoftmaxReLURegression(A1, A2, b, weights=weights, smoothing=0.2).at(x),
    ):
        np.testing.assert_allclose(at.hvp(np.eye(4)), at.hess(), rtol=1e-10, atol=1e-13)


def test_a_stack_takes_vectors_of_its_own_shape_only(rng):
    problem = xpreg.ExpRegression(rng.standard_normal((9, 3)), np.ones((2, 9)))
    at = problem.at(np.zeros((2, 3)))
    assert at.hvp(np.ones(3)).shape == at.hvp(np.ones((2, 3))).shape == (2, 3)
    with pytest.raises(xpreg.InvalidArgumentError, match=r"v has shape \(5, 3\), but x has shape \(2, 3\)"):
        at.hvp(np.ones((5, 3)))


def test_what_a_point_hands_out_may_be_changed(rng):
    problem = xpreg.SoftmaxRegression(rng.standard_normal((9, 3)), rng.dirichlet(np.ones(9)))
    at = problem.at(np.ones(3))
    value, grad = at.value.copy(), at.grad.copy()
    for name in ("value", "grad"):
        getattr(at, name)[...] = 7.0
    at.predict()[...] = 7.0
    np.testing.assert_array_equal(at.value, value)
    np.testing.assert_array_equal(at.grad, grad)


def test_several_threads_may_share_a_problem(rng):
    A, b, _ = data("softmax", rng, 3000, 5)
    problem = xpreg.SoftmaxRegression(A, b)
    alone = xpreg.minimize(problem, tol=1e-10).x
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for x in pool.map(lambda _: xpreg.minimize(problem, tol=1e-10).x, range(24)):
            np.testing.assert_allclose(x, alone, rtol=1e-9, atol=1e-12)


def test_a_pickled_problem_knows_nothing_of_earlier_points(rng):
    A, b, x = data("softmax", rng, 300, 5)
    problem = xpreg.SoftmaxRegression(A, b)
    small = len(pickle.dumps(problem))
    at = problem.at(x)
    grad = at.grad
    assert len(pickle.dumps(problem)) < small + 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(problem)).at(x).grad, grad)


ARRAYS = {"A": np.eye(3), "b": np.ones(3) / 3, "x": np.ones(3), "x0": np.ones(3)}


def solved(A, b, x, x0):
    problem = xpreg.SoftmaxRegression(A, b)
    problem.value(x)
    return xpreg.minimize(problem, x0)


@pytest.mark.parametrize(("wrong", "library"), [("A", None), ("b", None), ("x", None), *((w, "torch") for w in ARRAYS)])
def test_none_and_arrays_of_other_libraries_are_named(monkeypatch, wrong, library):
    arrays, message = {**ARRAYS, wrong: None}, "NoneType"
    if library is not None:  # by a stand-in: what makes an array one of torch is the library's word
        arrays[wrong], message = ARRAYS[wrong].copy(), f"{wrong} is an array of .*: numpy.from_dlpack"
        compat = xpreg.backend.arrays.compat
        monkeypatch.setattr(compat, f"is_{library}_array", lambda x: x is arrays[wrong])
    with pytest.raises(xpreg.InvalidArgumentError, match=message):
        solved(**arrays)


def test_weights_whose_square_overflows_are_named():
    for weights, dtype in ((np.full(3, 1e200), "float64"), (1e25, "float32"), (1e200, "float64")):
        with pytest.raises(xpreg.InvalidArgumentError, match="square"):
            xpreg.SoftmaxRegression(np.eye(3, dtype=dtype), np.ones(3, dtype) / 3, weights=weights)


def test_a_hessian_that_cannot_fit_is_refused_with_what_would(monkeypatch):
    problem = xpreg.SoftmaxRegression(np.ones((2, 60_000)), np.ones(2) / 2)
    monkeypatch.setattr(xpreg.backend, "free_memory", lambda like: 2**30)
    for call in (lambda: problem.hess(np.zeros(60_000)), lambda: xpreg.minimize(problem, method="newton")):
        with pytest.raises(xpreg.NotEnoughMemoryError, match=r"the Hessian \(60000, 60000\) .* hvp"):
            call()


def test_the_prediction_of_a_rescaled_loss_without_a_normaliser_is_refused(backend):
    problem = xpreg.SinhRegression(backend.array(np.eye(3)), backend.array(np.ones(3) / 3), rescaled=True)
    with pytest.raises(xpreg.DomainError, match="normaliser alpha"):
        problem.predict(backend.array(np.zeros(3)))
