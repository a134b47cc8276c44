"""A network and its derivative at its weights, over blocks of points: F, J D, J^T V and the responses P."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .. import backend as B
from ..backend import Array

if TYPE_CHECKING:
    from .network import TwoLayerNetwork

BLOCK_BYTES = 512 * 2**10
"""Bytes of one (points, m) array on the host: several of them stay in a core's own cache (measured: the loss and
gradient of 20,000 points and 1,000 neurons take half the time of blocks of 4 MiB)."""

LEAST_ROWS = 64
"""Fewer points at once would make every product a slow thin one."""

KEEP_BYTES = 256 * 2**20
"""Exponentials up to this size are kept between products with J and J^T instead of being computed again."""


class Block(NamedTuple):
    """Some points, their exponentials E (rows, m) and T = E C (rows, c)."""

    rows: slice
    X: Array
    E: Array
    T: Array


def block_slices(X: Array, m: int) -> list[slice]:
    """Cut the points into blocks whose (points, m) arrays are worth computing at once."""
    return B.even_slices(X.shape[0], max(LEAST_ROWS, B.block_bytes(X, BLOCK_BYTES) // (m * B.itemsize(X))))


def add(parts: Iterable[Array]) -> Array:
    """Sum arrays, in order, in the memory of the first."""
    parts = iter(parts)
    total = next(parts)
    for part in parts:
        total += part
    return total


class Linearisation:
    """The network at its weights on the points X (n, d); ``keep`` holds E and T when they are small enough.

    Nothing here checks its arguments or its results, and nothing synchronises.
    """

    def __init__(self, network: TwoLayerNetwork, X: Array, *, keep: bool = False) -> None:
        self.network, self.X = network, X
        self._slices = block_slices(X, network.m)
        self._kept: list[Block] | None = None
        if keep and X.shape[0] * network.m * B.itemsize(X) <= KEEP_BYTES:
            self._kept = [self._block(rows) for rows in self._slices]

    def _block(self, rows: slice) -> Block:
        X = self.X[rows, :]
        E = self.network._exponentials(X @ self.network.W)
        return Block(rows, X, E, E @ self.network._C)

    def blocks(self) -> Iterator[Block]:
        """Go through the points."""
        return iter(self._kept) if self._kept is not None else map(self._block, self._slices)

    def predict(self) -> Array:
        """F (n, k)."""
        return self._concat([self.network._readout(block.T) for block in self.blocks()])

    def push(self, D: Array) -> Array:
        """J D (n, k) for D (d, m): the change of F along a change D of the weights."""
        return self._concat([self._push_block(block, D) for block in self.blocks()])

    def pull(self, V: Array) -> Array:
        """J^T V (d, m) for V (n, k)."""
        return add(block.X.T @ self.pull_block(block, V[block.rows, :]) for block in self.blocks())

    def push_pull(self, D: Array) -> Array:
        """J^T J D (d, m) for D (d, m), in one pass over the points."""
        return add(block.X.T @ self.pull_block(block, self._push_block(block, D)) for block in self.blocks())

    def _push_block(self, block: Block, D: Array) -> Array:
        EdZ = block.X @ D
        EdZ *= block.E
        return self.network._readout_jvp(block.T, EdZ @ self.network._C)

    def pull_block(self, block: Block, V: Array) -> Array:
        """sum_l V_il P_{l,i,r} (rows, m): the gradient of <V, F> with respect to Z = X W."""
        Q, C = self.network._readout_vjp(block.T, V), self.network._C
        G = Q * C.T if C.shape[1] == 1 else Q @ C.T  # one column: broadcasting is several times faster
        G *= block.E
        return G

    def _concat(self, parts: list[Array]) -> Array:
        return parts[0] if len(parts) == 1 else B.namespace(self.X).concat(parts, axis=0)


def responses(network: TwoLayerNetwork, X: Array) -> Array:
    """P (k n, m): row (l, i) is the derivative of output l at point i with respect to <w_r, x_i>."""
    xp = B.namespace(X)
    at = Linearisation(network, X)
    P, outputs = B.zeros((network.k, X.shape[0], network.m), X), B.eye(network.k, X)
    for block in at.blocks():
        for l in range(network.k):
            V = xp.broadcast_to(outputs[l, :], (block.X.shape[0], network.k))
            P[l, block.rows, :] = at.pull_block(block, V)
    return xp.reshape(P, (-1, network.m))


def loss_and_grad(network: TwoLayerNetwork, X: Array, Y: Array) -> tuple[Array, Array]:
    """0.5 sum (F - Y)^2 and its gradient (d, m) for targets Y (n, k), in one pass over the points."""
    xp = B.namespace(X)
    at = Linearisation(network, X)
    loss, g = None, None
    for block in at.blocks():
        R = network._readout(block.T) - Y[block.rows, :]
        part_loss, part_g = 0.5 * xp.sum(R * R), block.X.T @ at.pull_block(block, R)
        loss, g = (part_loss, part_g) if loss is None else (loss + part_loss, g + part_g)
    return loss, g
