"""Gradient descent: the whole data in each step, or seeded batches of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from .linearise import Linearisation, loss_and_grad
from .network import TwoLayerNetwork
from .result import NAN, TrainStatus
from .spectrum import largest_eigenvalue

HALVINGS = 40
"""Halvings of a step before a run counts as stalled: 2^-40 of a step changes no digit of the loss."""

BATCHES_PROBED = 8
"""Batches whose largest eigenvalue is looked at for the default step."""


class Move(NamedTuple):
    """One iteration's outcome; ``status`` ends the run, and then the network is the one before."""

    network: TwoLayerNetwork
    loss: float
    grad_norm: float = NAN
    step: float = NAN
    damping: float = NAN
    inner: float = NAN
    status: TrainStatus | None = None


class GradientDescent:
    """V <- momentum V - step g,  W <- W + V.

    The default step is 1/(m lambda_max(H)) at the start; an iteration that would raise the loss forgets V, then
    halves the step. A step from the caller is taken as it is.
    """

    noisy = False
    """Whether recorded losses are estimates, by which networks cannot be ranked."""

    def __init__(self, X: Array, Y: Array, *, step: float | None, momentum: float, seed: int) -> None:
        self.X, self.Y, self.momentum, self.seed = X, Y, momentum, seed
        self.automatic, self.step = step is None, step or 0.0
        self.V: Array | None = None

    def start(self, network: TwoLayerNetwork) -> Move:
        """Evaluate the start, and choose the step."""
        if not self.step:
            self.step = self.default_step(network)
        return self._evaluate(network)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, beside the weights."""
        return {"step": self.step} | ({} if self.V is None else {"V": self.V})

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of an earlier run."""
        self.step, self.V = float(state["step"]), state.get("V")

    def default_step(self, network: TwoLayerNetwork) -> float:
        """1/(m lambda_max(H))."""
        return _step(network, largest_eigenvalue(Linearisation(network, self.X, keep=True), seed=self.seed))

    def advance(self, network: TwoLayerNetwork, nit: int, loss: float) -> Move:
        """Do one iteration from ``network``, whose loss is given."""
        g, first_step = self._g, self.step
        for _ in range(HALVINGS):
            V = -self.step * g if self.V is None else self.momentum * self.V - self.step * g
            move = self._evaluate(network.with_weights(network.W + V))
            if not self.automatic or move.loss < loss:
                self.V = V if self.momentum else None
                return move
            if self.V is None:
                self.step /= 2
            self.V = None
        decrease = first_step * float(B.read(B.namespace(g).sum(g * g))[0])
        return Move(network, loss, status=stuck(loss, decrease, g))

    def _evaluate(self, network: TwoLayerNetwork) -> Move:
        xp = B.namespace(self.X)
        loss, self._g = loss_and_grad(network, self.X, self.Y)
        loss, grad_norm = (float(v) for v in B.read(loss, xp.max(xp.abs(self._g))))
        return Move(network, loss, grad_norm, self.step)


class BatchGradientDescent(GradientDescent):
    """The same on batches; an iteration is an epoch, one pass over all points in a seeded random order.

    A batch's gradient is scaled by n/(its size), so that it estimates the whole gradient. The default step is
    1/(m lambda_max) of the most demanding of the first batches, scaled alike. The loss of an epoch is the sum of
    its batches' losses, each at the weights that it met: it costs no further pass, and one synchronisation.
    """

    noisy = True

    def __init__(self, X: Array, Y: Array, *, batch_size: int, **options: Any) -> None:
        super().__init__(X, Y, **options)
        self.batch_size = batch_size

    def _batches(self, epoch: int) -> Any:
        xp, n = B.namespace(self.X), self.X.shape[0]
        order = B.random_permutation(n, (self.seed, epoch), self.X)
        for low in range(0, n, self.batch_size):
            rows = order[low : min(n, low + self.batch_size)]
            yield xp.take(self.X, rows, axis=0), xp.take(self.Y, rows, axis=0)

    def start(self, network: TwoLayerNetwork) -> Move:
        """Evaluate the start on all points, and choose the step."""
        xp = B.namespace(self.X)
        if not self.step:
            self.step = self.default_step(network)
        R = Linearisation(network, self.X).predict() - self.Y
        (loss,) = B.read(0.5 * xp.sum(R * R))
        return Move(network, float(loss), NAN, self.step)

    def default_step(self, network: TwoLayerNetwork) -> float:
        """1/(m lambda_max(H of a batch, scaled by n/size))."""
        n, largest = self.X.shape[0], 0.0
        for p, (X, _) in enumerate(self._batches(1)):
            if p == BATCHES_PROBED:
                break
            eigenvalue = largest_eigenvalue(Linearisation(network, X, keep=True), seed=self.seed)
            largest = max(largest, eigenvalue * n / X.shape[0])
        return _step(network, largest)

    def advance(self, network: TwoLayerNetwork, nit: int, loss: float) -> Move:
        """Do one epoch."""
        n, W, V, total = self.X.shape[0], network.W, self.V, None
        for X, Y in self._batches(nit + 1):
            loss_b, g = loss_and_grad(network.with_weights(W), X, Y)
            move = (-self.step * n / X.shape[0]) * g
            V = move if V is None else self.momentum * V + move
            W = W + V
            V = V if self.momentum else None
            total = loss_b if total is None else total + loss_b
        self.V = V
        (total,) = B.read(total)
        return Move(network.with_weights(W), float(total), NAN, self.step)


def stuck(loss: float, decrease: float, like: Array) -> TrainStatus:
    """Tell a minimum, where a step promises a ``decrease`` below the rounding of the loss, from a failure."""
    rounding = 16 * B.eps(like)
    return TrainStatus.STATIONARY if decrease <= rounding * loss else TrainStatus.STALLED


def _step(network: TwoLayerNetwork, eigenvalue: float) -> float:
    if not (math.isfinite(eigenvalue) and eigenvalue > 0):
        raise InvalidArgumentError(
            f"the largest eigenvalue of the tangent kernel is {eigenvalue} at the start, so there is no step: "
            "X may be zero, or the activations overflow. Scale X, or pass step."
        )
    return 1.0 / (network.m * eigenvalue)
