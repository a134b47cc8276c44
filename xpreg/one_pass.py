"""Value and gradient from one read of A, where z = A x and then A^T g_z take two.

A loss that is a sum over rows is evaluated block by block as it is. A normalised one needs alpha first: it is
estimated from some of the rows, the pass is made with that alpha_ref, and its sums are corrected (MATH section 1.1).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from . import backend as B
from . import kernels
from .backend import Array, namespace, quiet
from .blocked.program import beside
from .heads import Head
from .maps import BlockRows, DenseRows

if TYPE_CHECKING:
    from .problem import Problem

SMALLEST = 32 * 2**20
"""Bytes of A from which on it pays: a smaller A is still in the cache when it is read again."""

CONCENTRATED = 0.5
"""Largest |f|^2 for which the corrected sums are used. Where f sits on one row, c - s cancels there, and the two-pass
form, which knows that row, keeps more digits."""


def value_and_grad(problem: Problem, x: Array) -> tuple[Array, Array] | None:
    """Return the loss () and the gradient (d,) at x (d,); None where two passes are the way.

    Those are stacks, two layers, losses without such sums, an A in memory that stays in the cache or whose rows are so
    wide that two reads are faster (on a GPU, without the fused kernels), and a concentrated f.
    """
    rows, head = problem.rows, problem.head
    if problem.shape or x.ndim != 1:
        return None
    if isinstance(rows, BlockRows):
        return _of_blocks(problem, rows, x)
    if not isinstance(rows, DenseRows):
        return None
    stream = kernels.row_stream(rows.A) if head.kernel else None
    if stream is None and (B.peek(x) is None or rows.A.nbytes < SMALLEST):
        return None
    if head.separable:
        return _of_separable(problem, x)
    if head.kernel is None or (stream is None and not B.one_pass_pays(rows.A)):
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
    return _unless_concentrated(found)


def _unless_concentrated(found: kernels.Evaluation) -> tuple[Array, Array] | None:
    return (found.value, found.grad) if B.read(found.f2)[0] <= CONCENTRATED else None


def _of_separable(problem: Problem, x: Array) -> tuple[Array, Array]:
    assert isinstance(problem.rows, DenseRows)
    return _separable_sums(problem.head, problem.rows, x, problem.b, problem.w2)


def _separable_sums(head: Head, rows: DenseRows, x: Array, b: Array, w2: Array | None) -> tuple[Array, Array]:
    """Value () and gradient (d,) of a loss that is a sum over rows."""

    def block(which: slice, X: Array) -> tuple[Array, Array]:
        z = B.dot(X, x)[None, :]
        point = head.at(z, b[None, which])
        value, g = point.value, point.g_z
        if w2 is not None:
            g_w = w2[which] * z
            value, g = value + 0.5 * B.row_dot(g_w, z), g + g_w
        return value[0], B.dot(g[0, :], X)

    with quiet():
        value, grad = rows.sweep(block)
    return value, grad


# -- rows in blocks: the same sums, of each block -----------------------------------------------------


def _of_blocks(problem: Problem, rows: BlockRows, x: Array) -> tuple[Array, Array] | None:
    head, store = problem.head, rows.store
    vectors = [problem.b] if problem.w2 is None else [problem.b, problem.w2]
    if head.separable:
        return store.reduce(_add_sums, _SeparableBlock(head, x), *vectors, with_rows=True)
    if head.kernel is None:
        return None

    def one_pass(A: Array, b: Array, x: Array, *, activation: str, shift: Array, **unused: Any) -> kernels.Sums:
        kernel = _NormalisedBlock(x, activation, shift)
        T, s, largest = store.reduce(_add_sums, kernel, *vectors, with_rows=True)
        return kernels.Sums(T, s, largest, shift)

    log_alpha = store.glance(_LogAlpha(x, head.kernel, rows.n))
    found, _ = kernels.value_and_grad(one_pass, rows.like, problem.b, x, activation=head.kernel, log_alpha=log_alpha)
    return _unless_concentrated(found)


def _add_sums(a: tuple, b: tuple) -> tuple:
    """Add up the sums of two parts, and take the larger of their largest entries."""
    return *(p + q for p, q in zip(a[:2], b[:2], strict=True)), *map(namespace(a[0]).maximum, a[2:], b[2:])


@dataclasses.dataclass(frozen=True)
class _SeparableBlock:
    head: Head
    x: Array

    def __call__(self, start: int, A: Array, b: Array, w2: Array | None = None) -> tuple[Array, Array]:
        return _separable_sums(self.head, DenseRows(A), beside(self.x, A), b, w2)


@dataclasses.dataclass(frozen=True)
class _NormalisedBlock:
    x: Array
    activation: str
    shift: Array

    def __call__(self, start: int, A: Array, b: Array, w2: Array | None = None) -> tuple[Array, Array, Array]:
        x, shift = beside(self.x, A), beside(self.shift, A)
        sums = kernels.blockwise_sums(A, b, x, activation=self.activation, shift=shift, w2=w2)
        return sums.T, sums.s, sums.largest


@dataclasses.dataclass(frozen=True)
class _LogAlpha:
    """The log alpha of n rows of which one block is seen."""

    x: Array
    activation: str
    n: int

    def __call__(self, start: int, A: Array) -> Array:
        guess = kernels.estimated_log_alpha(A, beside(self.x, A), self.activation)
        return guess + math.log(self.n / A.shape[0])
