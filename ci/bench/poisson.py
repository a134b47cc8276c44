"""scikit-learn's way to softmax regression: Poisson regression with an intercept has its Kullback-Leibler loss.

With y = n b, the intercept that fits the total makes the mean e^(a_i x + c) equal n softmax(A x), and what is left of
the likelihood is sum b log(b/softmax(A x)). The squared loss is none that scikit-learn has: LogisticRegression has
coefficients of its own for every class.
"""

from __future__ import annotations

import importlib
import time
import warnings

import numpy as np
from solver_peers import TOL
from tasks import BY_HAND

import xpreg

ITERATIONS = {"newton-cholesky": 100, "lbfgs": 150}
"""Limits, since these cannot be stopped by the clock."""


def gradient(task, x):
    """Return A^T (softmax(A x) - b)."""
    return (BY_HAND.predict(task.A, x) - task.b) @ task.A


def fits(task):
    """Return {label: function that returns x and the number of iterations}."""
    problem = xpreg.SoftmaxRegression(task.A, task.b, loss="kl")
    tol = TOL * np.abs(gradient(task, np.zeros(task.d))).max()
    y = task.n * task.b

    def ours():
        result = xpreg.minimize(problem, tol=TOL)
        return result.x, result.nit

    def fit(solver, most):
        linear_model = importlib.import_module("sklearn.linear_model")
        model = linear_model.PoissonRegressor(alpha=0, solver=solver, tol=tol, max_iter=most)

        def run():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it has not converged is in the table
                model.fit(task.A, y)
            return model.coef_, model.n_iter_

        return run

    return {"xpreg auto": ours} | {f"scikit-learn {name}": fit(name, most) for name, most in ITERATIONS.items()}


def compare(task, rounds):
    """Return {label: numbers}: median seconds, iterations and the gradient by NumPy. Raises ImportError."""
    importlib.import_module("sklearn.linear_model")
    found, start = {}, np.abs(gradient(task, np.zeros(task.d))).max()
    for turn in range(rounds):
        for label, run in fits(task).items():
            if turn and found[label]["seconds"][0] > 3 * found["xpreg auto"]["seconds"][0]:
                continue
            begun = time.perf_counter()
            x, iterations = run()
            seconds = time.perf_counter() - begun
            size = float(np.abs(gradient(task, x)).max() / start)
            entry = found.setdefault(label, {"seconds": [], "iterations": int(iterations), "gradient": size})
            entry["seconds"].append(seconds)
    return found
