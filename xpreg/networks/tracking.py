"""What the theory watches while a network is trained: displacement, kernel drift, smallest eigenvalue."""

from __future__ import annotations

from collections.abc import Sequence

from .. import backend as B
from ..backend import Array
from . import memory
from .network import TwoLayerNetwork

TRACKABLE = ("displacement", "drift", "smallest_eigenvalue")


class Tracker:
    """Measure what was asked for, relative to the network that training started from."""

    def __init__(
        self, initial: TwoLayerNetwork, X: Array, names: Sequence[str], every: int, max_bytes: int | None
    ) -> None:
        self.initial, self.X, self.names, self.every, self.max_bytes = initial, X, tuple(names), every, max_bytes
        self.H0: Array | None = None
        if self._needs_kernel():
            memory.require(
                initial.footprint(X.shape[0]).gram_bytes,
                X,
                what=f"the kernels (k n = {initial.k * X.shape[0]}) that track={self.names} compares",
                remedy="track=('displacement',), or fewer points",
                max_bytes=max_bytes,
            )

    def _needs_kernel(self) -> bool:
        return "drift" in self.names or "smallest_eigenvalue" in self.names

    def measure(self, network: TwoLayerNetwork, nit: int) -> dict[str, float]:
        """Return the asked-for numbers as keywords of a `TrainRecord`; none between the tracked iterations."""
        if not self.names or nit % self.every:
            return {}
        xp = B.namespace(self.X)
        found = {}
        if "displacement" in self.names:
            D = network.W - self.initial.W
            found["displacement"] = xp.max(xp.sqrt(xp.sum(D * D, axis=0)))
        if self._needs_kernel():
            H = network.tangent_kernel(self.X, max_bytes=self.max_bytes)
        if "drift" in self.names:
            if self.H0 is None:
                self.H0 = self.initial.tangent_kernel(self.X, max_bytes=self.max_bytes)
            D = H - self.H0
            found["drift"] = xp.sqrt(xp.sum(D * D) / xp.sum(self.H0 * self.H0))
        if "smallest_eigenvalue" in self.names:
            found["smallest_eigenvalue"] = xp.linalg.eigvalsh(H)[0]
        return dict(zip(found, (float(v) for v in B.read(*found.values())), strict=True))
