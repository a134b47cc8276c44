"""CSR rows give what the same rows give as a dense array, in the memory that they take."""

import importlib
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import make_backend
from support import fakecupyx, fakegpu
from support.certificates import same_claims
from support.problems import data
from test_memory import peak_of

import xpreg
from xpreg import sampling
from xpreg.cli import main
from xpreg.io import load_result
from xpreg.maps import DenseRows, SparseRows
from xpreg.regressions import LOSSES
from xpreg.solvers import METHODS

SOLVERS = [name for name in METHODS if name != "auto"]


def thin(A, rng, share=0.4):
    """The same rows with most entries zero, and one row without any."""
    A = A * (rng.random(A.shape) < share)
    A[A.shape[0] // 2] = 0.0
    return A


def both(loss, rng, n=60, d=6, k=None, share=0.4, **options):
    A, b, x = data(loss, rng, n, d, k)
    A, x = thin(A, rng, share), 0.5 * x
    if loss == "resnet-softmax":
        b = np.asarray(LOSSES[loss](A, np.ones_like(b) / n).predict(x))  # alpha > 0 at x
    return LOSSES[loss](sp.csr_array(A), b, **options), LOSSES[loss](A, b, **options), x


def assert_equal(got, want, tolerance=1e-12):
    size = np.abs(want).max()
    assert np.abs(np.asarray(got) - want).max() <= tolerance * (size if size else 1.0)


@pytest.fixture(params=["sparse product", "dense blocks"])
def gram_path(request, monkeypatch):
    share = 1.0 if request.param == "sparse product" else -1.0
    monkeypatch.setattr("xpreg.backend.sparse.SPARSE_GRAM", share)


# -- equal to the dense path ----------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("weights", [0.0, 0.3])
def test_every_loss_equals_its_dense_twin(rng, gram_path, loss, k, weights):
    sparse, dense, x = both(loss, rng, k=k, weights=weights)
    v = rng.standard_normal(x.shape)
    assert isinstance(sparse.rows, SparseRows)
    for got, want in (
        (sparse.value(x), dense.value(x)),
        (sparse.grad(x), dense.grad(x)),
        (sparse.hess(x), dense.hess(x)),
        (sparse.hvp(x, v), dense.hvp(x, v)),
        (sparse.predict(x), dense.predict(x)),
        (sparse.at(x).hessian().dense(), dense.hess(x).reshape(-1, 6, 6)),
        *zip(sparse.value_and_grad(x), dense.value_and_grad(x), strict=True),
    ):
        assert_equal(got, want)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("loss", ["softmax", "softmax-kl", "resnet-softmax", "exp"])
def test_every_method_solves_sparse_problems_as_dense_ones(rng, gram_path, loss, method):
    sparse, dense, x = both(loss, rng, weights=0.05)
    start = x + 0.01 * rng.standard_normal(x.shape)
    got, want = (xpreg.minimize(p, start, method=method, maxiter=500, tol=1e-6) for p in (sparse, dense))
    assert got.success, got.message
    np.testing.assert_allclose(got.x, want.x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["newton", "newton-cg"])
def test_a_stack_over_sparse_rows_is_solved(rng, gram_path, method):
    sparse, dense, _ = both("softmax", rng, k=7)
    got, want = xpreg.minimize(sparse, method=method), xpreg.minimize(dense, method=method)
    assert got.success, got.message
    np.testing.assert_allclose(got.fun, want.fun, rtol=1e-9)


@pytest.mark.parametrize("reading", ["preconditioner", "papers"])
def test_rows_are_sampled(rng, reading):
    sparse, dense, _ = both("softmax", rng, n=3000, d=5)
    options = {"method": "approximate-newton", "reading": reading, "seed": 3}
    got, want = xpreg.minimize(sparse, **options), xpreg.minimize(dense, **options)
    assert got.success, got.message
    assert [r.direction for r in got.history] == [r.direction for r in want.history]
    np.testing.assert_allclose(got.x, want.x, rtol=1e-6, atol=1e-8)
    A = sparse.rows.A
    here, there = (sampling.subsample(rows, np.ones(3000), method="sketch", seed=1) for rows in (A, A.toarray()))
    np.testing.assert_array_equal(here.indices, there.indices)


def test_certificates_equal_those_of_the_dense_rows(rng):
    sparse, dense, x = both("softmax", rng, weights=0.5)
    same_claims(xpreg.certify(sparse, x), xpreg.certify(dense, x))


def test_float32_stays_float32(rng):
    A, b, x = (a.astype("float32") for a in data("softmax", rng, 80, 4))
    problem = xpreg.SoftmaxRegression(sp.csr_array(thin(A, rng)), b)
    at = problem.at(x)
    for got in (at.value, at.grad, at.hess(), at.hvp(x), at.predict()):
        assert got.dtype == np.float32
    result = xpreg.minimize(problem, tol=1e-4)
    assert result.success
    assert result.x.dtype == np.float32


# -- digits of the sparse Gram matrix -------------------------------------------------------------


def entrywise_error(rows, A, D, f):
    """Of a Gram matrix, relative to sqrt(G_ii G_jj) of a reference in extended precision."""
    C = A.astype(np.longdouble) - (f.astype(np.longdouble) @ A.astype(np.longdouble))
    G = (C.T * D.astype(np.longdouble)) @ C
    scale = np.sqrt(np.abs(np.diag((C.T * np.abs(D).astype(np.longdouble)) @ C)))
    got = rows.gram(D[None], f[None])[0]
    return np.abs(got - G) / np.where(scale == 0, 1, scale)[:, None] / np.where(scale == 0, 1, scale)


@pytest.mark.parametrize("saturation", [0.0, 10.0, 30.0])
@pytest.mark.parametrize("column", ["plain", "offset 1e3", "constant", "two offsets"])
def test_the_sparse_gram_keeps_its_digits(rng, monkeypatch, saturation, column):
    monkeypatch.setattr("xpreg.backend.sparse.SPARSE_GRAM", 1.0)
    monkeypatch.setattr(SparseRows, "_dense_gram", None)  # not used
    n, d = 500, 7
    A = thin(rng.standard_normal((n, d)), rng, 0.3)
    if column == "offset 1e3":
        A[:, 2] = 1e3 + rng.standard_normal(n)
    elif column == "constant":
        A[:, 2] = 5.0
    elif column == "two offsets":
        A[:, 2], A[:, 5] = 1e3 + rng.standard_normal(n), 300 + rng.standard_normal(n)
    z = rng.standard_normal(n)
    z[[3, 77]] += saturation
    f = np.exp(z - z.max())
    f /= f.sum()
    c = f - rng.dirichlet(np.ones(n))
    D = f * (f + c - c @ f)  # of both signs
    error, dense = (entrywise_error(rows, A, D, f) for rows in (SparseRows(sp.csr_array(A)), DenseRows(A)))
    if column == "constant":
        G = SparseRows(sp.csr_array(A)).gram(D[None], f[None])[0]
        assert np.abs(G[2]).max() <= 1e-13 * np.abs(G).max()
        error, dense = (np.delete(np.delete(e, 2, 0), 2, 1) for e in (error, dense))
    assert error.max() < max(1e-14, 20 * dense.max())


def test_weights_of_both_signs_are_no_reason_to_leave_the_sparse_product(rng, monkeypatch):
    """A small or negative diagonal entry is curvature, not cancellation."""
    monkeypatch.setattr("xpreg.backend.sparse.SPARSE_GRAM", 1.0)
    monkeypatch.setattr(SparseRows, "_dense_gram", None)  # not used
    A, f = thin(rng.standard_normal((400, 40)), rng, 0.2), rng.dirichlet(np.ones(400))
    D = f * (rng.standard_normal(400) - 0.5)
    got, want = (rows.gram(D[None], f[None])[0] for rows in (SparseRows(sp.csr_array(A)), DenseRows(A)))
    assert (np.diag(want) < 0).any()
    assert_equal(got, want)


def test_columns_that_cancel_all_together_take_the_dense_blocks(rng, monkeypatch):
    monkeypatch.setattr("xpreg.backend.sparse.SPARSE_GRAM", 1.0)
    A = 1e4 + rng.standard_normal((300, 12))
    f = rng.dirichlet(np.ones(300))
    got, want = (rows.gram(f[None], f[None])[0] for rows in (SparseRows(sp.csr_array(A)), DenseRows(A)))
    assert_equal(got, want, 1e-14)


# -- the matrix itself ----------------------------------------------------------------------------


def test_duplicates_disorder_and_explicit_zeros_are_taken_for_what_they_mean(rng):
    A = thin(rng.standard_normal((9, 4)), rng)
    coo = sp.coo_array(A)
    order = rng.permutation(coo.nnz)
    rows, columns, values = (part[order] for part in (*coo.coords, coo.data))
    rows, columns = np.concatenate([rows, rows, [0, 1]]), np.concatenate([columns, columns, [0, 3]])
    values = np.concatenate([0.25 * values, 0.75 * values, [0.0, 0.0]])
    by_row = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=9))])
    messy = sp.csr_array((values[by_row], columns[by_row], indptr), shape=(9, 4))
    before = [part.copy() for part in (messy.data, messy.indices, messy.indptr)]
    b, x = rng.dirichlet(np.ones(9)), rng.standard_normal(4)
    got, want = xpreg.SoftmaxRegression(messy, b).hess(x), xpreg.SoftmaxRegression(A, b).hess(x)
    assert_equal(got, want)
    for part, old in zip((messy.data, messy.indices, messy.indptr), before, strict=True):
        np.testing.assert_array_equal(part, old)


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("kind", [sp.csr_array, sp.csr_matrix])
def test_both_classes_and_both_index_types_are_taken_without_a_copy_of_the_values(rng, kind, index):
    A = kind(thin(rng.standard_normal((20, 3)), rng))
    A.indices, A.indptr = A.indices.astype(index), A.indptr.astype(index)
    problem = xpreg.SoftmaxRegression(A, np.full(20, 0.05))
    assert np.shares_memory(problem.rows.A.data, A.data)
    result = xpreg.minimize(problem)
    assert result.success
    assert tuple(result.x.shape) == (3,)


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (sp.coo_array(np.eye(3)), r"format 'coo' .* pass A.tocsr\(\)"),
        (sp.csc_matrix(np.eye(3)), r"format 'csc' .* pass A.tocsr\(\)"),
        (sp.csr_array(np.eye(3, dtype=int)), r"dtype int64, .* A.astype\('float64'\)"),
        (sp.csr_array(np.eye(3, dtype=bool)), r"dtype bool, .* A.astype\('float64'\)"),
        (sp.csr_array(np.diag([np.nan] * 3)), "A has 3 entries that are NaN"),
        (sp.csr_array(np.diag([np.inf] * 3)), "A has 3 entries that are NaN or infinite"),
        (sp.csr_array((0, 3)), r"A has shape \(0, 3\)"),
        (sp.csr_array((3, 0)), r"A has shape \(3, 0\)"),
        (sp.csr_array(np.ones((4, 2))), "b has shape .* A has 4 rows"),
        (sp.csr_array(np.eye(3, dtype="float32")), "b has dtype float64, but A has float32"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_remedy(A, message):
    with pytest.raises(xpreg.InvalidArgumentError, match=message):
        xpreg.SoftmaxRegression(A, np.ones(3) / 3)


def test_other_arguments_must_be_plain_arrays():
    with pytest.raises(xpreg.InvalidArgumentError, match=r"b is a sparse csr_array, .*: b.toarray\(\)"):
        xpreg.SoftmaxRegression(np.eye(3), sp.csr_array(np.eye(3)))
    with pytest.raises(xpreg.InvalidArgumentError, match=r"A1 is a sparse csr_array, .*: A1.toarray\(\)"):
        xpreg.SoftmaxReLURegression(sp.csr_array(np.eye(3)), np.eye(3), np.ones(3) / 3)


def test_a_matrix_of_zeros_is_no_obstacle():
    result = xpreg.minimize(xpreg.SoftmaxRegression(sp.csr_array((4, 2)), np.ones(4) / 4))
    assert np.isfinite(result.x).all()


# -- memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["newton", "newton-cg"])
def test_nothing_of_the_size_of_the_dense_rows_is_made(rng, method):
    n, d = 100_000, 300
    A = sp.random_array((n, d), density=0.004, format="csr", rng=rng)
    b = np.asarray(xpreg.SoftmaxRegression(A, np.full(n, 1 / n)).predict(rng.standard_normal(d)))
    problem = xpreg.SoftmaxRegression(A, b)
    stored = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes
    peak = peak_of(lambda: xpreg.minimize(problem, method=method, maxiter=2))
    assert peak < 20 * 8 * n + 12 * 8 * d * d + 4 * stored
    assert peak < 8 * n * d / 5


def test_the_dense_blocks_stay_blocks(rng):
    n, d = 40_000, 200
    A = sp.random_array((n, d), density=0.1, format="csr", rng=rng)
    problem = xpreg.SoftmaxRegression(A, np.full(n, 1 / n))
    x = rng.standard_normal(d)
    assert peak_of(lambda: problem.hess(x)) < 8 * n * d / 4


# -- files ----------------------------------------------------------------------------------------


def parts(A):
    return {f"A_{name}": getattr(A, name) for name in ("data", "indices", "indptr", "shape")}


def test_the_command_line_takes_a_csr_matrix(rng, tmp_path, capsys):
    A, b = sp.csr_array(thin(rng.standard_normal((30, 3)), rng)), rng.dirichlet(np.ones(30))
    np.savez(tmp_path / "data.npz", b=b, **parts(A))
    out = tmp_path / "out.npz"
    assert main(["solve", str(tmp_path / "data.npz"), "--loss", "softmax", "--out", str(out)]) == 0
    assert "not used" not in capsys.readouterr().err
    np.testing.assert_array_equal(load_result(out).x, xpreg.minimize(xpreg.SoftmaxRegression(A, b)).x)


@pytest.mark.parametrize(
    "change", [{"A_indptr": np.array([0, 1])}, {"A_indices": np.array([9, 9, 9])}, {"A_shape": np.array([3])}]
)
def test_parts_that_are_no_csr_matrix_are_refused(tmp_path, capsys, change):
    np.savez(tmp_path / "data.npz", b=np.ones(3) / 3, **(parts(sp.csr_array(np.eye(3))) | change))
    assert main(["solve", str(tmp_path / "data.npz"), "--loss", "softmax"]) == 2
    assert "are no CSR matrix" in capsys.readouterr().err


# -- cupyx, through a stand-in --------------------------------------------------------------------


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupyx.scipy.sparse", fakecupyx)
    monkeypatch.setitem(sys.modules, "cupyx.cusparse", fakecupyx)
    return lambda values: fakegpu.xp.asarray(np.asarray(values))


@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax", "exp"])
@pytest.mark.parametrize("k", [None, 3])
def test_cupyx_rows_give_what_dense_rows_give_and_stay_on_the_device(rng, on_gpu, loss, k):
    sparse, dense, x = both(loss, rng, k=k, weights=0.1)
    problem = LOSSES[loss](fakecupyx.csr_matrix.of(sparse.rows.A), on_gpu(sparse.b), weights=0.1)
    v = rng.standard_normal(x.shape)
    at, want = problem.at(on_gpu(x)), dense.at(x)
    for here, there in (
        (at.value, want.value),
        (at.grad, want.grad),
        (at.hess(), want.hess()),
        (at.hvp(on_gpu(v)), want.hvp(v)),
        (at.predict(), want.predict()),
    ):
        assert isinstance(here, fakegpu.Array)
        assert_equal(here._a, there)


@pytest.mark.parametrize("method", SOLVERS)
def test_cupyx_problems_are_solved(rng, on_gpu, method):
    sparse, dense, _ = both("softmax", rng, n=300, weights=0.05)
    problem = xpreg.SoftmaxRegression(fakecupyx.csr_matrix.of(sparse.rows.A), on_gpu(sparse.b), weights=0.05)
    got, want = (xpreg.minimize(p, method=method, maxiter=500, tol=1e-7) for p in (problem, dense))
    assert got.success, got.message
    assert isinstance(got.x, fakegpu.Array)
    np.testing.assert_allclose(got.x._a, want.x, atol=1e-6)


def test_a_cupyx_matrix_is_checked_and_not_changed(rng, on_gpu):
    host = sp.csr_array((np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1]), np.array([0, 3, 3])), shape=(2, 2))
    A = fakecupyx.csr_matrix.of(host)
    problem = xpreg.SoftmaxRegression(A, on_gpu([0.5, 0.5]))
    assert_equal(problem.rows.take_rows(slice(0, 2))._a, np.array([[2.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(A.data._a, [1.0, 2.0, 3.0])
    with pytest.raises(xpreg.DeviceMismatchError, match=r"A is .*fakegpu.* but b is numpy"):
        xpreg.SoftmaxRegression(A, np.array([0.5, 0.5]))
    with pytest.raises(xpreg.InvalidArgumentError, match="A has 1 entries that are NaN"):
        xpreg.SoftmaxRegression(fakecupyx.csr_matrix.of(sp.csr_array(np.diag([1.0, np.nan]))), on_gpu([0.5, 0.5]))


def test_device_moves_the_matrix_too(rng, on_gpu):
    sparse, _, x = both("softmax", rng)
    for problem in (sparse.to_device("cpu"), xpreg.SoftmaxRegression(sparse.rows.A, sparse.b, device="cpu")):
        np.testing.assert_array_equal(problem.grad(x), sparse.grad(x))
        assert np.shares_memory(problem.rows.A.data, sparse.rows.A.data)
    if not xpreg.backend.cuda_is_available():
        with pytest.raises(xpreg.DeviceNotAvailableError):
            xpreg.SoftmaxRegression(sparse.rows.A, sparse.b, device="cuda")


def test_a_matrix_whose_indices_are_out_of_range_is_refused(rng):
    A = sp.csr_array(rng.standard_normal((5, 3)))
    A.indices[4] = 2_000_000
    with pytest.raises(xpreg.InvalidArgumentError, match="A is no valid CSR matrix"):
        xpreg.SoftmaxRegression(A, np.ones(5) / 5)


@pytest.mark.parametrize("library", ["numpy"] + (["cupy"] if xpreg.backend.cuda_is_available() else []))
@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax", "exp"])
def test_the_sparse_matrices_of_each_library_at_hand(rng, library, loss):
    sparse, dense, x = both(loss, rng, weights=0.1)
    backend, A = make_backend(library), sparse.rows.A
    if library == "cupy":
        parts = [backend.xp.asarray(part) for part in (A.data, A.indices, A.indptr)]
        A = importlib.import_module("cupyx.scipy.sparse").csr_matrix(tuple(parts), shape=A.shape)
    problem = LOSSES[loss](A, backend.array(dense.b), weights=0.1)
    at, want, v = problem.at(backend.array(x)), dense.at(x), rng.standard_normal(x.shape)
    assert_equal(backend.numpy(at.value), want.value)
    assert_equal(backend.numpy(at.grad), want.grad)
    assert_equal(backend.numpy(at.hess()), want.hess())
    assert_equal(backend.numpy(at.hvp(backend.array(v))), want.hvp(v))
    assert_equal(backend.numpy(problem.rows.take_rows(slice(3, 40))), dense.rows.A[3:40])
    result, expected = xpreg.minimize(problem, backend.array(x), tol=1e-10), xpreg.minimize(dense, x, tol=1e-10)
    assert result.status == expected.status
    assert_equal(backend.numpy(result.x), expected.x, 1e-6)
