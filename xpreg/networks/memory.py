"""What a request needs, counted before it runs, and the error when it does not fit."""

from __future__ import annotations

import dataclasses
import math

from .. import backend as B
from ..backend import Array
from ..errors import NotEnoughMemoryError


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Parameters and bytes of a network on n points.

    Attributes
    ----------
    parameters : trained numbers, d m
    weight_bytes : W and a
    kernel_bytes : the tangent kernel (k n, k n2)
    gram_bytes : what a dense Gram-Gauss-Newton step holds: the kernel, its factor, and what factorising takes
    jacobian_bytes : what the Jacobian (k n, d m) would take; it is never formed
    """

    parameters: int
    weight_bytes: int
    kernel_bytes: int
    gram_bytes: int
    jacobian_bytes: int


def footprint(d: int, m: int, k: int, n: int, n2: int | None = None, *, itemsize: int = 8) -> Footprint:
    """Count for d inputs, m neurons, k outputs, n points (and n2 for a rectangular kernel)."""
    n2 = n if n2 is None else n2
    return Footprint(
        parameters=d * m,
        weight_bytes=(d * m + m * k) * itemsize,
        kernel_bytes=k * n * k * n2 * itemsize,
        gram_bytes=5 * (k * n) ** 2 * itemsize,
        jacobian_bytes=k * n * d * m * itemsize,
    )


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
