"""Rows in a Dask array: the blocks stay on their workers, and only sums over the rows, d-sized, come to the client."""

from __future__ import annotations

import importlib
import itertools
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from .program import ARITY, Task, beside, merge_group
from .store import Store
from .vector import Blocked


class DaskStore(Store):
    """The row blocks of a Dask array, on the workers of the current `distributed.Client`.

    Every block of A and of a vector is a task that the scheduler knows how to run again, so that a worker that dies
    takes nothing along. x and all small arrays are NumPy arrays, on the client; in a task they go where its block is
    (NumPy or CuPy), and what comes back is NumPy again.

    Parameters
    ----------
    A : Dask array (n, d) in blocks of whole rows; it is persisted, unless it is already
    device : None; the blocks are computed where they are
    """

    def __init__(self, A: Any, device: str | None = None):
        if device is not None:
            raise InvalidArgumentError(
                f"device is {device!r}, but A is a Dask array, whose blocks are computed where they are: leave device "
                "out, and make the blocks CuPy arrays with A.map_blocks(cupy.asarray)."
            )
        _check_chunks(A)
        self.client = _current_client()
        self.sizes = [size for size in A.chunks[0] if size]
        self.starts = [0, *itertools.accumulate(self.sizes)][:-1]
        self.n, self.d = sum(self.sizes), A.shape[1]
        self.like = np.empty((0, 0), A.dtype)
        self.rows = self._persisted(A)

    def __repr__(self) -> str:
        return f"<a Dask array of shape ({self.n}, {self.d}) in {len(self.sizes)} blocks>"

    def _persisted(self, array: Any) -> list[Any]:
        """Return the futures of the blocks (of rows, or of entries of a vector) that are not empty, in order."""
        distributed = importlib.import_module("distributed")
        array = self.client.persist(array, optimize_graph=False)
        futures = {future.key: future for future in distributed.futures_of(array)}
        flat = [futures[key] for key in _flat(array.__dask_keys__())]
        sizes = array.chunks[0] if len(flat) == len(array.chunks[0]) else array.chunks[-1]
        return [future for future, size in zip(flat, sizes, strict=True) if size]

    # -- vectors ----------------------------------------------------------------------------------

    def hold(self, v: Array, name: str) -> Blocked:
        if type(v).__module__.partition(".")[0] == "dask":
            self._check_vector(v, name)
            parts: Sequence[Any] = self._persisted(v)
        else:
            B.common_namespace(A=self.like, **{name: v})
            parts = [v[..., start : start + size] for start, size in zip(self.starts, self.sizes, strict=True)]
        meta = np.empty((*v.shape[:-1], 0), v.dtype)
        # one message for each block, which the scheduler keeps, so that it can send it again
        placed = [self._submit(name, _place, part, A) for part, A in zip(parts, self.rows, strict=True)]
        return Blocked.leaf(self, meta, placed)

    def _check_vector(self, v: Any, name: str) -> None:
        if v.dtype != self.like.dtype:
            raise InvalidArgumentError(f"{name} has dtype {v.dtype}, but A has {self.like.dtype}: they must agree.")
        wanted = tuple(self.sizes)
        if tuple(size for size in v.chunks[-1] if size) != wanted or any(len(c) > 1 for c in v.chunks[:-1]):
            raise InvalidArgumentError(
                f"{name} has chunks {v.chunks}, but the rows of A have {wanted}: call "
                f"{name}.rechunk({(*[-1] * (v.ndim - 1), wanted)}) first."
            )

    def full(self, value: float) -> Blocked:
        parts = [self._submit("full", _full, value, A) for A in self.rows]
        return Blocked.leaf(self, np.empty(0, self.like.dtype), parts)

    def gather(self, x: Blocked) -> Any:
        """Return the Dask array whose blocks the vector has."""
        da, delayed = importlib.import_module("dask.array"), importlib.import_module("dask").delayed
        blocks = [
            da.from_delayed(delayed(future), (*x.shape[:-1], size), meta=np.empty((0,) * x.ndim, x.dtype))
            for future, size in zip(self.keep(x).data, self.sizes, strict=True)
        ]
        return da.concatenate(blocks, axis=-1)

    # -- running ----------------------------------------------------------------------------------

    def _submit(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(function, *args, key=f"xpreg-{name}-{uuid.uuid4().hex}", pure=False)

    def _run(self, name: str, function: Callable[..., Any], task: Task, leaves: list[Blocked]) -> list[Any]:
        """Run a task on every block; all of them are one message to the scheduler."""
        run = uuid.uuid4().hex
        rows = self.rows if task.with_rows else [None] * len(self.sizes)
        keys = [f"xpreg-{name}-{run}-{i}" for i in range(len(self.sizes))]
        parts = [leaf.data for leaf in leaves]
        return self.client.map(function, self.starts, rows, *parts, task=task, key=keys, pure=False)

    def _map(self, task: Task, leaves: list[Blocked], meta: Array) -> Blocked:
        return Blocked.leaf(self, meta, self._run("vector", _run_block, task, leaves))

    def _reduce(self, merge: Callable[[Any, Any], Any], task: Task, leaves: list[Blocked]) -> Any:
        level = self._run("rows" if task.with_rows else "sums", _run_part, task, leaves)
        while len(level) > 1:
            groups = [level[i : i + ARITY] for i in range(0, len(level), ARITY)]
            level = [g[0] if len(g) == 1 else self._submit("merge", merge_group, merge, g) for g in groups]
        return _writable(self.client.gather(level[0]))


# -- what runs on a worker -------------------------------------------------------------------------


def _run_block(start: int, A: Array | None, *leaves: Array, task: Task) -> Array:
    return task.run(start, A, leaves)


def _run_part(start: int, A: Array | None, *leaves: Array, task: Task) -> Any:
    part = task.run(start, A, leaves)
    return tuple(map(B.to_numpy, part)) if isinstance(part, tuple) else B.to_numpy(part)


def _place(part: Array, A: Array) -> Array:
    return beside(part, A)


def _full(value: float, A: Array) -> Array:
    return B.full((A.shape[0],), value, A)


# -- on the client -----------------------------------------------------------------------------------


def _writable(result: Any) -> Any:
    """Copy what came over a network, which may be read-only, and make arrays of NumPy's scalars."""
    if isinstance(result, tuple):
        return tuple(map(_writable, result))
    return np.array(result) if not isinstance(result, np.ndarray) or not result.flags.writeable else result


def _flat(keys: Any) -> list[Any]:
    return [keys] if isinstance(keys, tuple | str) else [key for part in keys for key in _flat(part)]


def _current_client() -> Any:
    try:
        return importlib.import_module("distributed").get_client()
    except (ImportError, ValueError) as error:
        raise InvalidArgumentError(
            "A is a Dask array, which needs a cluster, of one machine or many: pip install 'xpreg[dask]' and "
            "client = distributed.Client() first."
        ) from error


def _check_chunks(A: Any) -> None:
    if not hasattr(A, "chunks"):
        raise InvalidArgumentError(
            f"A is a {type(A).__module__}.{type(A).__name__}, but of Dask's collections only arrays are rows: "
            "call A.to_dask_array(lengths=True) first."
        )
    if A.ndim != 2:
        raise InvalidArgumentError(f"A has shape {A.shape}, but a matrix (n, d) is needed.")
    if any(math.isnan(size) for sizes in A.chunks for size in sizes):
        raise InvalidArgumentError("A has chunks of unknown size: call A.compute_chunk_sizes() first.")
    if len(A.chunks[1]) != 1:
        raise InvalidArgumentError(
            f"A is split into {len(A.chunks[1])} blocks of columns, but blocks of whole rows are needed: call "
            "A.rechunk({1: -1}) first."
        )
    if 0 in A.shape:
        raise InvalidArgumentError(f"A has shape {A.shape}, but at least one row and one column are needed.")
    if A.dtype not in (np.float32, np.float64):
        raise InvalidArgumentError(f"A has dtype {A.dtype}, but float32 or float64 is needed: A.astype('float64').")
