"""The fused kernels: layouts, NVRTC, execution on the CPU against array code, and the formulas that finish the sums.

No GPU is needed. What only a GPU can show (speed, and that CuPy launches them rightly) is marked ``gpu``.
"""

import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from support import cpu_exec, nvrtc
from support.kernels import Bench, Case, thread_order

import xpreg
from xpreg import backend as B
from xpreg import kernels
from xpreg.errors import DomainError, InvalidArgumentError
from xpreg.kernels import rowstream

needs_compiler = pytest.mark.skipif(cpu_exec.missing() is not None, reason=str(cpu_exec.missing()))

SHAPES = [
    # n, d, aligned: every way of holding a row, odd tails, one row, fewer rows than columns
    *((1, 1, True), (75, 1, True), (300, 2, True), (50, 3, True), (131, 4, True), (40, 5, True), (9, 8, True)),
    *((70, 17, True), (33, 32, True), (20, 33, True), (23, 54, True), (29, 64, False), (1, 100, True), (26, 127, True)),
    *((21, 128, True), (11, 129, True), (13, 150, True), (19, 300, True), (17, 1000, False), (10, 1024, True)),
]
CASES = [
    Case(kernel, n, d, dtype, activation=activation, extra=extra, aligned=aligned)
    for i, ((n, d, aligned), dtype) in enumerate(itertools.product(SHAPES, ("float64", "float32")))
    for kernel, activation, extra in (
        ("normalised", kernels.ACTIVATIONS[i // 2 % 2], i // 4 % 2 == 0),
        ("gram", "softmax", i // 2 % 2 == 0),
    )
    if kernel == "normalised" or d not in (2, 3, 8, 33, 100, 128, 150, 300)
]

PROBLEM_CASES = [  # what test_problems_use_the_fused_kernels_where_they_apply launches
    *(Case("normalised", 40, 6, "float64", activation=activation, extra=True) for activation in kernels.ACTIVATIONS),
    *(Case("gram", 40, 6, "float64", extra=centred) for centred in (False, True)),
]


# ---------------------------------------------------------------------------------------------
# layouts


@pytest.mark.parametrize(("itemsize", "alignment"), [(4, 4), (4, 8), (4, 16), (8, 8), (8, 16)])
def test_every_width_has_a_layout_that_covers_it_and_wastes_less_than_half(itemsize, alignment):
    for d in range(1, rowstream.LARGEST_D + 1):
        rows = rowstream.layout(d, itemsize, alignment)
        lanes = 32 * rows.warps if rows.wide else rows.L
        slots = lanes * rows.J * rows.V
        assert d <= slots < 2 * d or slots == d, (d, rows)
        assert rows.J * rows.V <= rowstream.COLUMNS_PER_LANE
        assert rows.R * rows.J * rows.V * itemsize <= rowstream.BYTES_IN_FLIGHT
        assert rows.R in (1, 2, 4, 8)
        assert rows.warps <= rowstream.WARPS
        assert rows.L == 32 if rows.wide else rows.L in (1, 2, 4, 8, 16, 32)
        assert d % rows.V == 0
        assert rows.V * itemsize <= alignment


@pytest.mark.parametrize("d", [0, rowstream.LARGEST_D + 1])
def test_a_width_without_a_layout_is_refused(d):
    with pytest.raises(InvalidArgumentError, match=f"d is {d}"):
        rowstream.layout(d, 8, 16)


def test_the_grid_is_one_wave_and_no_block_is_idle():
    rows = rowstream.layout(64, 8, 16)
    assert rowstream.grid_size(10**9, rows, 132) == 132 * 4
    assert rowstream.grid_size(1, rows, 132) == 1
    assert rowstream.grid_size(rows.rows_per_block * 5 + 1, rows, 132) == 6


# ---------------------------------------------------------------------------------------------
# the switch


def test_the_fused_kernels_are_off_unless_they_are_switched_on(monkeypatch):
    A = np.ones((3, 2))
    monkeypatch.setattr(B, "runs_cuda", lambda x: True)  # what only CuPy arrays are
    assert not kernels.fused_is_on()
    assert kernels.row_stream(A) is None
    try:
        kernels.use_fused(True)
        assert isinstance(kernels.row_stream(A), kernels.RowStream)
        assert kernels.row_stream(np.ones((2, 3)).T) is None
        assert kernels.row_stream(np.ones((1, kernels.LARGEST_D + 1))) is None
        monkeypatch.undo()
        assert kernels.row_stream(A) is None
    finally:
        kernels.use_fused(False)


def test_the_environment_switches_the_fused_kernels_on():
    code = "from xpreg import kernels; raise SystemExit(not kernels.fused_is_on())"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "XPREG_FUSED": "1"}, check=True)


# ---------------------------------------------------------------------------------------------
# NVRTC


@pytest.fixture(scope="module")
def compiled():
    """What NVRTC says of the kernels that need most registers, by architecture (all: python -m support.nvrtc)."""
    if nvrtc.missing():
        pytest.skip(nvrtc.missing())
    names = nvrtc.rowstream_names((4, 99, 1000))
    names = [name for name in names if ",1,true," in name or ("gram_product" in name and ",true," in name)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(
            lambda a: nvrtc.compile_kernels(rowstream.source(), [*names, "merge"], a), nvrtc.ARCHITECTURES
        )
        return names, dict(zip(nvrtc.ARCHITECTURES, results, strict=True))


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_kernels_compile_without_warnings_and_hardly_spill(compiled, arch):
    names, results = compiled
    reports, warnings = results[arch]
    assert warnings == []
    assert sorted(k.name for k in reports) == sorted([*names, "merge"])
    assert [k for k in reports if k.spills > 16] == []
    assert max(k.registers for k in reports) <= 128  # what the resident warps of the grid are reckoned from


# ---------------------------------------------------------------------------------------------
# execution on the CPU


@pytest.fixture(scope="module")
def bench():
    if cpu_exec.missing():
        pytest.skip(cpu_exec.missing())
    return Bench(CASES + PROBLEM_CASES)


def assert_close(case, result):
    """Each result agrees with the float64 array code up to rounding of the terms that it adds up."""
    reference, scales = case.run(), case.scales()
    for name, scale in scales.items():
        # 4 sqrt(d) for z in the dtype of A; the sums over rows are in double
        bound = 4 * np.sqrt(case.d + 8) * np.finfo(case.dtype).eps * scale + 1e-300
        error = np.abs(np.float64(result[name]) - np.float64(reference[name]))
        assert np.all(error <= bound), (name, float(np.max(error / bound)))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_sums_equal_the_array_code_and_do_not_depend_on_the_order_of_threads(bench, case):
    results = [case.run(bench.stream())]
    for seed in (1, 2):
        with thread_order(seed):
            results.append(case.run(bench.stream()))
    assert_close(case, results[0])
    for other in results[1:]:
        assert all(np.array_equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("processors", [1, 2, 1000])
def test_any_number_of_processors_gives_the_same_sums_up_to_rounding(bench, processors):
    for case in CASES:
        if case.n > 50:
            assert_close(case, case.run(bench.stream(processors)))


def test_bad_arguments_of_a_launch_are_named(bench):
    case = next(c for c in CASES if c.kernel == "normalised")
    A, b, x, shift = case.A, case.b, case.x, case.shift
    stream = bench.stream()
    with pytest.raises(InvalidArgumentError, match="activation is 'relu'"):
        stream.normalised_sums(A, b, x, activation="relu", shift=shift)
    with pytest.raises(InvalidArgumentError, match="b has dtype float32"):
        stream.normalised_sums(A, b.astype("float32"), x, activation="softmax", shift=shift)
    with pytest.raises(InvalidArgumentError, match="A is not C-contiguous"):
        stream.gram_sums(np.ones((3, 4))[:, ::2], np.ones(3), np.ones(2))


def test_vectors_need_not_lie_in_one_piece(bench):
    """A column of something as b, and one weight that stands for all, as a problem keeps them."""
    case = next(c for c in CASES if c.kernel == "normalised" and c.extra)
    A, b, x, shift = case.A, case.b, case.x, case.shift
    stream, options = bench.stream(), {"activation": case.activation, "shift": shift}
    apart = [np.stack([q, 0 * q], axis=1)[:, 0] for q in (b, x)]
    w2 = np.broadcast_to(b[:1], b.shape)
    want = stream.normalised_sums(A, b, x, w2=w2.copy(), **options)
    found = stream.normalised_sums(A, *apart, w2=w2, **options)
    np.testing.assert_array_equal(found.T, want.T)
    np.testing.assert_array_equal(found.s, want.s)
    case = next(c for c in CASES if c.kernel == "gram" and c.extra)
    want = stream.gram_sums(case.A, case.b, case.x, centre=case.centre)
    apart = [np.stack([q, 0 * q], axis=1)[:, 0] for q in (case.b, case.x, case.centre)]
    np.testing.assert_array_equal(stream.gram_sums(case.A, *apart[:2], centre=apart[2]).y, want.y)


SANITIZED = """
import sys
from support.kernels import Bench, Case
cases = [
    Case("normalised", 37, 5, "float64", activation="resnet", extra=True),
    Case("gram", 19, 132, "float32", extra=True),
]
if sys.argv[1] != "thread":  # there a thread is a thread of the system, and slow
    cases += [Case("normalised", 23, 36, "float32"), Case("normalised", 9, 300, "float64", activation="resnet")]
bench = Bench(cases, sanitize=sys.argv[1], modules=1)
for case in cases:
    case.run(bench.stream(1))
"""


@needs_compiler
@pytest.mark.parametrize(
    ("library", "sanitize"), [("libasan", "address,undefined"), ("libtsan", "thread")], ids=["address", "thread"]
)
def test_sanitizers_find_nothing(library, sanitize):
    preload = cpu_exec.preload(library)
    if preload is None:
        pytest.skip(f"{cpu_exec.COMPILER} has no {library}")
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            map(str, (pathlib.Path(__file__).parent, pathlib.Path(xpreg.__file__).parents[1]))
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, sanitize], env=environment, capture_output=True, text=True, timeout=120
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(f"{library} cannot run under this kernel's address space randomisation")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Sanitizer" not in done.stderr, done.stderr[-4000:]


# ---------------------------------------------------------------------------------------------
# from the sums to value and gradient


def problem(activation, A, b, weights=0.0):
    make = {"softmax": xpreg.SoftmaxRegression, "resnet": xpreg.ResNetSoftmaxRegression}[activation]
    return make(A, b, weights=weights)


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("offset", [0.0, 0.4, 3.0, -3.0, 60.0, -60.0, 800.0, -800.0])
def test_value_gradient_and_product_follow_from_the_sums_wherever_the_pass_starts(backend, rng, activation, offset):
    n, d, weight = 40, 6, 0.7
    A, x, v, b = rng.standard_normal((n, d)), rng.standard_normal(d), rng.standard_normal(d), rng.dirichlet(np.ones(n))
    A -= A.mean(axis=0)
    point = problem(activation, A, b, weights=weight).at(x)
    A_, b_, x_, v_ = map(backend.array, (A, b, x, v))
    w2 = backend.array(weight**2)
    found, sums = kernels.value_and_grad(
        kernels.normalised_sums, A_, b_, x_, activation=activation, log_alpha=backend.array(np.log(n) + offset), w2=w2
    )
    np.testing.assert_allclose(backend.numpy(found.value), point.value, rtol=1e-12)
    np.testing.assert_allclose(backend.numpy(found.grad), point.grad, rtol=1e-11, atol=1e-14)
    assert sums.z is None
    # H v = A^T((D + w^2)*(A v)) + P K P^T v with P = [p0, p1], K = [[2s + |f|^2, -1], [-1, 0]]
    head = point.problem.head.at(point.z, point.problem._b)
    f, c, s = head.f[0], head.f[0] - b, float(backend.numpy(found.s))
    v1 = f if activation == "softmax" else head.v[0]
    D = (f if activation == "softmax" else head.u2_alpha[0]) * (c - s) + v1 * v1 + weight**2
    y = backend.numpy(kernels.gram_sums(A_, backend.array(D), v_).y)
    p0, p1, f2 = (backend.numpy(q) for q in (found.p0, found.p1, found.f2))
    product = y + p0 * ((2 * s + f2) * (p0 @ v) - p1 @ v) - p1 * (p0 @ v)
    np.testing.assert_allclose(product, point.hvp(v), rtol=1e-10, atol=1e-13)


def test_the_centred_product_is_that_of_the_softmax_hessian(backend, rng):
    A, x, v, b = (
        rng.standard_normal((40, 6)),
        rng.standard_normal(6),
        rng.standard_normal(6),
        rng.dirichlet(np.ones(40)),
    )
    point = xpreg.SoftmaxRegression(A, b).at(x)
    f = np.exp(A @ x) / np.sum(np.exp(A @ x))
    q = f * (2 * f - b - (f - b) @ f)
    y = kernels.gram_sums(*map(backend.array, (A, q, v)), centre=backend.array(A.T @ f)).y
    np.testing.assert_allclose(backend.numpy(y), point.hvp(v), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("misfit", [1e-2, 1e-5, 1e-8])
def test_a_good_normaliser_keeps_the_digits_when_f_is_close_to_b(rng, activation, misfit):
    n, d = 2000, 5
    A, x = rng.standard_normal((n, d)), 0.5 * rng.standard_normal(d)
    z = A.astype(np.longdouble) @ x.astype(np.longdouble)
    u = np.exp(z) + (z if activation == "resnet" else 0)
    u1 = np.exp(z) + (1 if activation == "resnet" else 0)
    alpha = u.sum()
    f = u / alpha
    b = np.float64(f * (1 + misfit * rng.standard_normal(n)))
    c = f - b
    grad = A.T @ (u1 / alpha * (c - c @ f))
    shift = np.asarray(np.float64(np.log(alpha) + 0.05))
    found = kernels.finish(kernels.normalised_sums(A, b, x, activation=activation, shift=shift))
    assert np.linalg.norm(found.grad - grad) <= 1e-14 / misfit * np.linalg.norm(grad)


def test_a_good_normaliser_needs_one_pass_and_one_read_of_the_host(rng):
    from support import fakegpu

    A, b, x = rng.standard_normal((30, 4)), rng.dirichlet(np.ones(30)), rng.standard_normal(4)
    log_alpha = np.log(np.sum(np.exp(A @ x))) + 0.1
    A, b, x, log_alpha = map(fakegpu.xp.asarray, (A, b, x, log_alpha))
    with fakegpu.count(forbid=("syncs", "h2d")) as events:
        kernels.value_and_grad(kernels.normalised_sums, A, b, x, activation="softmax", log_alpha=log_alpha)
    assert events.d2h == 1
    assert [what for _, what in events.log].count("matmul") == 2  # z = A x, and the sums
    with fakegpu.count(forbid=("syncs", "h2d", "d2h")) as events:
        kernels.finish(kernels.normalised_sums(A, b, x, activation="softmax", shift=log_alpha))


def test_a_normaliser_that_is_not_positive_or_overflows_is_an_error(backend):
    A, b = backend.array(np.ones((3, 1))), backend.array(np.full(3, 1 / 3))
    with pytest.raises(DomainError, match="must be positive"):  # alpha = -1.896
        kernels.value_and_grad(kernels.normalised_sums, A, b, backend.array([-1.0]), activation="resnet")
    with np.errstate(over="ignore"), pytest.raises(DomainError, match="largest entry of z"):
        kernels.value_and_grad(kernels.normalised_sums, A * 1e200, b, backend.array([1e200]), activation="softmax")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_results_have_the_dtype_of_A_and_sums_are_double(backend, rng, activation, dtype):
    A, b, x = (backend.array(q, dtype) for q in (rng.standard_normal((9, 2)), np.full(9, 1 / 9), np.ones(2)))
    found, sums = kernels.value_and_grad(kernels.normalised_sums, A, b, x, activation=activation, keep_z=True)
    assert all(q.dtype == A.dtype for q in (found.value, found.grad, found.log_alpha, found.p0, sums.z))
    assert all(q.dtype == backend.xp.float64 for q in (sums.T, sums.s, sums.largest))


NORMALISED = [xpreg.SoftmaxRegression, xpreg.ResNetSoftmaxRegression]


def one_problem(rng, weights):
    """A, b, x, v and weights; b, x and v are columns of something, and one weight stands for all."""
    A, b = rng.standard_normal((40, 6)), rng.dirichlet(np.ones(40))
    apart = [np.stack([q, 0 * q], axis=1)[:, 0] for q in (b, rng.standard_normal(6), np.ones(6))]
    return A - A.mean(axis=0), *apart, rng.random(40) if weights == "vector" else weights


@pytest.mark.parametrize("weights", ["vector", 0.3])
@pytest.mark.parametrize("make", NORMALISED)
def test_problems_use_the_fused_kernels_where_they_apply(bench, monkeypatch, rng, make, weights):
    A, b, x, v, weights = one_problem(rng, weights)
    problem = make(A, b, weights=weights)
    value, grad, product = *problem.value_and_grad(x), problem.hvp(x, v)
    stream = bench.stream()
    passes = []
    one_pass = stream.normalised_sums
    stream.normalised_sums = lambda *args, **options: passes.append(0) or one_pass(*args, **options)
    products, gram = [], stream.gram_sums
    stream.gram_sums = lambda *args, **options: products.append(0) or gram(*args, **options)
    monkeypatch.setattr(kernels, "row_stream", lambda A: stream)
    for _ in range(2):
        fused_value, fused_grad = problem.value_and_grad(x)
        np.testing.assert_allclose(fused_value, value, rtol=1e-12)
        np.testing.assert_allclose(fused_grad, grad, rtol=1e-10, atol=1e-14)
    assert len(passes) <= 3  # the second call starts from the normaliser of the first
    np.testing.assert_allclose(problem.hvp(x, v), product, rtol=1e-10, atol=1e-14)
    assert len(products) == 1
    stack = make(A, np.stack([b, b]))
    np.testing.assert_array_equal(stack.value_and_grad(x)[0].shape, (2,))  # stacks stay with array code
    assert len(passes) <= 3


# ---------------------------------------------------------------------------------------------
# on a GPU


NO_GPU = [pytest.param(None, marks=pytest.mark.skip("CuPy finds no GPU on this machine"))]


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES if B.cuda_is_available() else NO_GPU, ids=repr)
def test_sums_on_the_gpu_equal_the_array_code_and_are_the_same_in_every_run(case):
    device = Case.__new__(Case)
    device.__dict__.update(case.__dict__)
    for name in ("A", "x", "b", "w2", "centre", "shift"):
        setattr(device, name, B.to_device(getattr(case, name), "cuda"))
    stream = kernels.RowStream(B.cuda_module, B.multiprocessors)
    first, second = ({name: B.to_numpy(q) for name, q in device.run(stream).items()} for _ in range(2))
    assert_close(case, first)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["vector", 0.3, 0.0])
@pytest.mark.parametrize("make", NORMALISED if B.cuda_is_available() else NO_GPU)
def test_problems_on_the_gpu_are_the_same_with_the_fused_kernels_on(rng, make, weights):
    A, b, x, v, weights = one_problem(rng, weights)
    cupy = B.require_cupy()
    A, b, x, v = map(cupy.asarray, (A, b, x, v))
    problem = make(A, b, weights=weights if isinstance(weights, float) else cupy.asarray(weights))
    found = []
    for on in (False, True):
        kernels.use_fused(on)
        found.append([B.to_numpy(q) for q in (*problem.value_and_grad(x), problem.hvp(x, v))])
    kernels.use_fused(False)
    for plain, fused in zip(*found, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=1e-10, atol=1e-13)
