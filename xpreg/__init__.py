"""Softmax-type regressions and two-layer exponential networks with exact second-order information."""

from .errors import (
    DeviceMismatchError,
    DeviceNotAvailableError,
    DomainError,
    InvalidArgumentError,
    NotEnoughMemoryError,
    XpregError,
)
from .result import IterationRecord, Result, Status

__all__ = [
    "DeviceMismatchError",
    "DeviceNotAvailableError",
    "DomainError",
    "InvalidArgumentError",
    "IterationRecord",
    "NotEnoughMemoryError",
    "Result",
    "Status",
    "XpregError",
]
