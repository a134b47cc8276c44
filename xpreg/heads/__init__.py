"""Losses in z: one file per head. A head knows z and b only, never x or A."""

from .base import Head, HeadPoint
from .elementwise import Elementwise
from .kl import SoftmaxKL
from .normalised import Normalised
from .rescaled import Rescaled
from .softmax import Softmax

__all__ = ["Elementwise", "Head", "HeadPoint", "Normalised", "Rescaled", "Softmax", "SoftmaxKL"]
