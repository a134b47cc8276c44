"""Training: one loop for both networks and all methods."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import backend as B
from ..arguments import require_flags, require_integers, require_number, require_one_of
from ..backend import Array
from ..errors import DomainError, InvalidArgumentError
from . import checkpoint as store
from . import checks
from .gradient_descent import BatchGradientDescent, GradientDescent, Move
from .gram_gauss_newton import GramGaussNewton
from .linearise import Linearisation
from .network import TwoLayerNetwork
from .result import NAN, TrainRecord, TrainResult, TrainStatus
from .tracking import TRACKABLE, Tracker

BLOW_UP = 1e6
"""A loss of this multiple of the one at the start counts as divergence; the default step never raises the loss."""

MAXITER = {"gradient-descent": 1000, "gram-gauss-newton": 50}


def train(
    network: TwoLayerNetwork,
    X: Array,
    y: Array,
    *,
    method: str = "gradient-descent",
    step: float | None = None,
    maxiter: int | None = None,
    tol: float = 1e-6,
    gtol: float = 1e-9,
    validation: tuple[Array, Array] | None = None,
    patience: int = 50,
    callback: Callable[[TrainRecord], Any] | None = None,
    batch_size: int | None = None,
    momentum: float = 0.0,
    damping: float = 0.0,
    gram: str = "auto",
    seed: int = 0,
    track: Sequence[str] = (),
    track_every: int = 1,
    checkpoint: Any = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    max_bytes: int | None = None,
    device: str | None = None,
) -> TrainResult:
    """Fit the weights of a network to targets by least squares: minimise 0.5 sum (F - y)^2 over W.

    Parameters
    ----------
    network : the start; it is not changed
    X : (n, d) points
    y : (n,) or (n, k) targets
    method : ``"gradient-descent"``, or ``"gram-gauss-newton"``: W <- W - J^T (J J^T)^-1 (F - y)
    step : step length. Gradient descent: the default is 1/(m lambda_max(H)) at the start, halved whenever the loss
        would rise; a given step is taken as it is. Gram-Gauss-Newton: the first trial of the line search, default 1
    maxiter : iterations (with batches: epochs); default 1000, gram-gauss-newton 50
    tol : on |F - y|, relative to the start
    gtol : on the largest gradient entry, relative to the start
    validation : (X, y) whose loss is recorded. Training stops when it has not improved for ``patience`` iterations,
        and the network of its lowest value is returned
    callback : called with every `TrainRecord`; raising StopIteration ends the run
    batch_size : gradient descent on batches of so many points; the same batches on every device
    momentum : heavy-ball momentum in [0, 1) of gradient descent
    damping : gram-gauss-newton adds this multiple of the mean kernel diagonal to the kernel; needed when the kernel
        is singular (equal points, zero points, or more targets than parameters)
    gram : ``"cholesky"``, ``"cg"`` (matrix-free) or ``"auto"``: cholesky where the kernel fits
    seed : of batches and of the eigenvalue estimate
    track : any of ``"displacement"``, ``"drift"``, ``"smallest_eigenvalue"``
    track_every : iterations between two of these records; the last two compute the kernel each time
    checkpoint : path of an .npz file that is replaced every ``checkpoint_every`` iterations and at the end
    resume : go on from ``checkpoint``; the result equals that of an uninterrupted run, bit for bit
    max_bytes : limit on the memory of kernels and solves; the default is what is free
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``: moves network and data there, once

    Returns
    -------
    TrainResult

    Raises
    ------
    InvalidArgumentError
        Data of the wrong shape, not finite, elsewhere than the network; options that do not belong to the method;
        equal or zero points, or k n > d m, for gram-gauss-newton without damping.
    NotEnoughMemoryError
        What was asked for cannot fit.

    Notes
    -----
    arXiv 2303.16504 and 2405.03251: with m large enough the residual falls like (1 - step m lambda_min(H))^t.

    Examples
    --------
    >>> import numpy as np
    >>> import xpreg.networks
    >>> X = np.array([[0.6, 0.8], [1.0, 0.0], [0.0, -1.0]])
    >>> network = xpreg.networks.ExpNetwork.initialise(2, 256, seed=0)
    >>> result = xpreg.networks.train(network, X, np.array([1.0, 0.5, -1.0]), method="gram-gauss-newton")
    >>> result.status.name, result.network.predict(X).round(5)
    ('CONVERGED', array([ 1. ,  0.5, -1. ]))
    """
    if not isinstance(network, TwoLayerNetwork):
        raise InvalidArgumentError(
            f"network is a {type(network).__name__}, but an ExpNetwork or SoftmaxNetwork is needed."
        )
    if validation is not None and (not isinstance(validation, tuple | list) or len(validation) != 2):
        raise InvalidArgumentError(f"validation is {validation!r:.60}, but a pair (X, y) is needed.")
    if device is not None:
        network, X, y = network.to_device(device), B.to_device(X, device, "X"), B.to_device(y, device, "y")
        validation = None if validation is None else tuple(B.to_device(v, device) for v in validation)
    checks.points(network, X=X, y=y)
    if validation is not None:
        checks.points(network, X=validation[0], y=validation[1], names=("validation X", "validation y"))
    require_one_of("method", method, MAXITER)
    require_flags(resume=resume)
    maxiter = MAXITER[method] if maxiter is None else maxiter
    _check_options(
        maxiter=maxiter,
        tol=tol,
        gtol=gtol,
        patience=patience,
        step=step,
        momentum=momentum,
        damping=damping,
        batch_size=batch_size,
        track=track,
        track_every=track_every,
        checkpoint_every=checkpoint_every,
        callback=callback,
    )
    Y = network._to_columns(y)
    advance = _method(
        method,
        network,
        X,
        Y,
        step=step,
        batch_size=batch_size,
        momentum=momentum,
        damping=damping,
        gram=gram,
        seed=seed,
        max_bytes=max_bytes,
    )
    identity = {"method": method, "step": step, "batch_size": batch_size, "momentum": momentum, "damping": damping,
                "gram": gram, "seed": seed, "track": sorted(track), "network": type(network).__name__}  # fmt: skip
    with B.quiet():
        run = _Run(network, X, Y, advance, validation, Tracker(network, X, track, track_every, max_bytes))
        saver = store.Checkpoint(checkpoint, identity, run.fingerprint()) if checkpoint is not None else None
        if not resume:
            run.start()
        elif saver is None:
            raise InvalidArgumentError("resume is True, but checkpoint is None: pass the path to go on from.")
        else:
            run.restore(saver.load(network.W))
        status = run.loop(maxiter, (tol, gtol), patience, callback, saver, checkpoint_every)
        if saver is not None:
            saver.save(run.state())
    return run.result(status)


class _Run:
    """The state of a training run: network, best network, history."""

    def __init__(self, network, X, Y, method, validation, tracker) -> None:
        self.initial = self.network = self.best = network
        self.X, self.Y, self.method, self.validation, self.tracker = X, Y, method, validation, tracker
        self.history: list[TrainRecord] = []
        self.best_nit, self.begun = 0, time.perf_counter()
        self.told = 0  # records that the callback of an earlier run has seen

    def start(self) -> None:
        move = self.method.start(self.network)
        if not math.isfinite(move.loss):
            raise self.network._overflow(self.X)
        if move.loss == 0 and self._misses():
            raise DomainError("the residuals are so small that their squares underflow to a loss of 0: scale y up.")
        self.history.append(self._record(move, 0))

    def _misses(self) -> bool:
        xp = B.namespace(self.Y)
        F = self.network._to_columns(self.network.predict(self.X))
        return bool(B.read(xp.any(F != self.Y))[0])

    def loop(self, maxiter, tols, patience, callback, saver, checkpoint_every) -> TrainStatus:
        while True:
            record = self.history[-1]
            try:
                if callback is not None and len(self.history) > self.told:
                    callback(record)
            except StopIteration:
                return TrainStatus.STOPPED
            status = self._judge(record, maxiter, tols, patience)
            if status is not None:
                return status
            move = self.method.advance(self.network, record.nit, record.loss)
            if move.status is not None:
                return move.status
            self.network = move.network
            self.history.append(self._record(move, record.nit + 1))
            if saver is not None and self.history[-1].nit % checkpoint_every == 0:
                saver.save(self.state())

    def _judge(self, record: TrainRecord, maxiter: int, tols: tuple[float, float], patience: int) -> TrainStatus | None:
        first, (tol, gtol) = self.history[0], tols
        if not record.loss <= BLOW_UP * first.loss:
            return TrainStatus.DIVERGED
        if record.residual <= tol * first.residual:
            return TrainStatus.CONVERGED
        if record.grad_norm <= gtol * first.grad_norm:
            return TrainStatus.STATIONARY if record.loss <= first.loss else TrainStatus.DIVERGED
        if self.validation is not None and record.nit - self.best_nit >= patience:
            return TrainStatus.EARLY_STOPPED
        return TrainStatus.MAXITER if record.nit >= maxiter else None

    def _record(self, move: Move, nit: int) -> TrainRecord:
        validation = NAN
        if self.validation is not None:
            X, y = self.validation
            R = Linearisation(move.network, X).predict() - move.network._to_columns(y)
            validation = float(B.read(0.5 * B.namespace(X).sum(R * R))[0])
        record = TrainRecord(
            nit=nit, loss=move.loss, residual=math.sqrt(2 * move.loss) if move.loss >= 0 else NAN,
            grad_norm=move.grad_norm, validation=validation, step=move.step, damping=move.damping, inner=move.inner,
            **self.tracker.measure(move.network, nit), seconds=time.perf_counter() - self.begun,
        )  # fmt: skip
        if nit == 0 or self._merit(record) < self._merit(self.history[self.best_nit]):
            self.best, self.best_nit = move.network, nit
        return record

    def _merit(self, record: TrainRecord) -> float:
        merit = record.loss if self.validation is None else record.validation
        return math.inf if math.isnan(merit) else merit

    def result(self, status: TrainStatus) -> TrainResult:
        first, last = self.history[0], self.history[-1]
        share = f"{last.residual / first.residual:.3g} of the start" if first.residual else "as at the start"
        message = f"{status.text} (iteration {last.nit}: residual {last.residual:.3g}, {share})"
        if last.damping > 0:
            message += f"; the kernel was regularised by {last.damping:.1e} of its mean diagonal"
        network, nit = self.best, self.best_nit
        if self.method.noisy and self.validation is None and status is not TrainStatus.DIVERGED:
            network, nit = self.network, last.nit
        return TrainResult(network, status.success, status, message, last.nit, nit, tuple(self.history))

    # -- checkpoints

    def fingerprint(self) -> str:
        """Return a hash of the start and the data, which tells whether a checkpoint belongs to them."""
        digest = hashlib.sha256(repr(self.initial.sigma).encode())
        for array in (self.X, self.Y, self.initial.W, self.initial.a, *(self.validation or ())):
            host = B.to_numpy(array)
            digest.update(f"{host.dtype} {host.shape}".encode())
            digest.update(host.tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        return {
            "W": self.network.W,
            "best_W": self.best.W,
            "best_nit": self.best_nit,
            "history": [dataclasses.astuple(record) for record in self.history],
            "method": self.method.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.history = [TrainRecord(int(nit), *rest) for nit, *rest in state["history"]]
        self.network, self.best = (self.initial.with_weights(state[name]) for name in ("W", "best_W"))
        self.best_nit, self.told = state["best_nit"], len(self.history)
        self.begun -= self.history[-1].seconds
        self.method.restore(state["method"])
        self.method.start(self.network)


def _method(method, network, X, Y, *, step, batch_size, momentum, damping, gram, seed, max_bytes) -> Any:
    if method == "gradient-descent":
        if damping or gram != "auto":
            raise InvalidArgumentError("damping and gram belong to method='gram-gauss-newton': leave them out.")
        if batch_size is None:
            return GradientDescent(X, Y, step=step, momentum=momentum, seed=seed)
        return BatchGradientDescent(X, Y, batch_size=batch_size, step=step, momentum=momentum, seed=seed)
    if batch_size is not None or momentum:
        raise InvalidArgumentError("batch_size and momentum belong to method='gradient-descent': leave them out.")
    return GramGaussNewton(network, X, Y, step=step, damping=damping, gram=gram, max_bytes=max_bytes)


def _check_options(
    *, maxiter, tol, gtol, patience, step, momentum, damping, batch_size, track, track_every, checkpoint_every, callback
) -> None:
    require_integers(patience=patience, track_every=track_every, checkpoint_every=checkpoint_every)
    require_integers(0, maxiter=maxiter)
    if batch_size is not None:
        require_integers(batch_size=batch_size)
    require_number("tol", tol, lambda v: v >= 0, "a number >= 0")
    require_number("gtol", gtol, lambda v: v >= 0, "a number >= 0")
    if step is not None:
        require_number("step", step, lambda v: 0 < v < math.inf, "a positive number, or None")
    require_number("momentum", momentum, lambda v: 0 <= v < 1, "a number in [0, 1)")
    require_number("damping", damping, lambda v: 0 <= v < math.inf, "a number >= 0")
    if isinstance(track, str) or not set(track) <= set(TRACKABLE):
        raise InvalidArgumentError(f"track is {track!r}, but a sequence out of {TRACKABLE} is needed.")
    if callback is not None and not callable(callback):
        raise InvalidArgumentError(f"callback is a {type(callback).__name__}, but a function of a record is needed.")
