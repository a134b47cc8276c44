"""Random problems, shared by the tests."""

import numpy as np


def data(loss, rng, n=30, d=5, k=None, scale=0.6):
    """A, b, x for a loss: NumPy arrays in float64; k problems that share A, or one."""
    lead = () if k is None else (k,)
    A = rng.standard_normal((n, d)) * scale
    x = rng.standard_normal((*lead, d))
    if "softmax" in loss:
        b = rng.dirichlet(np.ones(n), lead or None)
    else:
        b = rng.standard_normal((*lead, n)) * (0.2 if "rescaled" in loss else 1.0)
    if loss == "resnet-softmax":
        A -= A.mean(axis=0)  # keeps the normaliser positive
    return A, b, x


def realisable(loss, problem_class, A, x):
    """The b that the model at x gives exactly."""
    b = np.zeros((*x.shape[:-1], A.shape[0]))
    b[..., 0] = 1.0
    return problem_class(A, b).predict(x)


def climb(objective, x, rng, steps, size=0.5):
    """A random search uphill with a shrinking step."""
    best = objective(x)
    for i in range(steps):
        trial = x + size * 0.99**i * rng.standard_normal(x.shape)
        value = objective(trial)
        if value > best:
            x, best = trial, value
    return best
