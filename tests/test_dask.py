"""Rows in Dask arrays: the answers of memory, sums only on the wire, the same bits wherever the blocks are."""

import contextlib
import os
import signal

import numpy as np
import pytest
from support import fakegpu
from support.certificates import same_claims
from support.problems import data, realisable

import xpreg
from xpreg.blocked import ArrayBlocks
from xpreg.regressions import LOSSES

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

SIZES = (1, 30, 0, 17, 64, 1, 5, 3, 2, 2, 40)  # more than one group of the tree; an empty block
N = sum(SIZES)


def cluster(workers, threads=1, processes=False):
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=threads, processes=processes, dashboard_address=":0", silence_logs=50
    )


@pytest.fixture(scope="module")
def client():
    with cluster(2) as two, distributed.Client(two) as client:
        yield client


@contextlib.contextmanager
def another(workers, **options):
    """A client of a cluster of its own, current inside the block."""
    with (
        cluster(workers, **options) as own,
        distributed.Client(own, set_as_default=False) as client,
        client.as_current(),
    ):
        yield client


def in_chunks(A):
    return da.from_array(A, chunks=(SIZES, A.shape[1]))


def in_blocks(A):
    return ArrayBlocks([part for part in np.split(A, np.cumsum(SIZES)[:-1]) if len(part)])


def relative(found, expected):
    return np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-300)


@pytest.fixture
def matrix(rng):
    A = rng.standard_normal((N, 4))
    return A, np.asarray(realisable("softmax", LOSSES["softmax"], A, 0.5 * rng.standard_normal(4)))


@pytest.mark.parametrize(("loss", "k"), [*((loss, None) for loss in LOSSES), ("softmax", 5), ("cosh-rescaled", 5)])
def test_derivatives_equal_those_in_memory(client, rng, loss, k):
    A, b, x = data(loss, rng, n=N, d=4, k=k)
    v, w = rng.standard_normal(x.shape), rng.random(N)
    expected, found = LOSSES[loss](A, b, weights=w).at(x), LOSSES[loss](in_chunks(A), b, weights=w).at(x)
    assert relative(found.value, expected.value) < 1e-12
    assert relative(found.grad, expected.grad) < 1e-12
    assert relative(found.hess(), expected.hess()) < 1e-12
    assert relative(found.hvp(v), expected.hvp(v)) < 1e-12
    problem = LOSSES[loss](in_chunks(A), b, weights=w)
    value, grad = problem.value_and_grad(x)
    assert relative(value, expected.value) < 1e-12
    assert relative(grad, expected.grad) < 1e-12
    assert relative(found.predict().compute(), expected.predict()) < 1e-12


@pytest.mark.parametrize(
    ("loss", "method"),
    [
        *(("softmax", method) for method in ("newton", "newton-cg", "gradient-descent")),
        *((loss, "newton") for loss in ("softmax-kl", "resnet-softmax", "exp-rescaled")),
    ],
)
def test_solutions_equal_those_in_memory(client, rng, loss, method):
    A, _, x = data(loss, rng, n=N, d=4)
    b = realisable(loss, LOSSES[loss], A, 0.3 * x)
    limits = {"method": method, "maxiter": 3 if method == "gradient-descent" else 60}
    found = xpreg.minimize(LOSSES[loss](in_chunks(A), b, weights=0.05), **limits)
    expected = xpreg.minimize(LOSSES[loss](A, b, weights=0.05), **limits)
    assert (found.status, found.nit) == (expected.status, expected.nit)
    assert isinstance(found.x, np.ndarray)
    assert relative(found.x, expected.x) < 1e-9


def test_a_certificate_claims_what_it_claims_in_memory(client, matrix):
    A, b = matrix
    x = 0.1 * np.ones(4)
    expected, found = (xpreg.certify(xpreg.SoftmaxRegression(rows, b, weights=0.1), x) for rows in (A, in_chunks(A)))
    same_claims(found, expected)


def test_a_run_goes_on_from_a_checkpoint(client, matrix, tmp_path):
    A, b = matrix
    path = tmp_path / "run.npz"
    expected = xpreg.minimize(xpreg.SoftmaxRegression(in_chunks(A), b), checkpoint=path, checkpoint_every=3)
    found = xpreg.minimize(xpreg.SoftmaxRegression(in_chunks(A), b), checkpoint=path, resume=True)
    assert found.success
    assert found.nit == expected.nit
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-9)


def test_b_and_weights_may_be_dask_arrays(client, rng):
    A, _, x = data("softmax", rng, n=N, d=4, k=3)
    b = realisable("softmax", LOSSES["softmax"], A, 0.3 * x)
    w = rng.random(N)
    expected = xpreg.SoftmaxRegression(A, b, weights=w).at(x)
    problem = xpreg.SoftmaxRegression(
        in_chunks(A), da.from_array(b, chunks=(3, SIZES)), weights=da.from_array(w, chunks=(SIZES,))
    )
    assert relative(problem.at(x).hess(), expected.hess()) < 1e-12
    assert "Dask array" in repr(problem.rows.store)


def test_the_bits_do_not_depend_on_the_number_of_workers(client, matrix):
    A, b = matrix
    x = 0.1 * np.arange(4)
    here = xpreg.SoftmaxRegression(in_chunks(A), b)
    assert len(here.rows.store.groups) == 2
    found, H = xpreg.minimize(here), here.hess(x)
    assert found.success
    np.testing.assert_array_equal(xpreg.minimize(xpreg.SoftmaxRegression(in_chunks(A), b)).x, found.x)
    with another(1, threads=3):
        there = xpreg.SoftmaxRegression(in_chunks(A), b)
        assert len(there.rows.store.groups) == 3
        np.testing.assert_array_equal(there.hess(x), H)
        np.testing.assert_array_equal(xpreg.minimize(there).x, found.x)
    D = here.at(x).curvature().D  # a sum over the rows is that of the same blocks on one machine
    local = xpreg.SoftmaxRegression(in_blocks(A), b).rows
    held = local.hold(xpreg.backend.namespace(D).asarray(D, copy=True).compute(), "D", "A")
    np.testing.assert_array_equal(local.gram(held), here.rows.gram(D))


def test_nothing_larger_than_a_hessian_reaches_the_client(client, rng, monkeypatch):
    n, d = 20_000, 4
    A = rng.standard_normal((n, d))
    b = realisable("softmax", LOSSES["softmax"], A, 0.3 * rng.standard_normal(d))
    chunked = da.from_array(A, chunks=(4000, d)), da.from_array(b, chunks=4000)
    received = []
    gather = distributed.Client.gather

    def counted(self, futures, *args, **kwargs):
        result = gather(self, futures, *args, **kwargs)
        received.append(size_of(result))
        return result

    monkeypatch.setattr(distributed.Client, "gather", counted)
    problem = xpreg.SoftmaxRegression(*chunked)
    assert xpreg.minimize(problem).success
    assert xpreg.minimize(problem, method="newton-cg").success
    predicted = problem.predict(np.zeros(d))
    assert len(received) > 20
    assert max(received) <= 8 * (d * d + 2 * d)
    monkeypatch.undo()
    np.testing.assert_allclose(predicted.compute(), np.full(n, 1 / n))


def size_of(x):
    if isinstance(x, dict):
        return sum(map(size_of, x.values()))
    return sum(map(size_of, x)) if isinstance(x, list | tuple) else np.asarray(x).nbytes


def test_a_pass_is_one_task_for_each_worker_thread(client, rng):
    A, b, x = data("softmax", rng, n=N, d=4)
    problem = xpreg.SoftmaxRegression(in_chunks(A), b)
    before = set(client.cluster.scheduler.tasks)
    at = problem.at(x)
    new = {key for key in client.cluster.scheduler.tasks if key not in before}
    assert np.isfinite(at.value)
    assert len(new) <= 2 + 4  # the kept z, and what has not been forgotten yet


def test_blocks_on_a_device_stay_there(rng):
    """Blocks with CuPy's manners: NumPy arrays that meet them raise, and so does every implicit copy."""
    A, b, x = data("resnet-softmax", rng, n=N, d=4)
    with another(1, threads=2):
        on_device = in_chunks(A).map_blocks(fakegpu.xp.asarray, meta=np.empty((0, 0)))
        problem = xpreg.ResNetSoftmaxRegression(on_device, b, weights=0.1)
        parts = problem.rows.store.client.gather(problem.rows.keep(problem._b).data)
        assert all(isinstance(part, fakegpu.Array) for group in parts for part in group)
        expected = xpreg.ResNetSoftmaxRegression(A, b, weights=0.1)
        found = problem.at(x)
        assert isinstance(found.grad, np.ndarray)
        assert relative(found.hess(), expected.at(x).hess()) < 1e-12
        result = xpreg.minimize(problem)
        assert result.nit == xpreg.minimize(expected).nit
        assert relative(result.x, xpreg.minimize(expected).x) < 1e-9


def test_a_worker_that_dies_changes_no_bit_of_the_answer(rng):
    n, d = 4000, 6
    A = rng.standard_normal((n, d))
    b = realisable("softmax", LOSSES["softmax"], A, 0.4 * rng.standard_normal(d))
    with another(2, processes=True) as client:
        chunked = da.from_array(A, chunks=(500, d))
        undisturbed = xpreg.minimize(xpreg.SoftmaxRegression(chunked, b))
        workers = client.run(os.getpid)
        assert len(workers) == 2

        def kill(record):
            if record.nit == 2:
                os.kill(next(iter(workers.values())), signal.SIGKILL)

        disturbed = xpreg.minimize(xpreg.SoftmaxRegression(chunked, b), callback=kill)
        assert undisturbed.success
        assert undisturbed.nit > 3
        assert set(client.run(os.getpid).values()) != set(workers.values())
    np.testing.assert_array_equal(disturbed.x, undisturbed.x)
    np.testing.assert_array_equal(disturbed.grad, undisturbed.grad)
    assert (disturbed.fun, disturbed.nit) == (undisturbed.fun, undisturbed.nit)


def test_arrays_that_cannot_be_rows_are_refused_with_what_to_call(client, matrix):
    A, b = matrix
    good = in_chunks(A)
    unknown = da.from_array(A, chunks=(10, 4))
    unknown = unknown[unknown[:, 0] > 0]
    for bad, message in (
        (da.from_array(A, chunks=(10, 2)), r"2 blocks of columns.*A.rechunk\(\{1: -1\}\)"),
        (unknown, r"A.compute_chunk_sizes\(\)"),
        (good.astype("f2"), "A has dtype float16"),
        (good[:, 0], r"A has shape \(165,\)"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            xpreg.SoftmaxRegression(bad, b)
    for arguments, message in (
        ({"b": b[:7]}, r"b has shape \(7,\), but A has 165 rows"),
        ({"b": b.astype("f4")}, "b has dtype float32"),
        ({"b": da.from_array(b, chunks=55)}, r"b.rechunk\(\(\(1, 30, 17"),
        ({"b": da.from_array(b.astype("f4"), chunks=(SIZES,))}, "b has dtype float32"),
        ({"b": np.where(b == b.max(), np.inf, b)}, "b has 1 entries that are NaN or infinite"),
        ({"b": b, "device": "cpu"}, "leave device out"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            xpreg.SoftmaxRegression(good, **arguments)
    with pytest.raises(xpreg.InvalidArgumentError, match="A has 2 entries that are NaN"):
        xpreg.SoftmaxRegression(in_chunks(with_nans(A)), b)


def with_nans(A):
    A = A.copy()
    A[[3, 100], [0, 2]] = np.nan
    return A


def test_a_dask_array_without_a_cluster_says_what_is_needed(matrix, monkeypatch):
    monkeypatch.setattr(distributed, "get_client", lambda: (_ for _ in ()).throw(ValueError("no client")))
    with pytest.raises(xpreg.InvalidArgumentError, match=r"distributed.Client\(\)"):
        xpreg.SoftmaxRegression(in_chunks(matrix[0]), matrix[1])


def test_an_error_in_a_block_is_raised_as_it_is(client, matrix):
    def broken(block):
        raise ZeroDivisionError("this block cannot be read")

    bad = in_chunks(matrix[0]).map_blocks(broken, meta=np.empty((0, 0)))
    with pytest.raises(ZeroDivisionError, match="cannot be read"):
        xpreg.SoftmaxRegression(bad, matrix[1])
