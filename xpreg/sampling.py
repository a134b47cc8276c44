"""Leverage scores and SubSample: a few weighted rows whose Gram matrix is that of all, up to 1 +- eps.

For a positive diagonal D (n,) the leverage score of a row of sqrt(D) A is

    tau_i = D_i a_i^T (A^T D A)^-1 a_i,    0 <= tau_i <= 1,    sum tau_i = rank A.

With T such that T^T (A^T D A) T = I it is tau_i = D_i |T^T a_i|^2. Everything here works on such a *whitener* T, of the
whole matrix (exact scores) or of a part of it: with the rows S, A_S^T D A_S <= A^T D A, so its T never underestimates
a score, whatever S is. Optionally the rows are centred: a_i - mean in place of a_i.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from . import backend as B
from .arguments import require_number, require_one_of
from .backend import Array, namespace
from .checks import check_rows
from .errors import InvalidArgumentError
from .maps import Map
from .scaling import whiten

BLOCK_BYTES = 8 * 2**20
"""Bytes of rows that are gathered or whitened at a time."""

SKETCH_ROWS = 2**15
"""From this many rows on, "auto" estimates the scores with a sketch."""

PILOT_FACTOR, PILOT_GROWTH = 30, 3.0
"""The sketch begins with this many rows per column; the one drawn from it has, with the promised probability, a Gram
matrix of at most 1 + PILOT_GROWTH times the true one, and the scores are multiplied by that."""


PILOT_ROWS = 4
"""A sample without a promise begins with this many rows per column drawn at random, and as many by D."""


ALONE = 0.25
"""Leverage within the first draw from which on a row counts as one that the others cannot replace."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some rows with weights: A^T D A is about sum_j D[j] a_j a_j^T over j in ``indices``.

    Attributes
    ----------
    indices : (m,) integers, ascending
    D : (m,) weights D_i / p_i
    p : (m,) the probabilities with which the rows were kept
    eps, delta : the promise (1 - eps) A^T D A <= sample <= (1 + eps) A^T D A with probability 1 - delta; None where
        the number of rows was prescribed and nothing is promised
    """

    indices: Array
    D: Array
    p: Array
    eps: float | None = None
    delta: float | None = None

    @property
    def m(self) -> int:
        """How many rows were kept."""
        return self.indices.shape[0]

    def scaled_rows(self, rows: Map, mean: Array | None = None) -> Array:
        """Return sqrt(D_j) a_j (m, d), or with a mean (d,) sqrt(D_j) (a_j - mean)."""
        return _scaled(rows, self.indices, self.D, mean)


def leverage_scores(
    A: Array | Map, D: Array, *, mean: Array | None = None, method: str = "exact", seed: B.Seed = 0
) -> Array:
    """Return the leverage scores tau (n,) of the rows of sqrt(D) A.

    Parameters
    ----------
    A : (n, d)
    D : (n,) weights, none negative
    mean : (d,), taken from every row first; default none is
    method : ``"exact"`` (a blocked QR factorisation, 2 n d^2, then n d^2), or ``"sketch"``: upper bounds of the scores,
        valid for all rows at once with probability 0.9, from a sketch (n d log n)
    seed : of the sketch

    Returns
    -------
    Array
        tau. Directions in which A is smaller than sqrt(machine epsilon) times its columns count as absent.

    Raises
    ------
    InvalidArgumentError
        D has a negative entry or a wrong shape.

    References
    ----------
    Spielman and Srivastava, SIAM J. Comput. 40 (2011); Cohen et al., arXiv 1408.5099 (scores from a part of the rows).

    Examples
    --------
    >>> import numpy as np
    >>> A = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    >>> leverage_scores(A, np.ones(3)).round(6).tolist()
    [0.5, 0.5, 1.0]
    """
    rows = _check(A, D, mean)
    if method == "exact":
        T = whitener(_blocks(rows, D, mean), D)
        return _clip(D * lengths(rows, T, mean))
    if method != "sketch":
        raise InvalidArgumentError(f"method is {method!r}, but 'exact' or 'sketch' is needed.")
    rng = B.generator(seed)
    T, growth = _sketched_whitener(rows, D, mean, 0.05, rng)
    estimate, theta = _upper_lengths(rows, T, mean, 0.05, rng)
    return _clip(growth * theta * D * estimate)


def subsample(
    A: Array | Map,
    D: Array,
    *,
    eps: float = 0.5,
    delta: float = 0.1,
    mean: Array | None = None,
    method: str = "auto",
    seed: B.Seed = 0,
) -> Sample:
    """Keep row i with probability p_i = min(1, 3 log(2d/delta) eps^-2 tau_i) and weight D_i/p_i.

    Then (1 - eps) A^T D A <= sum D_i/p_i a_i a_i^T <= (1 + eps) A^T D A with probability 1 - delta.

    Parameters
    ----------
    A : (n, d)
    D : (n,) weights, none negative
    eps, delta : of the promise, in (0, 1)
    mean : (d,), taken from every row first; default none is
    method : scores ``"exact"``, or from a ``"sketch"``, or ``"auto"``: the sketch when it is cheaper. The sketch keeps
        more rows than needed (its scores are upper bounds), and its failure is part of delta.
    seed : same seed, same sample on every backend

    Returns
    -------
    Sample

    References
    ----------
    arXiv 2304.10411, SubSample; Tropp, Found. Comput. Math. 12 (2012), Theorem 1.1 (the matrix Chernoff bound).

    Examples
    --------
    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((20000, 5))
    >>> sample = subsample(A, np.ones(20000), eps=0.5, delta=0.1)
    >>> X = np.sqrt(sample.D)[:, None] * A[sample.indices]
    >>> sample.m < 600, bool(np.linalg.norm(X.T @ X / 20000 - np.eye(5), 2) < 0.5)
    (True, True)
    """
    rows = _check(A, D, mean)
    for name, value in (("eps", eps), ("delta", delta)):
        require_number(name, value, lambda v: 0 < v < 1, "a number between 0 and 1")
    require_one_of("method", method, ("auto", "exact", "sketch"))
    if method == "auto":
        large = rows.n >= max(SKETCH_ROWS, 8 * PILOT_FACTOR * rows.d)
        method = "sketch" if large else "exact"
    rng = B.generator(seed)
    u = B.random_uniform((rows.n,), rng, D)  # first, so that exact and sketched scores meet the same numbers
    if method == "exact":
        factor = 3.0 * math.log(2 * rows.d / delta) / eps**2
        T = whitener(_blocks(rows, D, mean), D)
        return _thin(D, _clip(factor * D * lengths(rows, T, mean)), u, eps, delta)
    factor = 3.0 * math.log(4 * rows.d / delta) / eps**2
    T, growth = _sketched_whitener(rows, D, mean, delta / 4, rng)
    return _draw(rows, D, mean, T, growth * factor, u, delta / 4, rng, eps, delta)


def sample_about(rows: Map, D: Array, m: int, mean: Array | None, columns: int, rng: Any) -> tuple[Sample, Array]:
    """Keep about ``m`` rows by estimated scores: cheap, unbiased, and without a promise. For preconditioners.

    Two draws: rows by D and at random, whose whitener T gives the scores; then rows by these scores. A row of the
    first draw that the others of it cannot replace has hidden its own score, behind a weight D_i/p_i far above D_i:
    its leverage among them is taken instead.

    Returns
    -------
    Sample
    y : (n,) estimates of |T^T (a_i - mean)|^2: the scores are about D*y
    """
    xp = namespace(D)
    total = xp.sum(D)
    share = D / B.safe_divisor(total)
    p, u = _clip(PILOT_ROWS * rows.d * (1.0 / rows.n + share)), B.random_uniform((rows.n,), rng, D)
    X = _thin(D, p, u).scaled_rows(rows, mean)
    # a Gram matrix is accurate enough here, and cheaper than a QR
    T = whiten((X.mT @ X)[None, ...], rows.inner.column_squares)[0][0, ...]
    y = estimated_lengths(rows, T, mean, columns, rng)
    scores = D * y
    p = xp.where((u < p) & (scores > ALONE * p), scores / p, scores)
    p = p * (m / B.safe_divisor(xp.sum(p)))
    for _ in range(8):  # rows with p = 1 leave room for others
        p = p * (m / B.safe_divisor(xp.sum(_clip(p))))
    return _thin(D, _clip(p), B.random_uniform((rows.n,), rng, D)), y


def deviation(rows: Map, D: Array, sample: Sample, mean: Array | None = None) -> tuple[Array, Array]:
    """Return the smallest and the largest eigenvalue (), () of T^T H~ T, T^T (A^T D A) T = I: 1 and 1 if exact.

    Directions that A lacks are left out. Costs a factorisation of all rows.
    """
    xp = namespace(D)
    T = whitener(_blocks(rows, D, mean), D)
    X = sample.scaled_rows(rows, mean) @ T
    full = B.zeros((rows.d, rows.d), D)
    for Y in _blocks(rows, D, mean):
        full = full + (Y @ T).mT @ (Y @ T)
    # the eigenvalues of ``full`` are 1, or 0 in absent directions: those get 1 in both
    error = xp.linalg.eigvalsh(0.5 * ((X.mT @ X - full) + (X.mT @ X - full).mT))
    return 1.0 + error[0], 1.0 + error[-1]


# ---------------------------------------------------------------------------------------------
# whiteners and lengths


def whitener(parts: Iterable[Array], like: Array) -> Array:
    """Return T (d, d) with T^T X^T X T = I for the rows X that ``parts`` yields in blocks (m, d).

    From the R of a QR factorisation, so that a condition number of 1e6 costs 6 digits and not 12. Rows of the size
    sqrt(eps) are added for every column: an absent direction gets a large but finite T.
    """
    xp = namespace(like)
    eps = B.eps(like)
    R: Array = None
    for X in parts:
        stack = X if R is None else xp.concat([R, X], axis=0)
        R = stack if stack.shape[0] < stack.shape[1] else B.qr_factor(stack)
    norms = xp.linalg.vector_norm(R, axis=0)
    largest = xp.max(norms)
    absent = norms <= 64.0 * eps * largest  # a constant column, centred, is rounding
    norms = xp.where(absent, B.safe_divisor(largest), norms)
    R = B.qr_factor(xp.concat([R, B.eye(norms.shape[0], like) * (eps**0.5 * norms)], axis=0))
    return xp.linalg.inv(R)


def lengths(rows: Map, T: Array, mean: Array | None, which: Array | None = None) -> Array:
    """Return |T^T (a_i - mean)|^2 for all rows, or for those with the indices ``which``, block by block."""
    xp = namespace(T)
    parts = [B.zeros((0,), T)]
    for block in _slices(rows, None if which is None else which.shape[0]):
        X = rows.take_rows(block if which is None else which[block])
        Y = (X if mean is None else X - mean) @ T
        parts.append(xp.sum(Y * Y, axis=1))
    return xp.concat(parts)


def estimated_lengths(rows: Map, T: Array, mean: Array | None, columns: int, rng: Any) -> Array:
    """Estimate |T^T (a_i - mean)|^2 (n,) as |G^T T^T (a_i - mean)|^2 / columns with Gaussian G: one read of A."""
    xp = namespace(T)
    if columns >= T.shape[1]:
        return lengths(rows, T, mean)
    TG = T @ B.random_normal((T.shape[1], columns), rng, T)
    offset = None if mean is None else mean @ TG
    multiply, parts = rows.times(TG), []
    for block in _slices(rows):
        Y = multiply(block)
        Y = Y if offset is None else Y - offset
        parts.append(xp.sum(Y * Y, axis=1))
    return xp.concat(parts) / columns


def _upper_lengths(rows: Map, T: Array, mean: Array | None, failure: float, rng: Any) -> tuple[Array, float]:
    """Return estimates (n,) and theta: all the lengths are at most theta times their estimates, except with
    probability ``failure``. P(chi^2_k/k <= 1/theta) <= (x e^(1-x))^(k/2), x = 1/theta (Chernoff), k Gaussian columns.
    """
    columns = 4 * math.ceil(math.log(rows.n / failure))
    if columns >= rows.d:
        return lengths(rows, T, mean), 1.0
    return estimated_lengths(rows, T, mean, columns, rng), _oversampling(columns, failure / rows.n)


def _oversampling(columns: int, failure: float) -> float:
    low, high = 1e-300, 1.0
    for _ in range(200):
        x = math.sqrt(low * high)
        bound = 0.5 * columns * (math.log(x) + 1.0 - x)
        low, high = (x, high) if bound < math.log(failure) else (low, x)
    return 1.0 / low


def _sketched_whitener(rows: Map, D: Array, mean: Array | None, failure: float, rng: Any) -> tuple[Array, float]:
    """Return T of a sketch and the factor that makes D_i |T^T a_i|^2 an upper bound of tau_i.

    A uniform part of the rows never underestimates a score. From these a second part is drawn, with weights; by the
    matrix Chernoff bound its Gram matrix is at most 1 + t times the true one, except with probability
    d (e^t/(1+t)^(1+t))^c, where c is the factor in p_i = min(1, c tau_i).
    """
    xp = namespace(D)
    p = min(1.0, PILOT_FACTOR * rows.d / rows.n)
    first = _thin(D, p * xp.ones_like(D), B.random_uniform((rows.n,), rng, D))
    part = dataclasses.replace(first, D=xp.take(D, first.indices))  # without 1/p: a part of the whole
    if part.m == 0:
        return whitener(_blocks(rows, D, mean), D), 1.0
    T = whitener([part.scaled_rows(rows, mean)], D)
    t = PILOT_GROWTH
    c = math.log(2 * rows.d / failure) / ((1 + t) * math.log(1 + t) - t)
    u = B.random_uniform((rows.n,), rng, D)
    second = _draw(rows, D, mean, T, c, u, failure / 2, rng)
    return whitener([second.scaled_rows(rows, mean)], D), 1.0 + t


def _draw(
    rows: Map,
    D: Array,
    mean: Array | None,
    T: Array,
    factor: float,
    u: Array,
    failure: float,
    rng: Any,
    eps: float | None = None,
    delta: float | None = None,
) -> Sample:
    """Keep the rows with u_i < p_i = min(1, factor D_i |T^T a_i|^2), without computing every length.

    Estimates times an oversampling factor single out candidates, exact lengths decide among them: the sample is the
    one that exact lengths would give, unless an estimate was too small by that factor for one of its rows.
    """
    xp = namespace(D)
    estimate, theta = _upper_lengths(rows, T, mean, failure, rng)
    candidates = xp.nonzero((u < _clip(factor * theta * D * estimate)) & (D > 0))[0]
    weights = xp.take(D, candidates)
    p = _clip(factor * weights * lengths(rows, T, mean, candidates))
    kept = xp.nonzero(xp.take(u, candidates) < p)[0]
    p = xp.take(p, kept)
    return Sample(xp.take(candidates, kept), xp.take(weights, kept) / p, p, eps, delta)


def _thin(D: Array, p: Array, u: Array, eps: float | None = None, delta: float | None = None) -> Sample:
    """Keep the rows with u_i < p_i and weight D_i/p_i."""
    xp = namespace(D)
    kept = xp.nonzero((u < p) & (D > 0))[0]
    p = xp.take(p, kept)
    return Sample(kept, xp.take(D, kept) / p, p, eps, delta)


# ---------------------------------------------------------------------------------------------
# rows


def _slices(rows: Map, n: int | None = None) -> Iterator[slice]:
    n = rows.n if n is None else n
    step = max(4 * rows.d, B.block_bytes(rows.like, BLOCK_BYTES) // (rows.d * B.itemsize(rows.like)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _scaled(rows: Map, which: Any, D: Array, mean: Array | None) -> Array:
    X = rows.take_rows(which)
    return (X if mean is None else X - mean) * namespace(D).sqrt(D)[:, None]


def _blocks(rows: Map, D: Array, mean: Array | None) -> Iterator[Array]:
    """Yield sqrt(D_i) (a_i - mean), block by block."""
    for block in _slices(rows):
        yield _scaled(rows, block, D[block], mean)


def _clip(p: Array) -> Array:
    return namespace(p).where(p < 1.0, p, namespace(p).ones_like(p))


def _check(A: Array | Map, D: Array, mean: Array | None) -> Map:
    rows = A if isinstance(A, Map) else check_rows(A)
    if not rows.hands_out_rows:
        raise rows.no_rows()
    B.common_namespace(A=rows.like, D=D, mean=mean)
    if mean is not None and tuple(mean.shape) != (rows.d,):
        raise InvalidArgumentError(f"mean has shape {tuple(mean.shape)}, but A has {rows.d} columns: ({rows.d},).")
    if tuple(D.shape) != (rows.n,):
        raise InvalidArgumentError(f"D has shape {tuple(D.shape)}, but A has {rows.n} rows: D must be ({rows.n},).")
    lowest = float(namespace(D).min(D))
    if not lowest >= 0:
        raise InvalidArgumentError(
            f"D has an entry {lowest:.3g}, but only weights >= 0 can be sampled: use the positive part of the "
            "curvature, its Gauss-Newton part, or the regulariser's w^2."
        )
    return rows
