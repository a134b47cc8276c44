"""Rows in files: .npy, a folder of .npy blocks, .zarr. A thread reads ahead; a few blocks are in memory at a time."""

from __future__ import annotations

import abc
import importlib
import io
import mmap
import os
import queue
import re
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend as B
from ..arguments import require_integers
from ..errors import InvalidArgumentError
from .local import Source

BLOCK_BYTES = 16 * 2**20
"""Bytes of rows that are read at once, up to whole blocks of a Gram matrix (`xpreg.backend.gram_rows`)."""

SLOWNESS = 10.0
"""How much longer a file takes to read than memory: 5 to 10 from the file cache, 10 to 40 from a solid-state disk."""

AHEAD = 2
"""Blocks that are read while another one is worked on."""


class Rows(Source):
    """The rows of a matrix (n, d) outside memory. `xpreg.io.open_rows` makes them; a regression takes them as A.

    Attributes
    ----------
    shape : (n, d)
    dtype : NumPy's
    block_rows : rows in memory at once, three times: one block in use and two that are read ahead
    """

    slowness = SLOWNESS

    def __init__(self, name: str, shape: tuple[int, int], dtype: np.dtype, block_bytes: int | None):
        if dtype not in (np.float32, np.float64) or not dtype.isnative:
            raise InvalidArgumentError(
                f"{name} has dtype {dtype}, but float32 or float64 in this machine's byte order is needed."
            )
        if len(shape) != 2 or 0 in shape:
            raise InvalidArgumentError(
                f"{name} has shape {shape}, but a matrix (n, d) with at least one row and one column is needed."
            )
        if block_bytes is not None:
            require_integers(block_bytes=block_bytes)
        self.name, self.shape, self.dtype = name, shape, dtype
        self.like = np.empty((0, 0), dtype)
        row_bytes = shape[1] * dtype.itemsize
        if block_bytes is None:
            rows = B.gram_rows(np.empty((0, shape[1]), dtype))
            self.block_rows = max(1, BLOCK_BYTES // (row_bytes * rows)) * rows
        else:
            self.block_rows = max(1, block_bytes // row_bytes)

    def __repr__(self) -> str:
        return f"<rows in {self.name}, shape {self.shape}, {self.dtype}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the whole matrix."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @abc.abstractmethod
    def pieces(self) -> Iterator[tuple[Any, int, int]]:
        """Yield (where, first, last): rows first, ..., last - 1 of ``where``, one block after the other."""

    @abc.abstractmethod
    def read(self, where: Any, first: int, last: int, buffer: np.ndarray) -> np.ndarray:
        """Read one block; into ``buffer`` (block_rows, d), where that saves a copy."""

    def stream(self) -> Generator[tuple[slice, np.ndarray]]:
        """Yield every block, read by another thread that is at most `AHEAD` blocks ahead."""
        free: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(AHEAD + 1):
            free.put(np.empty((min(self.block_rows, self.shape[0]), self.shape[1]), self.dtype))

        def read_all() -> None:
            try:
                for where, first, last in self.pieces():
                    buffer = free.get()
                    if buffer is None:
                        return
                    ready.put((buffer, self.read(where, first, last, buffer)))
                ready.put(None)
            except BaseException as error:  # of whatever kind: it is raised where the block is waited for
                ready.put(error)

        thread = threading.Thread(target=read_all, name="xpreg reads ahead", daemon=True)
        thread.start()
        start = 0
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                buffer, block = item
                yield slice(start, start + block.shape[0]), block
                start += block.shape[0]
                free.put(buffer)
        finally:
            free.put(None)
            thread.join()


class NpyRows(Rows):
    """Rows in one .npy file, or in several, one after the other. What is read does not stay in the file cache where
    it could not stay there until the next pass.

    Parameters
    ----------
    name : for messages
    parts : (path, offset of the first entry, rows) of each file
    watch : whether a file that is written to later is an error: not for memory maps, which may be on their way there
    """

    def __init__(
        self,
        name: str,
        parts: list[tuple[Path, int, int]],
        d: int,
        dtype: np.dtype,
        block_bytes: int | None = None,
        *,
        watch: bool = True,
    ):
        super().__init__(name, (sum(part[2] for part in parts), d), dtype, block_bytes)
        self.parts = parts
        self.stamps = {path: _stamp(os.stat(path)) for path, _, _ in parts} if watch else {}
        room = B.free_memory(self.like)
        self.drop = hasattr(os, "posix_fadvise") and room is not None and self.nbytes > room // 2

    def pieces(self) -> Iterator[tuple[io.FileIO, int, int]]:
        for path, offset, rows in self.parts:
            with self._open(path) as file:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), offset, 0, os.POSIX_FADV_SEQUENTIAL)
                file.seek(offset)
                for first in range(0, rows, self.block_rows):
                    yield file, first, min(first + self.block_rows, rows)

    def _open(self, path: Path) -> io.FileIO:
        try:
            file = io.FileIO(path)
        except OSError as error:
            raise InvalidArgumentError(f"{path} cannot be read any more: {error}.") from error
        now = _stamp(os.fstat(file.fileno()))
        before = self.stamps.get(path, now)
        if now == before:
            return file
        file.close()
        what = "ends before its last row" if now[0] < before[0] else "has been written to"
        raise InvalidArgumentError(f"{path} {what}: it has changed since it was opened, open it again.")

    def read(self, where: io.FileIO, first: int, last: int, buffer: np.ndarray) -> np.ndarray:
        block = buffer[: last - first]
        view = block.view(np.uint8).reshape(-1).data
        position, done = where.tell(), 0
        while done < len(view):
            count = where.readinto(view[done:])
            if not count:
                raise InvalidArgumentError(f"{self.name} ends before its last row: it has changed since it was opened.")
            done += count
        if self.drop:
            os.posix_fadvise(where.fileno(), position, done, os.POSIX_FADV_DONTNEED)
        return block


def _stamp(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


class ZarrRows(Rows):
    """Rows in a Zarr array; blocks are whole chunks of rows."""

    def __init__(self, name: str, array: Any, block_bytes: int | None = None):
        super().__init__(name, tuple(array.shape), np.dtype(array.dtype), block_bytes)
        self.array = array
        self.block_rows = max(1, self.block_rows // array.chunks[0]) * array.chunks[0]

    def pieces(self) -> Iterator[tuple[None, int, int]]:
        for first in range(0, self.shape[0], self.block_rows):
            yield None, first, min(first + self.block_rows, self.shape[0])

    def read(self, where: None, first: int, last: int, buffer: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.array[first:last])


def open_rows(path: Any, *, block_bytes: int | None = None) -> Rows:
    """Open a matrix that is larger than memory, to be given to a regression as A.

    Parameters
    ----------
    path : an .npy file; a folder of .npy files with equal numbers of columns, whose rows follow one another in the
        order of the names, block_2 before block_10; a Zarr array, or its path
    block_bytes : bytes that are read at once, at least one row; three blocks are in memory

    Returns
    -------
    Rows

    Raises
    ------
    InvalidArgumentError
        There is no such file, or it holds no C-ordered matrix of float32 or float64, or the files do not fit together.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib, xpreg
    >>> path = pathlib.Path(tempfile.mkdtemp(), "A.npy")
    >>> np.save(path, np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    >>> problem = xpreg.SoftmaxRegression(xpreg.io.open_rows(path), np.array([0.5, 0.3, 0.2]))
    >>> xpreg.minimize(problem).success
    True
    """
    if type(path).__module__.partition(".")[0] == "zarr":
        return _zarr_rows(str(path), path, block_bytes)
    if not isinstance(path, str | os.PathLike):
        raise InvalidArgumentError(f"path is a {type(path).__name__}, but a path or a Zarr array is needed.")
    path = Path(path).absolute()
    if not path.exists():
        raise InvalidArgumentError(f"{path}: no such file or folder of rows.")
    if path.suffix == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zarray")):
        return _zarr_rows(str(path), _open_zarr(path), block_bytes)
    if path.is_dir():
        return _folder_rows(path, block_bytes)
    offset, shape, dtype = _header(path)
    return NpyRows(str(path), [(path, offset, shape[0])], shape[1], dtype, block_bytes)


def memmap_rows(A: Any) -> Any:
    """Return the rows of a memory-mapped .npy file, to be read without the mapping; any other array as it is."""
    if not isinstance(A, np.memmap) or A.mode == "c" or A.ndim != 2:
        return A
    base: Any = A
    while not isinstance(base, mmap.mmap):
        base = base.base if isinstance(base, np.ndarray) else None
        if base is None:  # a result of arithmetic, in memory
            return A
    if not A.flags.c_contiguous or A.filename is None:
        raise InvalidArgumentError(
            f"A is a part of the memory-mapped file {A.filename} that is not C-contiguous: take whole rows, "
            "one after the other, or copy it with numpy.ascontiguousarray."
        )
    first = A.offset - A.offset % mmap.ALLOCATIONGRANULARITY  # where the mapping begins in the file
    offset = first + A.__array_interface__["data"][0] - np.frombuffer(base, np.uint8).__array_interface__["data"][0]
    path = Path(A.filename).absolute()
    return NpyRows(str(path), [(path, offset, A.shape[0])], A.shape[1], A.dtype, watch=False)


def _header(path: Path) -> tuple[int, tuple[int, int], np.dtype]:
    """Return where the data of a .npy file begin, its shape and its dtype."""
    if not path.is_file():
        raise InvalidArgumentError(f"{path} is no regular file.")
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.memmap):
            raise ValueError("it is another kind of file")
    except (ValueError, OSError, EOFError) as error:
        raise InvalidArgumentError(
            f"{path} is no .npy file of plain numbers (numpy.save writes one): {error}"
        ) from error
    if mapped.ndim != 2:
        raise InvalidArgumentError(f"{path} has shape {mapped.shape}, but a matrix of rows (n, d) is needed.")
    if mapped.size and not mapped.flags.c_contiguous:
        raise InvalidArgumentError(
            f"{path} is stored column by column (Fortran order), but rows are needed: save numpy.ascontiguousarray(A)."
        )
    return mapped.offset, mapped.shape, mapped.dtype


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key that brings block_2 before block_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split("([0-9]+)", path.name)]


def _folder_rows(path: Path, block_bytes: int | None) -> Rows:
    names = sorted(path.glob("*.npy"), key=_natural)
    if not names:
        raise InvalidArgumentError(f"{path} is a folder without .npy files.")
    parts, first = [], None
    for name in names:
        offset, shape, dtype = _header(name)
        first = first or (shape[1], dtype)
        if (shape[1], dtype) != first:
            raise InvalidArgumentError(
                f"{name} has {shape[1]} columns of {dtype}, but {names[0].name} has {first[0]} of {first[1]}: "
                "the blocks of one matrix must agree."
            )
        parts.append((name, offset, shape[0]))
    assert first is not None
    return NpyRows(str(path), parts, *first, block_bytes)


def _open_zarr(path: Path) -> Any:
    try:
        zarr = importlib.import_module("zarr")
    except ImportError as error:
        raise InvalidArgumentError(f"{path} needs the package zarr: pip install 'xpreg[zarr]'.") from error
    try:
        return zarr.open_array(path, mode="r")
    except Exception as error:  # zarr raises many kinds
        raise InvalidArgumentError(f"{path} is no Zarr array: {error}") from error


def _zarr_rows(name: str, array: Any, block_bytes: int | None) -> Rows:
    if not hasattr(array, "chunks"):
        raise InvalidArgumentError(f"{name} is a Zarr {type(array).__name__}, but an array of it is needed.")
    if len(array.shape) != 2:
        raise InvalidArgumentError(f"{name} has shape {tuple(array.shape)}, but a matrix (n, d) is needed.")
    return ZarrRows(name, array, block_bytes)
