"""Peak memory beyond the inputs: a few (n,) vectors, a few (d, d) matrices per problem, blocks of rows; no more."""

import tracemalloc

import numpy as np
import pytest

import xpreg
from xpreg.maps.dense import PACKED_BYTES
from xpreg.regressions import LOSSES
from xpreg.solvers.entry import WORKING_BYTES

VECTORS = 20
MATRICES = 8


def peak_of(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax", "exp"])
@pytest.mark.parametrize("method", ["newton", "newton-cg", "gradient-descent"])
def test_one_problem_needs_a_few_vectors_beside_its_rows(rng, loss, method):
    n, d = 300_000, 24
    A = rng.standard_normal((n, d)) * 0.2
    A -= A.mean(axis=0)
    problem = LOSSES[loss](A, np.asarray(LOSSES[loss](A, np.full(n, 1 / n)).predict(0.3 * rng.standard_normal(d))))
    xpreg.minimize(problem, maxiter=1)  # what a problem works out once is there
    peak = peak_of(lambda: xpreg.minimize(problem, method=method, maxiter=4))
    limit = VECTORS * n * 8 + MATRICES * d * d * 8 + 12 * 2**20
    assert limit < 1.4 * A.nbytes
    assert peak < limit


def test_a_stack_is_solved_in_parts_that_fit_the_working_memory(rng, monkeypatch):
    n, d, k = 2000, 10, 600
    monkeypatch.setattr("xpreg.solvers.entry.WORKING_BYTES", WORKING_BYTES // 16)
    A = rng.standard_normal((n, d))
    b = np.asarray(xpreg.SoftmaxRegression(A, np.full((k, n), 1 / n)).predict(rng.standard_normal((k, d)) * 0.3))
    problem = xpreg.SoftmaxRegression(A, b)
    records = []
    peak = peak_of(lambda: xpreg.minimize(problem, maxiter=6, callback=records.append))
    assert len({record.problems for record in records}) > 5
    results = 4 * k * d * 8 + 4000 * len(records)
    assert peak < 1.5 * WORKING_BYTES // 16 + PACKED_BYTES + results
    assert peak < 14 * k * n * 8 / 5  # without parts the vectors of all problems would be there together
