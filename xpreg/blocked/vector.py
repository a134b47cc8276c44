"""Vectors with one entry per row of A that never lie in one place: lazy expressions, worked out block by block."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
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
    sums,
)

if TYPE_CHECKING:
    from .store import Store

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
            raise _refusal(f"{name} with a result of shape {tuple(meta.shape)}")
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
        return blocked_namespace(namespace(self.meta))

    def __repr__(self) -> str:
        return f"<blocked vector of shape {self.shape}, {self.dtype}, on {self.store!r}>"

    def __bool__(self) -> bool:
        raise _refusal("the truth of a whole vector")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise _refusal("an array of NumPy")

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
                raise _refusal(f"an index {key}")
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


def _refusal(what: str) -> TypeError:
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


# -- the namespace -------------------------------------------------------------------------------


class BlockedNamespace:
    """The array API for `Blocked`, as far as it makes sense there; small arrays go to the ordinary namespace."""

    def __init__(self, xp: Namespace, functions: dict[str, Callable], prefix: str = ""):
        self._xp, self._functions, self._prefix = xp, functions, prefix
        self.__name__ = f"xpreg.blocked({xp.__name__})"
        if not prefix:
            self.row_sums = row_sums  # what `xpreg.backend.row_sums` asks for
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
                raise _refusal(f"{self._prefix}{name}")
            return own(*args, **kwargs)

        setattr(self, name, function)  # found at once the next time
        return function


_namespaces: dict[int, BlockedNamespace] = {}


def blocked_namespace(xp: Namespace) -> BlockedNamespace:
    """Return the namespace of vectors whose small arrays are those of ``xp``, always the same object."""
    return _namespaces.setdefault(id(xp), BlockedNamespace(xp, FUNCTIONS))


def _holds_blocked(x: Any) -> bool:
    return isinstance(x, Blocked) or (isinstance(x, list | tuple) and any(isinstance(item, Blocked) for item in x))


def _elementwise(name: str) -> Callable[..., Blocked]:
    return lambda *args, **kwargs: Blocked.operation(name, *args, **kwargs)


def _is_last(x: Blocked, axis: int) -> bool:
    return axis in (-1, x.ndim - 1)


def _shaped(x: Blocked, value: Array, axis: int | None, keepdims: bool, what: str) -> Array:
    if (axis is not None and not _is_last(x, axis)) or (axis is None and keepdims):
        raise _refusal(f"{what} over axis {axis}")
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
        raise _refusal("stack along the last axis")
    return Blocked.operation("stack", *arrays, axis=axis)


def take(x: Blocked, indices: Array, *, axis: int) -> Blocked:
    """Take some of the first axis."""
    if axis != 0 or x.ndim < 2:
        raise _refusal(f"take along axis {axis}")
    return Blocked.operation("take", x, indices)


def _lead(x: Blocked, shape: Sequence[int], what: str) -> tuple[int, ...]:
    if shape[-1] != x.store.n:
        raise _refusal(f"{what} to {tuple(shape)}")
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
