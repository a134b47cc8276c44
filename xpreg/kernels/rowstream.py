"""Launching the kernels of ``rowstream.cu``: how rows are laid out over lanes, and how many blocks run.

The launcher knows no backend: it is given a way to compile (`cupy.RawModule`, or the same interface on the CPU in the
tests) and the number of multiprocessors.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
from collections.abc import Callable
from typing import Any

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from .sums import ACTIVATIONS, GramSums, Sums, check_activation

WARPS = 16
"""Resident warps per multiprocessor: what the kernels' 128 registers per thread allow on sm_80, sm_90 and sm_100."""

NARROW_BLOCK = 4
"""Warps of a block whose warps hold rows of their own (as in the .cu file)."""

COLUMNS_PER_LANE = 4
"""At most: 3 to 4 sums per column are kept in registers, in double."""

LARGEST_D = WARPS * 32 * COLUMNS_PER_LANE
"""The widest row, 2048 columns: 16 warps of 32 lanes."""

BYTES_IN_FLIGHT = 128
"""Bytes a lane loads before it uses the first: 16 warps of 32 lanes then have 64 KiB under way, twice what 4.8 TB/s
and 0.8 us need on each of 132 multiprocessors."""

LOADS_IN_FLIGHT = 16
"""At most so many loads for it: narrower loads than 16 bytes need more registers for the same bytes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows of d columns are held; the template arguments of the kernels.

    Attributes
    ----------
    wide : all warps of a block share a row
    L : lanes that share a row (32 when wide, and then of every warp)
    J, V : packs per lane and columns per pack (one 16-byte load, or one column)
    R : rows that a lane works on at a time
    warps : warps per block
    """

    wide: bool
    L: int
    J: int
    V: int
    R: int
    warps: int

    @property
    def rows_per_block(self) -> int:
        """Rows that a block works on at a time."""
        return self.R if self.wide else self.R * (32 // self.L) * self.warps

    @property
    def arguments(self) -> str:
        """The layout as the kernels' last template arguments."""
        return f"{str(self.wide).lower()},{self.L},{self.J},{self.V},{self.R}"


@functools.cache
def layout(d: int, itemsize: int, alignment: int) -> Layout:
    """Choose the layout for rows of ``d`` columns of ``itemsize`` bytes, the first aligned to ``alignment`` bytes.

    The widest loads that every row allows, at most 16 bytes. Then the fewest lanes left without a column, and of equals
    the most columns per lane, so that more loads are under way.
    """
    if not 1 <= d <= LARGEST_D:
        raise InvalidArgumentError(f"d is {d}, but the fused kernels take 1 to {LARGEST_D} columns.")
    V = math.gcd(d * itemsize, alignment, 16) // itemsize
    packs = -(-d // V)
    candidates = []
    for J in range(1, COLUMNS_PER_LANE // V + 1):
        lanes = -(-packs // J)
        if lanes <= 32:
            L = 1 << (lanes - 1).bit_length()
            candidates.append((L * J, -J, L, NARROW_BLOCK, False))
        elif lanes <= 32 * WARPS:
            warps = -(-lanes // 32)
            candidates.append((32 * warps * J, -J, 32, warps, True))
    _, minus_J, L, warps, wide = min(candidates)
    J, C = -minus_J, -minus_J * V
    # the last bound: with R > L a lane computes R/L exponentials, which takes registers
    R = min(8, BYTES_IN_FLIGHT // (C * itemsize), LOADS_IN_FLIGHT // J, max(L, 4 // C, 2))
    return Layout(wide, L, J, V, 1 << (R.bit_length() - 1), warps)


def grid_size(n: int, layout: Layout, multiprocessors: int) -> int:
    """Return the number of blocks: one full wave, or fewer when there are not rows enough.

    It depends on n, d, the dtype and the device only; with it the order of every sum is fixed.
    """
    resident = max(1, WARPS // layout.warps)
    return max(1, min(-(-n // layout.rows_per_block), resident * multiprocessors))


class RowStream:
    """The sums of `normalised_sums` and `gram_sums` by CUDA kernels that read A once, bitwise the same in every run.

    Parameters
    ----------
    module : ``module(code, names)`` compiles CUDA source and returns an object with ``get_function(name)``
    multiprocessors : ``multiprocessors(A)``, how many the device of A has

    Notes
    -----
    Kernels are compiled for one layout at a time, at its first use (about a second; CuPy keeps them on disk).
    Everything is asynchronous: nothing is read on the host.
    """

    def __init__(self, module: Callable[[str, tuple[str, ...]], Any], multiprocessors: Callable[[Array], int]):
        self._module, self._multiprocessors = module, multiprocessors
        self._functions: dict[str, Any] = {}

    def normalised_sums(
        self,
        A: Array,
        b: Array,
        x: Array,
        *,
        activation: str,
        shift: Array,
        w2: Array | None = None,
        keep_z: bool = False,
    ) -> Sums:
        """Do what `xpreg.kernels.normalised_sums` does, in one pass over A."""
        check_activation(activation)
        n, d = A.shape
        b, x, w2 = map(_in_one_piece, (b, x, w2))
        log_ref = B.namespace(A).reshape(shift, (1,))  # NumPy makes scalars of 0-d arrays, and they have no address
        rows = self._layout(A, b=b, x=x, shift=log_ref, w2=w2)
        K, S = (3, 4) if w2 is None else (4, 5)
        z = B.empty((n,), A) if keep_z else None
        flags = f"{ACTIVATIONS.index(activation)},{str(w2 is not None).lower()}"
        name = f"value_and_grad<{_ctype(A)},{flags},{rows.arguments}>"
        w2_or_b = b if w2 is None else w2  # pointers that the kernel does not follow still have to be pointers
        stride = 0 if w2 is None or w2.ndim == 0 else 1
        arguments = (x, b, w2_or_b, stride, log_ref, b if z is None else z, int(keep_z))
        out = self._stream(A, rows, name, arguments, columns=K * d + S + 1)
        T = out[: K * d].reshape(K, d)
        return Sums(T, out[K * d : K * d + S], out[K * d + S], shift, z)

    def gram_sums(self, A: Array, D: Array, v: Array, *, centre: Array | None = None, keep_t: bool = False) -> GramSums:
        """Do what `xpreg.kernels.gram_sums` does, in one pass over A."""
        n, d = A.shape
        D, v, centre = map(_in_one_piece, (D, v, centre))
        rows = self._layout(A, D=D, v=v, centre=centre)
        t = B.empty((n,), A) if keep_t else None
        name = f"gram_product<{_ctype(A)},{str(centre is not None).lower()},{rows.arguments}>"
        arguments = (v, v if centre is None else centre, D, D if t is None else t, int(keep_t))
        out = self._stream(A, rows, name, arguments, columns=d + 2)
        return GramSums(out[:d], out[d], t)

    def _layout(self, A: Array, **vectors: Array | None) -> Layout:
        B.common_namespace(A=A, **vectors)
        address, contiguous = B.memory(A)
        if not contiguous:
            raise InvalidArgumentError("A is not C-contiguous, which the fused kernels need: copy it first.")
        return layout(A.shape[1], B.itemsize(A), math.gcd(address, 16))

    def _stream(self, A: Array, rows: Layout, name: str, arguments: tuple[Any, ...], *, columns: int) -> Array:
        n, d = A.shape
        blocks = grid_size(n, rows, self._multiprocessors(A))
        double = B.namespace(A).float64
        with B.on_device(A):
            partial = B.empty((blocks, columns), A, dtype=double)
            out = B.empty((columns,), A, dtype=double)
            self._function(A, name)((blocks,), (32 * rows.warps,), (A, n, d, *arguments, partial))
            self._function(A, "merge")((-(-columns // 32),), (1024,), (partial, blocks, columns, out))
        return out

    def _function(self, A: Array, name: str) -> Any:
        key = f"{name} on {B.device(A)}"
        if key not in self._functions:
            self._functions[key] = self._module(source(), (name,)).get_function(name)
        return self._functions[key]


@functools.cache
def source() -> str:
    """Return the CUDA source."""
    return importlib.resources.files(__package__).joinpath("rowstream.cu").read_text(encoding="utf-8")


def _in_one_piece(q: Array | None) -> Array | None:
    """Return q, copied where it is a column of something, or one number that stands for many."""
    return q if q is None or B.memory(q)[1] else B.namespace(q).concat([q])


def _ctype(A: Array) -> str:
    return "float" if B.itemsize(A) == 4 else "double"
