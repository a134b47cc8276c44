"""Checkpoints of minimize: everything that the next iteration depends on, so that a resumed run repeats its bits."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import Any

from .. import backend as B
from .. import checkpoint
from ..backend import Array, namespace
from ..blocked import Blocked
from ..checkpoint import place
from ..errors import InvalidArgumentError
from ..problem import Problem
from ..result import IterationRecord, Status
from .loop import HOST_ARRAYS, Finished, Loop

DONE = [field.name for field in dataclasses.fields(Finished)]


class RunCheckpoint(checkpoint.Checkpoint):
    """Where a run is kept. It belongs to one problem, start, method, options and tol.

    b, weights and the start must agree bit for bit. Of the matrices one combination of the rows, A^T v for a fixed v,
    must agree up to rounding: so a run may go on with another BLAS, or on another device, though not with the same
    bits. Of rows in blocks z = A x is not kept, but worked out anew: the same up to rounding.

    Parameters
    ----------
    path : of the file
    every : iterations between two saves
    problem, x : the stack, and its start (k, d)
    options : plain facts that tell one run from another
    maxiter : of this run
    """

    def __init__(self, path: Any, every: int, problem: Problem, x: Array, options: dict[str, Any], maxiter: int):
        facts = {
            "problem": [type(problem).__name__, problem.head.name, getattr(problem.rows, "smoothing", 0.0)],
            "sizes": [problem.n, problem.d, *problem.shape],
            "data": _hash(problem.b, x, problem.w2),
        }
        super().__init__(path, {k: repr(v) for k, v in (facts | options).items()}, "xpreg.minimize", SAME)
        self.every, self.maxiter = every, maxiter
        self.sums = {f"sum_{i}": combination(rows) for i, rows in enumerate(problem.rows.matrices)}
        self.saved: tuple[dict[str, Any], dict[str, Any]] | None = None

    def save(self, loop: Loop, finished: list[Finished], history: list[IterationRecord]) -> None:
        """Keep the state after an iteration, before the finished problems are taken out of the stack."""
        if history[-1].nit % self.every:
            return
        arrays = {"x": loop.point.x, "reach": loop.reach}
        if not isinstance(loop.point.y, Blocked):  # with one entry per row, it stays where the rows are
            arrays["y"] = loop.point.y
        arrays |= {f"loop_{name}": getattr(loop, name) for name in HOST_ARRAYS}
        state, numbers = loop.method.remembered()
        arrays |= {f"method_{name}": value for name, value in state.items()}
        arrays |= _pack("finished", finished) | _pack("done", loop.done)
        counts = {name: getattr(loop.counts, name) for name in ("nfev", "ngev", "nhev")}
        meta = {
            "part": loop.part[0],
            "nit": loop.nit,
            "resumed": loop.resumed,
            "maxiter": self.maxiter,
            "counts": counts,
            "method": numbers,
            "history": [dataclasses.asdict(record) for record in history],
        }
        self.write(meta, arrays | {name: value for name, (value, _) in self.sums.items()})

    def load(self) -> tuple[int, list[Finished], list[IterationRecord]]:
        """Read the file; return the part of the stack to go on with, what was finished before it, and the history.

        Raises
        ------
        InvalidArgumentError
            The file is missing, is no checkpoint, or belongs to another run.
        """
        meta, arrays = self.read()
        with self.intact():
            return self._load(meta, arrays)

    def _load(self, meta: dict, arrays: dict) -> tuple[int, list[Finished], list[IterationRecord]]:
        for name, (value, size) in self.sums.items():
            if not (abs(arrays[name] - B.to_numpy(value)) <= B.to_numpy(size)).all():
                raise self.foreign("A")
        like = next(iter(self.sums.values()))[0]
        finished = _unpack("finished", arrays, like)
        ended = any(int(Status.MAXITER) in one.status for one in finished)
        if ended and meta["maxiter"] != self.maxiter:
            raise InvalidArgumentError(
                f"maxiter is {self.maxiter}, but parts of the stack in checkpoint {str(self.path)!r} have ended at "
                f"{meta['maxiter']}: pass that, or resume=False."
            )
        self.saved = meta, arrays
        history = [IterationRecord(**row | {"problems": tuple(row["problems"])}) for row in meta["history"]]
        return meta["part"], finished, history

    def restore(self, loop: Loop, history: list[IterationRecord]) -> None:
        """Bring a loop to the state that was read; once, for the part of the stack that was being worked on."""
        if self.saved is None:
            return
        (meta, arrays), self.saved = self.saved, None
        with self.intact():
            self._restore(loop, history, meta, arrays)

    def _restore(self, loop: Loop, history: list[IterationRecord], meta: dict, arrays: dict) -> None:
        like = loop.point.x
        for name in HOST_ARRAYS:
            setattr(loop, name, arrays[f"loop_{name}"])
        problem = loop.point.problem
        if len(loop.ids) < problem.size:
            problem = problem.take(B.new(loop.ids, like, dtype=namespace(like).int64))
        y = place(arrays["y"], like) if "y" in arrays else None
        x = place(arrays["x"], like)
        if tuple(x.shape) != (problem.size, problem.d) or not bool(namespace(x).all(namespace(x).isfinite(x))):
            raise ValueError(f"x has shape {tuple(x.shape)}, or is not finite")
        loop.point = problem.point(x, y)
        B.read(loop.point.values, namespace(like).sum(loop.point.least_grads, axis=-1))  # as the search left them
        loop.reach = place(arrays["reach"], like)
        loop.nit, loop.resumed, loop.done = meta["nit"], meta["resumed"], _unpack("done", arrays, like)
        state = {name: value for name, value in arrays.items() if name.startswith("method_")}
        state = {name.removeprefix("method_"): B.new(value, like) for name, value in state.items()}
        loop.method.restore(state, meta["method"])
        for name, value in meta["counts"].items():
            setattr(loop.counts, name, value)
        loop.counts.started = time.perf_counter() - history[-1].seconds


SAME = "problem, start, method, options and tol"


def combination(rows: Any) -> tuple[Array, Array]:
    """Return A^T v (d,) for a fixed random v, and how far rounding may change it."""
    slack = B.eps(rows.like) ** 0.75 * rows.n**0.5
    return rows.combination(), slack * rows.column_norms


def _hash(*arrays: Array | None) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, Blocked):
            digest.update(array.digest())
            continue
        host = None if array is None else B.to_numpy(array)
        digest.update(b"none" if host is None else f"{host.dtype} {host.shape}".encode() + host.tobytes())
    return digest.hexdigest()


def _pack(group: str, parts: list[Finished]) -> dict[str, Any]:
    """Return the arrays of some finished problems by name, one after the other; nothing for none."""
    arrays: dict[str, Any] = {}
    for i, part in enumerate(parts):
        arrays |= {f"{group}_{i}_{name}": getattr(part, name) for name in DONE}
    return arrays


def _unpack(group: str, arrays: dict[str, Any], like: Array) -> list[Finished]:
    parts: list[Finished] = []
    while f"{group}_{len(parts)}_x" in arrays:
        values = {name: arrays[f"{group}_{len(parts)}_{name}"] for name in DONE}
        parts.append(Finished(**values | {name: place(values[name], like) for name in ("x", "grad")}))
    return parts
