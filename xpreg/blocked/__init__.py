"""Vectors and rows in blocks: nothing of the size of the row count is ever in one place."""

from __future__ import annotations

from typing import Any

from .files import Rows, memmap_rows, open_rows
from .local import ArrayBlocks, LocalStore, Source
from .store import Store
from .vector import Blocked

__all__ = ["ArrayBlocks", "Blocked", "LocalStore", "Rows", "Source", "Store", "open_rows", "store_of"]


def store_of(A: Any, device: str | None) -> Store | None:
    """Return what holds the rows of A in blocks, or None where A is an ordinary array (or nothing that we know).

    Libraries are told by name: nobody who does not use Dask or Zarr imports them.
    """
    library = type(A).__module__.partition(".")[0]
    if library == "dask":
        from .dask import DaskStore

        return DaskStore(A, device)
    if library == "zarr":
        A = open_rows(A)
    elif library == "numpy":
        A = memmap_rows(A)
    return LocalStore(A, device) if isinstance(A, Source) else None
