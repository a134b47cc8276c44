"""What is worked out on every block of rows: instructions that know no block, and how the parts are put together."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat as compat

from .. import backend as B
from ..backend import Array, namespace

ARITY = 8
"""So many parts are added up from left to right, then so many of the sums, and so on: a tree that the blocks fix."""


def broadcast_lead(x: Array, *, lead: tuple[int, ...]) -> Array:
    """Broadcast the leading axes of x (..., n)."""
    return namespace(x).broadcast_to(x, (*lead, x.shape[-1]))


def reshape_lead(x: Array, *, lead: tuple[int, ...]) -> Array:
    """Give x (..., n) other leading axes."""
    return namespace(x).reshape(x, (*lead, x.shape[-1]))


def stack(*arrays: Array, axis: int) -> Array:
    """Stack arrays (..., n) along a leading axis."""
    return namespace(arrays[0]).stack(arrays, axis=axis)


def take(x: Array, indices: Array) -> Array:
    """Take some of the first axis."""
    return namespace(x).take(x, indices, axis=0)


OWN: dict[str, Callable[..., Any]] = {
    "broadcast_lead": broadcast_lead,
    "reshape_lead": reshape_lead,
    "stack": stack,
    "take": take,
    **{
        name: getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "truediv", "pow", "matmul", "neg", "invert", "and_", "or_"),
            *("lt", "le", "gt", "ge", "eq", "ne", "getitem"),
        )
    },
}
"""Operations by name that are not those of an array namespace; Python's operators keep its rules for scalars."""


def call(xp: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run one operation on plain arrays."""
    return (OWN.get(name) or getattr(xp, name))(*args, **kwargs)


def is_array(x: Any) -> bool:
    """Return whether x is an array; a dtype, which NumPy gives some of an array's attributes, is none."""
    return compat.is_array_api_obj(x) and not isinstance(x, type)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The value with this number, in the place of an argument."""

    number: int


@dataclasses.dataclass(frozen=True)
class Program:
    """Operations on the parts of ``leaves`` vectors in one block; plain data, so that it can go to another machine.

    Attributes
    ----------
    leaves : how many vectors go in: values 0, 1, ...
    steps : (name, arguments, keyword arguments), each of which makes the next value
    outputs : the numbers of the values that come out
    """

    leaves: int
    steps: tuple[tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]], ...]
    outputs: tuple[int, ...]

    def run(self, leaves: Sequence[Array]) -> list[Array]:
        values: list[Any] = list(leaves)
        if self.steps:
            xp, like = namespace(leaves[0]), leaves[0]
            for name, args, kwargs in self.steps:
                filled = [values[a.number] if isinstance(a, Slot) else beside(a, like) for a in args]
                values.append(call(xp, name, filled, dict(kwargs)))
        return [values[i] for i in self.outputs]


def beside(x: Any, like: Array) -> Any:
    """Bring a small array, or the arrays in a tuple, to where a block is; anything else is returned as it is."""
    if isinstance(x, tuple):
        return tuple(beside(item, like) for item in x)
    if not is_array(x) or namespace(x) is namespace(like):
        return x
    return B.new(B.to_numpy(x), like, dtype=getattr(namespace(like), str(x.dtype)))


@dataclasses.dataclass(frozen=True)
class Task:
    """A program, and what is made of its outputs in each block: ``kernel(start, A, *outputs)``.

    ``start`` is the number of the first row of the block, and A its rows, or None without ``with_rows``.
    """

    program: Program
    kernel: Callable[..., Any]
    with_rows: bool = False

    def run(self, start: int, A: Array | None, leaves: Sequence[Array]) -> Any:
        with B.quiet():  # as in memory: the caller tests for what is not finite
            return self.kernel(start, A, *self.program.run(leaves))


def keep(start: int, A: Array | None, value: Array) -> Array:
    """The kernel that changes nothing."""
    return value


# -- reductions over the rows: what each block gives, and how two parts become one ------------------


@dataclasses.dataclass(frozen=True)
class Reduce:
    """The kernel of a plain reduction over the last axis, by its name."""

    name: str

    def __call__(self, start: int, A: Array | None, value: Array) -> Array:
        return getattr(namespace(value), self.name)(value, axis=-1)


def sums(start: int, A: Array | None, *values: Array) -> tuple[Array, ...]:
    """The kernel of several sums."""
    return tuple(namespace(value).sum(value, axis=-1) for value in values)


def factor(start: int, A: Array | None, value: Array) -> Array:
    """The kernel of L in value = L Q, value (..., r, rows)."""
    return B.lower_factor(value)


def merge_factors(a: Array, b: Array) -> Array:
    """Return the L of two parts side by side."""
    return B.lower_factor(namespace(a).concat([a, b], axis=-1))


def largest_and_where(start: int, A: Array | None, value: Array) -> tuple[Array, Array]:
    """The kernel of argmax: the largest entry, and the number of its row."""
    xp = namespace(value)
    return xp.max(value, axis=-1), xp.argmax(value, axis=-1) + start


@dataclasses.dataclass(frozen=True)
class Pick:
    """The kernel that takes the entries of the rows ``index`` (..., 1), and 0 where they lie in another block."""

    index: Array

    def __call__(self, start: int, A: Array | None, value: Array) -> Array:
        xp = namespace(value)
        index = beside(self.index, value) - start
        inside = (index >= 0) & (index < value.shape[-1])
        index = xp.broadcast_to(xp.where(inside, index, xp.zeros_like(index)), (*value.shape[:-1], index.shape[-1]))
        picked = xp.take_along_axis(value, index, axis=-1)
        return xp.where(inside, picked, xp.zeros_like(picked))


def digest(start: int, A: Array | None, value: Array) -> list[int]:
    """The kernel of a hash of the entries."""
    host = B.to_numpy(value)
    return list(hashlib.sha256(f"{host.dtype} {host.shape}".encode() + host.tobytes()).digest())


def merge_digests(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Hash two hashes together."""
    return list(hashlib.sha256(bytes(map(int, (*a, *b)))).digest())


def merge_largest(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Take the larger of two, the first one of equals; NaN counts as the largest, as in argmax."""
    xp = namespace(a[0])
    second = (b[0] > a[0]) | ((b[0] != b[0]) & (a[0] == a[0]))
    return xp.where(second, b[0], a[0]), xp.where(second, b[1], a[1])


def merge_max(a: Array, b: Array) -> Array:
    """Take the larger of two."""
    return namespace(a).maximum(a, b)


def merge_min(a: Array, b: Array) -> Array:
    """Take the smaller of two."""
    return namespace(a).minimum(a, b)


def add(a: Any, b: Any) -> Any:
    """Add two parts, or two tuples of them."""
    return tuple(map(operator.add, a, b)) if isinstance(a, tuple) else a + b


MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "sum": add,
    "max": merge_max,
    "min": merge_min,
    "all": operator.and_,
    "any": operator.or_,
}
"""The plain reductions, and how two parts become one."""


def merge_group(merge: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
    """Put together the parts of one group, from left to right."""
    return functools.reduce(merge, parts)


class Tree:
    """Puts parts together as they come; keeps one for each level of the tree."""

    def __init__(self, merge: Callable[[Any, Any], Any]):
        self.merge = merge
        self.levels: list[tuple[Any, int]] = []

    def push(self, part: Any) -> None:
        level = 0
        while True:
            if level == len(self.levels):
                self.levels.append((part, 1))
                return
            value, count = self.levels[level]
            value = part if count == 0 else self.merge(value, part)
            if count + 1 < ARITY:
                self.levels[level] = value, count + 1
                return
            self.levels[level] = None, 0
            part, level = value, level + 1

    def result(self) -> Any:
        """Return what has come, at least one part, put together."""
        groups = [value for value, count in self.levels if count]  # the last rows first
        return functools.reduce(lambda later, earlier: self.merge(earlier, later), groups)


Nodes = dict[tuple[int, int], Any]
"""Some nodes of the tree over a number of blocks, by level and place; no node whose children are all there is left out.

Blocks may come in any order and from anywhere, and give the same bits as in a `Tree`.
"""


def put(nodes: Nodes, level: int, i: int, part: Any, merge: Callable[[Any, Any], Any], count: int) -> None:
    """Add a node of the tree over ``count`` blocks; nodes whose children are all there take their place."""
    while True:
        nodes[level, i] = part
        first = i // ARITY * ARITY
        size = -(-count // ARITY**level)
        family = [(level, j) for j in range(first, min(first + ARITY, size))]
        if size == 1 or not all(child in nodes for child in family):
            return
        part = merge_group(merge, [nodes.pop(child) for child in family])
        level, i = level + 1, i // ARITY


def join(merge: Callable[[Any, Any], Any], count: int, several: Sequence[Nodes]) -> Nodes:
    """Put together the nodes of several parts of the blocks."""
    joined: Nodes = {}
    for nodes in several:
        for (level, i), part in nodes.items():
            put(joined, level, i, part, merge, count)
    return joined


def root(merge: Callable[[Any, Any], Any], count: int, several: Sequence[Nodes]) -> Any:
    """Put together the nodes of all blocks, and return what they all give."""
    (value,) = join(merge, count, several).values()
    return value
