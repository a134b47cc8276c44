"""The errors that xpreg raises. Every message names the argument, what it was, and what is needed."""

from __future__ import annotations


class XpregError(Exception):
    """Base class of every error that xpreg raises on purpose."""


class InvalidArgumentError(XpregError, ValueError):
    """An argument has the wrong shape, type or values."""


class DeviceMismatchError(InvalidArgumentError):
    """Arrays of one call live in different array libraries or on different devices."""


class DeviceNotAvailableError(XpregError, RuntimeError):
    """The requested device does not exist on this machine, or its library is not installed."""


class DomainError(InvalidArgumentError):
    """The loss is not defined at this point: its normaliser is not positive, or it overflows."""


class NotEnoughMemoryError(XpregError, MemoryError):
    """A request was estimated before it ran, and does not fit."""
