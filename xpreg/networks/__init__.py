"""Two-layer exponential and softmax networks, their tangent kernels, and training."""

from .exponential import ExpNetwork
from .memory import Footprint, footprint
from .result import TrainRecord, TrainResult, TrainStatus
from .softmax import SoftmaxNetwork
from .training import train

__all__ = [
    "ExpNetwork",
    "Footprint",
    "SoftmaxNetwork",
    "TrainRecord",
    "TrainResult",
    "TrainStatus",
    "footprint",
    "train",
]
