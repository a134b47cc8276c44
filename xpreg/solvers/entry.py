"""minimize: the one entry function."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

from .. import backend as B
from .. import evaluation
from ..arguments import require_flags, require_integers, require_known, require_number, require_one_of
from ..backend import Array, namespace
from ..errors import InvalidArgumentError
from ..kinks import most_faces
from ..problem import Problem, flatten
from ..result import IterationRecord, Result, Status
from .approximate_newton import ApproximateNewton
from .auto import Auto
from .base import Method
from .checkpoint import RunCheckpoint
from .gradient_descent import GradientDescent
from .loop import Counts, Finished, Loop
from .newton import Newton
from .newton_cg import NewtonCG
from .newton_pcg import NewtonPCG

METHODS: dict[str, type[Method]] = {
    "auto": Auto,
    "newton": Newton,
    "approximate-newton": ApproximateNewton,
    "newton-pcg": NewtonPCG,
    "newton-cg": NewtonCG,
    "gradient-descent": GradientDescent,
}
"""Every method by name."""

WORKING_BYTES = 128 * 2**20
"""A stack is solved in parts whose vectors (n,) and matrices (d, d) fit in this many bytes together."""


def minimize(
    problem: Problem,
    x0: Array | None = None,
    *,
    method: str = "auto",
    device: str | None = None,
    tol: float = 1e-8,
    maxiter: int = 100,
    callback: Callable[[IterationRecord], Any] | None = None,
    certify: bool = False,
    checkpoint: Any = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    **options: Any,
) -> Result:
    """Minimise a problem, or every problem of a stack.

    Parameters
    ----------
    problem : for example a `SoftmaxRegression`
    x0 : (d,) or (..., d) start; default x = 0. Several starts for one b make a stack.
    method : ``"newton"`` (exact Hessian; n d^2 per step), ``"approximate-newton"`` (a sample of the rows by leverage
        scores, as preconditioner or as the papers' Hessian; for n far above d), ``"newton-pcg"`` (Hessian-vector
        products, an earlier Hessian as preconditioner), ``"newton-cg"`` (Hessian-vector products only),
        ``"gradient-descent"`` (a baseline); ``"auto"`` chooses, by what the run shows, and says so in ``message``
    device : ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` moves the problem and x0 there first
    tol : a problem has converged when its largest gradient entry is below tol times the one at x0, the last whole step
        would change no exponent by more than sqrt(tol) (between 1e-3 and 0.1), or the loss is below tol times that of
        no fit at all, and no negative curvature was met
    maxiter : iteration limit (for each part of a large stack)
    callback : called with an `IterationRecord` at the start and after every iteration; raising StopIteration ends the
        run
    certify : True evaluates the theorems' conditions at the solution, `Result.certificate`; about two Newton steps more
    checkpoint : path of a file that keeps the run; replaced atomically
    checkpoint_every : iterations between two saves
    resume : go on from the checkpoint. The result is that of an uninterrupted run, bit for bit on the same machine
        (up to rounding for rows in blocks, and for sparse rows on a GPU); maxiter may differ
    **options : of the method.

        newton-cg, newton-pcg, approximate-newton: ``max_products``, the limit of Hessian-vector products in a step.

        newton-pcg: ``precision="double"``, or ``"single"`` for a preconditioner from float32 arithmetic.

        approximate-newton: ``reading="preconditioner"`` with ``rows_per_column=20``, or ``"papers"`` with ``eps=0.25,
        delta=0.1, diagonal="curvature"`` (or ``"regulariser"``), ``scores="auto"`` (``"exact"``, ``"sketch"``) and
        ``step="newton"`` (``"greedy"``); ``seed=0`` of both.

    Returns
    -------
    Result
        ``success`` is True when every problem reached ``tol``, or the last digit of its dtype, at a point where the
        method found no negative curvature. A run that ends otherwise says so in ``status`` and ``message``;
        it does not raise.

    Raises
    ------
    InvalidArgumentError
        An unknown method or option, a bad tol, maxiter or x0; a checkpoint that is missing, damaged or of another run.
    DomainError
        The loss is not defined at x0.
    NotEnoughMemoryError
        The method needs Hessians that cannot fit.

    Examples
    --------
    >>> import numpy as np, xpreg
    >>> A = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> x = np.array([[0.5, -1.0], [2.0, 1.0]])
    >>> b = np.exp(x @ A.T) / np.exp(x @ A.T).sum(1, keepdims=True)
    >>> result = xpreg.minimize(xpreg.SoftmaxRegression(A, b))
    >>> result.success, result.x.round(6).tolist()
    (True, [[0.5, -1.0], [2.0, 1.0]])
    """
    if not isinstance(problem, Problem):
        raise InvalidArgumentError(f"problem is a {type(problem).__name__}, but an xpreg problem is needed.")
    if callback is not None and not callable(callback):
        raise InvalidArgumentError(f"callback is a {type(callback).__name__}, but a function of a record is needed.")
    solver = _make_method(method, options)
    require_number("tol", tol, lambda v: 0 <= v < math.inf, "a number >= 0")
    require_integers(0, maxiter=maxiter)
    require_integers(checkpoint_every=checkpoint_every)
    require_flags(certify=certify, resume=resume)
    if resume and checkpoint is None:
        raise InvalidArgumentError("resume is True, but checkpoint is None: pass the path to go on from.")
    with B.using(device):
        problem, x0 = problem.to_device(device), B.to_device(x0, device, "x0")
        problem, x = _start(problem, x0)
        keeper = None
        if checkpoint is not None:
            facts = {"method": method, "options": sorted(options.items()), "tol": float(tol)}
            keeper = RunCheckpoint(checkpoint, checkpoint_every, problem, x, facts, maxiter)
        try:
            with B.shared(problem.rows.like):
                result = _minimize(problem, x, solver, float(tol), maxiter, callback, keeper, resume)
        finally:
            problem.rows.release()
        if not certify:
            return result
        certificate = evaluation.certify(problem, result.x, history=result.history, method=solver.working)
        return dataclasses.replace(result, certificate=certificate)


def _start(problem: Problem, x0: Array | None) -> tuple[Problem, Array]:
    """Return the stack of problems and where each begins, (k, d)."""
    if x0 is None:
        return problem, problem.default_start()
    x0 = problem.check_x(x0, "x0")
    shape = problem.stack_shape(x0)
    return problem.stacked(shape), flatten(x0, shape)


def _minimize(
    problem: Problem,
    x: Array,
    solver: Method,
    tol: float,
    maxiter: int,
    callback: Callable[[IterationRecord], Any] | None,
    keeper: RunCheckpoint | None,
    resume: bool,
) -> Result:
    counts = Counts()
    history: list[IterationRecord] = []
    finished: list[Finished] = []
    first, stopped = 0, False
    if keeper is not None and resume:
        first, finished, history = keeper.load()

    def notify(record: IterationRecord) -> None:
        nonlocal stopped
        history.append(record)
        if stopped:
            raise StopIteration
        if keeper is not None:
            keeper.save(loop, finished, history)
        if callback is not None:
            try:
                callback(record)
            except StopIteration:
                stopped = True
                raise

    size = _part_size(problem)
    for start in range(first, problem.size, size):
        stop = min(start + size, problem.size)
        part = problem if size >= problem.size else problem.slice(start, stop)
        loop = Loop(part, x[start:stop, :], solver, tol, counts, (start, stop))
        if keeper is not None:
            keeper.restore(loop, history)
        done = loop.run(maxiter, notify)
        for one in done:
            one.ids += start
        finished += done
    result = _assemble(problem, finished, history, counts, tol, maxiter)
    account = solver.account()
    return dataclasses.replace(result, message=f"{result.message}; {account}") if account else result


def _assemble(
    problem: Problem, finished: list[Finished], history: list[IterationRecord], counts: Counts, tol: float, maxiter: int
) -> Result:
    xp = namespace(finished[0].x)
    place = [int(i) for one in finished for i in one.ids]
    order = sorted(range(len(place)), key=place.__getitem__)

    def host(name: str) -> list[float]:
        values = [v for one in finished for v in getattr(one, name).tolist()]
        return [values[i] for i in order]

    def on_device(name: str) -> Array:
        values = xp.concat([getattr(one, name) for one in finished], axis=0)
        if order != list(range(len(order))):
            values = xp.take(values, B.new(order, values, dtype=xp.int64), axis=0)
        return xp.reshape(values, (*problem.shape, problem.d))

    x, grad = on_device("x"), on_device("grad")
    activation = problem.active_units(xp.reshape(x, (-1, problem.d)))
    fun, gmax, threshold = host("fun"), host("gmax"), host("threshold")
    status = [Status.of(int(s)) for s in host("status")]
    common: dict[str, Any] = {
        "x": x,
        "grad": grad,
        "success": all(s.success for s in status),
        "message": _message(status, gmax, threshold, tol, maxiter),
        "nit": max(record.nit for record in history),
        "nfev": counts.nfev,
        "ngev": counts.ngev,
        "nhev": counts.nhev,
        "history": tuple(history),
        "activation": activation
        if activation is None
        else xp.reshape(activation, (*problem.shape, activation.shape[-1])),
    }
    if not problem.shape:
        return Result(fun=fun[0], status=status[0], converged=status[0].success, **common)

    def shaped(values: list, dtype: Any) -> Array:
        return xp.reshape(B.new(values, x, dtype=dtype), problem.shape)

    return Result(
        fun=shaped(fun, x.dtype),
        status=shaped([int(s) for s in status], xp.int64),
        converged=shaped([s.success for s in status], xp.bool),
        **common,
    )


def _message(status: list[Status], gmax: list[float], threshold: list[float], tol: float, maxiter: int) -> str:
    """Say which criterion fired, with its numbers; for a stack how many problems ended which way, and the worst."""

    def one(i: int) -> str:
        limit = f"; maxiter = {maxiter}" if status[i] is Status.MAXITER else ""
        return (
            f"{status[i].text} (largest gradient entry {gmax[i]:.3g}, tol {tol:.3g} asks for {threshold[i]:.3g}{limit})"
        )

    if len(status) == 1:
        return one(0)
    parts = []
    for kind in sorted(set(status)):
        members = [i for i, s in enumerate(status) if s is kind]
        if members:
            worst = max(members, key=lambda i: gmax[i] / threshold[i] if threshold[i] else math.inf)
            parts.append(
                f"{len(members)} of {len(status)} problems: {one(worst)}, at the worst of them, number {worst}"
            )
    return "; ".join(parts)


def _part_size(problem: Problem) -> int:
    rows = problem.rows
    floats = 14 * rows.n + 5 * problem.d**2 + 10 * problem.d
    if rows.inner is not rows:
        floats += 14 * rows.inner.n
    if rows.has_kinks:
        J = most_faces(rows)
        floats += J * (5 * J + 4 * problem.d)
    return max(1, WORKING_BYTES // (floats * B.itemsize(problem.rows.like)))


def _make_method(method: str, options: dict[str, Any]) -> Method:
    require_one_of("method", method, METHODS)
    known = [name for name in inspect.signature(METHODS[method].__init__).parameters if name != "self"]
    require_known(options, method, known)
    return METHODS[method](**options)
