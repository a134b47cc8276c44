"""Softmax regressions to measure on: rows of a given condition number, noisy targets, and the hard cases."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from peers import Formulas

BY_HAND = Formulas(np)

KINDS = {
    "mild": 1.0,
    "condition 1e2": 1e2,
    "condition 1e6": 1e6,
    "heavy tails": 1.0,
    "saturated start": 1.0,
}
"""Condition number of A by kind."""

NOISE = 0.03
"""b = softmax(A x) e^(NOISE normal): the minimum has a positive loss, about 1e-3 of the first. Much more of it, and
methods that compare losses end where rounding hides what a step gains, above the gradient that is asked for.
"""

LARGEST_EXPONENT = 8.0
"""No z of the heavy-tailed rows is further from 0; else b would sit on one row."""

SATURATION = 30.0
"""Largest |z| at a saturated start."""


@dataclasses.dataclass(frozen=True)
class Task:
    """min 0.5 |softmax(A x) - b|^2 from x0; the arrays of the peers are made once, by ``convert``."""

    kind: str
    A: np.ndarray
    b: np.ndarray
    x0: np.ndarray
    converted: dict = dataclasses.field(default_factory=dict, repr=False)

    @property
    def n(self):
        return self.A.shape[0]

    @property
    def d(self):
        return self.A.shape[1]

    @property
    def name(self):
        return f"{self.n}x{self.d} {self.kind}"

    def convert(self, library, array):
        """Return A, b and x0 as arrays of a library."""
        if library not in self.converted:
            self.converted[library] = tuple(map(array, (self.A, self.b, self.x0)))
        return self.converted[library]

    def largest_gradient(self, x):
        """Return |g(x)|_inf by NumPy, in two passes: what all methods are judged by."""
        return float(np.abs(BY_HAND.value_and_grad(self.A, self.b, x)[1]).max())

    @functools.cached_property
    def start_gradient(self):
        return self.largest_gradient(self.x0)

    @functools.cached_property
    def start_value(self):
        return float(BY_HAND.value_and_grad(self.A, self.b, self.x0)[0])


def rotated_rows(n, d, condition, rng):
    """Rows G diag(s) Q^T of length about 1, s from 1 down to 1/condition, Q a rotation: scaling columns is no help."""
    s = np.logspace(0, -np.log10(condition), d)
    M = s[:, None] * np.linalg.qr(rng.standard_normal((d, d)))[0].T / np.linalg.norm(s)
    A = np.empty((n, d))
    for start in range(0, n, 10_000):
        A[start : start + 10_000] = rng.standard_normal((min(10_000, n - start), d)) @ M
    return A


def make_task(n, d, kind, seed=0):
    """b = softmax(A x) times noise, z = A x of standard deviation 1; heavy tails: Student t, 2 degrees."""
    rng = np.random.default_rng(seed)
    A = rotated_rows(n, d, KINDS[kind], rng)
    if kind == "heavy tails":
        A /= np.sqrt(rng.exponential(size=n))[:, None]
    x = rng.standard_normal(d)
    z = A @ x
    scale = 1 / z.std()
    if kind == "heavy tails":
        scale = min(scale, LARGEST_EXPONENT / np.abs(z).max())
    b = np.exp(scale * z + NOISE * rng.standard_normal(n))
    x0 = np.zeros(d)
    if kind == "saturated start":
        x0 = rng.standard_normal(d)
        x0 *= SATURATION / np.abs(A @ x0).max()
    return Task(kind, A, b / b.sum(), x0)
