"""Fused CUDA kernels, and the one place that decides whether they are used.

The kernels compute what array code computes as well, reading A once instead of twice. They are OFF by default: they
have been compiled for sm_80, sm_90 and sm_100 and executed on the CPU against the array code, but never on a GPU.
They become the default only with a commit that adds the log of a GPU run to ``ci/bench/results/``.

Switch them on with ``XPREG_FUSED=1`` in the environment, or with `use_fused`.
"""

from __future__ import annotations

import functools
import os

from .. import backend as B
from ..backend import Array
from .rowstream import LARGEST_D, RowStream
from .sums import (
    ACTIVATIONS,
    Evaluation,
    GramSums,
    Sums,
    blockwise_sums,
    estimated_log_alpha,
    finish,
    gram_sums,
    normalised_sums,
    value_and_grad,
)

__all__ = [
    "ACTIVATIONS",
    "LARGEST_D",
    "Evaluation",
    "GramSums",
    "RowStream",
    "Sums",
    "blockwise_sums",
    "estimated_log_alpha",
    "finish",
    "fused_is_on",
    "gram_sums",
    "normalised_sums",
    "row_stream",
    "use_fused",
    "value_and_grad",
]

_on = os.environ.get("XPREG_FUSED") == "1"


def use_fused(on: bool) -> None:
    """Switch the fused kernels on or off for the whole process."""
    global _on
    _on = bool(on)


def fused_is_on() -> bool:
    """Return whether the fused kernels are switched on."""
    return _on


def row_stream(A: Array) -> RowStream | None:
    """Return the launcher of the fused kernels where they apply to A (n, d), else None: then array code does it.

    They apply when they are switched on, A is a C-contiguous CuPy matrix, and d <= `LARGEST_D`.

    Examples
    --------
    >>> import numpy as np
    >>> print(row_stream(np.ones((3, 2))))
    None
    """
    if not _on or not B.runs_cuda(A) or A.shape[1] > LARGEST_D or not B.memory(A)[1]:
        return None
    return _shared_stream()


@functools.cache
def _shared_stream() -> RowStream:
    return RowStream(B.cuda_module, B.multiprocessors)
