"""What costs time on a GPU, counted without one: host reads, copies and launches of a Newton iteration."""

import numpy as np
import pytest
from support import fakegpu

import xpreg


@pytest.fixture
def problem():
    rng = np.random.default_rng(3)
    A, x = fakegpu.xp.asarray(rng.standard_normal((60, 5))), rng.standard_normal(5)
    b = xpreg.SoftmaxRegression(A, fakegpu.xp.asarray(np.full(60, 1 / 60))).predict(fakegpu.xp.asarray(x))
    return xpreg.SoftmaxRegression(A, b)


def per_iteration(problem, method, start=None, **options):
    """The counts of each iteration of a run, and its records."""
    marks = []
    with fakegpu.count() as total:
        result = xpreg.minimize(
            problem,
            start,
            method=method,
            callback=lambda record: marks.append((total.syncs + total.d2h, total.launches, total.h2d)),
            **options,
        )
    assert result.success, result.message
    return np.diff(np.array(marks), axis=0), result


@pytest.mark.parametrize(("loss", "launches"), [("softmax", 165), ("resnet-softmax", 230), ("exp", 155)])
def test_a_newton_iteration_reads_the_host_once(problem, loss, launches):
    A, b = problem.rows.A, problem.b
    problem = xpreg.regressions.LOSSES[loss](A - fakegpu.xp.mean(A, axis=0), b)
    counts, result = per_iteration(problem, "newton")
    plain = [i for i, record in enumerate(result.history[1:]) if record.direction == "newton" and record.step == 1.0]
    assert len(plain) >= 2
    assert all(counts[i, 0] == 1 for i in plain[:-1])
    assert all(counts[i, 2] == 0 for i in plain[:-1])  # and nothing goes to the device
    assert max(counts[i, 1] for i in plain[:-1]) <= launches  # however large the data


def test_newton_cg_reads_once_for_eight_products(problem):
    counts, result = per_iteration(problem, "newton-cg")
    for (reads, _, _), record in zip(counts[:-1], result.history[1:-1], strict=True):
        products = sum(int(part.partition("(")[2].rstrip(")")) for part in record.direction.split(", "))
        assert reads <= 2 + products // 8 + 2 * ("gauss" in record.direction)


def test_derivatives_read_one_scalar_to_check_the_domain_and_products_none(problem):
    x = fakegpu.xp.asarray(np.zeros(5))
    point = problem.at(x)
    with fakegpu.count(forbid=("syncs", "d2h", "h2d")):
        _ = point.value, point.grad, point.hess(), point.predict()
    with fakegpu.count() as n:
        problem.grad(x)
    assert n.syncs + n.d2h <= 2  # x is finite, the value is finite


def test_the_gram_matrix_makes_no_temporary_of_the_size_of_A(monkeypatch):
    monkeypatch.setattr("xpreg.backend.blocking.LAUNCH_BYTES", 0)  # so that a small A has several blocks
    rng = np.random.default_rng(0)
    A = fakegpu.xp.asarray(rng.standard_normal((200_000, 8)))
    problem = xpreg.SoftmaxRegression(A, fakegpu.xp.asarray(rng.dirichlet(np.ones(200_000))))
    point = problem.at(fakegpu.xp.asarray(np.zeros(8)))
    with fakegpu.count() as n:
        point.hess()
    assert n.peak < A.nbytes
