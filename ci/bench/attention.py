"""1,788 attention queries: xpreg in one call per head against SciPy's trust-exact one by one, same derivatives.

    python ci/bench/attention.py [--rounds 3]

Both stop at a gradient of 1e-8 of the start and must recover every query to 1e-6; SciPy gets the closed-form value,
gradient and Hessian (centred form), each softmax evaluated once per point.
"""

import argparse
import pathlib
import statistics
import sys

import numpy as np
import scipy.optimize
from common import interleaved, median_ratio, write

import xpreg

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
from recover_attention import DATA, load_heads

TOL = 1e-8


class ClosedForm:
    """Value, gradient and Hessian of 0.5 |softmax(A x) - b|^2 by hand, with f kept between the three calls."""

    def __init__(self, A, b):
        self.A, self.b, self.x = A, b, None

    def at(self, x):
        if self.x is None or not np.array_equal(x, self.x):
            self.x = x.copy()
            z = self.A @ x
            f = np.exp(z - z.max())
            self.f = f / f.sum()
            self.c = self.f - self.b
            self.s = self.c @ self.f
        return self

    def value(self, x):
        return 0.5 * self.at(x).c @ self.c

    def grad(self, x):
        self.at(x)
        return (self.f * (self.c - self.s)) @ self.A

    def hess(self, x):
        self.at(x)
        centred = self.A - self.f @ self.A
        q = self.f * (2 * self.f - self.b - self.s)
        return (centred * q[:, None]).T @ centred


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    A, queries, b, _ = load_heads(DATA, "float64")
    found = {}

    def ours():
        found["xpreg"] = np.stack(
            [xpreg.minimize(xpreg.SoftmaxRegression(A[h], b[h]), tol=TOL).x for h in range(len(A))]
        )

    def scipy_one_by_one():
        x = np.empty_like(queries)
        for h in range(len(A)):
            for i in range(queries.shape[1]):
                problem = ClosedForm(A[h], b[h, i])
                start = np.zeros(A.shape[2])
                gtol = TOL * np.abs(problem.grad(start)).max()
                x[h, i] = scipy.optimize.minimize(
                    problem.value, start, jac=problem.grad, hess=problem.hess, method="trust-exact",
                    options={"gtol": gtol, "maxiter": 200},
                ).x  # fmt: skip
        found["scipy"] = x

    def ours_one_by_one():
        for h in range(len(A)):
            for i in range(0, queries.shape[1], 10):
                xpreg.minimize(xpreg.SoftmaxRegression(A[h], b[h, i]), tol=TOL)

    ours()  # warm up
    seconds = interleaved({"xpreg": ours, "scipy": scipy_one_by_one, "one by one": ours_one_by_one}, options.rounds)
    lines = ["1,788 softmax regressions (n = 447, d = 32), float64, gradient to 1e-8 of the start", ""]
    lines += ["method                              median s   recovered to 1e-6   worst relative error"]
    for name, label in (("xpreg", "xpreg, one call per head"), ("scipy", "SciPy trust-exact, one by one")):
        error = np.linalg.norm(found[name] - queries, axis=-1) / np.linalg.norm(queries, axis=-1)
        lines.append(
            f"{label:<34}  {statistics.median(seconds[name]):8.2f}   {int((error <= 1e-6).sum()):8d}/{error.size}"
            f"   {error.max():20.1e}"
        )
    lines += [
        f"{'xpreg, one by one (every 10th, x10)':<34} {10 * statistics.median(seconds['one by one']):8.2f}",
        "",
        f"ratio SciPy / xpreg, median of {options.rounds} interleaved rounds: "
        f"{median_ratio(seconds['scipy'], seconds['xpreg']):.1f}",
    ]
    write("attention", lines)


if __name__ == "__main__":
    main()
