"""How far two samples are from each other."""

from __future__ import annotations

from typing import Any

from .. import backend as B
from ..arguments import require_flags, require_integers
from ..backend import Array
from ..errors import InvalidArgumentError
from .process import require_points


def sliced_wasserstein(x: Array, y: Array, *, projections: int = 256, seed: Any = 0) -> Array:
    """Estimate the sliced 2-Wasserstein distance of two equally large samples.

    The distance of two samples on a line is that of their sorted values; here it is averaged, squared, over random
    directions (Rabin, Peyre, Delon and Bernot 2011).

    Parameters
    ----------
    x, y : (n, d)
    projections : random directions
    seed : of the directions

    Returns
    -------
    () array

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> round(float(sliced_wasserstein(x, x[::-1] + np.array([3.0, 4.0]), projections=4096)), 1)
    3.5
    """
    _require_pair(x, y)
    if x.shape != y.shape:
        raise InvalidArgumentError(
            f"x has shape {tuple(x.shape)}, but y has {tuple(y.shape)}: equally large samples are needed."
        )
    require_integers(projections=projections)
    xp = B.namespace(x)
    directions = B.random_normal((x.shape[1], projections), seed, x)
    directions = directions / xp.sqrt(xp.sum(directions * directions, axis=0))
    columns, total = B.block_bytes(x, B.TILE_BYTES) // (B.itemsize(x) * x.shape[0]), None
    for J in B.even_slices(projections, columns):
        D = directions[:, J]
        gap = xp.sort(x @ D, axis=0) - xp.sort(y @ D, axis=0)
        part = xp.sum(gap * gap)
        total = part if total is None else total + part
    return xp.sqrt(total / (x.shape[0] * projections))


def nearest(x: Array, y: Array, *, exclude_self: bool = False) -> tuple[Array, Array]:
    """Find for every row of x the nearest row of y.

    Parameters
    ----------
    x, y : (n, d) and (n2, d)
    exclude_self : x is y, and a row is not its own neighbour

    Returns
    -------
    distances (n,), indices (n,)
    """
    _require_pair(x, y)
    require_flags(exclude_self=exclude_self)
    if exclude_self and (x.shape != y.shape or x.shape[0] < 2):
        raise InvalidArgumentError(
            f"exclude_self is True, but x has shape {tuple(x.shape)} and y has {tuple(y.shape)}: both must be the "
            "same rows, two at least."
        )
    xp = B.namespace(x)
    rows = B.block_bytes(x, B.TILE_BYTES) // (B.itemsize(x) * y.shape[0] * x.shape[1])
    distances, indices = [], []
    numbers = B.arange(y.shape[0], y)
    for I in B.even_slices(x.shape[0], rows):
        gap = x[I, :][:, None, :] - y[None, :, :]
        squares = xp.sum(gap * gap, axis=2)
        if exclude_self:
            own = numbers[I][:, None] == numbers[None, :]
            squares = xp.where(own, B.full((), float("inf"), x), squares)
        distances.append(xp.sqrt(xp.min(squares, axis=1)))
        indices.append(xp.argmin(squares, axis=1))
    return xp.concat(distances), xp.concat(indices)


def _require_pair(x: Array, y: Array) -> None:
    B.common_namespace(x=x, y=y)
    require_points(x=x)
    require_points(y=y)
    if x.shape[1] != y.shape[1]:
        raise InvalidArgumentError(f"x has {x.shape[1]} columns, but y has {y.shape[1]}: the same space is needed.")
