"""Reductions over the last axis, along the rows of A: the long one.

One problem is a stack of one, so its vectors are (1, n). CuPy reduces such an array with a single block of threads, a
hundred times slower than (n,): outside NumPy the axis of a stack of one is left out. A `vecdot` of CuPy's is a batched
matrix product, and copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import array_api_compat as compat

from .arrays import Array, is_numpy, namespace


def row_sum(x: Array, *, keepdims: bool = False) -> Array:
    """Return the sums over the last axis of x (..., n)."""
    if is_numpy(x):
        return x.sum(axis=-1, keepdims=keepdims)
    return _reduce("sum", x, keepdims)


def row_max(x: Array) -> Array:
    """Return the largest entries along the last axis of x (..., n)."""
    return _reduce("max", x, False)


def row_argmax(x: Array) -> Array:
    """Return where along the last axis of x (..., n) the first largest entries are, (..., 1)."""
    return _reduce("argmax", x, True)


def row_all(x: Array) -> Array:
    """Return whether all entries along the last axis of x (..., n) are True."""
    return _reduce("all", x, False)


def row_norm(x: Array) -> Array:
    """Return the 2-norms along the last axis of x (..., n)."""
    if _is_one_row(x):
        flat = namespace(x).reshape(x, (-1,))
        return namespace(x).reshape(namespace(x).sqrt(flat @ flat), x.shape[:-1])
    return namespace(x).linalg.vector_norm(x, axis=-1)


def row_dot(x: Array, y: Array) -> Array:
    """Return the scalar products along the last axis of x (..., n) and y (..., n), whose other axes broadcast."""
    xp = namespace(x)
    if _is_one_row(y) and not is_numpy(x):
        n = y.shape[-1]
        flat = xp.reshape(x, (n,) if _is_one_row(x) else (-1, n)) @ xp.reshape(y, (n,))
        return xp.reshape(flat, xp.broadcast_shapes(x.shape[:-1], y.shape[:-1]))
    if compat.is_cupy_array(x):
        return xp.sum(x * y, axis=-1)
    return xp.vecdot(x, y)


def row_sums(*vectors: Array) -> Sequence[Array]:
    """Return the sums over the last axis of each; vectors in blocks are read once for all of them."""
    together = getattr(namespace(vectors[0]), "row_sums", None)
    return [row_sum(v) for v in vectors] if together is None else together(*vectors)


def _is_one_row(x: Array) -> bool:
    """Whether x (..., n), an array elsewhere than in NumPy or in blocks, has one row only, and an axis to spare."""
    return not is_numpy(x) and x.ndim > 1 and math.prod(x.shape[:-1]) == 1 and not hasattr(namespace(x), "row_sums")


def _reduce(name: str, x: Array, keepdims: bool) -> Array:
    xp = namespace(x)
    function = getattr(xp, name)
    if not _is_one_row(x):
        return function(x, axis=-1, keepdims=keepdims)
    value = function(xp.reshape(x, (-1,)))
    return xp.reshape(value, (*x.shape[:-1], 1) if keepdims else x.shape[:-1])
