"""Training: convergence, safety, early stopping, batches, checkpoints, and what the history tells."""

import dataclasses
import itertools

import numpy as np
import pytest

import xpreg
from xpreg.networks import gram_gauss_newton, linearise
from xpreg.networks.spectrum import largest_eigenvalue
from xpreg.networks.training import train

NETWORKS = {"exp": (xpreg.ExpNetwork, ()), "softmax": (xpreg.SoftmaxNetwork, (2,))}


@dataclasses.dataclass
class Problem:
    """Points on the sphere, targets, and a network of 200 neurons."""

    network: object
    X: object
    y: object

    def train(self, **options):
        return train(self.network, self.X, self.y, **options)


def problem(name, backend, *, n=12, d=4, m=200, dtype="float64", smooth=False):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n, d))
    X = backend.array(X / np.linalg.norm(X, axis=1, keepdims=True), dtype=dtype)
    cls, outputs = NETWORKS[name]
    y = backend.numpy(X)[:, : outputs[0] if outputs else 1] if smooth else rng.standard_normal((n, *outputs))
    y = backend.array(np.reshape(y, (n, *outputs)), dtype=dtype)
    return Problem(cls.initialise(d, m, *outputs, seed=1, like=X), X, y)


@pytest.fixture(params=list(NETWORKS))
def case(request, backend):
    return problem(request.param, backend)


def residual(p, network, backend):
    return np.linalg.norm(backend.numpy(network.predict(p.X)) - backend.numpy(p.y))


# -- gradient descent


def test_default_step_is_one_over_m_lambda_max(case, backend):
    H = backend.numpy(case.network.tangent_kernel(case.X))
    largest = np.linalg.eigvalsh(H)[-1]
    at = linearise.Linearisation(case.network, case.X, keep=True)
    assert largest_eigenvalue(at, tol=1e-12, maxiter=1000) == pytest.approx(largest, rel=1e-9)
    step = case.train(maxiter=1).history[0].step
    assert step == pytest.approx(1 / (case.network.m * largest), rel=0.02)
    assert step >= 1 / (case.network.m * largest)


def test_gradient_descent_step_is_the_formula(case, backend):
    result = case.train(step=1e-4, maxiter=1)
    W = backend.numpy(case.network.W) - 1e-4 * backend.numpy(case.network.grad(case.X, case.y))
    np.testing.assert_allclose(backend.numpy(result.network.W), W, rtol=1e-14)


def test_gradient_descent_lowers_the_loss_in_every_iteration_and_records_it(case, backend):
    result = case.train(maxiter=60, tol=0.0)
    losses = [record.loss for record in result.history]
    assert [record.nit for record in result.history] == list(range(61))
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert result.status.name == "MAXITER"
    assert not result.success
    assert result.history[-1].residual == pytest.approx(residual(case, result.network, backend), rel=1e-12)


def test_gradient_descent_converges_to_the_tolerance(case, backend):
    result = case.train(maxiter=20_000, tol=0.05, momentum=0.9)
    assert result.status.name == "CONVERGED"
    assert result.success
    assert residual(case, result.network, backend) <= 0.05 * result.history[0].residual


def test_the_start_is_not_changed(case, backend):
    before = backend.numpy(case.network.W).copy()
    case.train(maxiter=3)
    assert np.array_equal(backend.numpy(case.network.W), before)


def test_a_start_that_fits_every_target_is_returned_at_once(case):
    result = train(case.network, case.X, 0.0 * case.y)
    assert result.nit == 0
    assert result.success


def test_default_step_survives_a_kernel_that_grows(backend):
    p = problem("exp", backend, n=6)
    result = train(p.network, p.X, 300.0 * p.y, maxiter=300, tol=1e-2)
    losses = [record.loss for record in result.history]
    assert losses == sorted(losses, reverse=True)
    assert result.history[-1].step < result.history[0].step


def test_a_step_that_diverges_ends_honestly_with_the_best_network(case, backend):
    good = case.train(maxiter=1)
    result = case.train(step=1e4 * good.history[0].step, maxiter=500)
    assert result.status.name == "DIVERGED"
    assert not result.success
    assert "smaller" in result.message
    assert np.isfinite(backend.numpy(result.network.W)).all()
    best = min(record.loss for record in result.history if np.isfinite(record.loss))
    assert result.history[result.best_nit].loss == best
    assert 0.5 * residual(case, result.network, backend) ** 2 == pytest.approx(best)


def test_a_minimum_that_leaves_a_residual_is_called_stationary(backend):
    X = backend.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    network = xpreg.ExpNetwork.initialise(2, 100, like=X)
    result = train(network, X, backend.array([1.0, -1.0, 1.0]), maxiter=5000)
    assert result.status.name == "STATIONARY"
    assert result.history[-1].residual == pytest.approx(np.sqrt(2))


def test_float32_trains_in_float32(backend):
    p = problem("softmax", backend, dtype="float32")
    for options in ({}, {"method": "gram-gauss-newton"}, {"batch_size": 5, "momentum": 0.5}):
        result = p.train(maxiter=3, **options)
        assert result.network.W.dtype == p.X.dtype
        assert result.history[-1].loss < result.history[0].loss


# -- batches


def test_an_epoch_visits_every_point_once_and_scales_the_batches(backend):
    p = problem("exp", backend)
    one = p.train(batch_size=12, step=1e-5, maxiter=4)
    whole = p.train(step=1e-5, maxiter=4)
    np.testing.assert_allclose(backend.numpy(one.network.W), backend.numpy(whole.network.W), rtol=1e-12)
    small = p.train(batch_size=5, step=1e-7, maxiter=1)
    change = backend.numpy(small.network.W) - backend.numpy(p.network.W)
    g = -1e-7 * backend.numpy(p.network.grad(p.X, p.y))
    assert np.sum(change * g) / (np.linalg.norm(change) * np.linalg.norm(g)) > 0.9


@pytest.mark.parametrize("name", list(NETWORKS))
def test_batches_and_momentum_reduce_the_loss_alike_on_every_backend(backend, name):
    host = xpreg.networks.train
    p = problem(name, backend, n=50, smooth=True)
    assert p.train(batch_size=16, maxiter=2).best_nit == 2
    result = p.train(batch_size=16, maxiter=40, seed=3, momentum=0.5)
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    here = problem(name, NUMPY, n=50, smooth=True)
    again = host(here.network, here.X, here.y, batch_size=16, maxiter=40, seed=3, momentum=0.5)
    np.testing.assert_allclose(backend.numpy(result.network.W), again.network.W, rtol=1e-9, atol=1e-9)
    other = host(here.network, here.X, here.y, batch_size=16, maxiter=40, seed=4, momentum=0.5)
    assert not np.allclose(other.network.W, again.network.W, rtol=1e-9)


class NUMPY:
    array = staticmethod(lambda values, dtype="float64": np.array(values, dtype=dtype))
    numpy = staticmethod(np.asarray)


# -- Gram-Gauss-Newton


@pytest.mark.parametrize("gram", ["cholesky", "cg"])
def test_gram_gauss_newton_converges_in_few_steps(case, backend, gram):
    result = case.train(method="gram-gauss-newton", gram=gram, tol=1e-8)
    assert result.status.name == "CONVERGED", result.message
    assert result.nit <= 15
    assert residual(case, result.network, backend) <= 1e-8 * result.history[0].residual


def test_gram_gauss_newton_needs_few_steps_where_gradient_descent_needs_thousands():
    p = problem("exp", NUMPY, n=20, m=400)
    newton = p.train(method="gram-gauss-newton", tol=1e-8)
    descent = p.train(maxiter=2500, tol=1e-8)
    assert newton.status.name == "CONVERGED"
    assert newton.nit <= 15
    assert descent.status.name == "MAXITER"


def test_first_gram_gauss_newton_step_is_the_least_norm_solution(case, backend):
    rng = np.random.default_rng(0)
    at = linearise.Linearisation(case.network, case.X)
    small = 1e-6 * rng.standard_normal(tuple(case.y.shape))  # near linear
    result = train(case.network, case.X, backend.array(small), method="gram-gauss-newton", maxiter=1, tol=0.0)
    D = backend.numpy(result.network.W) - backend.numpy(case.network.W)
    J = np.stack([backend.numpy(at.push(backend.array(e.reshape(D.shape)))).T.ravel() for e in np.eye(D.size)], axis=-1)
    expected = np.linalg.pinv(J) @ small.T.ravel()
    np.testing.assert_allclose(D.ravel(), expected, atol=1e-6 * np.abs(expected).max())


def test_equal_and_zero_points_are_refused_without_damping(backend):
    p = problem("exp", backend)
    rows = [0, 1, 2, 3, 4, 5, 6, 3]
    X = backend.array(backend.numpy(p.X)[rows])
    with pytest.raises(xpreg.InvalidArgumentError, match="rows 3 and 7"):
        train(p.network, X, p.y[:8], method="gram-gauss-newton")
    zero = backend.numpy(p.X).copy()
    zero[5] = 0.0
    with pytest.raises(xpreg.InvalidArgumentError, match=r"zero row.*row 5"):
        train(p.network, backend.array(zero), p.y, method="gram-gauss-newton")


def test_damping_allows_equal_points_with_different_targets(backend):
    p = problem("exp", backend)
    X = backend.array(backend.numpy(p.X)[[0, 1, 2, 2]])
    y = backend.array([1.0, -1.0, 0.5, 1.5])
    for gram in ("cholesky", "cg"):
        result = train(p.network, X, y, method="gram-gauss-newton", damping=1e-3, gram=gram, maxiter=100)
        assert result.success, result.message
        np.testing.assert_allclose(backend.numpy(result.network.predict(X)), [1, -1, 1, 1], atol=1e-4)


def test_more_targets_than_parameters_are_refused_without_damping(backend):
    p = problem("softmax", backend, n=12, d=4, m=4)
    with pytest.raises(xpreg.InvalidArgumentError, match="m >= 6"):
        p.train(method="gram-gauss-newton")
    result = p.train(method="gram-gauss-newton", damping=1e-3)
    assert result.history[-1].loss < result.history[0].loss


def test_a_numerically_singular_kernel_is_regularised_and_said_to_be(backend):
    p = problem("exp", backend)
    X = backend.numpy(p.X).copy()
    X[1] = X[0] + 1e-9
    y = backend.numpy(p.y).copy()
    y[1] = y[0] + 1.0  # cannot be fitted with points that near
    result = train(p.network, backend.array(X), backend.array(y), method="gram-gauss-newton")
    assert result.status.name == "SINGULAR"
    assert not result.success
    assert result.history[-1].damping > 0
    assert "regularised" in result.message
    assert result.history[-1].residual == pytest.approx(np.sqrt(0.5), rel=1e-3)


def test_memory_decides_between_cholesky_and_conjugate_gradients(backend):
    p = problem("softmax", backend)
    dense = p.train(method="gram-gauss-newton", maxiter=1)
    assert np.isnan(dense.history[1].inner)
    free = p.train(method="gram-gauss-newton", maxiter=1, max_bytes=10_000)
    assert free.history[1].inner > 1
    with pytest.raises(xpreg.NotEnoughMemoryError, match="gram='cg'"):
        p.train(method="gram-gauss-newton", gram="cholesky", max_bytes=10_000)
    assert gram_gauss_newton.DENSE_LIMIT >= 24


# -- validation, callbacks


def overfitting(backend):
    """Noisy targets that a wide network can fit, and a validation set that it then misses."""
    rng = np.random.default_rng(8)
    X = rng.standard_normal((40, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y = X[:, 0] + 0.5 * rng.standard_normal(40)
    X, y = backend.array(X), backend.array(y)
    network = xpreg.ExpNetwork.initialise(3, 600, like=X)
    return Problem(network, X[:20, :], y[:20]), (X[20:, :], y[20:])


def test_early_stopping_returns_the_network_of_the_lowest_validation_loss(backend):
    p, validation = overfitting(backend)
    result = p.train(validation=validation, patience=30, maxiter=5000, tol=0.0)
    assert result.status.name == "EARLY_STOPPED"
    losses = [record.validation for record in result.history]
    assert result.best_nit == int(np.argmin(losses)) == result.nit - 30
    assert result.best_nit > 0
    assert float(backend.numpy(result.network.loss(*validation))) == pytest.approx(min(losses), rel=1e-12)


def test_callback_sees_every_record_and_can_stop(case):
    seen = []

    def callback(record):
        seen.append(record)
        if record.nit == 4:
            raise StopIteration

    result = case.train(callback=callback)
    assert result.status.name == "STOPPED"
    assert tuple(seen) == result.history
    assert result.nit == 4


def test_history_tracks_displacement_drift_and_smallest_eigenvalue(case, backend):
    result = case.train(maxiter=4, track=("displacement", "drift", "smallest_eigenvalue"), track_every=2)
    assert np.isnan(result.history[1].drift)
    first, last = result.history[0], result.history[4]
    assert first.displacement == first.drift == 0.0
    H0, H = (backend.numpy(network.tangent_kernel(case.X)) for network in (case.network, result.network))
    change = backend.numpy(result.network.W) - backend.numpy(case.network.W)
    assert last.displacement == pytest.approx(np.linalg.norm(change, axis=0).max())
    assert last.drift == pytest.approx(np.linalg.norm(H - H0) / np.linalg.norm(H0), rel=1e-9)
    assert last.smallest_eigenvalue == pytest.approx(np.linalg.eigvalsh(H)[0], rel=1e-6)


def test_tracking_that_cannot_fit_is_refused(case):
    with pytest.raises(xpreg.NotEnoughMemoryError, match="displacement"):
        case.train(track=("drift",), max_bytes=1000)


def host_reads(**options):
    """Host reads of each iteration on a device that counts them."""
    fakegpu = pytest.importorskip("support.fakegpu")
    gpu = type("GPU", (), {"array": staticmethod(lambda v, dtype="float64": fakegpu.xp.asarray(np.array(v, dtype))),
                           "numpy": staticmethod(lambda v: v.get())})  # fmt: skip
    marks = []
    p = problem("softmax", gpu, smooth=True, n=30)
    with fakegpu.count() as total:
        p.train(callback=lambda record: marks.append(total.syncs + total.d2h), **options)
    return np.diff(marks)


def test_an_iteration_reads_the_host_once():
    assert set(host_reads(maxiter=5)) == {1}
    assert set(host_reads(maxiter=5, batch_size=7)) == {1}
    assert max(host_reads(maxiter=3, method="gram-gauss-newton")) <= 5


# -- checkpoints

RUNS = {
    "descent": {"momentum": 0.5},
    "batches": {"batch_size": 5, "momentum": 0.5, "seed": 2},
    "newton": {"method": "gram-gauss-newton", "damping": 1e-3},
}


@pytest.mark.parametrize("name", list(RUNS))
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(case, backend, tmp_path, name):
    options = {**RUNS[name], "tol": 1e-12, "validation": (case.X, case.y), "track": ("drift",)}
    path = tmp_path / "run.npz"
    whole = case.train(maxiter=6, **options)
    case.train(maxiter=3, checkpoint=path, **options)
    seen = []
    resumed = case.train(maxiter=6, checkpoint=path, resume=True, callback=seen.append, **options)
    assert np.array_equal(backend.numpy(resumed.network.W), backend.numpy(whole.network.W))
    untimed = [[repr(dataclasses.replace(r, seconds=0.0)) for r in run.history] for run in (whole, resumed)]
    assert untimed[0] == untimed[1]
    assert resumed.status == whole.status
    assert [record.nit for record in seen] == [4, 5, 6]
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(case, backend, tmp_path):
    def interrupt(record):
        if record.nit == 5:
            raise KeyboardInterrupt

    options = {"tol": 0.0, "checkpoint": tmp_path / "run.npz", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        case.train(maxiter=8, callback=interrupt, **options)
    resumed = case.train(maxiter=8, resume=True, **options)
    whole = case.train(maxiter=8, tol=0.0)
    assert np.array_equal(backend.numpy(resumed.network.W), backend.numpy(whole.network.W))


def test_checkpoints_of_other_runs_and_broken_ones_are_refused(case, tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(xpreg.InvalidArgumentError, match="no such file"):
        case.train(checkpoint=path, resume=True)
    with pytest.raises(xpreg.InvalidArgumentError, match="folder"):
        case.train(checkpoint=tmp_path / "nowhere" / "run.npz")
    with pytest.raises(xpreg.InvalidArgumentError, match="checkpoint is None"):
        case.train(resume=True)
    case.train(maxiter=2, checkpoint=path)
    with pytest.raises(xpreg.InvalidArgumentError, match="momentum"):
        case.train(maxiter=4, checkpoint=path, resume=True, momentum=0.1)
    with pytest.raises(xpreg.InvalidArgumentError, match="data"):
        train(case.network, case.X, 2.0 * case.y, maxiter=4, checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(xpreg.InvalidArgumentError, match=r"no .npz file"):
        case.train(maxiter=4, checkpoint=path, resume=True)
    np.savez(path, W=1.0)
    with pytest.raises(xpreg.InvalidArgumentError, match="no checkpoint"):
        case.train(maxiter=4, checkpoint=path, resume=True)


def test_a_failed_save_leaves_the_old_checkpoint(case, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    case.train(maxiter=2, checkpoint=path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        case.train(maxiter=2, checkpoint=path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


# -- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "method is 'adam'"),
        ({"step": -1.0}, "step is -1.0"),
        ({"step": float("nan")}, "step is nan"),
        ({"tol": -1.0}, "tol is"),
        ({"maxiter": -1}, "maxiter is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"damping": 1.0}, "damping and gram belong"),
        ({"method": "gram-gauss-newton", "batch_size": 3}, "batch_size and momentum belong"),
        ({"method": "gram-gauss-newton", "gram": "lu"}, "gram is 'lu'"),
        ({"track": "drift"}, "track is 'drift'"),
        ({"track": ("speed",)}, "track is"),
        ({"patience": 0}, "patience is 0"),
        ({"resume": "no"}, "resume is 'no', but True or False is needed"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(xpreg.InvalidArgumentError, match=message):
        problem("exp", NUMPY).train(**options)


def test_bad_data_are_refused(case, backend):
    bad = backend.numpy(case.X).copy()
    bad[0, 0] = np.nan
    for X, y, validation, message in (
        (backend.array(bad), case.y, None, "X has entries"),
        (case.X, case.y[:-1, ...], None, "y has shape"),
        (case.X, case.y, (case.X[:, :1], case.y), "validation X has shape"),
        (case.X, case.y, (case.X, case.y[1:, ...]), "validation y has shape"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            train(case.network, X, y, validation=validation)


def test_zero_points_have_no_default_step(case):
    with pytest.raises(xpreg.InvalidArgumentError, match="X may be zero"):
        train(case.network, 0.0 * case.X, case.y)


def test_an_overflowing_start_is_a_domain_error(backend):
    p = problem("exp", backend)
    with pytest.raises(xpreg.DomainError, match="largest activation"):
        train(p.network.with_weights(1000.0 * p.network.W), p.X, p.y, step=1.0)


@pytest.mark.parametrize("change", ["signs", "labels", "sigma"])
def test_a_checkpoint_of_another_run_is_refused(backend, rng, tmp_path, change):
    """Sums cannot tell these runs apart: other signs, permuted labels of +-1, another sigma."""
    X, y = backend.array(rng.standard_normal((12, 3))), np.sign(rng.standard_normal(12))
    network = xpreg.ExpNetwork.initialise(3, 64, like=X)
    path = tmp_path / "run.npz"
    xpreg.train(network, X, backend.array(y), checkpoint=path, maxiter=2)
    other = {
        "signs": (xpreg.ExpNetwork(network.W, -network.a), y),
        "labels": (network, y[::-1].copy()),
        "sigma": (xpreg.ExpNetwork(network.W, network.a, sigma=2.0), y),
    }[change]
    with pytest.raises(ValueError, match="belongs to another run"):
        xpreg.train(other[0], X, backend.array(other[1]), checkpoint=path, maxiter=4, resume=True)


def test_residuals_whose_squares_underflow_are_no_success(backend, rng):
    X = backend.array(rng.standard_normal((6, 3)))
    network = xpreg.ExpNetwork.initialise(3, 64, like=X)
    with pytest.raises(xpreg.DomainError, match="scale y up"):
        xpreg.train(network, X, backend.array(1e-200 * np.ones(6)))


@pytest.mark.parametrize("seed", [-1, "a"])
def test_a_bad_seed_is_named(backend, seed):
    with pytest.raises(ValueError, match="seed is "):
        xpreg.ExpNetwork.initialise(3, 64, seed=seed)
