"""Certificates: every proved bound holds on random problems and next to the extremal cases."""

import dataclasses
import itertools

import numpy as np
import pytest
from support import reference
from support.problems import climb, data

import xpreg
from xpreg import theory
from xpreg.brackets import bracket
from xpreg.regressions import LOSSES

EXTREMAL = ((15 - 33**0.5) / 24, (15 + 33**0.5) / 24)


def second_derivative(loss, z, b):
    """B (n, n), by complex steps through the reference: the Hessian in z is the one in x for A = I."""
    return reference.hess(loss, np.eye(len(z)), b, z)


def random_problem(rng, loss):
    """Small problems of every kind: saturated, spiked b, tiny n, offsets, weights."""
    n, d = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    A, b, x = data(loss, rng, n, d)
    A = A * 10.0 ** rng.uniform(-1, 1)
    if "softmax" in loss and rng.random() < 0.3:
        b = np.eye(n)[rng.integers(n)]
    if loss == "softmax" and rng.random() < 0.2:
        b = rng.standard_normal(n)  # not a distribution
    if loss in ("exp", "cosh", "sinh") and rng.random() < 0.3:
        b = b * 10
    if "softmax" not in loss:
        A = A * min(1.0, 6.0 / np.abs(A @ x).max())
    if loss == "resnet-softmax" and rng.random() < 0.5:
        A = A + 0.3
    w = float(rng.choice([0.0, 0.3, 1.0]))
    return A, b, x, w


def test_on_a_thousand_random_problems_every_proved_bound_holds(rng):
    checked = dict.fromkeys(("curvature", "hessian", "here", "weight", "lipschitz", "distance"), 0)
    for i in range(1000):
        loss = list(LOSSES)[i % len(LOSSES)]
        A, b, x, w = random_problem(rng, loss)
        problem = LOSSES[loss](A, b, weights=w)
        try:
            c = xpreg.certify(problem, x)
        except xpreg.DomainError:
            continue
        d = len(x)
        B = np.linalg.eigvalsh(second_derivative(loss, A @ x, b))
        rounding = 1e-12 * max(1.0, np.abs(B).max())
        assert c.curvature_low.value <= B[0] + rounding
        assert c.curvature_high.value >= B[-1] - rounding
        H = reference.hess(loss, A, b, x, w)
        lowest = np.linalg.eigvalsh(H)[0]
        rounding = 1e-12 * max(1.0, np.abs(H).max())
        assert c.hessian_low.value <= lowest + rounding
        assert c.hessian_min.value == pytest.approx(lowest, abs=1e-9 * max(1.0, np.abs(H).max()))
        here = reference.hess(loss, A, b, x, c.psd_weight_here.value**0.5)
        assert np.linalg.eigvalsh(here)[0] >= -1e-12 * max(1.0, np.abs(here).max(), np.abs(H).max())
        checked["curvature"] += 1
        if c.psd_weight.kind == "proved":
            elsewhere = x * rng.choice([-2.0, 0.1, 3.0])
            other = reference.hess(loss, A, b, elsewhere, c.psd_weight.value**0.5)
            assert np.linalg.eigvalsh(other)[0] >= -1e-11 * max(1.0, np.abs(other).max())
            checked["weight"] += 1
        if c.lipschitz.value is not None:
            for scale in (1e-3, 0.3, 3.0):
                y = x + scale * rng.standard_normal(d)
                change = np.linalg.norm(reference.hess(loss, A, b, y) - reference.hess(loss, A, b, x), 2)
                assert change <= c.lipschitz.value * np.linalg.norm(y - x) * (1 + 1e-9) + 1e-12
                if c.lipschitz_sharp.value is not None:
                    assert change <= c.lipschitz_sharp.value * np.linalg.norm(y - x) * (1 + 1e-9) + 1e-12
            checked["lipschitz"] += 1
    assert checked["curvature"] > 900
    assert checked["weight"] > 300
    assert checked["lipschitz"] > 200


def test_a_minimiser_lies_within_the_proved_distance(rng):
    """From points next to a minimum: x*, l and the contraction of the next exact step are checked."""
    proved = 0
    for _ in range(60):
        A, b, _ = data("softmax", rng, 20, 3)
        problem = xpreg.SoftmaxRegression(A, b, weights=1.0)
        solution = xpreg.minimize(problem, tol=1e-13).x
        start = solution + 10.0 ** rng.uniform(-5, -1) * rng.standard_normal(3)
        c = xpreg.certify(problem, start)
        assert c.good.kind == ("proved" if c.good.value else "numerical")
        if c.distance.value is None:
            assert c.good.value is False
            continue
        proved += 1
        r = np.linalg.norm(start - solution)
        assert r <= c.distance.value * (1 + 1e-6) + 1e-12
        at_solution = np.linalg.eigvalsh(reference.hess("softmax", A, b, solution, 1.0))[0]
        assert c.strong_convexity.value <= at_solution * (1 + 1e-9)
        if c.good.value:
            assert c.lipschitz.value * r <= 0.1 * at_solution * (1 + 1e-6)
        if c.contraction_predicted.value is not None:
            step = np.linalg.solve(
                reference.hess("softmax", A, b, start, 1.0), reference.grad("softmax", A, b, start, 1.0)
            )
            after = np.linalg.norm(start - step - solution)
            assert after <= c.contraction_predicted.value * r + 1e-12
    assert proved > 30


# -- attempts to break them -----------------------------------------------------------------------


@pytest.mark.parametrize("p", EXTREMAL)
@pytest.mark.parametrize("shift", [0.0, 1e-9, -1e-5, 1e-3])
@pytest.mark.parametrize("pad", [0, 6])
def test_the_extremal_two_point_case_does_not_break_the_brackets(p, shift, pad):
    """n = 2, b a vertex, f = (p, 1 - p); padding adds rows of almost no weight."""
    z = np.concatenate([[0.0, np.log((1 - p) / p) + shift], np.full(pad, -20.0)])
    b = np.eye(2 + pad)[1]
    B = np.linalg.eigvalsh(second_derivative("softmax", z, b))
    c = xpreg.certify(xpreg.SoftmaxRegression(np.eye(2 + pad), b), z)
    assert c.curvature_low.value <= B[0]
    assert c.curvature_high.value >= B[-1]
    assert B[0] >= theory.SOFTMAX_LOWEST
    assert B[-1] <= theory.SOFTMAX_HIGHEST
    assert c.psd_weight_here.value <= c.psd_weight.value
    if shift == 0.0 and pad == 0:
        value = theory.extreme_eigenvalue(p)
        assert min(abs(B - value)) < 1e-12
        assert value == pytest.approx(theory.SOFTMAX_LOWEST if value < 0 else theory.SOFTMAX_HIGHEST, abs=1e-4)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_search_does_not_exceed_the_softmax_constants(rng, n):
    """Over f (by z), b on the simplex (by a softmax of y) and the direction h: nothing beyond the constants."""

    def split(v):
        z, y, h = v[:n], v[n : 2 * n], v[2 * n :]
        b = np.exp(3 * (y - y.max()))
        return 3 * z, b / b.sum(), h / np.linalg.norm(h)

    def eigenvalue(v, sign):
        z, b, _ = split(v)
        return np.max(sign * np.linalg.eigvalsh(second_derivative("softmax", z, b)))

    def third(v):
        z, b, h = split(v)
        t = 1e-4
        second = [h @ second_derivative("softmax", z + s * t * h, b) @ h for s in (1, -1)]
        return abs(second[0] - second[1]) / (2 * t)

    found = [
        (climb(lambda v: eigenvalue(v, -1), rng.standard_normal(3 * n), rng, 250), -theory.SOFTMAX_LOWEST),
        (climb(lambda v: eigenvalue(v, 1), rng.standard_normal(3 * n), rng, 250), theory.SOFTMAX_HIGHEST),
        (climb(third, rng.standard_normal(3 * n), rng, 400), theory.SOFTMAX_LIPSCHITZ),
    ]
    for value, constant in found:
        assert 0.3 * constant < value <= constant + 1e-6
    assert theory.SOFTMAX_LIPSCHITZ < theory.softmax_lipschitz(1.0) < 5.4  # 5.4 is a coarser bound by hand


def test_the_kullback_leibler_constant_is_attained_but_not_exceeded(rng):
    p = 0.5 - 0.5 / 3**0.5
    third = 2 * 2**0.5 * p * (1 - p) * (1 - 2 * p)  # <f, (h - <f,h>)^3> at n = 2, h = (1, -1)/sqrt 2
    assert third == pytest.approx(theory.KL_LIPSCHITZ, abs=1e-4)
    assert third <= theory.KL_LIPSCHITZ
    for _ in range(200):
        n = int(rng.integers(2, 8))
        f = rng.dirichlet(np.full(n, 0.3))
        h = rng.standard_normal(n)
        h /= np.linalg.norm(h)
        assert abs(f @ (h - f @ h) ** 3) <= theory.KL_LIPSCHITZ


@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0, 300.0])
def test_saturated_points_keep_the_bounds(rng, scale):
    for b in (np.eye(30)[3], rng.dirichlet(np.ones(30)), 5 * rng.standard_normal(30)):
        A = rng.standard_normal((30, 3))
        x = scale * rng.standard_normal(3)
        c = xpreg.certify(xpreg.SoftmaxRegression(A, b), x)
        z = A @ x
        B = np.linalg.eigvalsh(second_derivative("softmax", z - z.max(), b))
        assert c.curvature_low.value <= B[0] + 1e-13
        assert c.curvature_high.value >= B[-1] - 1e-13


@pytest.mark.parametrize("offset", [-0.5, -0.56, -0.567, 0.0, 5.0])
def test_next_to_the_pole_of_resnet_softmax_the_bracket_holds_and_no_constant_is_claimed(rng, offset):
    A = rng.standard_normal((12, 2)) * 0.01
    A -= A.mean(axis=0)
    A = np.concatenate([A, np.ones((12, 1))], axis=1)
    x = np.array([0.3, -0.2, offset])  # alpha/n = e^offset + offset, nearly
    b = rng.dirichlet(np.ones(12))
    c = xpreg.certify(xpreg.ResNetSoftmaxRegression(A, b), x)
    B = np.linalg.eigvalsh(second_derivative("resnet-softmax", A @ x, b))
    assert c.curvature_low.value <= B[0] + 1e-10 * np.abs(B).max()
    assert c.curvature_high.value >= B[-1] - 1e-10 * np.abs(B).max()
    for name in ("psd_weight", "psd_weight_sharp", "sandwich_weight_sharp", "lipschitz", "lipschitz_sharp", "good"):
        claim = getattr(c, name)
        assert claim.value is None
        assert claim.kind == "not available"
        assert claim.what
    if offset <= -0.56:  # far beyond the constant for centred columns: claiming it would have been wrong
        assert -B[0] > 0.2405


@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_the_resnet_softmax_constant_for_centred_columns_survives_a_search(rng, size):
    for _ in range(100):
        A = rng.standard_normal((10, 3)) * rng.standard_exponential((10, 1))
        A -= A.mean(axis=0)
        x = rng.standard_normal(3)
        x *= np.log(1 + size) / np.abs(A @ x).max() * rng.uniform(0.1, 3)
        b = np.eye(10)[rng.integers(10)]
        problem = xpreg.ResNetSoftmaxRegression(A, b)
        c = xpreg.certify(problem, x)
        assert c.psd_weight_sharp.value == 0.2405
        assert c.psd_weight_sharp.kind == "numerical"
        B = np.linalg.eigvalsh(second_derivative("resnet-softmax", A @ x, b))
        assert -c.psd_weight_sharp.value <= B[0]
        assert 0.9 * (B[-1] + c.sandwich_weight_sharp.value) <= c.sandwich_weight_sharp.value


@pytest.mark.parametrize("loss", ["exp", "cosh", "sinh"])
@pytest.mark.parametrize("b", [0.3, 3.9, 4.0, 4.1, 9.0, -9.0])
def test_the_floors_of_elementwise_losses_are_attained_and_hold(loss, b):
    z = np.linspace(-4, 4, 20001)
    g, g1, g2 = {"exp": (np.exp,) * 3, "cosh": (np.cosh, np.sinh, np.cosh), "sinh": (np.sinh, np.cosh, np.sinh)}[loss]
    lowest = np.min(g1(z) ** 2 + (g(z) - b) * g2(z))
    floor = theory.elementwise_floor(loss, b, b)
    assert floor <= lowest + 1e-12
    if not (loss == "exp" and b < 0):
        assert floor == pytest.approx(lowest, abs=1e-2)


def test_constants_of_the_simplex_are_not_claimed_for_other_targets(rng):
    A = rng.standard_normal((10, 2))
    c = xpreg.certify(xpreg.SoftmaxRegression(A, rng.standard_normal(10)), np.zeros(2))
    for claim in (c.psd_weight_sharp, c.sandwich_weight_sharp, c.lipschitz_sharp):
        assert claim.value is None
        assert "simplex" in claim.what
    assert c.psd_weight.kind == "proved"


# -- what it looks like ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_every_claim_says_what_it_is(backend, rng, loss):
    A, b, x = data(loss, rng, 12, 3)
    c = xpreg.certify(LOSSES[loss](backend.array(A), backend.array(b), weights=0.5), backend.array(x))
    names = [name for name, _ in c.claims()]
    assert len(names) >= 20
    for name, claim in c.claims():
        assert claim.kind in ("proved", "numerical", "published, unverified", "measured", "not available")
        assert (claim.value is None) == (claim.kind == "not available")
        assert isinstance(claim.value, bool | float | None)
        assert claim.what
        assert claim.source or claim.value is None
        assert name in c.table()
        assert claim.kind in c.table()
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.head = "other"


def test_backends_agree(backend, rng):
    A, b, x = data("softmax", rng, 40, 4)
    here = xpreg.certify(xpreg.SoftmaxRegression(backend.array(A), backend.array(b)), backend.array(x))
    there = xpreg.certify(xpreg.SoftmaxRegression(A, b), x)
    for (name, one), (_, other) in zip(here.claims(), there.claims(), strict=True):
        assert one.kind == other.kind, name
        if other.value is not None:
            assert one.value == pytest.approx(other.value, rel=1e-9, abs=1e-12), name


def test_a_stack_is_certified_by_its_worst_problem(backend, rng, monkeypatch):
    A, b, x = data("softmax", rng, 20, 3, k=6)
    stack = xpreg.SoftmaxRegression(backend.array(A), backend.array(b.reshape(2, 3, 20)), weights=0.5)
    c = xpreg.certify(stack, backend.array(x.reshape(2, 3, 3)))
    each = [xpreg.certify(xpreg.SoftmaxRegression(A, b[i], weights=0.5), x[i]) for i in range(6)]
    assert c.problems == 6
    assert "worst of 6 problems" in c.table()
    for name, worst in (("curvature_low", min), ("curvature_high", max), ("hessian_min", min), ("hessian_low", min)):
        expected = worst(getattr(e, name).value for e in each)
        assert getattr(c, name).value == pytest.approx(expected, rel=1e-9), name
    assert c.good.value == all(e.good.value for e in each)


def test_many_columns_get_bounds_instead_of_eigenvalues(backend, rng, monkeypatch):
    monkeypatch.setattr("xpreg.evaluation.DENSE_COLUMNS", 2)
    A, b, x = data("softmax", rng, 30, 3)
    problem = xpreg.SoftmaxRegression(backend.array(A), backend.array(b), weights=1.0)
    c = xpreg.certify(problem, backend.array(x))
    assert c.hessian_min.value is None
    assert c.hessian_low.value <= np.linalg.eigvalsh(reference.hess("softmax", A, b, x, 1.0))[0]
    assert c.lipschitz.value >= theory.softmax_lipschitz(b.max() - b.min()) * np.linalg.norm(A, 2) ** 3


def test_float32_bounds_allow_for_their_rounding(backend, rng):
    for _ in range(20):
        A, b, x = data("softmax", rng, 30, 3)
        problem = xpreg.SoftmaxRegression(backend.array(A, "float32"), backend.array(b, "float32"))
        c = xpreg.certify(problem, backend.array(x, "float32"))
        A, b, x = (v.astype("float32").astype(float) for v in (A, b, x))
        B = np.linalg.eigvalsh(second_derivative("softmax", A @ x, b))
        assert c.curvature_low.value <= B[0]
        assert c.curvature_high.value >= B[-1]


def test_minimize_certifies_when_asked(backend, rng):
    A, b, _ = data("softmax", rng, 30, 3)
    problem = xpreg.SoftmaxRegression(backend.array(A), backend.array(b), weights=1.0)
    assert xpreg.minimize(problem).certificate is None
    result = xpreg.minimize(problem, certify=True)
    c = result.certificate
    assert c.good.value is True
    assert c.strong_convexity.value > 0
    g = [record.grad_norm for record in result.history]
    assert c.contraction_measured.value == pytest.approx(g[-1] / g[-2])
    assert c.sampling_measured.value is None
    sampled = xpreg.minimize(problem, method="approximate-newton", reading="papers", eps=0.4, certify=True).certificate
    assert sampled.sampling_promised.value == 0.4
    assert 0 <= sampled.sampling_measured.value <= 0.4


def test_the_bracket_is_the_formula_of_the_rank_two_part(rng):
    """min D - (<h,v> + |h||v|) and max D + (|h||v| - <h,v>), h = v*(e - kappa/2)."""
    z, b = rng.standard_normal(9), rng.dirichlet(np.ones(9))
    u, u1, u2 = np.exp(z) + z, np.exp(z) + 1, np.exp(z)
    alpha = u.sum()
    f, v = u / alpha, u1 / alpha
    c, e = f - b, 2 * f - b
    s = c @ f
    D = u2 / alpha * (c - s) + v * v
    h = v * (e - (2 * s + f @ f) / 2)
    reach = np.linalg.norm(h) * np.linalg.norm(v)
    problem = xpreg.ResNetSoftmaxRegression(np.eye(9), b)
    low, high = bracket(problem.at(z).curvature())
    assert low[0] == pytest.approx(D.min() - (h @ v + reach))
    assert high[0] == pytest.approx(D.max() + (reach - h @ v))


def test_the_shrinking_lemma_and_its_limits():
    assert theory.contraction(1.0, 0.1, 1.0, 0.01) == pytest.approx(2 * (0.01 + 0.1 / 0.9))
    assert theory.contraction(1.0, 1.0, 1.0) is None
    assert theory.contraction(1.0, 0.1, 1.0, 0.01) <= 0.4
    assert theory.minimiser_within(1.0, 1.0, 0.6) is None
    assert theory.minimiser_within(0.0, 1.0, 0.0) is None
    for eta in (0.0, 0.1, 0.5):
        r, l = theory.minimiser_within(1.0, 1.0, eta)
        assert 0.5 * r * r - r + eta == pytest.approx(0, abs=1e-15)  # the root of Kantorovich's parabola
        assert l == pytest.approx(1.0 - r)


def test_bad_points_are_refused(backend):
    problem = xpreg.SoftmaxRegression(backend.array(np.eye(3)), backend.array(np.ones(3) / 3))
    with pytest.raises(ValueError, match="x has shape"):
        xpreg.certify(problem, backend.array(np.zeros(4)))
    assert list(itertools.islice(xpreg.certify(problem, backend.array(np.zeros(3))).claims(), 1))


def test_float32_sums_that_are_off_are_not_taken_for_rounding(rng):
    n = 200_000
    A = rng.standard_normal((n, 2)).astype("float32")
    b = np.full(n, 1.5 / n, "float32")
    certificate = xpreg.certify(xpreg.SoftmaxRegression(A, b), np.zeros(2, "float32"))
    assert certificate.psd_weight_sharp.value is None
    right = xpreg.certify(xpreg.SoftmaxRegression(A, b / 1.5), np.zeros(2, "float32"))
    assert right.psd_weight_sharp.value == pytest.approx(0.2405)
    A -= A.mean(axis=0)
    b = np.full(n, 1.0 / n, "float32")
    for offset, known in ((0.0, True), (0.01, False)):
        problem = xpreg.ResNetSoftmaxRegression(A + np.float32(offset), b)
        found = xpreg.certify(problem, np.zeros(2, "float32")).psd_weight_sharp.value
        assert (found is not None) == known


def test_a_claim_that_overflows_is_not_made(rng):
    A = rng.standard_normal((10, 2)) * [1e155, 1.0]
    certificate = xpreg.certify(xpreg.SoftmaxRegression(A, np.full(10, 0.1)), np.zeros(2))
    assert not any(isinstance(c.value, float) and np.isnan(c.value) for _, c in certificate.claims())


def test_the_method_that_auto_took_is_examined():
    from xpreg.solvers.approximate_newton import ApproximateNewton
    from xpreg.solvers.auto import Auto

    auto = Auto()
    auto.method = ApproximateNewton()
    assert auto.working is auto.method
    assert auto.method.working is auto.method
