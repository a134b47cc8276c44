"""The array API for vectors in blocks: the functions that mean something there, and a refusal for the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..backend import Array, Namespace, namespace
from .program import MERGES, add, factor, merge_factors, sums
from .vector import Blocked, refusal

ELEMENTWISE = frozenset(
    [
        "abs",
        "negative",
        "sign",
        "square",
        "sqrt",
        "exp",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
        "sinh",
        "cosh",
        "tanh",
        "isfinite",
        "isnan",
        "isinf",
        "where",
        "maximum",
        "minimum",
        "logaddexp",
        "logical_and",
        "logical_or",
        "logical_not",
        "zeros_like",
        "ones_like",
        "full_like",
        "astype",
    ]
)
"""Functions of an array namespace that mean the same on a block as on the whole."""


class BlockedNamespace:
    """The array API for `Blocked`, as far as it makes sense there; small arrays go to the ordinary namespace."""

    def __init__(self, xp: Namespace, functions: dict[str, Callable], prefix: str = ""):
        self._xp, self._functions, self._prefix = xp, functions, prefix
        self.__name__ = f"xpreg.blocked({xp.__name__})"
        if not prefix:
            self.row_sums, self.lower_factor = row_sums, lower_factor  # what the backend's functions ask for
            self.linalg = BlockedNamespace(xp.linalg, {"vector_norm": vector_norm}, "linalg.")

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self._xp, name)
        if not callable(plain) or isinstance(plain, type):
            return plain
        own = self._functions.get(name)
        if own is None and name in ELEMENTWISE and not self._prefix:
            own = _elementwise(name)

        def function(*args: Any, **kwargs: Any) -> Any:
            if not any(map(_holds_blocked, args)):
                return plain(*args, **kwargs)
            if own is None:
                raise refusal(f"{self._prefix}{name}")
            return own(*args, **kwargs)

        setattr(self, name, function)  # found at once the next time
        return function


_namespaces: dict[int, BlockedNamespace] = {}


def blocked_namespace(xp: Namespace) -> BlockedNamespace:
    """Return the namespace of vectors whose small arrays are those of ``xp``, always the same object."""
    if id(xp) not in _namespaces:
        _namespaces[id(xp)] = BlockedNamespace(xp, FUNCTIONS)
    return _namespaces[id(xp)]


def _holds_blocked(x: Any) -> bool:
    return isinstance(x, Blocked) or (isinstance(x, list | tuple) and any(isinstance(item, Blocked) for item in x))


def _elementwise(name: str) -> Callable[..., Blocked]:
    return lambda *args, **kwargs: Blocked.operation(name, *args, **kwargs)


def _is_last(x: Blocked, axis: int) -> bool:
    return axis in (-1, x.ndim - 1)


def _shaped(x: Blocked, value: Array, axis: int | None, keepdims: bool, what: str) -> Array:
    if (axis is not None and not _is_last(x, axis)) or (axis is None and keepdims):
        raise refusal(f"{what} over axis {axis}")
    return value[..., None] if keepdims else value


def _reduction(name: str) -> Callable[..., Array]:
    def function(x: Blocked, *, axis: int | None = None, keepdims: bool = False) -> Array:
        value = _shaped(x, x.reduce(name), axis, keepdims, name)
        return getattr(namespace(value), name)(value) if axis is None else value

    return function


def argmax(x: Blocked, *, axis: int, keepdims: bool = False) -> Array:
    """Return the numbers of the rows with the first largest entries."""
    index = x.argmax()
    return _shaped(x, index if keepdims else index[..., 0], axis, False, "argmax")


def take_along_axis(x: Blocked, indices: Array, *, axis: int = -1) -> Array:
    """Return the entries (..., m) of the rows ``indices``."""
    return _shaped(x, x.pick(indices), axis, False, "take_along_axis")


def row_sums(*vectors: Blocked) -> tuple[Array, ...]:
    """Return the sums over the rows of several vectors, from one pass."""
    return vectors[0].store.reduce(add, sums, *vectors)


def lower_factor(x: Blocked) -> Array:
    """Return L (..., r, m) with x = L Q for x (..., r, n), from the factors of the blocks."""
    return x.store.reduce(merge_factors, factor, x)


def vecdot(x1: Any, x2: Any, *, axis: int = -1) -> Array:
    """Return the scalar products over the rows."""
    product = x1 * x2
    return _shaped(product, product.reduce("sum"), axis, False, "vecdot")


def vector_norm(x: Blocked, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Return the 2-norms over the rows, or of all entries."""
    squares = _reduction("sum")(Blocked.operation("mul", x, x), axis=axis, keepdims=keepdims)
    return namespace(squares).sqrt(squares)


def count_nonzero(x: Blocked, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Count what is not zero."""
    xp = namespace(x.meta)
    counted = Blocked.operation("astype", x if x.dtype == xp.bool else x != 0, xp.int64)
    return _reduction("sum")(counted, axis=axis, keepdims=keepdims)


def stack(arrays: Sequence[Blocked], *, axis: int) -> Blocked:
    """Stack along a leading axis."""
    if _is_last(arrays[0][..., None, :], axis):
        raise refusal("stack along the last axis")
    return Blocked.operation("stack", *arrays, axis=axis)


def take(x: Blocked, indices: Array, *, axis: int) -> Blocked:
    """Take some of the first axis."""
    if axis != 0 or x.ndim < 2:
        raise refusal(f"take along axis {axis}")
    return Blocked.operation("take", x, indices)


def _lead(x: Blocked, shape: Sequence[int], what: str) -> tuple[int, ...]:
    if shape[-1] != x.store.n:
        raise refusal(f"{what} to {tuple(shape)}")
    return tuple(shape[:-1])


def reshape(x: Blocked, shape: Sequence[int]) -> Blocked:
    """Give x other leading axes."""
    lead = _lead(x, shape, "reshape")
    if -1 in lead:
        known = math.prod(size for size in lead if size != -1)
        lead = tuple(math.prod(x.shape[:-1]) // known if size == -1 else size for size in lead)
    return x if lead == x.shape[:-1] else Blocked.operation("reshape_lead", x, lead=lead)


def broadcast_to(x: Blocked, shape: Sequence[int]) -> Blocked:
    """Broadcast the leading axes."""
    lead = _lead(x, shape, "broadcast_to")
    return x if lead == x.shape[:-1] else Blocked.operation("broadcast_lead", x, lead=lead)


def broadcast_arrays(*arrays: Blocked) -> tuple[Blocked, ...]:
    """Broadcast the leading axes of all against each other."""
    leads = [x.shape[:-1] for x in arrays]
    lead = namespace(arrays[0].meta).broadcast_shapes(*leads)
    return tuple(broadcast_to(x, (*lead, x.store.n)) for x in arrays)


def asarray(x: Blocked, *, copy: bool | None = None) -> Any:
    """Return x; with ``copy`` what users get of it."""
    return x.store.gather(x) if copy else x


FUNCTIONS: dict[str, Callable] = {name: _reduction(name) for name in MERGES}
"""What is more than an operation on entries."""

FUNCTIONS |= {
    "argmax": argmax,
    "asarray": asarray,
    "broadcast_arrays": broadcast_arrays,
    "broadcast_to": broadcast_to,
    "count_nonzero": count_nonzero,
    "reshape": reshape,
    "stack": stack,
    "take": take,
    "take_along_axis": take_along_axis,
    "vecdot": vecdot,
}
