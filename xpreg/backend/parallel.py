"""Work on the rows of a NumPy array, shared by the threads that NumPy's BLAS would have used.

A BLAS that splits one product over its threads leaves everything between two products (scaling rows, exponentials) to
one of them. Here each thread takes whole blocks of rows, which stay in its core's cache, and BLAS works on one
thread within it. How the rows are divided depends on their number only, and parts are added up in order: the result is
the same, bit for bit, on any number of threads.

The threads of OpenBLAS spin for some 25 ms after each product, in which they take the cores from all others. So it
stays on one thread from the beginning of a public call to its end (`shared`).

Elsewhere, and where threadpoolctl is not installed, the parts are worked on one after the other.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .arrays import Array, is_numpy

SMALLEST = 8 * 2**20
"""Bytes of rows from which on several threads pay: below, waking them up takes longer than the work."""


_working: contextvars.ContextVar[bool] = contextvars.ContextVar("working", default=False)


def threads(x: Array) -> int:
    """Return how many threads share the rows of ``x``: those of NumPy's BLAS (OMP_NUM_THREADS), 1 elsewhere."""
    if not is_numpy(x) or x.nbytes < SMALLEST or _working.get():
        return 1
    blas = _blas()
    if blas is None:
        return 1
    return _limit.threads if _limit.held else _count(blas)


def shared(x: Array) -> contextlib.AbstractContextManager[Any]:
    """Keep BLAS on one thread while our own threads share the rows of ``x``; nothing where they do not."""
    return _limit if threads(x) > 1 else contextlib.nullcontext()


def all_threads(H: Array) -> contextlib.AbstractContextManager[Any]:
    """Give BLAS its threads back inside, for the factorisation of a large H (..., d, d)."""
    if not _limit.held or _working.get() or not is_numpy(H) or H.shape[-1] < LARGE:
        return contextlib.nullcontext()
    return _blas().limit(limits=_limit.threads)


LARGE = 1000
"""Size of a matrix from which on a factorisation takes long beside the spinning of the threads that it wakes."""


def blas_threads() -> int:
    """Return how many threads share passes over large arrays of NumPy."""
    blas = _blas()
    return 1 if blas is None else _count(blas)


def _count(blas: Any) -> int:
    return max((library["num_threads"] for library in blas.info()), default=1)


def sum_over(function: Callable[[Any], tuple[Array, ...]], parts: Sequence[Any], x: Array) -> tuple[Array, ...]:
    """Return the sums of what ``function`` returns for the ``parts`` of ``x``, added up in their order."""
    total: list[Array] = []
    for result in in_order(function, parts, x):
        total = list(result) if not total else [a + b for a, b in zip(total, result, strict=True)]
    return tuple(total)


def in_order(function: Callable[[Any], Any], parts: Sequence[Any], x: Array) -> Iterator[Any]:
    """Yield ``function(part)`` for the ``parts`` of ``x`` in their order, a few of them worked on at a time."""
    n = min(threads(x), len(parts))
    if n <= 1:
        yield from map(function, parts)
        return
    crew = _Crew(function, parts, lead=n)
    with _limit:
        helpers = [_pool(n).submit(contextvars.copy_context().run, crew.help) for _ in range(n - 1)]
        try:
            yield from crew.results()
        finally:
            crew.stop()
            concurrent.futures.wait(helpers)


class _Crew:
    """Threads that begin the parts one after the other, the thread that asks for the results among them.

    Handing every part to a thread and waiting for it would cost up to 0.1 ms each; this costs a lock.
    """

    def __init__(self, function: Callable[[Any], Any], parts: Sequence[Any], lead: int):
        self.function, self.parts, self.lead = function, parts, lead
        self.changed = threading.Condition()
        self.begun = self.handed_out = 0
        self.done: dict[int, tuple[Any, BaseException | None]] = {}

    def results(self) -> Iterator[Any]:
        for i in range(len(self.parts)):
            while True:
                with self.changed:
                    if i in self.done:
                        result, error = self.done.pop(i)
                        self.handed_out += 1
                        self.changed.notify_all()
                        break
                    mine = self._begin()
                    if mine is None:
                        self.changed.wait()
                        continue
                self._work(mine)
            if error is not None:
                raise error
            yield result

    def help(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._is_free() or self.begun >= len(self.parts))
                mine = self._begin()
            if mine is None:
                return
            self._work(mine)

    def stop(self) -> None:
        with self.changed:
            self.begun = len(self.parts)
            self.changed.notify_all()

    def _is_free(self) -> bool:
        """Whether a part may be begun: no more than ``lead`` results wait for an earlier one."""
        return self.begun < min(len(self.parts), self.handed_out + self.lead + 1)

    def _begin(self) -> int | None:
        if not self._is_free():
            return None
        self.begun += 1
        return self.begun - 1

    def _work(self, i: int) -> None:
        token, result, error = _working.set(True), None, None
        try:
            result = self.function(self.parts[i])
        except BaseException as raised:  # of any kind: it is raised where the results are asked for
            error = raised
        _working.reset(token)
        with self.changed:
            self.done[i] = result, error
            self.changed.notify_all()


class _Limit:
    """BLAS on one thread while anyone is inside: the first to enter sets the limit, the last to leave lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held, self.threads = 0, 1
        self._limiter: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if self.held == 0:
                self.threads = _count(_blas())
                self._limiter = _blas().limit(limits=1)
                self._limiter.__enter__()
            self.held += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.held -= 1
            if self.held == 0:
                self._limiter.__exit__(None, None, None)

    def reset(self) -> None:
        """Lift the limit, whoever is inside."""
        self._lock = threading.Lock()
        if self.held:
            self.held = 0
            self._limiter.__exit__(None, None, None)


_limit = _Limit()


@functools.cache
def _blas() -> Any:
    """Return the control over NumPy's BLAS; None where threadpoolctl is not installed, or does not know that BLAS."""
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return None
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
    return blas if len(blas) else None


@functools.cache
def _pool(n: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(n, thread_name_prefix="xpreg")


def _after_fork() -> None:
    """In a child there are no threads of the parent, and none of its work is going on."""
    _pool.cache_clear()
    _limit.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
