"""What training returns: the network, why it stopped, and one record per iteration."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..result import Described

if TYPE_CHECKING:
    from .network import TwoLayerNetwork

NAN = float("nan")


class TrainStatus(Described):
    """Why training stopped. The text says the cause and, where there is one, the remedy."""

    CONVERGED = 0, "the residual |F - y| fell below tol times the one at the start"
    STATIONARY = (
        1,
        "the gradient fell below gtol times the one at the start, or promises no decrease above rounding, while a "
        "residual is left: a minimum that does not fit every target (a wider network fits more), or directions that "
        "gradient descent hardly sees (gram-gauss-newton does)",
    )
    EARLY_STOPPED = 2, "the validation loss did not improve for `patience` iterations: its best network is returned"
    MAXITER = (
        3,
        "the iteration limit was reached first: raise maxiter, or go on from this network",
    )
    STALLED = (
        4,
        "no step decreases the loss any more: the residual is at rounding level for this dtype (float64 goes on), "
        "or the targets cannot be fitted better from here (a wider network)",
    )
    SINGULAR = (
        5,
        "the tangent kernel is singular to working precision, and the residual does not fall along the directions "
        "that are left: equal or nearly equal points with different targets, or too few neurons; "
        "remove them, widen the network, or pass damping > 0",
    )
    DIVERGED = (
        6,
        "the loss grew out of all bounds, or the network saturated at a larger loss than it started from: the step is "
        "too large; leave step=None, or pass a smaller one; "
        "the best network seen is returned",
    )
    STOPPED = 7, "the callback asked to stop"

    @property
    def success(self) -> bool:
        """True when the run ended where it was asked to: a small residual or gradient, or the validation minimum."""
        return self in (TrainStatus.CONVERGED, TrainStatus.STATIONARY, TrainStatus.EARLY_STOPPED)


@dataclasses.dataclass(frozen=True, slots=True)
class TrainRecord:
    """One iteration, in plain numbers; what was not asked for is nan.

    Attributes
    ----------
    nit : iteration, from 0 (the start)
    loss : 0.5 |F - y|^2; with batches, summed over the batches of the epoch, each at the weights it met
    residual : |F - y|
    grad_norm : largest absolute gradient entry
    validation : loss on the validation set
    step : accepted step length
    damping : multiple of the mean kernel diagonal that was added to the kernel (gram-gauss-newton)
    inner : conjugate-gradient iterations (gram-gauss-newton)
    displacement : max_r |w_r - w_r(0)|
    drift : |H - H(0)| / |H(0)|, in Frobenius norm
    smallest_eigenvalue : of the tangent kernel H
    seconds : since the start, over all resumed parts
    """

    nit: int
    loss: float
    residual: float
    grad_norm: float = NAN
    validation: float = NAN
    step: float = NAN
    damping: float = NAN
    inner: float = NAN
    displacement: float = NAN
    drift: float = NAN
    smallest_eigenvalue: float = NAN
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained network.

    Attributes
    ----------
    network : the best one: of the lowest validation loss where there is a validation set, else of the lowest loss
        (with batches, whose losses are estimates: the last one, unless the run diverged)
    success : True when the run ended where it was asked to, see `TrainStatus`
    status : `TrainStatus`
    message : why it stopped, with its numbers
    nit : iterations done
    best_nit : the iteration of ``network``
    history : one `TrainRecord` per iteration
    """

    network: TwoLayerNetwork
    success: bool
    status: TrainStatus
    message: str
    nit: int
    best_nit: int
    history: tuple[TrainRecord, ...] = dataclasses.field(repr=False)
