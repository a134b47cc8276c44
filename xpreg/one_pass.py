"""Value and gradient from one read of A, where z = A x and then A^T g_z take two.

A loss that is a sum over rows is evaluated block by block as it is. A normalised one needs alpha first: it is
estimated from some of the rows, the pass is made with that alpha_ref, and its sums are corrected (MATH section 1.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import backend as B
from . import kernels
from .backend import Array, namespace, quiet
from .maps import DenseRows

if TYPE_CHECKING:
    from .problem import Problem

SMALLEST = 4 * 2**20
"""Bytes of A from which on it pays: a smaller A is still in the cache when it is read again."""

CONCENTRATED = 0.5
"""Largest |f|^2 for which the corrected sums are used. Where f sits on one row, c - s cancels there, and the two-pass
form, which knows that row, keeps more digits."""


def value_and_grad(problem: Problem, x: Array) -> tuple[Array, Array] | None:
    """Return the loss () and the gradient (d,) at x (d,); None where two passes are the way.

    Those are stacks, two layers, losses without such sums, an A that stays in the cache or does not come in blocks
    that do (on a GPU, without the fused kernels), and a concentrated f.
    """
    rows, head = problem.rows, problem.head
    if problem.shape or x.ndim != 1 or not isinstance(rows, DenseRows):
        return None
    stream = kernels.row_stream(rows.A) if head.kernel else None
    if stream is None and (B.peek(x) is None or rows.A.nbytes < SMALLEST):
        return None
    if head.separable:
        return _of_separable(problem, x)
    if head.kernel is None:
        return None
    found, _ = kernels.value_and_grad(
        kernels.blockwise_sums if stream is None else stream.normalised_sums,
        rows.A,
        problem.b,
        x,
        activation=head.kernel,
        log_alpha=kernels.estimated_log_alpha(rows.A, x, head.kernel),
        w2=problem.w2,
    )
    if not B.read(found.f2)[0] <= CONCENTRATED:
        return None
    return found.value, found.grad


def _of_separable(problem: Problem, x: Array) -> tuple[Array, Array]:
    rows, b, w2 = problem.rows, problem.b[None, :], problem.w2
    assert isinstance(rows, DenseRows)

    def block(which: slice, X: Array) -> tuple[Array, Array]:
        z = (X @ x)[None, :]
        point = problem.head.at(z, b[:, which])
        value, g = point.value, point.g_z
        if w2 is not None:
            g_w = w2[which] * z
            value, g = value + 0.5 * namespace(z).vecdot(g_w, z), g + g_w
        return value[0], g[0, :] @ X

    with quiet():
        value, grad = rows.sweep(block)
    return value, grad
