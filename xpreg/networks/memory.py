"""What a request needs, counted before it runs, and the error when it does not fit."""

from __future__ import annotations

import dataclasses

from ..memory import limit, require, text

__all__ = ["Footprint", "footprint", "limit", "require", "text"]


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
