"""Rows in a Dask array: the blocks stay on their workers, and only sums over the rows, d-sized, come to the client."""

from __future__ import annotations

import importlib
import itertools
import math
import operator
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from .program import ARITY, Nodes, Task, beside, join, put, root
from .store import Store
from .vector import Blocked


class DaskStore(Store):
    """The row blocks of a Dask array, on the workers of the current `distributed.Client`.

    The blocks that lie on one worker are worked on together, in as many groups as it has threads: a pass is one task
    for each group, whatever the number of blocks. The sums are those of the tree over all blocks, wherever these are.

    Every block of A and every vector is a task that the scheduler knows how to run again, so that a worker that dies
    takes nothing along. x and all small arrays are NumPy arrays, on the client; in a task they go where its blocks are
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
        self.like, self.meta = np.empty((0, 0), A.dtype), A._meta
        blocks = self._persisted(A)
        self._first = blocks[0]
        self.groups = self._grouped(blocks)
        self.rows = [[blocks[i] for i in group] for group in self.groups]

    def __repr__(self) -> str:
        return f"<a Dask array of shape ({self.n}, {self.d}) in {len(self.sizes)} blocks>"

    def _persisted(self, array: Any) -> list[Any]:
        """Return the futures of the blocks (of rows, or of entries of a vector) that are not empty, in order."""
        array = self.client.persist(array, optimize_graph=False)
        futures = {future.key: future for future in _distributed().futures_of(array)}
        flat = [futures[key] for key in _flat(array.__dask_keys__())]
        sizes = max(array.chunks, key=len)
        return [future for future, size in zip(flat, sizes, strict=True) if size]

    def _grouped(self, blocks: list[Any]) -> list[list[int]]:
        """Wait for the blocks, and return which of them lie together: the numbers of the blocks of each group."""
        _distributed().wait(blocks)
        for block in blocks:
            if block.status == "error":
                block.result()  # raises what made it fail
        places = self.client.who_has(blocks)
        on_worker: dict[str, list[int]] = {}
        for i, block in enumerate(blocks):
            on_worker.setdefault(min(places.get(block.key) or [""]), []).append(i)
        threads = self.client.nthreads()
        groups = []
        for worker, indices in on_worker.items():
            size = -(-len(indices) // threads.get(worker, 1))
            groups += [indices[i : i + size] for i in range(0, len(indices), size)]
        return groups

    # -- vectors ----------------------------------------------------------------------------------

    def hold(self, v: Array, name: str) -> Blocked:
        if type(v).__module__.partition(".")[0] == "dask":
            self._check_vector(v, name)
            parts = self._persisted(v)
        else:
            B.common_namespace(A=self.like, **{name: v})
            # one message for each block, which the scheduler keeps, so that it can send it again
            parts = [
                self._submit(name, _itself, v[..., start : start + size])
                for start, size in zip(self.starts, self.sizes, strict=True)
            ]
        meta = np.empty((*v.shape[:-1], 0), v.dtype)
        placed = [
            self._submit(name, _place, [parts[i] for i in group], A)
            for group, A in zip(self.groups, self.rows, strict=True)
        ]
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
        blocks: dict[int, Any] = {}
        for group, future in zip(self.groups, self.keep(x).data, strict=True):
            for j, i in enumerate(group):
                part = delayed(self._submit("part", operator.getitem, future, j))
                meta = B.empty((0,) * x.ndim, self.meta, dtype=x.dtype)
                blocks[i] = da.from_delayed(part, (*x.shape[:-1], self.sizes[i]), meta=meta)
        return da.concatenate([blocks[i] for i in range(len(self.sizes))], axis=-1)

    def glance(self, kernel: Callable[[int, Array], Any]) -> Any:
        return _writable(self.client.gather(self._submit("glance", _glance, kernel, self.starts[0], self._first)))

    # -- running ----------------------------------------------------------------------------------

    def _submit(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(function, *args, key=f"xpreg-{name}-{uuid.uuid4().hex}", pure=False)

    def _run(self, name: str, run: Callable[..., Any], task: Task, leaves: list[Blocked], **options: Any) -> list[Any]:
        """Run a task on every block; all of them are one message to the scheduler."""
        unique = uuid.uuid4().hex
        starts = [[self.starts[i] for i in group] for group in self.groups]
        rows = self.rows if task.with_rows else [None] * len(self.groups)
        keys = [f"xpreg-{name}-{unique}-{i}" for i in range(len(self.groups))]
        vectors = [leaf.data for leaf in leaves]
        return self.client.map(run, starts, rows, *vectors, task=task, key=keys, pure=False, **options)

    def _map(self, task: Task, leaves: list[Blocked], meta: Array) -> Blocked:
        return Blocked.leaf(self, meta, self._run("vector", _run_blocks, task, leaves))

    def _reduce(self, merge: Callable[[Any, Any], Any], task: Task, leaves: list[Blocked]) -> Any:
        count = len(self.sizes)
        kind = "rows" if task.with_rows else "sums"
        places = {start: i for i, start in enumerate(self.starts)}
        parts = self._run(kind, _run_nodes, task, leaves, merge=merge, places=places)
        while len(parts) > ARITY:
            groups = [parts[i : i + ARITY] for i in range(0, len(parts), ARITY)]
            parts = [self._submit("join", join, merge, count, group) for group in groups]
        if task.with_rows:  # of the size of x, or (d, d): put together before they travel
            return _writable(self.client.gather(self._submit("root", root, merge, count, parts)))
        return _writable(root(merge, count, self.client.gather(parts)))


# -- what runs on a worker, for the blocks of one group --------------------------------------------


def _run_blocks(starts: list[int], rows: list[Array] | None, *leaves: list[Array], task: Task) -> list[Any]:
    return list(_results(starts, rows, leaves, task))


def _results(starts: list[int], rows: list[Array] | None, leaves: Sequence[list[Array]], task: Task) -> Iterator[Any]:
    for j, start in enumerate(starts):
        yield task.run(start, None if rows is None else rows[j], [leaf[j] for leaf in leaves])


def _run_nodes(
    starts: list[int],
    rows: list[Array] | None,
    *leaves: list[Array],
    task: Task,
    merge: Callable[[Any, Any], Any],
    places: dict[int, int],
) -> Nodes:
    nodes: Nodes = {}
    for start, part in zip(starts, _results(starts, rows, leaves, task), strict=True):
        part = tuple(map(B.to_numpy, part)) if isinstance(part, tuple) else B.to_numpy(part)
        put(nodes, 0, places[start], part, merge, len(places))
    return nodes


def _glance(kernel: Callable[[int, Array], Any], start: int, A: Array) -> Array:
    return B.to_numpy(kernel(start, A))


def _itself(part: Array) -> Array:
    return part


def _place(parts: list[Array], rows: list[Array]) -> list[Array]:
    return [beside(part, A) for part, A in zip(parts, rows, strict=True)]


def _full(value: float, rows: list[Array]) -> list[Array]:
    return [B.full((A.shape[0],), value, A) for A in rows]


# -- on the client -----------------------------------------------------------------------------------


def _writable(result: Any) -> Any:
    """Copy what came over a network, which may be read-only, and make arrays of NumPy's scalars."""
    if isinstance(result, tuple):
        return tuple(map(_writable, result))
    return np.array(result) if not isinstance(result, np.ndarray) or not result.flags.writeable else result


def _flat(keys: Any) -> list[Any]:
    return [keys] if isinstance(keys, tuple | str) else [key for part in keys for key in _flat(part)]


def _distributed() -> Any:
    return importlib.import_module("distributed")


def _current_client() -> Any:
    try:
        return _distributed().get_client()
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
