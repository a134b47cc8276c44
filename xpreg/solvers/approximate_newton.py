"""Approximate Newton: a sample of the rows by leverage scores in place of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from .. import backend as B
from .. import sampling
from ..arguments import require_integers, require_number, require_one_of
from ..backend import Array, namespace
from ..curvature import Curvature
from ..errors import InvalidArgumentError
from ..kinks import product
from ..maps import Map
from ..maps.two_layer import Cell
from ..problem import Point, Problem
from ..scaling import whiten
from .base import Direction
from .kinked import minimum_with_kinks, on_kinks
from .newton_cg import NewtonCG, Variables
from .whitening import Diagonal, positive_diagonals, repair_shift, whitened, with_low_rank

SKETCH_COLUMNS = 16
"""Gaussian columns that estimate the leverage scores of a preconditioner: one read of A, a relative error of 0.35."""

REFRESH = 0.2
"""The preconditioner is drawn anew when this share of the weights D has moved to other rows."""


class ApproximateNewton(NewtonCG):
    """Newton steps with H~ = A^T D~ A + low rank, D~ a sample of the positive diagonal D_+, the low rank exact.

    For two layers H~ = N^T D~ N + A1^T E~ A1 in the cell of the point: rows of N = A2 S A1 for the loss, and rows of
    A1 for the regulariser W^2 (and the bend of a smoothed relu), two samples.

    There are two readings of it:

    ``reading="preconditioner"``, for use: H~, of about ``rows_per_column`` d rows, preconditions conjugate gradients
    on exact Hessian-vector products. It converges to any tolerance, as `NewtonCG` in better variables; made for
    n far above d, where an exact Hessian (n d^2) costs far more than reading A. The rows are drawn anew only when
    the weights have moved, or a unit of two layers has switched. When the sample would take half of the rows, all are
    taken.

    ``reading="papers"``, for the theory: D~ = SubSample(D_+, A, eps, delta) is drawn afresh in every step, and the step
    is -H~^-1 g. Near the minimum of an (l, M)-good loss the distance to it then shrinks at least by 2 eps per step
    (where D > 0): linear convergence. With ``diagonal="regulariser"`` only W^2 is sampled and the loss's own
    curvature is left out; the rate is then about max|eig B|/w^2. Backtracking on the true loss keeps every step a
    descent.

    ``step="greedy"``, with the second reading, is the papers' variant that needs no Lipschitz constant of the Hessian:
    the first step tried is (1 - eps) l/Lam of -H~^-1 g, l and Lam the extreme eigenvalues of H~ in variables in which
    H~^-1 has a unit diagonal. Where the Hessian H stays below Lam/(1 - eps) along the step and no convex kink is
    crossed, the loss falls, from any start: L+ <= L - t/2 <g, H~^-1 g>, and where H is bounded from below as well, at
    the linear rate of `xpreg.theory.greedy_contraction`. For the study of that theorem: far slower than ``"newton"``,
    which tries the whole step and is as safe, for backtracking covers both.

    Parameters
    ----------
    reading : ``"preconditioner"`` or ``"papers"``
    rows_per_column : about so many times d rows are kept (first reading); default 20
    eps, delta : the promise of SubSample (second reading); default 0.25 and 0.1
    diagonal : ``"curvature"``, the default, or ``"regulariser"`` (second reading)
    scores : ``"auto"``, the default, ``"exact"`` or ``"sketch"``, see `xpreg.sampling.subsample` (second reading)
    step : ``"newton"``, the default, or ``"greedy"`` (second reading)
    seed : same seed, same samples on every backend
    max_products : limit of products per step (first reading); default 2 d, at most 1000

    References
    ----------
    arXiv 2304.10411, 2309.13482, 2308.08358 (approximate Newton with SubSample); MATH section 4.
    """

    name: ClassVar[str] = "approximate-newton"
    counters: ClassVar[tuple[str, ...]] = ("draws", "kept")
    forcing: ClassVar[float] = 0.1

    def __init__(
        self,
        reading: str = "preconditioner",
        rows_per_column: float | None = None,
        eps: float | None = None,
        delta: float | None = None,
        diagonal: str | None = None,
        scores: str | None = None,
        step: str | None = None,
        seed: int = 0,
        max_products: int | None = None,
    ):
        super().__init__(max_products)
        require_one_of("reading", reading, ("preconditioner", "papers"))
        first = {"rows_per_column": rows_per_column, "max_products": max_products}
        second = {"eps": eps, "delta": delta, "diagonal": diagonal, "scores": scores, "step": step}
        for name, value in (first if reading == "papers" else second).items():
            if value is not None:
                other = "preconditioner" if reading == "papers" else "papers"
                raise InvalidArgumentError(f"{name} is {value!r}, but that is an option of reading={other!r}.")
        self.reading, self.seed = reading, seed
        self.rows_per_column = 20 if rows_per_column is None else rows_per_column
        self.eps, self.delta = 0.25 if eps is None else eps, 0.1 if delta is None else delta
        self.diagonal, self.scores, self.step = diagonal or "curvature", scores or "auto", step or "newton"
        require_one_of("diagonal", self.diagonal, ("curvature", "regulariser"))
        require_one_of("scores", self.scores, ("auto", "exact", "sketch"))
        require_one_of("step", self.step, ("newton", "greedy"))
        require_number("rows_per_column", self.rows_per_column, lambda v: 1 <= v < math.inf, "a number >= 1")
        require_number("eps", self.eps, lambda v: 0 < v < 1, "a number between 0 and 1")
        require_number("delta", self.delta, lambda v: 0 < v < 1, "a number between 0 and 1")
        require_integers(0, seed=seed)

    def start(self, problem: Problem) -> None:
        super().start(problem)
        self.draws, self.kept = 0, [0]
        if not problem.rows.inner.hands_out_rows:
            raise problem.rows.inner.no_rows()
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
        direction.label += f", {self.rows_kept}"
        return direction

    @property
    def rows_kept(self) -> str:
        """How many rows the last samples kept, for the record: of N and of A1 where there are two layers."""
        return " + ".join(map(str, self.kept)) + " rows"

    def _sampled(self, point: Point, curvature: Curvature) -> list[Diagonal]:
        """Return what the papers' reading samples."""
        if self.diagonal == "regulariser":
            return [(point.rows.inner, point.problem.w2 + 0.0 * point.y, None)]
        return positive_diagonals(point, curvature)

    def _sampled_step(self, point: Point) -> Direction:
        """P = -H~^-1 g, H~ positive definite; known to be convex where D_+ = D and the low rank needed no help."""
        xp = namespace(point.x)
        curvature = point.curvature()
        diagonals = self._sampled(point, curvature)
        nothing_cut = B.row_all(curvature.D >= 0)
        if curvature.inner is not None:
            nothing_cut = nothing_cut & B.row_all(curvature.inner >= 0)
        if self.diagonal == "regulariser":  # the loss's own curvature is not looked at
            curvature, nothing_cut = Curvature(curvature.D), xp.zeros_like(nothing_cut)
        self.kept = []
        G = on_kinks(point, sum(self._gram(*diagonal, self._papers_draw(len(diagonals)))[0] for diagonal in diagonals))
        T, ridge = whiten(G, point.problem.rows.inner.column_squares)
        T, positive = with_low_rank(T, point.hessian(curvature))
        p, slope = -product(T, product(T.mT, point.step_grads)), None
        if point.problem.rows.has_kinks:  # softmax heads: no low rank
            p, slope = minimum_with_kinks(point, G + ridge[:, None, :] * B.eye(G.shape[-1], G), p, positive)
        first = (1.0 - self.eps) * _spread(T) if self.step == "greedy" else None
        label = f"sampled, {self.rows_kept}"
        return Direction(p, xp.ones_like(positive), positive & nothing_cut, slope=slope, first=first, label=label)

    def variables(self, point: Point, curvature: Curvature, again: bool = False) -> Variables:
        """Whitened by the sample: T^T H~ T = I."""
        diagonals = positive_diagonals(point, curvature)
        if again or self._has_moved(diagonals, point.rows):
            G, watched = self._preconditioner_gram(diagonals, point.rows)
            squares = point.problem.rows.inner.column_squares
            T, ridge = whiten(G, squares, repair_shift(G) if again else 0.0)
            if not again:
                self.state = {"g0": self.state["g0"]} if "g0" in self.state else {}
                self.state |= watched | {"T": T, "ridge": ridge}
        else:
            T, ridge = self.state["T"], self.state["ridge"]
        T, _ = with_low_rank(T, point.hessian(curvature))
        return whitened(T, ridge)

    def _has_moved(self, diagonals: list[Diagonal], rows: Map) -> bool:
        """Whether sum |D - D_old| y > REFRESH sum D_old y: y weighs the rows by what they are worth, large or small.

        In a cell also whether a unit has switched, |S_i - S_old,i| > REFRESH: directions that the old N did not have
        are as good as absent from T.
        """
        xp = namespace(rows.like)
        sampled = [(D, f"D{j}", f"y{j}") for j, (_, D, _) in enumerate(diagonals) if f"D{j}" in self.state]
        shares = [xp.max(xp.abs(S - self.state[name])) for name, S in _pattern(rows).items() if sampled]
        for D, name, weight in sampled:
            old, y = self.state[name], self.state[weight]
            shares.append(xp.max(B.row_dot(xp.abs(D - old), y) / B.safe_divisor(B.row_dot(old, y))))
        return not sampled or bool(xp.max(xp.stack(shares)) > REFRESH)

    def sample_size(self, rows: Map) -> int:
        """How many rows a preconditioner keeps, about."""
        return int(self.rows_per_column * rows.d)

    def _draw(self, rows: Map, D: Array, mean: Array | None, rng: Any) -> tuple[sampling.Sample, Array]:
        return sampling.sample_about(rows, D, self.sample_size(rows), mean, SKETCH_COLUMNS, rng)

    def _papers_draw(self, parts: int) -> Callable:
        """SubSample, one of so many that are added up: each may fail with probability delta/parts."""

        def draw(rows: Map, D: Array, mean: Array | None, rng: Any) -> tuple[sampling.Sample, None]:
            eps, delta = self.eps, self.delta / parts
            return sampling.subsample(rows, D, eps=eps, delta=delta, mean=mean, method=self.scores, seed=rng), None

        return draw

    def _preconditioner_gram(self, diagonals: list[Diagonal], rows: Map) -> tuple[Array, dict[str, Array]]:
        """Return the sum of A_c^T D~ A_c (k, d, d), of about rows_per_column * d rows each or of all, and what to
        watch: D and y of those that were sampled.
        """
        total, watched = 0.0, dict[str, Array]()
        self.kept = []
        for j, (map_, D, centre) in enumerate(diagonals):
            if 2 * self.sample_size(map_) >= map_.n:
                self.kept.append(map_.n)
                total = total + map_.gram(D, centre)
                continue
            G, lengths = self._gram(map_, D, centre, self._draw)
            total = total + G
            watched |= {f"D{j}": D, f"y{j}": namespace(D).stack(lengths)}
        return total, watched | _pattern(rows) if watched else {}

    def _gram(self, rows: Map, D: Array, centre: Array | None, draw: Callable) -> tuple[Array, list]:
        """Return A_c^T D~ A_c (k, d, d), a sample for every problem, and what else ``draw`` found."""
        means = None if centre is None else rows.adjoint(centre)
        grams, others, kept = [], [], 0
        for i in range(D.shape[0]):
            mean, one = None if means is None else means[i, :], rows.one(i)
            sample, other = draw(one, D[i, :], mean, B.generator([self.seed, self.draws]))
            self.draws += 1
            kept = max(kept, sample.m)
            X = sample.scaled_rows(one, mean)
            grams.append(B.weighted_gram(X, namespace(X).ones_like(sample.D)))
            others.append(other)
        self.kept.append(kept)
        return namespace(D).stack(grams), others

    def sample_at(self, point: Point) -> tuple[float | None, int, float, float]:
        """Draw the sample of the curvature at a point of one problem and compare it with all rows.

        Returns
        -------
        eps : the promise, or None
        kept : rows
        low, high : the eigenvalues of the sampled A_c^T D~ A_c relative to A_c^T D_+ A_c lie between them; for two
            layers those of both samples, and so of their sum
        """
        papers = self.reading == "papers"
        diagonals = (self._sampled if papers else positive_diagonals)(point, point.curvature())
        draw = self._papers_draw(len(diagonals)) if papers else self._draw
        kept, bounds = 0, [1.0]
        for j, (rows, D, centre) in enumerate(diagonals):
            if not papers and 2 * self.sample_size(rows) >= rows.n:
                kept += rows.n
                continue
            mean = None if centre is None else rows.adjoint(centre)[0, :]
            sample, _ = draw(rows, D[0, :], mean, B.generator([self.seed, j]))
            kept += sample.m
            bounds += [float(v) for v in B.read(*sampling.deviation(rows, D[0, :], sample, mean))]
        promised = self.eps if papers else None if len(bounds) > 1 else 0.0
        return promised, kept, min(bounds), max(bounds)


def _pattern(rows: Map) -> dict[str, Array]:
    """Return the S of a cell, to be watched: rows of N change with it."""
    return {"S": rows.S} if isinstance(rows, Cell) else {}


def _spread(T: Array) -> Array:
    """Return l/Lam (k,) of H~, T^T H~ T = I, in variables in which H~^-1 = T T^T has a unit diagonal."""
    xp = namespace(T)
    sigma = xp.linalg.svdvals(T / xp.linalg.vector_norm(T, axis=-1, keepdims=True))
    return (sigma[:, -1] / sigma[:, 0]) ** 2
