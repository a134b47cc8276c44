"""Approximate Newton for softmax-ReLU: rows of N = A2 S A1 and of A1 are sampled, in both readings."""

import itertools

import numpy as np
import pytest
from support.relu import assert_no_lower_point_nearby, build, clarke_distance, data, ref_grad

import xpreg
from xpreg import sampling, theory
from xpreg.maps import DenseRows, two_layer
from xpreg.regressions import TWO_LAYER_LOSSES
from xpreg.solvers.approximate_newton import ApproximateNewton

PAPERS = {"method": "approximate-newton", "reading": "papers"}
PRECONDITIONER = {"method": "approximate-newton"}
GREEDY = {**PAPERS, "step": "greedy"}


def realisable(rng, n=20, d=4, m=1500, k=None):
    """Targets that the model gives at a hidden x: the loss reaches zero."""
    A1, A2, b, hidden = data(rng, n, d, m, k)
    return A1, A2, np.asarray(xpreg.SoftmaxReLURegression(A1, A2, b).predict(hidden)), hidden


def cell_of(backend, A1, A2, x):
    b = np.full(len(A2), 1 / len(A2))
    return build(backend, A1, A2, b).at(backend.array(x)).rows


# -- the sample -----------------------------------------------------------------------------------


def test_rows_of_the_cell_are_those_of_the_dense_product(backend, rng, monkeypatch):
    monkeypatch.setattr(two_layer, "BLOCK_BYTES", 1)  # 16 rows at a time
    A1, A2, _, x = data(rng, 10, 3, 700)
    N = A2 @ np.diag(1.0 * (A1 @ x > 0)) @ A1
    cell, T = cell_of(backend, A1, A2, x), rng.standard_normal((3, 5))
    which = rng.permutation(700)[:600]
    taken = cell.take_rows(backend.array(which, "int64"))
    np.testing.assert_allclose(backend.numpy(taken), N[which], atol=1e-13)
    np.testing.assert_allclose(backend.numpy(cell.take_rows(slice(5, 90))), N[5:90], atol=1e-13)
    np.testing.assert_allclose(backend.numpy(cell.times(backend.array(T))(slice(5, 90))), (N @ T)[5:90], atol=1e-12)
    assert tuple(cell.take_rows(backend.array([], "int64")).shape) == (0, 3)


def test_a_stack_hands_out_the_rows_of_one_problem_at_a_time(backend, rng):
    A1, A2, b, x = data(rng, 10, 3, 40, k=3)
    cell = build(backend, A1, A2, b).at(backend.array(x)).rows
    for i in range(3):
        N = A2 @ np.diag(1.0 * (A1 @ x[i] > 0)) @ A1
        np.testing.assert_allclose(backend.numpy(cell.one(i).take_rows(slice(0, 40))), N, atol=1e-13)
    with pytest.raises(xpreg.InvalidArgumentError, match="3 problems have one N each"):
        cell.take_rows(slice(0, 2))


@pytest.mark.parametrize(("eps", "scores"), [(0.5, "exact"), (0.5, "sketch"), (0.35, "exact")])
def test_the_sandwich_of_the_whole_hessian_holds_in_the_promised_share_of_200_seeds(rng, eps, scores):
    """H+ = N_c^T D+ N_c + A1^T W^2 A1 against H~ of two samples, for the sum and (so) through an SVD of all rows."""
    delta, n, d, m = 0.1, 800, 2, 1500
    A1, A2 = rng.standard_normal((n, d)), rng.standard_normal((m, 20)) @ rng.standard_normal((20, n)) / n
    x = rng.standard_normal(d)
    w = rng.random(n)
    problem = xpreg.SoftmaxReLURegression(A1, A2, rng.dirichlet(np.ones(m)), weights=w)
    point = problem.at(x)
    curvature = point.curvature()
    D, E = np.maximum(curvature.D[0], 0), w**2
    N = A2 @ np.diag(1.0 * (A1 @ x > 0)) @ A1
    N_c = N - curvature.centre[0] @ N
    rows = np.concatenate([np.sqrt(D)[:, None] * N_c, np.sqrt(E)[:, None] * A1])
    _, s, Vt = np.linalg.svd(rows, full_matrices=False)
    T, held, kept = Vt.T / s, 0, []
    for seed in range(200):
        method = ApproximateNewton("papers", eps=eps, delta=delta, scores=scores, seed=seed)
        method.start(problem)
        method.kept = []
        G = 0.0
        for diagonal in method._sampled(point, curvature):
            G = G + method._gram(*diagonal, method._papers_draw(2))[0]
        values = np.linalg.eigvalsh(T.T @ G[0] @ T)
        held += 1 - eps <= values[0] and values[-1] <= 1 + eps
        kept.append(method.kept)
    assert held >= (1 - delta) * 200, held
    assert np.mean(kept, axis=0)[0] < 0.9 * m  # rows of both are left out: the sandwich is no tautology
    assert np.mean(kept, axis=0)[1] < 0.9 * n


def test_the_exact_scores_of_a_cell_are_those_of_its_dense_rows(backend, rng):
    A1, A2, _, x = data(rng, 12, 4, 500)
    N, D = A2 @ np.diag(1.0 * (A1 @ x > 0)) @ A1, rng.random(500)
    cell = cell_of(backend, A1, A2, x)
    mean = rng.standard_normal(4)
    tau = sampling.leverage_scores(cell, backend.array(D), mean=backend.array(mean))
    np.testing.assert_allclose(backend.numpy(tau), sampling.leverage_scores(N, D, mean=mean), atol=1e-9)


@pytest.mark.parametrize("scores", ["exact", "sketch"])
def test_one_seed_gives_one_sample_on_every_backend(backend, rng, scores):
    A1, A2, _, x = data(rng, 12, 4, 2500)
    D = rng.random(2500)
    N = A2 @ np.diag(1.0 * (A1 @ x > 0)) @ A1
    here = sampling.subsample(cell_of(backend, A1, A2, x), backend.array(D), eps=0.7, method=scores, seed=3)
    there = sampling.subsample(DenseRows(N), D, eps=0.7, method=scores, seed=3)
    assert 0 < here.m < 2500
    np.testing.assert_array_equal(backend.numpy(here.indices), there.indices)
    np.testing.assert_allclose(backend.numpy(here.D), there.D, rtol=1e-8)


def test_n_is_never_held_whole(rng, monkeypatch):
    """The largest product with S A1 has as many rows as a block or a sample."""
    from test_memory import peak_of

    n, d, m = 8, 100, 100_000
    A1, A2 = rng.standard_normal((n, d)), rng.standard_normal((m, n))
    problem = xpreg.SoftmaxReLURegression(A1, A2, rng.dirichlet(np.ones(m)), weights=1.0)
    point = problem.at(rng.standard_normal(d))
    method = ApproximateNewton("papers", eps=0.9, delta=0.9, scores="exact")
    method.start(problem)
    peak = peak_of(lambda: method._sampled_step(point))
    assert peak < 8 * m * d * 0.8, peak


# -- the papers' reading --------------------------------------------------------------------------


@pytest.mark.parametrize("loss", TWO_LAYER_LOSSES)
def test_the_papers_reading_converges_on_realisable_problems(backend, rng, loss):
    """At most one of ten ends elsewhere than at zero loss, and none with a false success."""
    zero, problems = 0, 10 if backend.name == "numpy" else 3
    for _ in range(problems):
        A1, A2, b, _ = realisable(rng)
        result = xpreg.minimize(build(backend, A1, A2, b, loss), **PAPERS, eps=0.5)
        assert result.success, result.message
        zero += result.fun < 1e-13
        x = backend.numpy(result.x)
        assert_no_lower_point_nearby(loss, A1, A2, b, result, x, 0.0, rng)
        if loss == "softmax-relu":
            assert clarke_distance(A1, A2, b, x, 0.0) <= 1.01e-8 * result.history[0].grad_norm
    assert zero >= 0.9 * problems


@pytest.mark.parametrize("options", [PAPERS, PRECONDITIONER], ids=["papers", "preconditioner"])
@pytest.mark.parametrize("loss", TWO_LAYER_LOSSES)
@pytest.mark.parametrize("weights", [0.0, 0.1])
def test_minimisers_on_kinks_are_found_and_known_as_such(rng, options, loss, weights):
    kinks = 0
    for _ in range(6):
        A1, A2, b, _ = data(rng, n=20, d=4, m=600)
        result = xpreg.minimize(TWO_LAYER_LOSSES[loss](A1, A2, b, weights=weights), **options, maxiter=300)
        assert result.success, result.message
        kinks += (result.activation == 0).any()
        if loss == "softmax-relu":
            assert clarke_distance(A1, A2, b, result.x, weights) <= 1.01e-8 * result.history[0].grad_norm
        assert_no_lower_point_nearby(loss, A1, A2, b, result, result.x, weights, rng)
    assert kinks >= 1


@pytest.mark.parametrize("options", [PAPERS, GREEDY], ids=["newton", "greedy"])
def test_success_is_never_claimed_where_a_step_still_goes_down(rng, options):
    """Cut off after any number of iterations, on realisable problems and others."""
    for i in range(12):
        A1, A2, b, _ = (realisable if i % 2 else data)(rng, 15, 3, 200)
        result = xpreg.minimize(xpreg.SoftmaxReLURegression(A1, A2, b), **options, eps=0.5, maxiter=3 * i)
        if result.success:
            assert clarke_distance(A1, A2, b, result.x, 0.0) <= 1.01e-8 * result.history[0].grad_norm
            assert_no_lower_point_nearby("softmax-relu", A1, A2, b, result, result.x, 0.0, rng)
        else:
            assert result.status in (xpreg.Status.MAXITER, xpreg.Status.STALLED)


def test_a_unit_that_switches_is_a_reason_to_draw_anew(backend, rng):
    """The new N has directions that the old one lacked, and the sample with it."""
    A1, A2, b, x = data(rng, 20, 4, 1500)
    problem, method = build(backend, A1, A2, b), ApproximateNewton()
    method.start(problem)

    def drawn(x):
        point, before = problem.at(backend.array(x)), method.draws
        method.variables(point, point.curvature())
        return method.draws > before

    y = A1 @ x
    i = np.argmin(np.abs(y) / np.linalg.norm(A1, axis=1))  # the next face
    step = -y[i] / (A1[i] @ A1[i]) * A1[i]
    assert drawn(x)
    assert not drawn(x + 0.1 * step)
    assert drawn(x + 1.01 * step)
    assert not drawn(x + 1.02 * step)


@pytest.mark.parametrize("options", [PAPERS, PRECONDITIONER], ids=["papers", "preconditioner"])
def test_one_seed_gives_one_run_on_every_backend(backend, rng, options):
    A1, A2, b, _ = realisable(rng, m=700)
    here = xpreg.minimize(build(backend, A1, A2, b, weights=0.02), **options, seed=5)
    there = xpreg.minimize(xpreg.SoftmaxReLURegression(A1, A2, b, weights=0.02), **options, seed=5)
    rows = [[r.direction.split(", ")[-1] for r in result.history] for result in (here, there)]
    assert rows[0] == rows[1]
    np.testing.assert_allclose(backend.numpy(here.x), there.x, rtol=1e-6, atol=1e-9)
    backend.assert_native(here.x)
    assert " + " in there.history[1].direction  # rows of N and rows of A1


def test_a_stack_is_solved_as_its_problems_one_by_one(backend, rng):
    A1, A2, b, _ = realisable(rng, n=12, d=3, m=400, k=3)
    for options in (PAPERS, PRECONDITIONER):
        stack = xpreg.minimize(build(backend, A1, A2, b), **options)
        assert stack.success, stack.message
        for i in range(3):
            one = xpreg.SoftmaxReLURegression(A1, A2, b[i])
            at = backend.numpy(stack.x)[i]
            assert np.abs(one.grad(at)).max() <= 1e-8 * stack.history[0].grad_norm


def test_a_smoothed_problem_samples_its_bend_too(rng):
    A1, A2, b, _ = realisable(rng, n=2000, d=3, m=3000)
    A2 /= 10.0
    for options in ({**PAPERS, "eps": 0.5}, PRECONDITIONER):
        problem = xpreg.SoftmaxReLURegression(A1, A2, b, smoothing=0.2, weights=1e-3)
        result = xpreg.minimize(problem, **options)
        assert result.success, result.message
        grad = ref_grad("softmax-relu", A1, A2, b, result.x, 1e-3, 0.2)
        assert np.abs(grad).max() <= 1.1e-8 * result.history[0].grad_norm
        kept = [r.direction.split(", ")[-1].removesuffix(" rows").split(" + ") for r in result.history[1:]]
        assert all(int(of_N) < 1500 and int(of_A1) < 1500 for of_N, of_A1 in kept)


def test_sampling_the_regulariser_alone_takes_rows_of_the_first_layer(rng):
    A1, A2, b, _ = data(rng, 3000, 3, 40)
    A2 *= 0.1
    problem = xpreg.SoftmaxReLURegression(A1, A2, b, weights=1.0)
    result = xpreg.minimize(problem, rng.standard_normal(3), **PAPERS, diagonal="regulariser", eps=0.3)
    assert result.success, result.message
    assert any(r.direction.startswith("sampled") and "+" not in r.direction for r in result.history)


# -- the greedy variant ---------------------------------------------------------------------------


def test_the_greedy_steps_never_raise_the_loss_and_are_the_rule_itself(rng):
    """Near the minimum of a realisable problem no step is shortened: one loss per iteration, the step of the rule."""
    A1, A2, b, hidden = realisable(rng)
    problem = xpreg.SoftmaxReLURegression(A1, A2, b)
    start = hidden + 1e-3 * rng.standard_normal(4)
    result = xpreg.minimize(problem, start, **GREEDY, eps=0.25, maxiter=1000)
    assert result.success, result.message
    assert result.fun < 1e-15
    losses = [r.fun for r in result.history]
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert result.nfev <= result.nit + 2
    H = problem.hess(hidden)
    scaled = np.sqrt(np.diag(np.linalg.inv(H)))
    values = np.linalg.eigvalsh(scaled[:, None] * H * scaled)
    rule = 0.75 * values[0] / values[-1]
    steps = np.array([r.step for r in result.history[1:]])
    assert ((0.6 * rule < steps) & (steps < 1.7 * rule)).all()  # (1 + eps)/(1 - eps) on both sides


@pytest.mark.parametrize("eps", [0.5, 0.1])
def test_the_greedy_rate_is_at_least_the_promised_one(rng, eps):
    """By `theory.greedy_contraction`, L* = 0, l and Lam in the scaled variables."""
    for _ in range(3):
        A1, A2, b, hidden = realisable(rng)
        problem = xpreg.SoftmaxReLURegression(A1, A2, b)
        start = hidden + 1e-4 * rng.standard_normal(4)
        result = xpreg.minimize(problem, start, **GREEDY, eps=eps, maxiter=60)
        H = problem.hess(hidden)
        scaled = np.sqrt(np.diag(np.linalg.inv(H)))
        values = np.linalg.eigvalsh(scaled[:, None] * H * scaled)
        promised = theory.greedy_contraction(values[0], values[-1], eps)
        losses = [r.fun for r in result.history]
        assert max(after / before for before, after in itertools.pairwise(losses)) <= promised + 1e-6
        assert losses[-1] < losses[0]


def test_the_greedy_loss_falls_from_any_start_and_for_any_loss(rng):
    for _ in range(5):
        A1, A2, b, _ = data(rng, 20, 4, 300)
        result = xpreg.minimize(xpreg.SoftmaxReLURegression(A1, A2, b), 3 * rng.standard_normal(4), **GREEDY)
        losses = [r.fun for r in result.history]
        assert all(after <= before * (1 + 1e-14) for before, after in itertools.pairwise(losses))
    A = rng.standard_normal((2000, 3))
    problem = xpreg.SoftmaxRegression(A, rng.dirichlet(np.ones(2000)), weights=0.01)
    result = xpreg.minimize(problem, **GREEDY, maxiter=300)
    assert result.success, result.message


def test_greedy_is_a_rule_of_the_second_reading():
    problem = xpreg.SoftmaxRegression(np.eye(3), np.ones(3) / 3)
    with pytest.raises(xpreg.InvalidArgumentError, match="reading='papers'"):
        xpreg.minimize(problem, method="approximate-newton", step="greedy")
    with pytest.raises(xpreg.InvalidArgumentError, match="step is 'lazy'"):
        xpreg.minimize(problem, method="approximate-newton", step="lazy")
