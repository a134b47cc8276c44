"""Rows in blocks on this machine: in files, of which a few blocks are in memory at a time, or in a list of arrays."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from .. import backend as B
from ..backend import Array, namespace
from .program import Task, Tree
from .store import Store
from .vector import Blocked

VECTOR_ROWS = 65536
"""Entries of a vector that are worked on together where the rows are not needed: temporaries stay in the cache."""


class Source(abc.ABC):
    """Where rows come from, block after block.

    Attributes
    ----------
    shape : (n, d)
    like : a small array of the library and dtype of the rows
    slowness : how much longer reading them takes than in memory, about
    """

    shape: tuple[int, int]
    like: Array
    slowness: float = 1.0

    @abc.abstractmethod
    def stream(self) -> Generator[tuple[slice, Array]]:
        """Yield every block: which rows, and the rows, which are valid until the next block is asked for."""


class LocalStore(Store):
    """Blocks of a source, read in order on every pass; the vectors beside them lie whole in memory.

    Parameters
    ----------
    source : of the rows
    device : ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` moves each block, and what comes of it, there; None leaves them
    """

    def __init__(self, source: Source, device: str | None = None):
        self.source, self.device = source, device
        self.n, self.d = source.shape
        self.slowness = source.slowness
        self.like = B.to_device(source.like, device)

    def __repr__(self) -> str:
        return repr(self.source)

    def hold(self, v: Array, name: str) -> Blocked:
        B.common_namespace(A=self.like, **{name: v})
        return Blocked.leaf(self, v[..., :0], v)

    def full(self, value: float) -> Blocked:
        one = B.full((1,), value, self.like)
        return self.hold(namespace(one).broadcast_to(one, (self.n,)), "full")

    def gather(self, x: Blocked) -> Array:
        kept = self.keep(x)
        return kept.data if kept is not x else namespace(x.data).asarray(x.data, copy=True)

    def glance(self, kernel: Callable[[int, Array], Any]) -> Any:
        with contextlib.closing(self.source.stream()) as blocks:
            rows, A = next(blocks)
            return kernel(rows.start, B.to_device(A, self.device))

    def _blocks(self, task: Task) -> Iterator[tuple[slice, Array | None]]:
        if task.with_rows:
            for rows, A in self.source.stream():
                yield rows, B.to_device(A, self.device)
        else:
            for start in range(0, self.n, VECTOR_ROWS):
                yield slice(start, min(start + VECTOR_ROWS, self.n)), None

    def _parts(self, task: Task, leaves: list[Blocked]) -> Iterator[tuple[slice, Any]]:
        for rows, A in self._blocks(task):
            yield rows, task.run(rows.start, A, [leaf.data[..., rows] for leaf in leaves])

    def _reduce(self, merge: Callable[[Any, Any], Any], task: Task, leaves: list[Blocked]) -> Any:
        tree = Tree(merge)
        for _, part in self._parts(task, leaves):
            tree.push(part)
        return tree.result()

    def _map(self, task: Task, leaves: list[Blocked], meta: Array) -> Blocked:
        out = B.empty((*meta.shape[:-1], self.n), meta)
        for rows, part in self._parts(task, leaves):
            out[..., rows] = part
        return Blocked.leaf(self, meta, out)


class ArrayBlocks(Source):
    """Rows in a list of arrays (n_i, d) of any library."""

    def __init__(self, blocks: Sequence[Array]):
        self.blocks = [block for block in blocks if block.shape[0]]
        self.shape = sum(block.shape[0] for block in blocks), blocks[0].shape[1]
        self.like = blocks[0][:0, :0]

    def __repr__(self) -> str:
        return f"{len(self.blocks)} blocks of rows in memory"

    def stream(self) -> Generator[tuple[slice, Array]]:
        start = 0
        for block in self.blocks:
            yield slice(start, start + block.shape[0]), block
            start += block.shape[0]
