"""What a solve reads and multiplies: Gram matrices and passes over A, counted at the map that every method uses."""

from __future__ import annotations

import dataclasses

import xpreg
from xpreg.maps import DenseRows

FREE = {"blocks", "bend", "gate", "pull", "outer", "release", "rounding", "tangent", "to_device"}
"""What reads no row."""

KEPT = {"column_means", "column_norms", "largest_row_norm"}
"""What reads A the first time."""


@dataclasses.dataclass
class Counts:
    """In units of all rows: a sample of m rows is m/n of each."""

    grams: float = 0.0
    passes: float = 0.0
    inside: bool = False


class CountingRows(DenseRows):
    """Rows that count the calls from outside: a Gram, a pass for whatever else reads rows.

    The weighted mean that a centred Gram needs is a pass of its own; other calls are one pass each, whatever they call.
    """

    def __init__(self, A):
        self.counts = Counts()
        super().__init__(A)

    def __getattribute__(self, name):
        known = name in object.__getattribute__(self, "__dict__")
        found = super().__getattribute__(name)
        if name in KEPT and not known:
            self.counts.passes += 1
        if name.startswith("_") or name in FREE or not callable(found):
            return found
        return self._counted(name, found)

    def _counted(self, name, method):
        counts = self.counts

        def call(*arguments, **options):
            if counts.inside:
                return method(*arguments, **options)
            if name == "gram":
                D = arguments[0]
                counts.grams += D.shape[0]
                return method(*arguments, **options)
            if name == "gram_operator":
                product = method(*arguments, **options)
                return lambda v: self._inside(product, v)
            if name == "take_rows":
                X = method(*arguments, **options)
                counts.passes += X.shape[0] / self.n
                if not isinstance(arguments[0], slice):  # a sample, whose Gram follows
                    counts.grams += X.shape[0] / self.n
                return X
            return self._inside(method, *arguments, **options)

        return call

    def _inside(self, method, *arguments, **options):
        self.counts.passes += 1
        self.counts.inside = True
        try:
            return method(*arguments, **options)
        finally:
            self.counts.inside = False


def count(task, **options):
    """Solve once, and return the result and its counts."""
    problem = xpreg.SoftmaxRegression(task.A, task.b)
    problem.rows = rows = CountingRows(task.A)
    result = xpreg.minimize(problem, task.x0, **options)
    return result, rows.counts
