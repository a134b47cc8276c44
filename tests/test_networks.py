"""Two-layer networks: values, gradients, kernels, against formulas for complex weights and Monte Carlo."""

import tracemalloc

import numpy as np
import pytest

import xpreg
from xpreg import networks
from xpreg.networks import kernels, linearise

D, K, N = 3, 2, 7


def exp_reference(W, a, X):
    return np.exp(X @ W) @ a


def softmax_reference(W, a, X):
    E = np.exp(X @ W)
    return W.shape[1] * (E / E.sum(1, keepdims=True)) @ a


CASES = {"exp": (xpreg.ExpNetwork, exp_reference, 1), "softmax": (xpreg.SoftmaxNetwork, softmax_reference, K)}


class Case:
    """A small network with independent signs, its points and targets, and the same in NumPy."""

    def __init__(self, name, backend, rng, m=10, n=N):
        self.cls, self.reference, self.k = CASES[name]
        self.W = 0.7 * rng.standard_normal((D, m))
        self.a = rng.choice([-1.0, 1.0], (m, self.k))
        self.X, self.Y = rng.standard_normal((n, D)), rng.standard_normal((n, self.k))
        self.one = self.k == 1
        a, y = (v[:, 0] if self.one else v for v in (self.a, self.Y))
        self.network = self.cls(backend.array(self.W), backend.array(a))
        self.x, self.y = backend.array(self.X), backend.array(y)

    def outputs(self, W):
        """F as a vector in the kernel's order: (l, i), l-major."""
        return self.reference(W, self.a, self.X).T.ravel()

    def complex_step(self, f):
        """df/dW column by column: exact to rounding."""
        columns = []
        for i in range(self.W.size):
            W = self.W.astype(complex).ravel()
            W[i] += 1e-30j
            columns.append(np.imag(f(W.reshape(self.W.shape))) / 1e-30)
        return np.stack(columns, axis=-1)


@pytest.fixture(params=list(CASES))
def case(request, backend, rng):
    return Case(request.param, backend, rng)


def close(actual, desired, rtol=1e-12):
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=rtol * np.abs(desired).max())


# -- values and gradients


def test_prediction_and_loss_equal_the_formula(case, backend):
    F = case.reference(case.W, case.a, case.X)
    close(backend.numpy(case.network.predict(case.x)), F[:, 0] if case.one else F)
    close(backend.numpy(case.network.loss(case.x, case.y)), 0.5 * ((F - case.Y) ** 2).sum())


def test_gradient_equals_the_complex_step_derivative(case, backend):
    g = case.complex_step(lambda W: 0.5 * ((case.reference(W, case.a, case.X) - case.Y) ** 2).sum())
    close(backend.numpy(case.network.grad(case.x, case.y)), g.reshape(case.W.shape), rtol=1e-12)


def test_loss_and_grad_are_those_of_the_two_calls(case, backend):
    loss, g = case.network.loss_and_grad(case.x, case.y)
    close(backend.numpy(loss), backend.numpy(case.network.loss(case.x, case.y)))
    close(backend.numpy(g), backend.numpy(case.network.grad(case.x, case.y)))


def test_jacobian_products_equal_those_of_the_jacobian(case, backend, rng):
    J = case.complex_step(case.outputs)
    at = linearise.Linearisation(case.network, case.x, keep=True)
    change, v = rng.standard_normal(case.W.shape), rng.standard_normal((N, case.k))
    close(backend.numpy(at.push(backend.array(change))).T.ravel(), J @ change.ravel())
    close(backend.numpy(at.pull(backend.array(v))).ravel(), J.T @ v.T.ravel())


def test_blocks_of_points_change_nothing(case, backend, monkeypatch):
    whole = case.network.loss_and_grad(case.x, case.y)
    monkeypatch.setattr(linearise.B, "block_bytes", lambda like, nbytes: 1)
    monkeypatch.setattr(linearise, "LEAST_ROWS", 2)
    assert len(linearise.block_slices(case.x, case.network.m)) == 4
    for block, full in zip(case.network.loss_and_grad(case.x, case.y), whole, strict=True):
        close(backend.numpy(block), backend.numpy(full), rtol=1e-14)


# -- kernels


def test_m_times_the_tangent_kernel_is_the_jacobian_times_its_transpose(case, backend):
    J = case.complex_step(case.outputs)
    close(case.network.m * backend.numpy(case.network.tangent_kernel(case.x)), J @ J.T)


def test_kernel_between_two_sets_is_a_part_of_the_kernel_on_both(case, backend):
    H = backend.numpy(case.network.tangent_kernel(case.x)).reshape(case.k, N, case.k, N)
    part = case.network.tangent_kernel(case.x[:3, :], case.x[3:, :])
    close(backend.numpy(part), H[:, :3, :, 3:].reshape(3 * case.k, 4 * case.k))


@pytest.mark.parametrize("kind", ["tangent_kernel", "limit_kernel"])
def test_kernels_are_exactly_symmetric_and_do_not_depend_on_the_tiles(case, backend, kind, rng):
    X = backend.array(rng.standard_normal((80, D)))
    compute = getattr(case.network, kind)
    whole = backend.numpy(compute(X))
    assert np.array_equal(whole, whole.T)
    result_bytes = whole.nbytes
    for tiles in (120_000, 300_000, 900_000):
        H = backend.numpy(compute(X, max_bytes=result_bytes + tiles))
        assert np.array_equal(H, H.T)
        close(H, whole, rtol=1e-14)
        close(backend.numpy(compute(X, X, max_bytes=result_bytes + tiles)), whole, rtol=1e-14)


def test_small_memory_limits_do_cut_the_kernel_into_tiles(rng):
    network = xpreg.ExpNetwork.initialise(D, 500)
    X = rng.standard_normal((300, D))
    kernel = kernels.TangentKernel(network)
    assert kernels.plan(kernel, X, 300, 300, None, result=True) == (300, True)
    rows, kept = kernels.plan(kernel, X, 300, 300, 300 * 300 * 8 + 10**6, result=True)
    assert rows < 60
    assert not kept


def test_kernel_fills_the_callers_array(case, backend):
    H = case.network.tangent_kernel(case.x)
    out = backend.array(np.full(H.shape, np.nan))
    assert case.network.tangent_kernel(case.x, out=out) is out
    close(backend.numpy(out), backend.numpy(H))


def test_kernel_fills_a_memory_map_tile_by_tile(case, backend, tmp_path):
    size = case.k * N
    out = np.memmap(tmp_path / "kernel", dtype="float64", mode="w+", shape=(size, size))
    for kind in ("tangent_kernel", "limit_kernel"):
        H = getattr(case.network, kind)(case.x, out=out)
        assert H is out
        close(np.array(out), backend.numpy(getattr(case.network, kind)(case.x)))


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("pairs", [True, False])
def test_limit_kernel_is_the_mean_of_wide_tangent_kernels(backend, rng, pairs, sigma):
    x = rng.standard_normal((4, D))
    X = backend.array(0.5 * x / np.linalg.norm(x, axis=1, keepdims=True))
    for cls, outputs in ((xpreg.ExpNetwork, ()), (xpreg.SoftmaxNetwork, (K,))):
        wide = [cls.initialise(D, 100_000, *outputs, sigma=sigma, pairs=pairs, seed=seed, like=X) for seed in range(4)]
        H = np.mean([backend.numpy(network.tangent_kernel(X)) for network in wide], axis=0)
        limit = backend.numpy(wide[0].limit_kernel(X))
        np.testing.assert_allclose(H, limit, atol=0.015 * limit.max())


def test_limit_kernels_equal_their_formulas(case, backend):
    G, q = case.X @ case.X.T, (case.X**2).sum(1)
    limit = {
        "ExpNetwork": G * np.exp((q[:, None] + q + 2 * G) / 2),
        "SoftmaxNetwork": np.kron(np.eye(K), G * np.exp(G)),
    }[type(case.network).__name__]
    close(backend.numpy(case.network.limit_kernel(case.x)), limit)


def test_limit_kernel_of_distinct_points_is_positive_definite(case, backend):
    assert np.linalg.eigvalsh(backend.numpy(case.network.limit_kernel(case.x)))[0] > 0


def test_kernel_of_five_thousand_points_and_4096_neurons_stays_below_one_gib():
    # a fifth of the points here: the tiles are what the default plan takes, the result is counted exactly
    network = xpreg.ExpNetwork.initialise(8, 4096, sigma=0.3)
    X = np.random.default_rng(0).standard_normal((1000, 8))
    tracemalloc.start()
    network.tangent_kernel(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 1000**2 + kernels.WORK_BYTES
    assert network.footprint(5000).kernel_bytes + kernels.WORK_BYTES < 2**30


# -- initialisation


@pytest.mark.parametrize("m", [2, 10, 254, 1000])
def test_pairs_predict_zero_and_have_opposite_signs(backend, rng, m):
    X = backend.array(rng.standard_normal((20, D)))
    for cls, outputs in ((xpreg.ExpNetwork, ()), (xpreg.SoftmaxNetwork, (K,))):
        network = cls.initialise(D, m, *outputs, seed=3, like=X)
        W, a = backend.numpy(network.W), backend.numpy(network.a)
        assert np.array_equal(W[:, ::2], W[:, 1::2])
        assert np.array_equal(a[::2], -a[1::2])
        size = np.exp(np.abs(backend.numpy(X) @ W)).max() * m
        assert np.abs(backend.numpy(network.predict(X))).max() <= 1e-16 * size


def test_one_seed_gives_one_network_everywhere_and_the_asked_for_spread(backend):
    like = backend.array(0.0)
    for cls, outputs in ((xpreg.ExpNetwork, ()), (xpreg.SoftmaxNetwork, (K,))):
        here = cls.initialise(D, 3000, *outputs, sigma=0.5, pairs=False, seed=7, like=like)
        host = cls.initialise(D, 3000, *outputs, sigma=0.5, pairs=False, seed=7)
        assert np.array_equal(backend.numpy(here.W), host.W)
        assert np.array_equal(backend.numpy(here.a), host.a)
        assert abs(host.W.std() - 0.5) < 0.02
        assert set(np.unique(host.a)) == {-1.0, 1.0}
        assert not np.array_equal(cls.initialise(D, 3000, *outputs, seed=8).W, host.W)


def test_float32_stays_float32(backend, rng):
    X = backend.array(rng.standard_normal((N, D)), dtype="float32")
    network = xpreg.SoftmaxNetwork.initialise(D, 20, K, like=X)
    y = network.predict(X)
    for result in (network.W, y, network.grad(X, y), network.tangent_kernel(X), network.limit_kernel(X)):
        assert result.dtype == X.dtype
    assert xpreg.ExpNetwork.initialise(D, 20, dtype="float32").W.dtype == np.float32


def test_parameters_and_bytes_are_counted_exactly():
    network = xpreg.SoftmaxNetwork.initialise(5, 40, 3)
    assert network.n_parameters == network.W.size == 200
    size = network.footprint(100, 10)
    assert size == networks.footprint(5, 40, 3, 100, 10)
    assert size.weight_bytes == network.W.nbytes + network.a.nbytes
    assert size.kernel_bytes == 300 * 30 * 8
    assert size.jacobian_bytes == 300 * 200 * 8


def test_repr_tells_sizes_and_place():
    assert repr(xpreg.SoftmaxNetwork.initialise(5, 40, 3)) == (
        "SoftmaxNetwork(d=5, m=40, k=3, float64 numpy on cpu, 200 parameters)"
    )


def test_with_weights_leaves_the_network_as_it_was(case, backend):
    before = backend.numpy(case.network.predict(case.x)).copy()
    other = case.network.with_weights(0.0 * case.network.W)
    close(backend.numpy(case.network.predict(case.x)), before)
    assert not np.allclose(backend.numpy(other.predict(case.x)), before)


# -- large activations


def test_softmax_is_stable_for_huge_activations(backend):
    W = backend.array([[1000.0, -1000.0, 999.0]])
    a = backend.array([[1.0], [-1.0], [-1.0]])
    X = backend.array([[1.0], [-1.0], [100.0]])
    network = xpreg.SoftmaxNetwork(W, a)
    p = 1 / (1 + np.exp(-1))
    close(backend.numpy(network.predict(X))[:, 0], 3 * np.array([p - (1 - p), -1.0, 1.0]))
    assert np.isfinite(backend.numpy(network.tangent_kernel(X))).all()
    assert np.isfinite(backend.numpy(network.grad(X, network.predict(X)))).all()


def test_exp_overflow_is_a_domain_error_that_tells_the_activation(backend):
    network = xpreg.ExpNetwork(backend.array([[800.0, 800.0]]), backend.array([1.0, -1.0]))
    X, y = backend.array([[1.0]]), backend.array([0.0])
    for call in (
        lambda: network.predict(X),
        lambda: network.loss(X, y),
        lambda: network.grad(X, y),
        lambda: network.tangent_kernel(X),
        lambda: network.limit_kernel(backend.array([[50.0]])),
    ):
        with pytest.raises(xpreg.DomainError, match="largest activation"):
            call()


# -- bad input


BAD_NETWORKS = {
    "signs": (np.ones((2, 3)), [1.0, 0.5, -1.0], "a has entries other than"),
    "length of a": (np.ones((2, 3)), [1.0, 1.0], "a has shape"),
    "dimensions of W": (np.ones(3), [1.0, 1.0, 1.0], "W has shape"),
    "NaN": (np.full((2, 3), np.nan), [1.0, 1.0, 1.0], "W has entries that are NaN"),
    "empty": (np.ones((2, 0)), [], "W has shape"),
}


@pytest.mark.parametrize("name", list(BAD_NETWORKS))
def test_a_bad_network_is_refused(backend, name):
    W, a, message = BAD_NETWORKS[name]
    with pytest.raises(xpreg.InvalidArgumentError, match=message):
        xpreg.ExpNetwork(backend.array(W), backend.array(a))
    with pytest.raises(ValueError, match=message):
        xpreg.SoftmaxNetwork(backend.array(W), backend.array(np.reshape(a, (-1, 1))))


def test_bad_points_and_targets_are_refused(case, backend):
    network, x, y = case.network, case.x, case.y
    bad = case.X.copy()
    bad[0, 0] = np.inf
    for call, message in (
        (lambda: network.predict(x[:, :2]), "X has shape"),
        (lambda: network.predict(x[0, :]), "X has shape"),
        (lambda: network.predict(backend.array(bad)), "X has entries that are NaN or infinite"),
        (lambda: network.loss(x, y[:-1, ...]), "y has shape"),
        (lambda: network.grad(x, y[..., None]), "y has shape"),
        (lambda: network.grad(x, y + np.nan), "y has entries that are NaN"),
        (lambda: network.predict(backend.array(case.X, dtype="float32")), "X has dtype"),
        (lambda: network.predict(case.X.tolist()), "X is a builtins.list"),
        (lambda: network.tangent_kernel(x, x[:, :1]), "X2 has shape"),
        (lambda: network.tangent_kernel(x, out=backend.array(np.ones((2, 2)))), "out is"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            call()


def test_bad_sizes_are_refused():
    for make, message in (
        (lambda: xpreg.ExpNetwork.initialise(3, 5), "m is 5, but pairs=True"),
        (lambda: xpreg.ExpNetwork.initialise(0, 4), "d is 0"),
        (lambda: xpreg.SoftmaxNetwork.initialise(3, 4, 1.5), "k is 1.5"),
        (lambda: xpreg.ExpNetwork.initialise(3, 4, sigma=0.0), "sigma is 0.0"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            make()


def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path):
    assert 2**20 < xpreg.backend.free_memory(np.zeros(1)) < 2**50
    assert xpreg.backend.machine._container_room(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert xpreg.backend.machine._container_room(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert xpreg.backend.machine._container_room(tmp_path) == 500


def test_what_cannot_fit_is_refused_before_it_runs_and_told_what_would(rng):
    network = xpreg.SoftmaxNetwork.initialise(D, 100, 2)
    X = rng.standard_normal((200, D))
    with pytest.raises(
        xpreg.NotEnoughMemoryError, match=r"need .* MiB, but 1000.0 KiB .*max_bytes=\d+.*memmap"
    ) as error:
        network.tangent_kernel(X, max_bytes=1_024_000)
    points = int(str(error.value).split("n = ")[-1].split()[0])
    network.tangent_kernel(X[:points], max_bytes=1_024_000)
    enough = int(str(error.value).split("max_bytes=")[-1].split(";")[0])
    network.tangent_kernel(X, max_bytes=enough)
    with pytest.raises(xpreg.NotEnoughMemoryError, match="the weights"):
        xpreg.ExpNetwork.initialise(10**6, 10**9)
