"""Certificates of softmax-ReLU: what is claimed in the activation cell, and everywhere off the kinks, holds there."""

import numpy as np
import pytest
from support.relu import build, data, ref_grad, ref_hess

import xpreg
from xpreg.regressions import TWO_LAYER_LOSSES


def in_the_cell(A1, x, v):
    """The largest t at which x + t v still lies in the cell of x."""
    y, q = A1 @ x, A1 @ v
    ahead = y * q < 0
    return (-y[ahead] / q[ahead]).min(initial=1e3)


def random_problem(rng):
    n, d, m = (int(rng.integers(1, high)) for high in (9, 4, 14))
    A1, A2, b, x = data(rng, n, d, m, scale=10.0 ** rng.uniform(-1, 0.7))
    if rng.random() < 0.3:
        b = np.eye(m)[rng.integers(m)]
    return A1, A2, b, x, float(rng.choice([0.0, 0.3, 2.0])), float(rng.choice([0.0, 0.0, 0.3]))


def test_on_400_random_problems_every_proved_bound_holds(rng):
    checked = {"weight": 0, "lipschitz": 0}
    for i in range(400):
        loss = list(TWO_LAYER_LOSSES)[i % 2]
        A1, A2, b, x, w, smoothing = random_problem(rng)
        c = xpreg.certify(TWO_LAYER_LOSSES[loss](A1, A2, b, weights=w, smoothing=smoothing), x)
        assert c.head == loss
        H = ref_hess(loss, A1, A2, b, x, w, smoothing)
        lowest, size = np.linalg.eigvalsh(H)[0], max(1.0, np.abs(H).max())
        assert c.hessian_low.value <= lowest + 1e-12 * size
        assert c.hessian_min.value == pytest.approx(lowest, abs=1e-9 * size)
        here = ref_hess(loss, A1, A2, b, x, c.psd_weight_here.value**0.5, smoothing)
        assert np.linalg.eigvalsh(here)[0] >= -1e-11 * max(size, np.abs(here).max())
        elsewhere = x * rng.choice([-2.0, 0.1, 3.0])
        for claim in (c.psd_weight, c.psd_weight_sharp):
            if claim.value is not None:
                other = ref_hess(loss, A1, A2, b, elsewhere, claim.value**0.5, smoothing)
                assert np.linalg.eigvalsh(other)[0] >= -1e-11 * max(1.0, np.abs(other).max())
                checked["weight"] += 1
        if c.sandwich_weight_sharp.value is not None:
            w2 = c.sandwich_weight_sharp.value
            W, other = w2 * A1.T @ A1, ref_hess(loss, A1, A2, b, elsewhere, w2**0.5)
            for difference in (W - 0.9 * other, 1.1 * other - W):
                assert np.linalg.eigvalsh(difference)[0] >= -1e-11 * max(1.0, np.abs(other).max())
        if smoothing:
            assert c.lipschitz.value is c.distance.value is None
            continue
        for _ in range(3):
            v = rng.standard_normal(len(x))
            v *= rng.random() * min(in_the_cell(A1, x, v), 3.0)
            change = np.linalg.norm(ref_hess(loss, A1, A2, b, x + v, w) - ref_hess(loss, A1, A2, b, x, w), 2)
            for claim in (c.lipschitz, c.lipschitz_sharp):
                if claim.value is not None:
                    assert change <= claim.value * np.linalg.norm(v) * (1 + 1e-9) + 1e-11 * size
                    checked["lipschitz"] += 1
    assert checked["weight"] > 300
    assert checked["lipschitz"] > 300


def test_a_minimiser_lies_within_the_proved_distance_and_in_the_cell(rng):
    """x* is found by Newton steps with the reference alone, and lies where it was proved to."""
    proved = good = 0
    for _ in range(60):
        A1, A2, b, _ = data(rng, 12, 3, 15, scale=0.3)
        problem = xpreg.SoftmaxReLURegression(A1, A2, b, weights=0.5)
        start = xpreg.minimize(problem).x + 10.0 ** rng.uniform(-7, -3) * rng.standard_normal(3)
        c = xpreg.certify(problem, start)
        if c.distance.value is None:
            continue
        proved += 1
        solution = start
        for _ in range(20):
            g = ref_grad("softmax-relu", A1, A2, b, solution, 0.5)
            solution = solution - np.linalg.solve(ref_hess("softmax-relu", A1, A2, b, solution, 0.5), g)
        assert np.array_equal(A1 @ solution > 0, A1 @ start > 0)
        r = np.linalg.norm(start - solution)
        assert r <= c.distance.value * (1 + 1e-6) + 1e-12
        lowest = np.linalg.eigvalsh(ref_hess("softmax-relu", A1, A2, b, solution, 0.5))[0]
        assert c.strong_convexity.value <= lowest * (1 + 1e-9)
        faces = np.abs(A1 @ solution) / np.linalg.norm(A1, axis=1)
        assert c.good_radius.value <= faces.min() * (1 + 1e-9)
        good += c.good.value
    assert good > 3
    assert proved > 10


def test_nothing_is_proved_across_a_kink(rng):
    """On a kink the cell has no room around x, and no claim about a minimiser is made."""
    A1, A2, b, x = data(rng, 6, 2, 9)
    x -= A1[0] * (A1[0] @ x) / (A1[0] @ A1[0])
    c = xpreg.certify(xpreg.SoftmaxReLURegression(A1, A2, b, weights=3.0), x)
    assert c.distance.value is None
    assert c.good.value is False
    assert "crosses a kink" in c.distance.what


def test_a_stack_gets_the_worst_of_its_problems(backend, rng):
    A1, A2, b, x = data(rng, 8, 3, 10, k=4)
    here = xpreg.certify(build(backend, A1, A2, b, weights=0.5), backend.array(x))
    each = [xpreg.certify(xpreg.SoftmaxReLURegression(A1, A2, b[i], weights=0.5), x[i]) for i in range(4)]
    assert here.problems == 4
    assert here.hessian_min.value == pytest.approx(min(c.hessian_min.value for c in each), rel=1e-9)
    assert here.hessian_low.value <= min(c.hessian_low.value for c in each) + 1e-9
    assert here.lipschitz.value >= max(c.lipschitz.value for c in each) * (1 - 1e-9)
    assert here.psd_weight_here.value == pytest.approx(max(c.psd_weight_here.value for c in each), rel=1e-9)


def test_minimize_certifies_with_the_sampled_rows_of_both_layers(rng):
    A1, A2, b, _ = data(rng, 1500, 2, 1500)
    problem = xpreg.SoftmaxReLURegression(A1, A2 / 5, b, weights=0.01)
    options = {"method": "approximate-newton", "certify": True}
    c = xpreg.minimize(problem, reading="papers", eps=0.5, **options).certificate
    assert c.sampling_promised.value == 0.5
    assert 0 < c.sampling_measured.value <= 0.5
    c = xpreg.minimize(problem, **options).certificate
    assert c.sampling_promised.value is None
    assert 0 < c.sampling_measured.value < 1
    assert "softmax-relu regression" in str(c)
