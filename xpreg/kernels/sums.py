"""The sums over rows that give value and gradient in one pass over A, and what follows from them.

Array code throughout: `normalised_sums` and `gram_sums` are the reference of the fused kernels, and `finish` is used
with both. The letters are those of MATH section 1.1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable

from .. import backend as B
from ..backend import Array, namespace, quiet
from ..errors import DomainError, InvalidArgumentError

ACTIVATIONS = ("softmax", "resnet")
"""g = exp, and g = exp + identity (ResNet-softmax)."""

FURTHEST = 0.5
"""How far log(alpha/alpha_ref) may be from 0 before the pass is repeated with the alpha that it found.

Measured against extended precision at n = 1e5, relative misfits from 1 down to 1e-8, both activations and dtypes: up to
0.1 the gradient is as exact as from two passes, up to 0.5 it loses a factor of about 4, at 2 about 20, at 8 about 1e4.
"""

VANISHING = 40.0
"""From where on rows with a small share of a far alpha_ref underflow in float32 (smallest normal number e^-87)."""


SAMPLED = (256, 2048)
"""Rows that log alpha is estimated from, a 64th of all within these bounds: for z of standard deviation 1 that errs by
0.03 to 0.08, far below FURTHEST."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """What one pass over the rows leaves: float64 for both dtypes of A.

    Attributes
    ----------
    T : (3, d), or (4, d) with a regulariser: sum v_ref a, sum v_ref c_ref a, sum v_ref f_ref a, sum w^2 z a
    s : (4,) or (5,): sum f_ref, |c_ref|^2, <c_ref, f_ref>, |f_ref|^2, sum w^2 z^2
    largest : () largest entry of z
    shift : () log alpha_ref, in the dtype of A
    z : (n,) or None
    """

    T: Array
    s: Array
    largest: Array
    shift: Array
    z: Array | None = None


@dataclasses.dataclass(frozen=True)
class GramSums:
    """The product y (d,) with A_c^T diag(D) A_c, float64, the sum () of D t, float64, and t = A_c v (n,) or None."""

    y: Array
    total: Array
    t: Array | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Value, gradient and what a Hessian-vector product needs; all in the dtype of A.

    Attributes
    ----------
    value : () L
    grad : (d,)
    log_alpha : () the shift for the next pass
    s, f2 : () <c, f> and |f|^2
    p0, p1 : (d,) A^T v and A^T (v*e), the two columns of A^T U
    spread : () |log(alpha/alpha_ref)|, NaN or inf when the pass overflowed or nothing was left of f_ref
    """

    value: Array
    grad: Array
    log_alpha: Array
    s: Array
    f2: Array
    p0: Array
    p1: Array
    spread: Array


def check_activation(activation: str) -> None:
    """Refuse a name that is not in `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise InvalidArgumentError(f"activation is {activation!r}, but one of {ACTIVATIONS} is needed.")


def normalised_sums(
    A: Array,
    b: Array,
    x: Array,
    *,
    activation: str,
    shift: Array,
    w2: Array | None = None,
    keep_z: bool = False,
) -> Sums:
    """Sum over the rows of A with the normaliser alpha_ref = exp(shift).

        softmax:  f_ref = v_ref = exp(z - shift)
        resnet:   f_ref = exp(z - shift) + z exp(-shift),   v_ref = exp(z - shift) + exp(-shift)
        c_ref = f_ref - b

    Parameters
    ----------
    A : (n, d)
    b : (n,)
    x : (d,)
    activation : ``"softmax"`` or ``"resnet"``
    shift : () log alpha_ref
    w2 : (n,) or () squared weights of the regulariser, or None
    keep_z : also return z = A x

    Examples
    --------
    >>> import numpy as np
    >>> A, b = np.array([[1.0], [0.0]]), np.array([0.5, 0.5])
    >>> sums = normalised_sums(A, b, np.zeros(1), activation="softmax", shift=np.asarray(np.log(2.0)))
    >>> [round(float(s), 12) for s in sums.s]
    [1.0, 0.0, 0.0, 0.5]
    """
    return _sums([[slice(0, A.shape[0])]], A, b, x, activation, shift, w2, keep_z)


def blockwise_sums(
    A: Array, b: Array, x: Array, *, activation: str, shift: Array, w2: Array | None = None, keep_z: bool = False
) -> Sums:
    """Do what `normalised_sums` does, block by block: A is read once, and no temporary has its size."""
    rows = B.sweep_rows(A, A.shape[1] * 8)  # the columns are multiplied in float64
    stripes = [B.blocks(part, rows) for part in B.stripes(A, rows)]
    return _sums(stripes, A, b, x, activation, shift, w2, keep_z)


def _sums(
    stripes: list[list[slice]],
    A: Array,
    b: Array,
    x: Array,
    activation: str,
    shift: Array,
    w2: Array | None,
    keep_z: bool,
) -> Sums:
    check_activation(activation)
    xp = namespace(A)

    def of_one(blocks: list[slice]) -> tuple[Array, Array, Array, Array | None]:
        T, s, largest, z = _sums_over(blocks, A, b, x, activation, shift, w2)
        return T, s, largest, z if keep_z else None

    T, s, largest, z = zip(*B.in_order(of_one, stripes, A), strict=True)
    return Sums(
        functools.reduce(operator.add, T),
        functools.reduce(operator.add, s),
        xp.max(xp.stack(largest)),
        shift,
        xp.concat(z) if keep_z else None,
    )


def _sums_over(
    blocks: list[slice], A: Array, b: Array, x: Array, activation: str, shift: Array, w2: Array | None
) -> tuple[Array, Array, Array, Array]:
    """T, s, the largest z and z itself of the rows in consecutive blocks.

    While one thread computes here, and not in a product, the others wait for it. So a block sees the few operations
    that its columns need, and the sums, which do not need the rows, are taken of all of them at the end.
    """
    xp = namespace(A)
    T = B.zeros((4, A.shape[1]), A, dtype=xp.float64)
    all_z, all_f = [], []

    def weighted(rows: slice, z: Array) -> Array:
        assert w2 is not None
        return xp.astype(w2 if w2.ndim == 0 else w2[rows], xp.float64, copy=False) * z

    with quiet():
        scale = xp.exp(-shift)
        for rows in blocks:
            X = A[rows, :]
            z = B.dot(X, x)
            f = v = B.exp_in_place(z - shift)
            if activation == "resnet":
                f, v = f + z * scale, v + scale
            all_z.append(z)
            all_f.append(f)
            c = f - b[rows]
            if X.dtype != xp.float64:
                X, z, v, c, f = (xp.astype(t, xp.float64, copy=False) for t in (X, z, v, c, f))
            last = c if w2 is None else weighted(rows, z)  # four columns are multiplied faster than three
            T += B.dot(B.stack_rows(v, v * c, v * f, last), X)
        z, f = xp.concat(all_z), xp.concat(all_f)
        rows = slice(blocks[0].start, blocks[-1].stop)
        c = xp.astype(f - b[rows], xp.float64, copy=False)
        f, z64 = (xp.astype(t, xp.float64, copy=False) for t in (f, z))
        s = [xp.sum(f), xp.vecdot(c, c), xp.vecdot(c, f), xp.vecdot(f, f)]
        if w2 is None:
            T = T[:3, :]
        else:
            s.append(xp.vecdot(weighted(rows, z64), z64))
        return T, xp.stack(s), xp.max(z64), z


def estimated_log_alpha(A: Array, x: Array, activation: str) -> Array:
    """Estimate log alpha () at x from rows at equal distances; of ResNet-softmax log n where that fails."""
    xp = namespace(A)
    sampled = max(SAMPLED[0], min(SAMPLED[1], A.shape[0] // 64))
    z = A[:: max(1, A.shape[0] // sampled), :] @ x
    with quiet():
        m = xp.max(z) if activation == "softmax" else xp.maximum(xp.max(z), 0.0 * z[0])
        u = xp.exp(z - m) if activation == "softmax" else xp.exp(z - m) + z * xp.exp(-m)
        total = xp.sum(u) * (A.shape[0] / z.shape[0])
        guess = xp.log(total) + m
        return xp.where(xp.isfinite(guess), guess, xp.full_like(guess, math.log(A.shape[0])))


def gram_sums(A: Array, D: Array, v: Array, *, centre: Array | None = None, keep_t: bool = False) -> GramSums:
    """Return y = A_c^T (D*t) and sum(D*t), with t = A_c v and A_c = A - 1 centre^T.

    Parameters
    ----------
    A : (n, d)
    D : (n,)
    v, centre : (d,); no centre means 0
    keep_t : also return t
    """
    xp = namespace(A)
    A_c = A if centre is None else A - centre
    t = A_c @ v
    q = xp.astype(D, xp.float64, copy=False) * xp.astype(t, xp.float64, copy=False)
    return GramSums(q @ xp.astype(A_c, xp.float64, copy=False), xp.sum(q), t if keep_t else None)


def finish(sums: Sums) -> Evaluation:
    """Value and gradient from the sums: the normaliser is corrected by rho = alpha_ref/alpha.

        rho - 1 = (1 - sum f_ref)/sum f_ref
        L       = 0.5 (|c_ref|^2 + 2 (rho-1) t1 + (rho-1)^2 t2),    s = rho (t1 + (rho-1) t2)
        grad    = rho (T1 + (rho-1) T2) - s rho T0                  t1 = <c_ref, f_ref>,  t2 = |f_ref|^2
        A^T v   = rho T0,    A^T (v*e) = rho (T1 + (rho-1) T2) + rho^2 T2
        with a regulariser, L + 0.5 sum w^2 z^2 and grad + sum w^2 z a

    Returns
    -------
    Evaluation
        ``value`` is NaN where alpha is not positive or the pass overflowed.
    """
    xp = namespace(sums.s)
    total, c2, t1, t2 = (sums.s[i] for i in range(4))
    T0, T1, T2 = (sums.T[i, :] for i in range(3))
    with quiet():
        delta = (1.0 - total) / total
        rho = 1.0 + delta
        t1_rho = t1 + delta * t2
        s = rho * t1_rho
        value = 0.5 * (c2 + delta * (t1 + t1_rho))
        vc = rho * (T1 + delta * T2)
        p0 = rho * T0
        grad = vc - s * p0
        p1 = vc + (rho * rho) * T2
        if sums.s.shape[0] == 5:
            value = value + 0.5 * sums.s[4]
            grad = grad + sums.T[3, :]
        log_total = xp.log(total)
        value = xp.where(total > 0, value, xp.full_like(value, xp.nan))
        log_alpha = log_total + xp.astype(sums.shift, xp.float64)
        spread = xp.abs(log_total)
        results = (value, grad, log_alpha, s, rho * rho * t2, p0, p1, spread)
        return Evaluation(*(xp.astype(r, sums.shift.dtype, copy=False) for r in results))


def value_and_grad(
    one_pass: Callable[..., Sums],
    A: Array,
    b: Array,
    x: Array,
    *,
    activation: str,
    log_alpha: Array | None = None,
    w2: Array | None = None,
    keep_z: bool = False,
) -> tuple[Evaluation, Sums]:
    """Evaluate at x, repeating the pass while its normaliser was too far from the right one.

    One pass, and one read of the host, when ``log_alpha`` is that of a point near x.

    Parameters
    ----------
    one_pass : `normalised_sums`, or `RowStream.normalised_sums`
    log_alpha : () of the last point; None starts from that of x = 0, log n

    Raises
    ------
    DomainError
        alpha is not positive (ResNet-softmax), or z overflows.
    """
    shift = B.new(float(A.shape[0]), A) if log_alpha is None else log_alpha
    if log_alpha is None:
        shift = namespace(A).log(shift)
    for _ in range(4):
        sums = one_pass(A, b, x, activation=activation, shift=shift, w2=w2, keep_z=keep_z)
        evaluation = finish(sums)
        spread, total, largest = (float(q) for q in B.read(evaluation.spread, sums.s[0], sums.largest))
        if spread <= FURTHEST:
            return evaluation, sums
        if total < 0.0:  # of either sign it is alpha/alpha_ref
            break
        # the alpha that was found serves, unless rows overflowed or vanished: then the largest entry of z does
        if spread < VANISHING:
            shift = evaluation.log_alpha
        else:
            shift = B.new(largest if activation == "softmax" else max(largest, 0.0), A)
    raise DomainError(
        f"the loss is not defined at x: the sum of u/alpha_ref is {total:.3g} (it must be positive and finite), "
        f"the largest entry of z = A x is {largest:.3g}."
    )
