"""Ways of holding the rows: the map x -> z. A map never knows a loss."""

from .base import Chain, Map
from .blocked import BlockRows
from .dense import DenseRows
from .sparse import SparseRows
from .two_layer import TwoLayer

__all__ = ["BlockRows", "Chain", "DenseRows", "Map", "SparseRows", "TwoLayer"]
