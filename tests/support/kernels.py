"""The fused kernels on the CPU, for tests: all instances that the cases need, compiled at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os

import numpy as np

from support.cpu_exec import CpuRawModule
from xpreg import kernels
from xpreg.kernels.rowstream import source

PROCESSORS = 3
"""A small grid: every block works on several steps."""


class Bench:
    """A `RowStream` for NumPy arrays whose kernels have been compiled beforehand, in a few modules side by side."""

    def __init__(self, cases, *, sanitize=None, modules=4):
        names = self._names(cases)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = [names[i::modules] for i in range(modules) if names[i::modules]]
            built = pool.map(lambda part: CpuRawModule(code=source(), name_expressions=part, sanitize=sanitize), parts)
            self._modules = {name: module for part, module in zip(parts, built, strict=True) for name in part}

    def stream(self, processors=PROCESSORS):
        return kernels.RowStream(lambda code, names: self._modules[names[0]], lambda A: processors)

    @staticmethod
    def _names(cases):
        """Run all cases with kernels that do nothing, and note which were asked for."""
        asked = set()

        class Recorder:
            def get_function(self, name):
                asked.add(name)
                return lambda grid, block, arguments: None

        stream = kernels.RowStream(lambda code, names: Recorder(), lambda A: PROCESSORS)
        for case in cases:
            case.run(stream)
        return sorted(asked)


class Case:
    """One problem and one kernel; ``run`` takes a launcher, or nothing for the array code."""

    def __init__(self, kernel, n, d, dtype, *, activation="softmax", extra=False, aligned=True):
        self.kernel, self.n, self.d, self.dtype = kernel, n, d, np.dtype(dtype)
        self.activation, self.extra = activation, extra  # extra: a regulariser, or a centre
        rng = np.random.default_rng([n, d, extra])
        # A lies inside an array of NaN, so that a read outside of it shows in the sums
        guarded = np.full(2 * d + n * d + 4 + (not aligned), np.nan, dtype)
        start = d + (-(guarded.ctypes.data // self.dtype.itemsize + d) % (16 // self.dtype.itemsize)) + (not aligned)
        self.A = guarded[start : start + n * d].reshape(n, d)
        self.A[...] = rng.standard_normal((n, d))
        self.x = (rng.standard_normal(d) / np.sqrt(d)).astype(dtype)
        self.b = rng.random(n).astype(dtype)
        self.w2 = rng.random(n).astype(dtype)
        self.centre = rng.standard_normal(d).astype(dtype)
        self.shift = np.asarray(np.log(n) + 0.3, dtype=dtype)

    def __repr__(self):
        kind = self.activation if self.kernel == "normalised" else self.kernel
        return f"{kind}{'+' * self.extra}-{self.n}x{self.d}-{self.dtype}"

    def run(self, stream=None):
        """Return the results by name."""
        if self.kernel == "gram":
            function = kernels.gram_sums if stream is None else stream.gram_sums
            sums = function(self.A, self.b - 0.5, self.x, centre=self.centre if self.extra else None, keep_t=True)
            return {"y": sums.y, "total": sums.total, "t": sums.t}
        function = kernels.normalised_sums if stream is None else stream.normalised_sums
        sums = function(
            self.A,
            self.b,
            self.x,
            activation=self.activation,
            shift=self.shift,
            w2=self.w2 if self.extra else None,
            keep_z=True,
        )
        return {"T": sums.T, "s": sums.s, "largest": sums.largest, "z": sums.z}

    def scales(self):
        """Return the float64 sums of the absolute values that each result adds up: rounding is relative to these."""
        A, x, b, w2, centre, shift = (
            q.astype(np.float64) for q in (self.A, self.x, self.b, self.w2, self.centre, self.shift)
        )
        rows = np.abs(A)
        if self.kernel == "gram":
            rows = rows + np.abs(centre) * self.extra
            t = rows @ np.abs(x)
            q = np.abs(b - 0.5) * t
            return {"y": q @ rows, "total": q.sum(), "t": t}
        z, bound = A @ x, rows @ np.abs(x)
        e, scale = np.exp(z - shift), np.exp(-shift)
        f, v = (e, e) if self.activation == "softmax" else (e + np.abs(z) * scale, e + scale)
        f, v = (q * (1 + bound + np.abs(shift)) for q in (f, v))  # an error of z - shift is one of log f
        c = f + b
        weights, s = [v, v * c, v * f], [f.sum(), c @ c, c @ f, f @ f]
        if self.extra:
            weights.append(w2 * bound)
            s.append(w2 @ (bound * bound))
        return {"T": np.stack(weights) @ rows, "s": np.stack(s), "largest": bound.max(), "z": bound}


@contextlib.contextmanager
def thread_order(seed):
    """Permute the order in which threads and blocks run."""
    os.environ["CUDACPU_SEED"] = str(seed)
    try:
        yield
    finally:
        del os.environ["CUDACPU_SEED"]
