"""What is asked for must fit: counted before it runs, and an error that says what would."""

from __future__ import annotations

import math

from . import backend as B
from .backend import Array
from .errors import NotEnoughMemoryError


def text(nbytes: float) -> str:
    """Write a number of bytes for people: "1.5 GiB"."""
    if nbytes < 1024:
        return f"{nbytes:.0f} bytes"
    power = min(int(math.log2(nbytes)) // 10, 4)
    return f"{nbytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def limit(like: Array, max_bytes: int | None) -> int | None:
    """Return the caller's limit, or what is free beside ``like``; None where nobody knows."""
    return B.free_memory(like) if max_bytes is None else max_bytes


def require(nbytes: int, like: Array, *, what: str, remedy: str, max_bytes: int | None = None) -> None:
    """Raise NotEnoughMemoryError when ``nbytes`` exceed ``max_bytes`` (default: what is free)."""
    available = limit(like, max_bytes)
    if available is None or nbytes <= available:
        return
    source = "are free" if max_bytes is None else "are allowed by max_bytes"
    raise NotEnoughMemoryError(
        f"{what} need {text(nbytes)}, but {text(available)} {source} on {B.describe(like)}. What would fit: {remedy}."
    )
