"""Factorisations, solves and Gram matrices, where the standard lacks them or the libraries differ."""

from __future__ import annotations

import importlib
from typing import Any

import array_api_compat as compat
import numpy as np

from .arrays import Array, eps, eye, full, is_numpy, namespace, quiet
from .blocking import batch_rows
from .parallel import all_threads


def cholesky(H: Array) -> tuple[Array, Array]:
    """Factorise ``H = L L^T`` for a stack (..., d, d); never raises and never synchronises on a GPU.

    Returns
    -------
    L : (..., d, d) lower factor; meaningless where ``ok`` is False
    ok : (...) bool, whether the matrix is positive definite

    Notes
    -----
    NumPy raises when any matrix of a stack is not positive definite. CuPy raises for none and leaves a finite,
    plausible, wrong factor. Here a factor counts only when its diagonal is positive and the rows of L have the
    squared norms diag(H), which only a completed factorisation gives.
    """
    xp = namespace(H)
    if H.ndim > 2 and H.shape[0] == 1:  # one matrix: CuPy's batched routines are for small ones
        L, ok = cholesky(H[0, ...])
        return L[None, ...], xp.reshape(ok, (1, *ok.shape))
    try:
        with all_threads(H):
            L = xp.linalg.cholesky(H)
    except np.linalg.LinAlgError:
        if H.ndim == 2:
            return H, full((), False, H, dtype=xp.bool)
        half = H.shape[0] // 2
        parts = [cholesky(H[:half, ...]), cholesky(H[half:, ...])]
        return xp.concat([L for L, _ in parts]), xp.concat([ok for _, ok in parts])
    L = xp.tril(L)
    diagonal, pivots = xp.linalg.diagonal(H), xp.linalg.diagonal(L)
    error = xp.abs(xp.sum(L * L, axis=-1) - diagonal)
    tolerance = 64 * H.shape[-1] * eps(H)
    return L, xp.all((pivots > 0) & (error <= tolerance * xp.abs(diagonal)), axis=-1)


def qr_factor(X: Array) -> Array:
    """Return the factor R (..., m, d), m = min(n, d), of ``X = Q R`` for X (..., n, d), without forming Q where the
    library can.
    """
    if is_numpy(X):
        return np.linalg.qr(X, mode="r")
    if compat.is_cupy_array(X):
        return importlib.import_module("cupy").linalg.qr(X, mode="r")
    return namespace(X).linalg.qr(X, mode="reduced")[1]


def lower_factor(U: Array) -> Array:
    """Return L (..., r, m), m = min(r, n), with ``U = L Q``, Q Q^T = I, for U (..., r, n); Q is not returned.

    For vectors in blocks one block after the other.
    """
    xp = namespace(U)
    in_blocks = getattr(xp, "lower_factor", None)
    return xp.matrix_transpose(qr_factor(xp.matrix_transpose(U))) if in_blocks is None else in_blocks(U)


def solve_posdef(H: Array, L: Array, g: Array) -> Array:
    """Solve ``H p = g`` for H (..., d, d) with its Cholesky factor ``L``, and g (..., d).

    With the factor where SciPy or cupyx solve triangular systems, else with the standard's LU solve. SciPy does one
    matrix at a time, cupyx stacks as well.
    """
    xp = namespace(H)
    triangular = _triangular_solver(H)
    if triangular is not None and H.ndim == 3 and H.shape[0] == 1:
        return solve_posdef(H[0, ...], L[0, ...], g[0, ...])[None, ...]
    if triangular is not None and H.ndim == 2:
        y = triangular(L.T, g, trans="T", lower=False, check_finite=False)  # cupyx would copy L, which is C-ordered
        return triangular(L.T, y, lower=False, check_finite=False)
    if triangular is not None and compat.is_cupy_array(H):
        y = triangular(L, g, lower=True)  # stacks are taken C-ordered
        return triangular(L, y, trans="T", lower=True)
    return xp.linalg.solve(H, g[..., None])[..., 0]


def inverse_transposed(L: Array) -> Array:
    """Return L^-T, (k, d, d), for lower triangular L (k, d, d) with a diagonal that is not 0."""
    with all_threads(L):
        return namespace(L).stack([_inverse_transposed(L[i, ...]) for i in range(L.shape[0])])


def _inverse_transposed(L: Array) -> Array:
    triangular = _triangular_solver(L)
    if triangular is None:
        return namespace(L).linalg.inv(L).mT
    if is_numpy(L):
        (trtri,) = importlib.import_module("scipy.linalg").get_lapack_funcs(("trtri",), (L,))
        return trtri(L.T)[0]  # a third of the work of a solve with the identity
    return triangular(L.T, eye(L.shape[-1], L), lower=False)


def solve_if_posdef(H: Array, g: Array, ridge: Array) -> tuple[Array, Array]:
    """Solve ``(H + diag(ridge)) p = g`` for a stack H (k, d, d), g and ridge (k, d), where that is positive definite.

    Returns
    -------
    p : (k, d), meaningless where ``ok`` is False
    ok : (k,) bool, whether the matrix is positive definite
    """
    if is_numpy(H) and H.shape[0] >= max(4, H.shape[1] // 2):
        return _solve_stack(H, g, ridge)
    xp = namespace(H)
    identity = eye(H.shape[-1], H)
    H = H + ridge[:, :, None] * identity
    L, ok = cholesky(H)
    L, H = (xp.where(ok[:, None, None], M, identity) for M in (L, H))  # nothing singular is solved
    return solve_posdef(H, L, g), ok


SOLVE_BYTES = 2**21
"""Matrices of a stack that are factorised together: small enough for a core's second-level cache."""


def _solve_stack(H: np.ndarray, g: np.ndarray, ridge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky and substitution with the problem axis last: every operation is one sweep over many problems.

    NumPy's own factorisation raises for the whole stack when one matrix is not positive definite; here its pivots
    tell. For 1,788 matrices of size 32, some of them indefinite, this is 5 times faster than one by one.
    """
    k, d = g.shape
    p, ok = np.empty_like(g), np.empty(k, dtype=bool)
    diagonal = np.arange(d)
    step = max(16, SOLVE_BYTES // (d * d * H.itemsize))
    for start in range(0, k, step):
        part = slice(start, start + step)
        L, y = np.array(np.moveaxis(H[part], 0, -1), order="C"), np.array(g[part].T, order="C")  # copies, in every case
        L[diagonal, diagonal] += ridge[part].T
        good = np.ones(y.shape[1], dtype=bool)
        with quiet():  # what follows a failed pivot is thrown away
            for j in range(d):
                if j:
                    L[j:, j] -= np.einsum("imk,mk->ik", L[j:, :j], L[j, :j])
                    y[j] -= np.einsum("mk,mk->k", L[j, :j], y[:j])
                good &= L[j, j] > 0
                L[j, j] = np.sqrt(np.where(good, L[j, j], 1.0))
                L[j + 1 :, j] /= L[j, j]
                y[j] /= L[j, j]
            for j in reversed(range(d)):
                y[j] /= L[j, j]
                y[:j] -= L[j, :j] * y[j]
        p[part], ok[part] = np.where(good, y, 0.0).T, good
    return p, ok


def _triangular_solver(x: Array) -> Any:
    if compat.is_cupy_array(x):  # a cupyx that does not import lacks cuBLAS: an error, not a reason for another method
        return importlib.import_module("cupyx.scipy.linalg").solve_triangular
    if not is_numpy(x):
        return None
    try:
        return importlib.import_module("scipy.linalg").solve_triangular
    except ImportError:
        return None


def dot(X: Array, Y: Array) -> Array:
    """Return X @ Y for arrays of one or two axes.

    NumPy's ``@`` keeps all other Python threads waiting while the result has at most 500 entries, however long it
    takes; its ``dot`` never does.
    """
    return np.dot(X, Y) if is_numpy(X) else X @ Y


def exp_in_place(x: Array) -> Array:
    """Return exp(x), in the place of an x that is not needed any more: new memory takes longer than an exponential."""
    return np.exp(x, out=x) if isinstance(x, np.ndarray) else namespace(x).exp(x)


def stack_rows(*rows: Array) -> Array:
    """Return the matrix (k, n) of k rows (n,)."""
    if is_numpy(rows[0]):  # NumPy's stack takes longer than copying a block of a sweep
        return np.concatenate(rows).reshape(len(rows), -1)
    return namespace(rows[0]).stack(rows)


def times_rows(V: Array, X: Array, *, cached: bool = False) -> Array:
    """Return V X (k, d) for a few columns V (k, n) and a block of rows X (n, d).

    From memory, NumPy takes the block in batches of rows that OpenBLAS need not repack; what is ``cached`` already, as
    it is.
    """
    k = V.shape[0]
    if k == 1 or not is_numpy(X) or k > FEW_COLUMNS:
        return dot(V, X)
    return np.dot(V, X) if cached else _in_batches(V, X, batch_rows(X))


def _in_batches(V: np.ndarray, X: np.ndarray, rows: int) -> np.ndarray:
    """Return V X (k, d) as a sum of products of ``rows`` rows of X (n, d) each."""
    k, n = V.shape
    m = n // rows
    if m < 2:
        return np.dot(V, X)
    whole = m * rows
    batches = V[:, :whole].reshape(k, m, rows).transpose(1, 0, 2) @ X[:whole].reshape(m, rows, X.shape[1])
    total = batches.sum(axis=0)
    return total if whole == n else total + np.dot(V[:, whole:], X[whole:])


FEW_COLUMNS = 8
"""Up to so many columns at a time a product with rows is bound by reading them."""

SYRK_COLUMNS, ORDERED_COLUMNS = 48, 60
"""From these many columns on, half the flops are worth it: with D of one sign, and where the rows are to be ordered by
its sign first (measured, NumPy, OpenBLAS)."""

SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS does not copy the factors of a product first."""


def weighted_gram(X: Array, D: Array, mean: Array | None = None) -> Array:
    """Return ``Y^T diag(D) Y``, Y = X - mean, for a block of rows X (n, d) and D (n,) of any sign.

    NumPy turns ``Z.T @ Z`` into a symmetric rank-k update, half the work of a product: so it takes Z = sqrt|D| Y, the
    rows with positive and with negative D one after the other. For narrow rows small products do it. Elsewhere one
    plain product does, without a synchronisation.
    """
    xp, (n, d) = namespace(X), X.shape
    p = n if not is_numpy(X) or d < SYRK_COLUMNS else n - int((D < 0).sum())
    if not is_numpy(X) or d < (ORDERED_COLUMNS if 0 < p < n else SYRK_COLUMNS):
        Y = X if mean is None else X - mean
        V = xp.matrix_transpose(Y * D[:, None])
        G = _in_batches(V, Y, SMALL_PRODUCT // d**2) if is_numpy(X) else V @ Y
        return 0.5 * (G + xp.matrix_transpose(G))
    root = np.sqrt(np.abs(D))
    if 0 < p < n:
        order = np.argsort(D < 0, kind="stable")
        X, root = X[order], root[order]
        Z = X if mean is None else np.subtract(X, mean, out=X)
        Z *= root[:, None]
        return Z[:p].T @ Z[:p] - Z[p:].T @ Z[p:]
    Z = X * root[:, None] if mean is None else X - mean
    if mean is not None:
        Z *= root[:, None]
    return Z.T @ Z if p else -(Z.T @ Z)
