"""Vectors with one entry per row of A that never lie in one place: lazy expressions, worked out block by block."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import backend as B
from ..backend import Array, Namespace, namespace
from .program import (
    MERGES,
    Pick,
    Program,
    Reduce,
    Slot,
    add,
    call,
    digest,
    is_array,
    largest_and_where,
    merge_digests,
    merge_largest,
)

if TYPE_CHECKING:
    from .store import Store

_known: weakref.WeakValueDictionary[tuple, Blocked] = weakref.WeakValueDictionary()


def _operators(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """Return the methods x op y and, for y on the left, y op x."""
    return lambda x, y: Blocked.operation(name, x, y), lambda x, y: Blocked.operation(name, y, x)


class Blocked:
    """An array (..., n), split along its last axis into the blocks of a store; it follows the array API where it can.

    What is done to entries, or to leading axes, is only noted; a reduction over the last axis runs everything noted,
    once per block, and returns a small array of the ordinary library. Expressions are shared: the same operation on the
    same operands is the same object, so nothing is worked out twice within one pass, and no reduction twice at all.

    Attributes
    ----------
    store : where the blocks are
    name, args, kwargs : the operation, with `Blocked`, small arrays and numbers as operands
    meta : (..., 0) an array of the ordinary library: shape and dtype of what comes out
    data : what the store keeps, for a vector that has been worked out; else None
    """

    __slots__ = ("__weakref__", "args", "data", "kwargs", "meta", "name", "reduced", "store")
    __array_ufunc__ = None  # NumPy and CuPy arrays leave operators to this class

    store: Store
    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    meta: Array
    data: Any
    reduced: dict[tuple, Array]

    def __init__(self) -> None:
        raise TypeError("a Blocked is made by its store: `leaf` and `operation`.")

    @staticmethod
    def leaf(store: Store, meta: Array, data: Any) -> Blocked:
        """Make a vector whose blocks the store keeps as ``data``."""
        return _make(store, "leaf", (), (), meta, data)

    @staticmethod
    def operation(name: str, *args: Any, **kwargs: Any) -> Blocked:
        """Note an operation; the same one as before is the same object."""
        store, *others = {id(a.store): a.store for a in args if isinstance(a, Blocked)}.values()
        if others:
            raise TypeError(f"{name} of vectors on {store!r} and on {others[0]!r}: their blocks are not the same.")
        key = (name, *map(_key, args), *((k, _key(v)) for k, v in kwargs.items()))
        found = _known.get(key)
        if found is not None:
            return found
        metas = [a.meta if isinstance(a, Blocked) else a for a in args]
        with B.quiet():
            meta = call(namespace(store.like), name, metas, kwargs)
        if meta.shape[-1:] != (0,):
            raise refusal(f"{name} with a result of shape {tuple(meta.shape)}")
        made = _make(store, name, args, tuple(kwargs.items()), meta, None)
        _known[key] = made
        return made

    # -- what every array has -------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.meta.shape[:-1], self.store.n)

    @property
    def ndim(self) -> int:
        return self.meta.ndim

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        return self.meta.dtype

    @property
    def device(self) -> Any:
        return B.device(self.meta)

    def __array_namespace__(self, *, api_version: str | None = None) -> Namespace:
        from .namespace import blocked_namespace  # which is made of functions of this class

        return blocked_namespace(namespace(self.meta))

    def __repr__(self) -> str:
        return f"<blocked vector of shape {self.shape}, {self.dtype}, on {self.store!r}>"

    def __bool__(self) -> bool:
        raise refusal("the truth of a whole vector")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise refusal("an array of NumPy")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        last = parts[-1]
        if Ellipsis in parts or sum(part is not None for part in parts) == self.ndim:  # the last part is the last axis
            if isinstance(last, int):
                index = B.full((1,) * self.ndim, last % self.store.n, self.meta, dtype=namespace(self.meta).int64)
                return self.pick(index)[..., 0][parts[:-1]]
            if last is not Ellipsis and last != slice(None):
                raise refusal(f"an index {key}")
        return Blocked.operation("getitem", self, parts)

    __add__, __radd__ = _operators("add")
    __sub__, __rsub__ = _operators("sub")
    __mul__, __rmul__ = _operators("mul")
    __truediv__, __rtruediv__ = _operators("truediv")
    __pow__, __rpow__ = _operators("pow")
    __matmul__, __rmatmul__ = _operators("matmul")
    __and__, __rand__ = _operators("and_")
    __or__, __ror__ = _operators("or_")
    __lt__, __gt__ = _operators("lt")
    __le__, __ge__ = _operators("le")
    __eq__, __ne__ = _operators("eq")[0], _operators("ne")[0]
    __hash__ = object.__hash__  # by identity: == is elementwise

    def __neg__(self) -> Blocked:
        return Blocked.operation("neg", self)

    def __invert__(self) -> Blocked:
        return Blocked.operation("invert", self)

    def reduce(self, name: str) -> Array:
        """Return sum, max, min, all or any over the last axis, (...)."""
        return self._once((name,), lambda: self.store.reduce(MERGES[name], Reduce(name), self))

    def pick(self, index: Array) -> Array:
        """Return the entries of the rows ``index``, which is a small array (..., m)."""
        return self._once(("pick", id(index)), lambda: self.store.reduce(add, Pick(index), self), index)

    def argmax(self) -> Array:
        """Return the number of the row with the first largest entry, (..., 1); `pick` knows that entry afterwards."""
        largest, index = self._once(("argmax",), self._argmax)
        self.reduced["pick", id(index)] = largest, (index,)
        return index

    def _argmax(self) -> tuple[Array, Array]:
        largest, index = self.store.reduce(merge_largest, largest_and_where, self)
        return largest[..., None], index[..., None]

    def digest(self) -> bytes:
        """Return a hash of the entries, which is another one for another division into blocks."""
        return bytes(self.store.reduce(merge_digests, digest, self))

    def _once(self, key: tuple, work: Callable[[], Any], *alive: Any) -> Any:
        if key not in self.reduced:
            self.reduced[key] = (work(), alive)
        return self.reduced[key][0]


def _make(store: Store, name: str, args: tuple, kwargs: tuple, meta: Array, data: Any) -> Blocked:
    made = object.__new__(Blocked)
    made.store, made.name, made.args, made.kwargs, made.meta, made.data = store, name, args, kwargs, meta, data
    made.reduced = {}
    return made


def _key(x: Any) -> Any:
    """Return something hashable that is equal for the same operand only."""
    if isinstance(x, tuple):
        return tuple(map(_key, x))
    if isinstance(x, slice):
        return slice, x.start, x.stop, x.step
    if isinstance(x, Blocked) or is_array(x):
        return id(x)  # the expression keeps it alive
    return type(x), repr(x)


def refusal(what: str) -> TypeError:
    """Return the error of what would bring a whole vector into one place."""
    return TypeError(f"{what} is not defined for a vector in blocks: nothing of the size of a row count is ever whole.")


def compiled(*outputs: Blocked) -> tuple[Program, list[Blocked]]:
    """Write expressions down as one program, and return it with the vectors that go into it."""
    order: dict[int, Blocked] = {}
    for x in outputs:
        _note_operands_first(x, order)
    leaves = [x for x in order.values() if x.name == "leaf"]
    number = {id(x): i for i, x in enumerate(leaves)}
    steps = []
    for x in order.values():
        if x.name != "leaf":
            number[id(x)] = len(number)
            steps.append(
                (x.name, tuple(Slot(number[id(a)]) if isinstance(a, Blocked) else a for a in x.args), x.kwargs)
            )
    return Program(len(leaves), tuple(steps), tuple(number[id(x)] for x in outputs)), leaves


def _note_operands_first(x: Any, order: dict[int, Blocked]) -> None:
    if isinstance(x, Blocked) and id(x) not in order:
        for operand in x.args:
            _note_operands_first(operand, order)
        order[id(x)] = x
