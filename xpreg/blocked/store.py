"""What a store of blocks must do: run a task on every block and put the results together, or keep them."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from ..backend import Array
from .program import Task, keep
from .vector import Blocked, compiled


class Store(abc.ABC):
    """The rows of A (n, d) in blocks, wherever they are, and the vectors (..., n) beside them.

    Results for blocks are put together in a tree that only the blocks fix (`ARITY`): the same blocks, the same bits.

    Attributes
    ----------
    n, d : numbers of rows and columns
    like : a small array of the library, on the device and in the dtype that x has
    slowness : how much longer reading the rows takes than in memory, about
    """

    n: int
    d: int
    like: Array
    slowness: float = 1.0

    def reduce(
        self,
        merge: Callable[[Any, Any], Any],
        kernel: Callable[..., Any],
        *vectors: Blocked,
        with_rows: bool = False,
    ) -> Any:
        """Return ``kernel(start, A, *parts of the vectors)`` of every block, put together: small arrays, where x is."""
        program, leaves = compiled(*vectors)
        return self._reduce(merge, Task(program, kernel, with_rows), leaves)

    def keep(self, x: Blocked) -> Blocked:
        """Work out an expression and keep it as a vector of its own."""
        if x.name == "leaf":
            return x
        program, leaves = compiled(x)
        return self._map(Task(program, keep), leaves, x.meta)

    def apply(self, kernel: Callable[..., Array], meta: Array) -> Blocked:
        """Keep ``kernel(start, A)`` of every block, (..., rows), as a vector."""
        program, _ = compiled()
        return self._map(Task(program, kernel, with_rows=True), [], meta)

    @abc.abstractmethod
    def glance(self, kernel: Callable[[int, Array], Any]) -> Any:
        """Return ``kernel(start, A)`` of one block, always the same."""

    @abc.abstractmethod
    def hold(self, v: Array, name: str) -> Blocked:
        """Split an array (..., n) of the user's, called ``name``, into blocks beside the rows."""

    @abc.abstractmethod
    def full(self, value: float) -> Blocked:
        """Return a vector (n,) with one value everywhere."""

    @abc.abstractmethod
    def gather(self, x: Blocked) -> Any:
        """Return a vector as users get it: an array where they are, or what stands for one that is elsewhere."""

    @abc.abstractmethod
    def _reduce(self, merge: Callable[[Any, Any], Any], task: Task, leaves: list[Blocked]) -> Any: ...

    @abc.abstractmethod
    def _map(self, task: Task, leaves: list[Blocked], meta: Array) -> Blocked: ...
