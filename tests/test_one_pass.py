"""value_and_grad reads a large A once, and gives what two passes give."""

import numpy as np
import pytest
from support.problems import data

import xpreg
from xpreg import one_pass
from xpreg.kernels import sums
from xpreg.maps import DenseRows
from xpreg.regressions import LOSSES

ONE_PASS = ["softmax", "resnet-softmax", "exp", "cosh", "sinh"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(one_pass, "SMALLEST", 0)
    monkeypatch.setattr("xpreg.backend.blocking.SWEEP_BYTES", 17 * 5 * 8)


@pytest.fixture
def rows_read(monkeypatch):
    """How many rows every product with A has read."""
    read = []
    matmul = DenseRows.apply

    def counted(self, x):
        read.append(self.n)
        return matmul(self, x)

    whole = sums._sums_over

    def counted_sums(blocks, *args):
        read.append(sum(rows.stop - rows.start for rows in blocks))
        return whole(blocks, *args)

    monkeypatch.setattr(DenseRows, "apply", counted)
    monkeypatch.setattr(sums, "_sums_over", counted_sums)
    return read


@pytest.mark.parametrize("weights", [0.0, 0.3, "vector"])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_equals_two_passes(rng, loss, weights):
    A, b, x = data(loss, rng, n=400)
    problem = LOSSES[loss](A, b, weights=rng.random(400) if weights == "vector" else weights)
    value, grad = problem.value_and_grad(x)
    point = problem.at(x)
    assert value == pytest.approx(float(point.value), rel=1e-13)
    np.testing.assert_allclose(grad, point.grad, rtol=0, atol=1e-13 * np.abs(point.grad).max())
    assert grad.dtype == A.dtype
    assert (one_pass.value_and_grad(problem, x) is not None) == (loss in ONE_PASS)


@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax"])
def test_a_normalised_loss_reads_its_rows_once(rng, rows_read, loss):
    A, b, x = data(loss, rng, n=400)
    LOSSES[loss](A, b).value_and_grad(x)
    assert sum(rows_read) == 400


def test_a_poor_estimate_of_the_normaliser_costs_a_second_pass_and_no_digits(rng, rows_read):
    A, b, x = data("softmax", rng, n=40_000)
    A[1::2] *= 30.0  # the rows at equal distances that the estimate is made from are the others
    problem = xpreg.SoftmaxRegression(A, b)
    value, grad = problem.value_and_grad(0.05 * x)
    assert sum(rows_read) == 80_000
    point = problem.at(0.05 * x)
    assert value == pytest.approx(float(point.value), rel=1e-12)
    np.testing.assert_allclose(grad, point.grad, rtol=0, atol=1e-12 * np.abs(point.grad).max())


@pytest.mark.parametrize("misfit", [1e-2, 1e-4, 1e-6, 1e-8])
def test_it_is_as_exact_as_two_passes_when_f_is_close_to_b(rng, misfit):
    A, _, x = data("softmax", rng, n=3000)
    L = A.astype(np.longdouble)
    z = L @ x
    f = np.exp(z - z.max())
    f /= f.sum()
    b = np.asarray(f * (1 + misfit * rng.standard_normal(3000)), dtype=float)
    c = f - b
    exact = L.T @ (f * (c - (c * f).sum()))
    problem = xpreg.SoftmaxRegression(A, b)
    one = np.abs(problem.value_and_grad(x)[1] - exact).max()
    two = np.abs(problem.at(x).grad - exact).max()
    assert one <= 4 * two + 1e-18


def test_where_f_sits_on_one_row_two_passes_keep_the_digits(rng):
    A, b, x = data("softmax", rng, n=400)
    A[0] = 40 * x / (x @ x)
    problem = xpreg.SoftmaxRegression(A, b)
    assert one_pass.value_and_grad(problem, x) is None
    np.testing.assert_allclose(problem.value_and_grad(x)[1], problem.at(x).grad, rtol=1e-13)


def test_stacks_small_matrices_and_other_libraries_take_two_passes(backend, rng, monkeypatch):
    A, b, x = data("softmax", rng, n=400, k=3)
    stack = xpreg.SoftmaxRegression(backend.array(A), backend.array(b))
    assert one_pass.value_and_grad(stack, backend.array(x)) is None
    monkeypatch.setattr(one_pass, "SMALLEST", A.nbytes + 1)
    problem = xpreg.SoftmaxRegression(backend.array(A), backend.array(b[0]))
    assert one_pass.value_and_grad(problem, backend.array(x[0])) is None


@pytest.mark.parametrize("loss", ["exp", "resnet-softmax"])
def test_outside_the_domain_it_is_the_same_error(rng, loss):
    A, b, x = data(loss, rng, n=400)
    A = np.abs(A)
    with pytest.raises(xpreg.DomainError, match=r"x lies outside the domain|the loss is not defined at x"):
        LOSSES[loss](A, b).value_and_grad(1e4 * np.abs(x) if loss == "exp" else -10 * np.abs(x))


def test_float32_stays_float32(rng):
    A, b, x = (v.astype("float32") for v in data("softmax", rng, n=400))
    value, grad = xpreg.SoftmaxRegression(A, b).value_and_grad(x)
    assert value.dtype == grad.dtype == np.float32
