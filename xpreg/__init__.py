"""Softmax-type regressions and two-layer exponential networks with exact second-order information."""

import importlib.metadata

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

try:
    __version__ = importlib.metadata.version("xpreg")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

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
    "__version__",
    "certify",
    "diffusion",
    "io",
    "minimize",
    "train",
]
