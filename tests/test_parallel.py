"""Threads that share the rows: the same bits as one thread; errors and settings go both ways."""

import concurrent.futures
import threading

import numpy as np
import pytest

import xpreg
from xpreg import backend as B
from xpreg.backend import parallel
from xpreg.maps import DenseRows

threadpoolctl = pytest.importorskip("threadpoolctl")


@pytest.fixture(autouse=True)
def blas_with_two_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


@pytest.fixture
def A(rng):
    return rng.standard_normal((40_000, 60))


def test_several_threads_share_large_arrays_only(A):
    assert B.threads(A) == 2
    assert B.threads(A[:100, :]) == 1


@pytest.mark.parametrize(("n", "d"), [(40_000, 60), (147_463, 16), (130_001, 33)])
def test_the_result_is_bitwise_that_of_one_thread(rng, n, d):
    A, D, v = rng.standard_normal((n, d)), rng.standard_normal((1, n)), rng.standard_normal((1, d))
    rows, centre = DenseRows(A), np.full((1, n), 1 / n)
    problem = xpreg.SoftmaxRegression(A, centre[0])

    def results():
        columns = rows.adjoint(np.stack([D, D * D], axis=1))
        product = rows.gram_operator(D, centre)(v)
        return rows.apply(v), columns, *product, rows.gram(D, centre), *problem.value_and_grad(0.1 * v[0])

    shared = results()
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert B.threads(A) == 1
        alone = results()
    for a, b in zip(shared, alone, strict=True):
        assert np.array_equal(a, b)


def test_parts_come_back_in_order_from_two_threads(A):
    seen = set()
    meet = threading.Barrier(2, timeout=10)

    def work(part):
        if part < 2:
            meet.wait()  # both are under way at the same time
        seen.add(threading.get_ident())
        return part

    assert list(B.in_order(work, range(9), A)) == list(range(9))
    assert len(seen) == 2


def test_no_thread_runs_far_ahead_of_a_part_that_takes_long(A):
    """Results that wait for an earlier one may be large: there are a few of them at most."""
    begun, release, seen_while_waiting = [], threading.Event(), []

    def work(part):
        begun.append(part)
        if part == 0:
            release.wait(10)
        elif part == 2:  # the last that may be begun while nothing has been handed out
            threading.Timer(0.1, lambda: (seen_while_waiting.append(max(begun)), release.set())).start()
        return part

    assert list(B.in_order(work, range(20), A)) == list(range(20))
    assert seen_while_waiting == [2]


def test_a_caller_that_wants_no_more_results_stops_the_work(A):
    begun = []
    results = B.in_order(lambda part: begun.append(part) or part, range(1000), A)
    assert next(results) == 0
    results.close()
    assert len(begun) < 20
    assert B.threads(A) == 2


def test_an_error_in_a_part_reaches_the_caller_and_lifts_the_limit(A):
    def work(part):
        raise ZeroDivisionError(part)

    with pytest.raises(ZeroDivisionError):
        list(B.in_order(work, range(5), A))
    assert B.threads(A) == 2


def test_the_limit_is_lifted_when_the_last_of_several_callers_is_done(A):
    problem = xpreg.SoftmaxRegression(A, np.full(len(A), 1 / len(A)))
    point = problem.at(np.zeros(60))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: point.hess(), range(6)))
    assert all(np.array_equal(H, results[0]) for H in results)
    assert B.threads(A) == 2


def test_floating_point_settings_reach_the_threads(A):
    with B.quiet():
        list(B.in_order(lambda part: np.exp(np.full(3, 1e4)), range(4), A))
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        list(B.in_order(lambda part: np.exp(np.full(3, 1e4)), range(4), A))


def test_without_threadpoolctl_the_parts_are_worked_on_one_after_the_other(A, monkeypatch):
    monkeypatch.setattr(parallel, "_blas", lambda: None)
    here = threading.get_ident()
    assert all(ident == here for ident in B.in_order(lambda part: threading.get_ident(), range(4), A))
