"""Rows in blocks: the same answers as in memory, from few passes, with few blocks in memory."""

import functools
import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from support.certificates import same_claims
from support.problems import data, realisable

import xpreg
import xpreg.cli
from xpreg import backend as B
from xpreg import io
from xpreg.blocked import ArrayBlocks, Blocked, files, open_rows
from xpreg.blocked.local import VECTOR_ROWS
from xpreg.blocked.program import ARITY, Tree, merge_group
from xpreg.maps import BlockRows
from xpreg.regressions import LOSSES
from xpreg.solvers import METHODS

SIZES = (1, 30, 2, 17, 64, 1, 5)
N = sum(SIZES)


@pytest.fixture(autouse=True)
def strict_arrays_defer(monkeypatch):
    """NumPy and CuPy leave operators to a class with ``__array_ufunc__ = None``; array-api-strict raises too early."""
    strict = pytest.importorskip("array_api_strict")
    array = type(strict.asarray(0.0))
    check = array._check_type_device
    monkeypatch.setattr(
        array, "_check_type_device", lambda self, other: None if isinstance(other, Blocked) else check(self, other)
    )


def in_blocks(A, sizes=SIZES):
    ends = np.cumsum(sizes)
    return ArrayBlocks([A[end - size : end, :] for size, end in zip(sizes, ends.tolist(), strict=True)])


def relative(found, expected):
    return np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-300)


@pytest.fixture
def matrix(rng):
    """A matrix, and the b of an x that gives it exactly."""
    A = rng.standard_normal((N, 4))
    b = np.asarray(realisable("softmax", LOSSES["softmax"], A, 0.5 * rng.standard_normal(4)))
    return A, b


# -- the same numbers as in memory -----------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", ["none", "number", "vector"])
@pytest.mark.parametrize("k", [None, 5])
def test_derivatives_equal_those_in_memory(backend, rng, loss, weights, k):
    A, b, x = data(loss, rng, n=N, d=4, k=k)
    A, b, x, v = (backend.array(array) for array in (A, b, x, rng.standard_normal(x.shape)))
    w = {"none": 0.0, "number": 0.3, "vector": backend.array(rng.random(N))}[weights]
    expected, found = LOSSES[loss](A, b, weights=w).at(x), LOSSES[loss](in_blocks(A), b, weights=w).at(x)
    for name in ("value", "grad"):
        assert relative(backend.numpy(getattr(found, name)), backend.numpy(getattr(expected, name))) < 1e-12
    assert relative(backend.numpy(found.hess()), backend.numpy(expected.hess())) < 1e-12
    assert relative(backend.numpy(found.hvp(v)), backend.numpy(expected.hvp(v))) < 1e-12
    assert relative(backend.numpy(found.predict()), backend.numpy(expected.predict())) < 1e-12
    for curvature in ("gauss_newton", "convexified"):
        pair = [
            at.hessian(getattr(at, curvature)()).quadratic(B.new(np.ones((k or 1, 4)), x)) for at in (found, expected)
        ]
        assert relative(*map(backend.numpy, pair)) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", ["none", "number", "vector"])
def test_a_certificate_claims_what_it_claims_in_memory(backend, rng, loss, weights):
    A, b, x = data(loss, rng, n=N, d=4)
    A -= A.mean(axis=0)  # where resnet-softmax has a constant
    A, b, x = (backend.array(array) for array in (A, b, 0.1 * x))
    w = {"none": 0.0, "number": 0.3, "vector": backend.array(rng.random(N))}[weights]
    expected, found = (xpreg.certify(LOSSES[loss](rows, b, weights=w), x) for rows in (A, in_blocks(A)))
    same_claims(found, expected)


def test_a_run_on_blocks_is_certified(matrix):
    A, b = matrix
    found = xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(A), b), method="newton", tol=1e-12, certify=True)
    assert found.certificate.good.value
    assert found.certificate.contraction_measured.value < 0.1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", ["none", "vector"])
def test_value_and_gradient_come_from_one_pass(backend, rng, monkeypatch, loss, weights):
    A, b, x = data(loss, rng, n=N, d=4)
    A, b, x = (backend.array(array) for array in (A, b, 0.5 * x))
    w = {"none": 0.0, "vector": backend.array(rng.random(N))}[weights]
    problem, expected = LOSSES[loss](in_blocks(A, SIZES[::-1]), b, weights=w), LOSSES[loss](A, b, weights=w).at(x)
    count = passes(problem, monkeypatch)
    value, grad = problem.value_and_grad(x)
    assert relative(backend.numpy(value), backend.numpy(expected.value)) < 1e-12
    assert relative(backend.numpy(grad), backend.numpy(expected.grad)) < 1e-12
    if problem.head.separable:
        assert count[0] == 1
    if problem.head.kernel and loss == "softmax":
        assert count[0] <= 3  # of which one looks at the first block only; here blocks are too small to guess well


@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax"])
def test_a_glance_and_one_pass_are_enough_when_blocks_are_large(rng, monkeypatch, loss):
    n = 40_000
    A, x = 0.5 * rng.standard_normal((n, 3)), rng.standard_normal(3)
    A -= A.mean(axis=0)
    problem = LOSSES[loss](in_blocks(A, (n // 2, n // 2)), rng.dirichlet(np.ones(n)))
    count = passes(problem, monkeypatch)
    _, grad = problem.value_and_grad(x)
    assert count[0] == 2
    point = problem.at(x)
    assert relative(grad, point.grad) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "approximate-newton"])
def test_every_loss_is_solved_as_in_memory(backend, rng, loss, method):
    A, b, x = data(loss, rng, n=N, d=4)
    b = realisable(loss, LOSSES[loss], A, 0.5 * x) if method != "gradient-descent" else b
    A, b = backend.array(A), backend.array(b)
    limits = {"method": method, "maxiter": 8 if method == "gradient-descent" else 60}
    expected = xpreg.minimize(LOSSES[loss](A, b, weights=0.05), **limits)
    found = xpreg.minimize(LOSSES[loss](in_blocks(A), b, weights=0.05), **limits)
    assert (found.status, found.nit) == (expected.status, expected.nit)
    scale = np.max(np.abs(backend.numpy(expected.x)), initial=1e-3)
    assert np.max(np.abs(backend.numpy(found.x) - backend.numpy(expected.x))) < 1e-9 * scale


def test_a_stack_and_several_starts_are_solved_as_in_memory(backend, rng):
    A, _, x = data("softmax", rng, n=N, d=4, k=7)
    b = backend.array(realisable("softmax", LOSSES["softmax"], A, x))
    A, x0 = backend.array(A), backend.array(np.zeros((7, 4)))
    for start in (None, x0):
        found = xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(A), b), start)
        assert found.success
        np.testing.assert_allclose(backend.numpy(found.x), x, rtol=1e-5, atol=1e-6)
    one = xpreg.SoftmaxRegression(in_blocks(A), b[0, :])
    np.testing.assert_allclose(backend.numpy(xpreg.minimize(one, x0).x), np.tile(x[0], (7, 1)), atol=1e-6)


def test_a_large_stack_is_solved_in_parts(rng, monkeypatch):
    A, _, x = data("softmax", rng, n=N, d=4, k=9)
    b = realisable("softmax", LOSSES["softmax"], A, x)
    monkeypatch.setattr("xpreg.solvers.entry.WORKING_BYTES", 4 * 14 * N * 8)
    records = []
    found = xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(A), b, weights=np.asarray(0.0)), callback=records.append)
    assert len({record.problems for record in records}) > 1
    np.testing.assert_allclose(found.x, x, atol=1e-6)


def test_saturated_and_float32_problems_stay_as_exact_as_in_memory(rng):
    A = rng.standard_normal((N, 4)).astype("f4")
    b = rng.dirichlet(np.ones(N)).astype("f4")
    for x in (np.array([300.0, -100.0, 50.0, 0.0], "f4"), np.array([0.1, 0.2, -0.1, 0.3], "f4")):
        found, expected = xpreg.SoftmaxRegression(in_blocks(A), b).at(x), xpreg.SoftmaxRegression(A, b).at(x)
        assert found.grad.dtype == found.hess().dtype == np.float32
        np.testing.assert_allclose(found.grad, expected.grad, rtol=2e-4, atol=1e-7)
        np.testing.assert_allclose(found.hess(), expected.hess(), rtol=2e-4, atol=1e-6)


def test_the_same_blocks_give_the_same_bits(matrix):
    A, b = matrix
    runs = [xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(A), b)) for _ in range(2)]
    np.testing.assert_array_equal(runs[0].x, runs[1].x)
    assert runs[0].fun == runs[1].fun


def test_long_vectors_are_worked_on_in_parts(rng):
    n = 2 * VECTOR_ROWS + 3
    A, b = rng.standard_normal((n, 2)), rng.dirichlet(np.ones(n))
    found, expected = xpreg.SoftmaxRegression(in_blocks(A, (n - 1, 1)), b), xpreg.SoftmaxRegression(A, b)
    x = np.array([0.5, -0.2])
    assert relative(found.at(x).hess(), expected.at(x).hess()) < 1e-12


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 71, 100])
def test_parts_are_put_together_in_a_tree_that_their_number_fixes(count):
    tree = Tree(lambda a, b: f"({a}{b})")
    for i in range(count):
        tree.push(chr(64 + i))
    level = [chr(64 + i) for i in range(count)]
    while len(level) > 1:
        level = [merge_group(tree.merge, level[i : i + ARITY]) for i in range(0, len(level), ARITY)]
    assert tree.result() == level[0]


# -- vectors in blocks -------------------------------------------------------------------------------


@pytest.fixture
def vectors(matrix, rng):
    rows = BlockRows(xpreg.blocked.LocalStore(in_blocks(matrix[0])))
    plain = rng.standard_normal((3, N))
    return plain, rows.hold(plain, "v", "A")


def test_reductions_and_indices_are_those_of_numpy(vectors):
    plain, v = vectors
    xp = B.namespace(v)
    assert xp is B.namespace(2.0 * v)
    for name in ("sum", "max", "min"):
        np.testing.assert_allclose(getattr(xp, name)(v, axis=-1), getattr(np, name)(plain, axis=-1), rtol=1e-12)
        np.testing.assert_allclose(getattr(xp, name)(v), getattr(np, name)(plain), rtol=1e-12)
    top = xp.argmax(v, axis=-1, keepdims=True)
    np.testing.assert_array_equal(top, np.argmax(plain, axis=-1, keepdims=True))
    np.testing.assert_array_equal(xp.take_along_axis(v, top, axis=-1), np.take_along_axis(plain, top, axis=-1))
    np.testing.assert_array_equal(v[..., 0], plain[..., 0])
    np.testing.assert_array_equal(v[..., -1], plain[..., -1])
    np.testing.assert_array_equal(xp.asarray(v[1:, :][0, :] * 2.0, copy=True), plain[1] * 2.0)
    assert xp.all(v == v)
    assert not xp.any(v != v)
    assert int(xp.count_nonzero(v > 0)) == int(np.count_nonzero(plain > 0))
    np.testing.assert_allclose(xp.linalg.vector_norm(v, axis=-1), np.linalg.norm(plain, axis=-1), rtol=1e-12)


def test_argmax_takes_the_first_of_equals_and_nan_first(matrix):
    rows = BlockRows(xpreg.blocked.LocalStore(in_blocks(matrix[0])))
    plain = np.zeros((2, N))
    plain[0, [40, 90]] = 1.0
    plain[1, 60] = np.nan
    v = rows.keep(rows.hold(np.zeros((2, N)), "v", "A") + rows.hold(plain, "v", "A"))
    np.testing.assert_array_equal(B.namespace(v).argmax(v, axis=-1), [40, 60])


def test_the_same_expression_is_one_object_and_reduced_once(vectors, monkeypatch):
    _, v = vectors
    xp = B.namespace(v)
    assert xp.exp(v) + 1.0 is xp.exp(v) + 1.0
    assert xp.exp(v) + 1.0 is not xp.exp(v) + 2.0
    squares = v * v
    first = xp.sum(squares, axis=-1)
    monkeypatch.setattr(v.store, "_reduce", None)
    assert xp.sum(v * v, axis=-1) is first


def test_a_vector_is_freed_with_its_last_use(vectors):
    _, v = vectors
    kept = v.store.keep(2.0 * v)
    alive = weakref.ref(kept)
    gc.disable()  # nothing waits for the collector
    try:
        assert float(B.namespace(v).sum(B.namespace(v).exp(kept - 1.0))) > 0
        del kept
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda v, xp: xp.sort(v, axis=-1),
        lambda v, xp: xp.sum(v, axis=0),
        lambda v, xp: xp.linalg.qr(v),
        lambda v, xp: bool(v),
        lambda v, xp: v[..., None],
        lambda v, xp: v[:, 3:5],
        lambda v, xp: xp.stack([v, v], axis=-1),
        lambda v, xp: xp.reshape(v, (-1,)),
        lambda v, xp: v + np.ones(N),
        lambda v, xp: np.sum(v),
        lambda v, xp: np.asarray(v),
        lambda v, xp: v + BlockRows(xpreg.blocked.LocalStore(in_blocks(np.ones((N, 1))))).full(1.0),
    ],
)
def test_what_would_mix_blocks_is_refused(vectors, wrong):
    _, v = vectors
    with pytest.raises((TypeError, ValueError)):
        wrong(v, B.namespace(v))


# -- files ---------------------------------------------------------------------------------------


def as_file(kind, A, folder):
    path = folder / "A.npy"
    if kind == "npy":
        np.save(path, A)
        return open_rows(path, block_bytes=7 * 32)
    if kind == "memmap":
        np.save(path, A)
        return np.load(path, mmap_mode="r")
    if kind == "part of a memmap":
        np.save(path, np.vstack([A[:3] + 1.0, A, A[:5]]))
        return np.load(path, mmap_mode="r+")[3 : 3 + len(A)]
    if kind == "folder":
        for i, part in enumerate(np.split(A, [1, 20, 20, 90])):
            np.save(folder / f"part-{i}.npy", part)
        return open_rows(folder, block_bytes=300)
    zarr = pytest.importorskip("zarr")
    name = str(folder / ("A" if kind == "zarr without a suffix" else "A.zarr"))
    array = zarr.create_array(name, shape=A.shape, chunks=(13, 3), dtype="f8")
    array[:] = A
    return array if kind == "zarr array" else open_rows(name, block_bytes=30 * 32)


KINDS = ["npy", "memmap", "part of a memmap", "folder", "zarr", "zarr without a suffix", "zarr array"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_files_are_solved_as_in_memory(matrix, tmp_path, kind):
    A, b = matrix
    problem = xpreg.SoftmaxRegression(as_file(kind, A, tmp_path), b)
    assert isinstance(problem.rows, BlockRows)
    found, expected = xpreg.minimize(problem, device="cpu"), xpreg.minimize(xpreg.SoftmaxRegression(A, b))
    assert found.success
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-10)
    assert str(tmp_path) in repr(problem.rows.store)


def test_a_file_that_does_not_fit_leaves_nothing_in_the_file_cache(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(B, "free_memory", lambda like: 2000)
    rows = as_file("npy", matrix[0], tmp_path)
    dropped = []
    monkeypatch.setattr(files.os, "posix_fadvise", lambda *arguments: dropped.append(arguments[1:]), raising=False)
    blocks = [block.copy() for _, block in rows.stream()]
    np.testing.assert_array_equal(np.concatenate(blocks), matrix[0])
    begin = rows.parts[0][1]
    dont_need = [(first, size) for first, size, advice in dropped if advice == files.os.POSIX_FADV_DONTNEED]
    assert dont_need == [(begin + 224 * i, 224) for i in range(17)] + [(begin + 224 * 17, 32)]


def test_what_is_computed_from_a_memmap_is_an_ordinary_array(matrix, tmp_path):
    mapped = as_file("memmap", matrix[0], tmp_path)
    for A in (mapped + 1.0, np.load(tmp_path / "A.npy", mmap_mode="c")):
        assert not isinstance(xpreg.SoftmaxRegression(A, matrix[1]).rows, BlockRows)


def passes(problem, monkeypatch):
    count = [0]
    stream = type(problem.rows.store.source).stream

    def counted(self):
        count[0] += 1
        return stream(self)

    monkeypatch.setattr(type(problem.rows.store.source), "stream", counted)
    return count


@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax", "exp"])
def test_a_newton_step_reads_the_rows_three_times(rng, monkeypatch, loss):
    A, _, x = data(loss, rng, n=N, d=4)
    b = realisable(loss, LOSSES[loss], A, 0.3 * x)
    problem = LOSSES[loss](in_blocks(A), b)
    count, marks = passes(problem, monkeypatch), []
    result = xpreg.minimize(problem, callback=lambda record: marks.append(count[0]))
    assert result.success
    assert len(marks) > 3
    plain = [i for i, r in enumerate(result.history[1:]) if (r.direction, r.step) == ("newton", 1.0)]
    assert {int(np.diff(marks)[i]) for i in plain[:-1]} == {3}
    assert count[0] <= 2 + 3 * result.nit + 2  # a fresh start, and the check at the end
    count[0] = 0
    at = problem.at(x)
    _ = at.value, at.grad
    assert count[0] == 2
    at.hvp(x)
    at.hvp(x)
    assert count[0] == 4


def test_a_run_goes_on_from_a_checkpoint_of_the_same_rows_only(matrix, tmp_path):
    A, b = matrix
    path, stop = tmp_path / "run.npz", {"maxiter": 2, "checkpoint": tmp_path / "run.npz"}
    assert not xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(A), b, weights=0.01), **stop).success
    with np.load(path) as kept:
        assert max(kept[name].size for name in kept.files) < N  # nothing with one entry per row
    go_on = {"checkpoint": path, "resume": True}
    found = xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(A), b, weights=0.01), **go_on)
    expected = xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(A), b, weights=0.01))
    assert found.nit == expected.nit
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-9)
    for others in ((A[::-1], b), (A, b[::-1])):
        with pytest.raises(xpreg.InvalidArgumentError, match="belongs to another run"):
            xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(others[0]), others[1], weights=0.01), **go_on)


def test_the_default_method_knows_what_reading_a_file_costs(rng, tmp_path, monkeypatch):
    monkeypatch.setattr("xpreg.solvers.auto.SMALL", 0)
    A, b = rng.standard_normal((300, 40)), rng.dirichlet(np.ones(300))
    np.save(tmp_path / "A.npy", A)
    result = xpreg.minimize(xpreg.SoftmaxRegression(open_rows(tmp_path / "A.npy"), b), maxiter=2)
    assert "a Gram matrix costs no more than reading the rows" in result.message


# -- reading ahead -----------------------------------------------------------------------------------


def test_a_thread_reads_ahead_but_only_some_blocks(matrix, tmp_path, monkeypatch):
    rows = as_file("npy", matrix[0], tmp_path)
    read, done = [], []
    original = type(rows).read

    def noted(self, where, first, last, buffer):
        read.append((first, id(buffer)))
        return original(self, where, first, last, buffer)

    monkeypatch.setattr(type(rows), "read", noted)
    for part, block in rows.stream():
        time.sleep(0.002)
        assert len(read) <= len(done) + 1 + files.AHEAD
        np.testing.assert_array_equal(block, matrix[0][part])
        done.append(part)
    assert len({buffer for _, buffer in read}) == files.AHEAD + 1
    assert len(done) == -(-N // 7)


def test_the_thread_ends_with_the_pass_whatever_happens(matrix, tmp_path, monkeypatch):
    rows = as_file("npy", matrix[0], tmp_path)
    before = threading.active_count()
    for _ in rows.stream():
        break
    for _ in rows.stream():
        pass
    with (tmp_path / "A.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(xpreg.InvalidArgumentError, match="ends before its last row"):
        list(rows.stream())
    assert threading.active_count() == before


def test_resident_memory_does_not_grow_with_the_file(tmp_path):
    """96 MB of rows: a solve needs less than half of them above what the imports and vectors take."""
    path, n, d = tmp_path / "A.npy", 120_000, 100
    code = f"""
import resource, sys
import numpy as np, xpreg, xpreg.blocked.files as files
rows = np.lib.format.open_memmap({str(path)!r}, mode="w+", dtype="f8", shape=({n}, {d}))
rng = np.random.default_rng(0)
for start in range(0, {n}, 1000):
    rows[start : start + 1000] = rng.standard_normal((1000, {d}))
rows.flush()
rows._mmap.madvise(4)  # MADV_DONTNEED: the pages of the mapping count until it is gone
del rows
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
small = rng.standard_normal((4000, {d}))
xpreg.minimize(xpreg.SoftmaxRegression(small, np.full(4000, 1 / 4000)), maxiter=2)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew here
base = peak()
problem = xpreg.SoftmaxRegression(xpreg.io.open_rows({str(path)!r}, block_bytes=2**20), np.full({n}, 1 / {n}))
xpreg.minimize(problem, np.full({d}, 0.01), maxiter=3)
print(peak() - base)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 2**20 + 12 * n * 8 + 12 * d * d * 8 + 16 * 2**20 < 0.5 * n * d * 8


def test_nobody_imports_libraries_that_hold_rows_unasked():
    code = (
        "import sys, numpy as np, xpreg\n"
        "xpreg.minimize(xpreg.SoftmaxRegression(np.eye(3), np.ones(3) / 3))\n"
        "assert not {'dask', 'distributed', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- errors --------------------------------------------------------------------------------------


def test_files_that_are_no_matrix_of_rows_are_refused(tmp_path, rng):
    A = rng.standard_normal((6, 3))

    def saved(name, array):
        np.save(tmp_path / name, array)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "a.npz", A=A)
    for path, message in (
        (tmp_path / "none.npy", "no such file"),
        (tmp_path / "empty", "folder without .npy files"),
        (tmp_path / "text.npy", "no .npy file of plain numbers"),
        (tmp_path / "a.npz", "no .npy file of plain numbers"),
        (saved("int.npy", np.arange(6).reshape(2, 3)), "dtype int64, but float32 or float64"),
        (saved("big.npy", A.astype(">f8")), "byte order"),
        (saved("cube.npy", np.ones((2, 2, 2))), r"shape \(2, 2, 2\)"),
        (saved("fortran.npy", np.asfortranarray(A)), "column by column"),
        (saved("nothing.npy", np.ones((0, 3))), r"shape \(0, 3\)"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            open_rows(path)
    folder = tmp_path / "blocks"
    folder.mkdir()
    np.save(folder / "0.npy", A)
    np.save(folder / "1.npy", A[:, :2])
    with pytest.raises(xpreg.InvalidArgumentError, match=r"1.npy has 2 columns of float64, but 0.npy has 3"):
        open_rows(folder)
    with pytest.raises(xpreg.InvalidArgumentError, match="block_bytes is 0"):
        open_rows(folder / "0.npy", block_bytes=0)
    with pytest.raises(xpreg.InvalidArgumentError, match="not C-contiguous"):
        xpreg.SoftmaxRegression(np.load(folder / "0.npy", mmap_mode="r")[:, 1:], np.ones(6) / 6)


def test_arguments_that_do_not_fit_the_rows_are_named(matrix, tmp_path):
    A, b = matrix
    rows = as_file("npy", A, tmp_path)
    for arguments, message in (
        ({"b": b[:5]}, rf"b has shape \(5,\), but A has {N} rows"),
        ({"b": b.astype("f4")}, "b has dtype float32, but A has float64"),
        ({"b": b, "weights": np.ones(3)}, r"weights has shape \(3,\)"),
        ({"b": np.where(b == b.max(), np.nan, b)}, "b has 1 entries that are NaN"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            xpreg.SoftmaxRegression(rows, **arguments)
    A[70, 1] = np.inf
    with pytest.raises(xpreg.InvalidArgumentError, match="A has 1 entries that are NaN or infinite"):
        xpreg.SoftmaxRegression(as_file("npy", A, tmp_path), b)


def test_what_needs_single_rows_says_so(matrix):
    problem = xpreg.SoftmaxRegression(in_blocks(matrix[0]), matrix[1])
    with pytest.raises(xpreg.InvalidArgumentError, match="cannot hand out single rows"):
        xpreg.minimize(problem, method="approximate-newton")


def test_a_missing_gpu_is_an_error(matrix):
    if B.cuda_is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(xpreg.DeviceNotAvailableError):
        xpreg.SoftmaxRegression(in_blocks(matrix[0]), matrix[1], device="cuda")
    with pytest.raises(xpreg.DeviceNotAvailableError):
        xpreg.minimize(xpreg.SoftmaxRegression(in_blocks(matrix[0]), matrix[1]), device="cuda")


# -- the command line ----------------------------------------------------------------------------


def test_the_command_line_takes_rows_from_a_path(matrix, tmp_path, capsys):
    A, b = matrix
    np.save(tmp_path / "A.npy", A)
    np.savez(tmp_path / "data.npz", b=b, weights=np.float64(0.0))
    solve = functools.partial(_run, "solve", "--loss", "softmax", tmp_path / "data.npz")
    assert solve("--rows", tmp_path / "A.npy", "--out", tmp_path / "r.npz") == 0
    expected = xpreg.minimize(xpreg.SoftmaxRegression(A, b)).x
    np.testing.assert_allclose(io.load_result(tmp_path / "r.npz").x, expected, rtol=1e-9)
    assert "solved" in capsys.readouterr().out
    assert solve("--rows", tmp_path / "B.npy") == 2
    assert "B.npy: no such file" in capsys.readouterr().err
    assert _run("solve", "--loss", "softmax-relu", tmp_path / "data.npz", "--rows", tmp_path / "A.npy") == 2
    assert "needs A1 and A2" in capsys.readouterr().err


def _run(*arguments):
    return xpreg.cli.main([str(a) for a in arguments])


def test_blocks_of_a_folder_follow_their_numbers(rng, tmp_path):
    A = rng.standard_normal((24, 3))
    for i in range(12):
        np.save(tmp_path / f"block_{i}.npy", A[2 * i : 2 * i + 2])
    found = np.concatenate([block.copy() for _, block in io.open_rows(tmp_path).stream()])
    np.testing.assert_array_equal(found, A)


def test_rows_are_those_that_were_opened_whatever_happens_to_the_folder(rng, tmp_path, monkeypatch):
    A, other = rng.standard_normal((2, 20, 3))
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "A.npy", A)
    np.save(tmp_path / "elsewhere" / "A.npy", other)
    monkeypatch.chdir(tmp_path)
    problem = xpreg.ExpRegression(io.open_rows("A.npy"), np.ones(20))
    value = problem.value(np.ones(3))
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(problem.value(np.ones(3)), value)
    time.sleep(0.02)
    np.save(tmp_path / "A.npy", other)
    with pytest.raises(xpreg.InvalidArgumentError, match="has been written to: it has changed since it was opened"):
        problem.value(np.ones(3))
    (tmp_path / "A.npy").unlink()
    with pytest.raises(xpreg.InvalidArgumentError, match="cannot be read any more"):
        problem.value(np.ones(3))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("approximate-newton", "gradient-descent")])
def test_every_method_converges_on_rows_in_files(rng, tmp_path, method):
    A, x = rng.standard_normal((1000, 20)), rng.standard_normal((3, 20))
    b = np.exp(x @ A.T)
    b /= b.sum(axis=1, keepdims=True)
    np.save(tmp_path / "A.npy", A)
    for i in range(3):
        problem = xpreg.SoftmaxRegression(io.open_rows(tmp_path / "A.npy"), b[i])
        found = xpreg.minimize(problem, method=method, tol=1e-11)
        assert found.success, found.message
        assert np.abs(found.x - x[i]).max() < 1e-6
