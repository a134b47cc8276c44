"""Approximate Newton: a sample of the rows by leverage scores in place of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from .. import backend as B
from .. import sampling
from ..backend import Array, namespace
from ..curvature import Curvature, Hessian
from ..errors import InvalidArgumentError
from ..maps import Map
from ..problem import Point, Problem
from ..scaling import REPAIR_SHIFT, whiten
from .base import Direction
from .newton_cg import NewtonCG, Variables

SKETCH_COLUMNS = 16
"""Gaussian columns that estimate the leverage scores of a preconditioner: one read of A, a relative error of 0.35."""

REFRESH = 0.2
"""The preconditioner is drawn anew when this share of the weights D has moved to other rows."""

FLOOR = 0.1
"""Smallest eigenvalue that the low-rank part may leave in a whitened sample; below, it is raised to this."""


class ApproximateNewton(NewtonCG):
    """Newton steps with H~ = A^T D~ A + low rank, D~ a sample of the positive diagonal D_+, the low rank exact.

    There are two readings of it:

    ``reading="preconditioner"``, for use: H~, of about ``rows_per_column`` d rows, preconditions conjugate gradients
    on exact Hessian-vector products. It converges to any tolerance, as `NewtonCG` in better variables; made for
    n far above d, where an exact Hessian (n d^2) costs far more than reading A. The rows are drawn anew only when
    the weights have moved. When the sample would take half of the rows, and for two layers, all are taken.

    ``reading="papers"``, for the theory: D~ = SubSample(D_+, A, eps, delta) is drawn afresh in every step, and the step
    is -H~^-1 g. Near the minimum of an (l, M)-good loss the distance to it then shrinks at least by 2 eps per step
    (where D > 0): linear convergence. With ``diagonal="regulariser"`` only W^2 is sampled and the loss's own
    curvature is left out; the rate is then about max|eig B|/w^2. Backtracking on the true loss keeps every step a
    descent, which covers the papers' greedy variant: a fixed step (1 - eps) l/Lam that never raises the loss.

    A sample errs relative to its diagonal part: where a low-rank part cancels most of that (rescaled losses), the
    second reading is slow. Where D has negative entries, D_+ = max(D, 0) gives a majorant. In the first reading, where
    CG meets negative curvature, the Gauss-Newton matrix takes over, with its own sample, as in the exact method.

    Parameters
    ----------
    reading : ``"preconditioner"`` or ``"papers"``
    rows_per_column : about so many times d rows are kept (first reading)
    eps, delta : the promise of SubSample (second reading)
    diagonal : ``"curvature"`` or ``"regulariser"`` (second reading)
    scores : ``"auto"``, ``"exact"`` or ``"sketch"``, see `xpreg.sampling.subsample` (second reading)
    seed : same seed, same samples on every backend
    max_products : limit of products per step (first reading); default 2 d, at most 1000

    References
    ----------
    arXiv 2304.10411, 2309.13482, 2308.08358 (approximate Newton with SubSample); MATH section 4.
    """

    name: ClassVar[str] = "approximate-newton"
    forcing: ClassVar[float] = 0.1

    def __init__(
        self,
        reading: str = "preconditioner",
        rows_per_column: float = 20,
        eps: float = 0.25,
        delta: float = 0.1,
        diagonal: str = "curvature",
        scores: str = "auto",
        seed: int = 0,
        max_products: int | None = None,
    ):
        super().__init__(max_products)
        for name, value, known in (
            ("reading", reading, ("preconditioner", "papers")),
            ("diagonal", diagonal, ("curvature", "regulariser")),
            ("scores", scores, ("auto", "exact", "sketch")),
        ):
            if value not in known:
                raise InvalidArgumentError(f"{name} is {value!r}, but one of {', '.join(map(repr, known))} is needed.")
        if not isinstance(rows_per_column, int | float) or not rows_per_column >= 1:
            raise InvalidArgumentError(f"rows_per_column is {rows_per_column!r}, but a number >= 1 is needed.")
        for name, number in (("eps", eps), ("delta", delta)):
            if not isinstance(number, int | float) or not 0 < number < 1:
                raise InvalidArgumentError(f"{name} is {number!r}, but a number between 0 and 1 is needed.")
        if not isinstance(seed, int) or seed < 0:
            raise InvalidArgumentError(f"seed is {seed!r}, but an integer >= 0 is needed.")
        self.reading, self.rows_per_column, self.eps, self.delta = reading, rows_per_column, eps, delta
        self.diagonal, self.scores, self.seed = diagonal, scores, seed

    def start(self, problem: Problem) -> None:
        super().start(problem)
        self.draws, self.rows_kept = 0, 0
        if self.reading == "papers" and not isinstance(problem.rows, Map):
            raise InvalidArgumentError(
                f"reading is 'papers', but a {type(problem).__name__} has two layers, whose rows change from step to "
                "step: reading 'preconditioner' takes all of them."
            )
        if self.diagonal == "regulariser":
            smallest = 0.0 if problem.w2 is None else float(namespace(problem.w2).min(problem.w2))
            if not smallest > 0:
                raise InvalidArgumentError(
                    "diagonal is 'regulariser', but weights has a zero entry: that needs a problem with weights > 0."
                )

    def direction(self, point: Point, stationary: Any) -> Direction:
        if self.reading == "papers" and not stationary.any():
            return self._sampled_step(point)
        direction = super().direction(point, stationary)
        direction.label += f", {self.rows_kept} rows"
        return direction

    def _sampled_step(self, point: Point) -> Direction:
        """P = -H~^-1 g, H~ positive definite; known to be convex where D_+ = D and the low rank needed no help."""
        xp = namespace(point.x)
        curvature = point.curvature()
        nothing_cut = xp.all(curvature.D >= 0, axis=-1)
        if self.diagonal == "regulariser":
            curvature = Curvature(point.problem.w2 + xp.zeros_like(curvature.D))
            nothing_cut = xp.zeros_like(nothing_cut)  # the loss's own curvature is not looked at
        D = _positive(curvature.D)
        G, _ = self._gram(point.rows, D, curvature.centre, self._papers_draw)
        T, _ = whiten(G)
        T, positive = _with_low_rank(T, point.hessian(curvature))
        p = -_times(T, _times(T.mT, point.grads))
        return Direction(p, xp.ones_like(positive), positive & nothing_cut, label=f"sampled, {self.rows_kept} rows")

    def variables(self, point: Point, curvature: Curvature, again: bool = False) -> Variables:
        """Whitened by the sample: T^T H~ T = I."""
        D = _positive(curvature.D)
        if again or self._has_moved(D):
            G, y = self._preconditioner_gram(point.rows, D, curvature.centre)
            if curvature.inner is not None:
                G = G + point.rows.inner.gram(_positive(curvature.inner))
            T, ridge = whiten(G, _repair_shift(G) if again else 0.0)
            if not again:
                self.state = {"g0": self.state["g0"]} if "g0" in self.state else {}
                self.state |= {"D": D, "T": T, "ridge": ridge} | ({} if y is None else {"y": y})
        else:
            T, ridge = self.state["T"], self.state["ridge"]
        T, _ = _with_low_rank(T, point.hessian(curvature))
        return Variables(lambda y: _times(T, y), lambda g: _times(T.mT, g), ridge)

    def _has_moved(self, D: Array) -> bool:
        """Whether sum |D - D_old| y > REFRESH sum D_old y: y weighs the rows by what they are worth, large or small."""
        if "y" not in self.state:
            return True
        xp = namespace(D)
        old, y = self.state["D"], self.state["y"]
        moved = xp.sum(xp.abs(D - old) * y, axis=-1) / _nonzero(xp.sum(old * y, axis=-1))
        return bool(xp.max(moved) > REFRESH)

    def sample_size(self, rows: Map) -> int:
        """How many rows a preconditioner keeps, about."""
        return int(self.rows_per_column * rows.d)

    def _draw(self, rows: Map, D: Array, mean: Array | None, rng: Any) -> tuple[sampling.Sample, Array]:
        return sampling.sample_about(rows, D, self.sample_size(rows), mean, SKETCH_COLUMNS, rng)

    def _papers_draw(self, rows: Map, D: Array, mean: Array | None, rng: Any) -> tuple[sampling.Sample, None]:
        sample = sampling.subsample(rows, D, eps=self.eps, delta=self.delta, mean=mean, method=self.scores, seed=rng)
        return sample, None

    def _preconditioner_gram(self, rows: Map, D: Array, centre: Array | None) -> tuple[Array, Array | None]:
        """Return A_c^T D~ A_c (k, d, d) of about rows_per_column * d rows, and y; or of all, and None."""
        if 2 * self.sample_size(rows) >= rows.n or rows.inner is not rows:
            self.rows_kept = rows.n
            return rows.gram(D, centre), None
        G, lengths = self._gram(rows, D, centre, self._draw)
        return G, namespace(D).stack(lengths)

    def _gram(self, rows: Map, D: Array, centre: Array | None, draw: Callable) -> tuple[Array, list]:
        """Return A_c^T D~ A_c (k, d, d), a sample for every problem, and what else ``draw`` found."""
        means = None if centre is None else rows.adjoint(centre)
        grams, others, self.rows_kept = [], [], 0
        for i in range(D.shape[0]):
            mean = None if means is None else means[i, :]
            sample, other = draw(rows, D[i, :], mean, B.generator([self.seed, self.draws]))
            self.draws += 1
            self.rows_kept = max(self.rows_kept, sample.m)
            X = sample.scaled_rows(rows, mean)
            grams.append(B.weighted_gram(X, namespace(X).ones_like(sample.D)))
            others.append(other)
        return namespace(D).stack(grams), others

    def sample_at(self, point: Point) -> tuple[float | None, int, float, float]:
        """Draw the sample of the curvature at a point of one problem and compare it with all rows.

        Returns
        -------
        eps : the promise, or None
        kept : rows
        low, high : the eigenvalues of the sampled A_c^T D~ A_c relative to A_c^T D_+ A_c lie between them
        """
        curvature = point.curvature()
        if self.diagonal == "regulariser":
            curvature = Curvature(point.problem.w2 + namespace(curvature.D).zeros_like(curvature.D))
        D, rows = _positive(curvature.D), point.rows
        mean = None if curvature.centre is None else rows.adjoint(curvature.centre)[0, :]
        draw, promised = (self._papers_draw, self.eps) if self.reading == "papers" else (self._draw, None)
        if promised is None and 2 * self.sample_size(rows) >= rows.n:
            return 0.0, rows.n, 1.0, 1.0
        sample, _ = draw(rows, D[0, :], mean, B.generator([self.seed, 0]))
        low, high = B.read(*sampling.deviation(rows, D[0, :], sample, mean))
        return promised, sample.m, float(low), float(high)


def _repair_shift(G: Array) -> float:
    return REPAIR_SHIFT if G.dtype == namespace(G).float64 else REPAIR_SHIFT**0.5


def _positive(D: Array) -> Array:
    return namespace(D).where(D > 0, D, namespace(D).zeros_like(D))


def _nonzero(x: Array) -> Array:
    return namespace(x).where(x > 0, x, namespace(x).ones_like(x))


def _times(T: Array, y: Array) -> Array:
    return (T @ y[..., None])[..., 0]


def _with_low_rank(T: Array, hessian: Hessian) -> tuple[Array, Array]:
    """Return T with the low-rank part taken in, and whether H~ was positive definite (k,).

    T^T (G + P^T K P) T = I + Q^T K Q, Q = P T (r, d): its eigenvalues 1 + lam off 1 are those of an (r, r) matrix.
    """
    xp = namespace(T)
    P, K = hessian.low_rank, hessian.curvature.K
    if P is None:
        return T, xp.ones_like(T[:, 0, 0]) > 0
    if P.shape[-2] > P.shape[-1]:  # fewer columns than the rank: d = 1
        lam, V = xp.linalg.eigh((P @ T).mT @ (K @ (P @ T)))
    else:
        O, R = xp.linalg.qr((P @ T).mT, mode="reduced")
        lam, V = xp.linalg.eigh(R @ K @ R.mT)
        V = O @ V  # (k, d, r)
    positive = xp.all(1.0 + lam > FLOOR, axis=-1)
    stretch = 1.0 / xp.sqrt(xp.where(1.0 + lam > FLOOR, 1.0 + lam, FLOOR * xp.ones_like(lam))) - 1.0
    return T + (T @ V) * stretch[:, None, :] @ V.mT, positive
