"""Softmax-type regressions and two-layer exponential networks with exact second-order information."""

from . import diffusion, io
from .certificate import Certificate, Claim
from .errors import (
    DeviceMismatchError,
    DeviceNotAvailableError,
    DomainError,
    InvalidArgumentError,
    NotEnoughMemoryError,
    XpregError,
)
from .evaluation import certify
from .networks import ExpNetwork, SoftmaxNetwork, TrainResult, TrainStatus, train
from .problem import Point, Problem
from .regressions import (
    CoshRegression,
    ExpRegression,
    ResNetSoftmaxRegression,
    SinhRegression,
    SoftmaxRegression,
    SoftmaxReLURegression,
)
from .result import IterationRecord, Result, Status
from .solvers import minimize

__all__ = [
    "Certificate",
    "Claim",
    "CoshRegression",
    "DeviceMismatchError",
    "DeviceNotAvailableError",
    "DomainError",
    "ExpNetwork",
    "ExpRegression",
    "InvalidArgumentError",
    "IterationRecord",
    "NotEnoughMemoryError",
    "Point",
    "Problem",
    "ResNetSoftmaxRegression",
    "Result",
    "SinhRegression",
    "SoftmaxNetwork",
    "SoftmaxReLURegression",
    "SoftmaxRegression",
    "Status",
    "TrainResult",
    "TrainStatus",
    "XpregError",
    "certify",
    "diffusion",
    "io",
    "minimize",
    "train",
]
