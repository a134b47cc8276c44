"""Random numbers: drawn on the host, so that one seed gives one sample on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidArgumentError
from .arrays import Array, namespace, new

Seed = np.random.Generator | int | Sequence[int]
"""What NumPy's `default_rng` takes: a generator goes on, numbers begin a new stream."""


def generator(seed: Seed) -> np.random.Generator:
    """Return a host generator: the same seed draws the same numbers for every device."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"seed is {seed!r}, but an integer >= 0, several of them, or a NumPy Generator is needed."
        ) from error


def random_normal(shape: Sequence[int], rng: Seed, like: Array) -> Array:
    """Draw standard normal numbers on the host and move them beside ``like``."""
    return new(generator(rng).standard_normal(tuple(shape)), like)


def random_uniform(shape: Sequence[int], rng: Seed, like: Array) -> Array:
    """Draw uniform numbers in [0, 1) on the host and move them beside ``like``."""
    return new(generator(rng).random(tuple(shape)), like)


def random_rows(n: int, m: int, rng: Seed, like: Array) -> Array:
    """Draw one index from each of m equal parts of 0, ..., n-1, in ascending order, and move them beside ``like``."""
    drawn = (np.arange(m) + generator(rng).random(m)) * (n / m)
    return new(np.minimum(drawn.astype(np.int64), n - 1), like, dtype=namespace(like).int64)


def random_permutation(n: int, rng: Any, like: Array) -> Array:
    """Draw a permutation of 0, ..., n-1 on the host and move it beside ``like``. ``rng``: a Generator or a seed."""
    return new(generator(rng).permutation(n), like, dtype=namespace(like).int64)
