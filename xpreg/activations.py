"""Activations: g(z), g'(z) and g''(z) together, in one evaluation.

An activation takes z (..., n) and an optional shift m (..., 1), and returns g, g', g'' all times e^-m, so that
a normalised loss never overflows. Without a shift it returns the plain values.
"""

from __future__ import annotations

from collections.abc import Callable

from . import backend as B
from .backend import Array, namespace

Values = tuple[Array, Array, Array]
Activation = Callable[..., Values]


def exp(z: Array, m: Array | None = None) -> Values:
    """G = g' = g'' = exp(z)."""
    e = namespace(z).exp(z) if m is None else B.exp_in_place(z - m)
    return e, e, e


def exp_plus_linear(z: Array, m: Array | None = None) -> Values:
    """G = exp(z) + z, g' = exp(z) + 1, g'' = exp(z): the ResNet form, exp plus the identity."""
    xp = namespace(z)
    if m is None:
        e = xp.exp(z)
        return e + z, e + 1.0, e
    e, one = B.exp_in_place(z - m), xp.exp(-m)
    g = z * one
    g += e
    return g, e + one, e


def cosh(z: Array) -> Values:
    """G = g'' = cosh(z), g' = sinh(z)."""
    xp = namespace(z)
    c = xp.cosh(z)
    return c, xp.sinh(z), c


def sinh(z: Array) -> Values:
    """G = g'' = sinh(z), g' = cosh(z)."""
    xp = namespace(z)
    s = xp.sinh(z)
    return s, xp.cosh(z), s
