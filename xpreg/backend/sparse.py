"""Compressed sparse rows: SciPy's on the CPU, cupyx's on a GPU. Neither is imported before a user brings a matrix.

A matrix here is a `scipy.sparse.csr_array` or a `cupyx.scipy.sparse.csr_matrix` whose rows are sorted and without
duplicates. Both know ``A @ X``, ``A.T @ V``, ``A[rows]``, ``.toarray()`` and ``.data``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InvalidArgumentError
from .arrays import Array, is_numpy, namespace, to_device

SPARSE_GRAM = 0.05
"""Share of entries up to which A^T D A is cheaper as a product of sparse matrices than from dense blocks of rows. On
one core of a CPU the two cost the same at 0.06 to 0.1, for d from 50 to 4,000; on a GPU it was not measured."""


def is_sparse(x: Any) -> bool:
    """Return True for a sparse matrix or array of SciPy or cupyx, of any format."""
    return type(x).__module__.startswith(("scipy.sparse", "cupyx.scipy.sparse"))


def csr(x: Any, name: str) -> Any:
    """Return x as canonical CSR: sorted, without duplicates. It shares the memory of x where x is so already.

    Raises
    ------
    InvalidArgumentError
        x has another format than CSR, or no real floating dtype.
    """
    if x.format != "csr" or len(x.shape) != 2:
        raise InvalidArgumentError(
            f"{name} is sparse in the format {x.format!r} with shape {tuple(x.shape)}, but sparse rows must be a CSR "
            f"matrix (n, d): pass {name}.tocsr()."
        )
    if str(x.dtype) not in ("float32", "float64"):
        raise InvalidArgumentError(
            f"{name} has dtype {x.dtype}, but float32 or float64 is needed: pass {name}.astype('float64')."
        )
    A = _make(x.data, x.indices, x.indptr, x.shape)
    if is_numpy(A.data):
        try:
            A.check_format(full_check=True)  # an index that is out of range would read memory that is not ours
        except ValueError as error:
            raise InvalidArgumentError(f"{name} is no valid CSR matrix: {error}.") from error
    if not A.has_canonical_format:
        A = A.copy()  # never in place: the arrays are the user's
        A.sum_duplicates()
    return A


def _make(data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> Any:
    if is_numpy(data):
        return _scipy().csr_array((data, indices, indptr), shape=shape)
    return importlib.import_module("cupyx.scipy.sparse").csr_matrix((data, indices, indptr), shape=shape)


def _scipy() -> Any:
    try:
        return importlib.import_module("scipy.sparse")
    except ImportError as error:
        raise InvalidArgumentError("sparse rows need SciPy: pip install 'xpreg[sparse]'.") from error


def csr_from_parts(parts: Mapping[str, np.ndarray]) -> Any:
    """Make a SciPy CSR array from ``data``, ``indices``, ``indptr`` and ``shape``, as `scipy.sparse.save_npz` writes.

    Raises
    ------
    InvalidArgumentError
        The parts do not fit together.
    """
    sparse = _scipy()
    try:
        shape = tuple(int(size) for size in parts["shape"])
        A = sparse.csr_array((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
        A.check_format(full_check=True)
    except (ValueError, TypeError, IndexError) as error:
        raise InvalidArgumentError(
            f"A_data, A_indices, A_indptr and A_shape are no CSR matrix: {error}. Write A.data, A.indices, A.indptr "
            "and A.shape of a scipy.sparse.csr_array."
        ) from error
    return csr(A, "A")


def csr_like(A: Any, data: Array) -> Any:
    """Return the matrix with the pattern of A and other values (nnz,)."""
    return _make(data, A.indices, A.indptr, A.shape)


def csr_to_device(A: Any, target: str | None) -> Any:
    """Move a CSR matrix to ``"cpu"``, ``"cuda"`` or ``"cuda:N"``."""
    if target is None:
        return A
    data, indices, indptr = (to_device(part, target) for part in (A.data, A.indices, A.indptr))
    return _make(data, indices, indptr, A.shape)


def csr_dense(A: Any) -> Array:
    """Return canonical rows A as a dense array.

    cupyx's ``toarray`` sorts a copy of the matrix first, and reads the host; what is canonical needs neither.
    """
    if is_numpy(A.data) or A.data.shape[0] == 0:
        return A.toarray()
    return importlib.import_module("cupyx.cusparse").sparseToDense(A)


def csr_gram(A: Any, AT: Any, D: Array) -> Array:
    """Return A^T diag(D) A (d, d), dense, from A and A^T as CSR: one scaled copy of the values of A."""
    return (AT @ csr_like(A, A.data * namespace(D).repeat(D, A.indptr[1:] - A.indptr[:-1]))).toarray()


def csr_gram_pays(A: Any) -> bool:
    """Return True where `csr_gram` is the cheaper way to a Gram matrix: see SPARSE_GRAM."""
    return is_numpy(A.data) and A.data.shape[0] <= SPARSE_GRAM * A.shape[0] * A.shape[1]
