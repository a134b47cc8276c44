"""Ways of holding the rows: the map x -> z. A map never knows a loss."""

from .base import Map
from .dense import DenseRows

__all__ = ["DenseRows", "Map"]
