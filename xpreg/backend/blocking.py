"""How rows are cut into blocks, in one place; the sizes of passes over A, measured.

Two kinds of passes over the rows of A are made. A *sweep* multiplies a block with vectors: once (z = A x, or A^T v), or
twice (z = A x, then A^T of something made of z). A block that is used twice should still be in the core's cache the
second time; one that is used once only be so large that the calls on it take little time beside it. A *Gram* pass
copies a block, scaled, and multiplies it with itself: it wants enough rows that a product runs at full speed.

Measured with NumPy and OpenBLAS on 2 cores with AVX-512 and 2 MB of cache each, d from 16 to 2,000
(``ci/bench/blocks.py``): sweeps by two threads are best with 1 to 2 MB, of which 8 MB costs a fifth more and 256 KB
twice the time. From memory, a product with a few columns is fastest in batches of 25,000 entries, which OpenBLAS takes
without repacking them; from the cache, as it is. Gram passes of up to 100 columns are within 5 % of their best from
2,048 rows on; with 500 and more, 3,000 rows take 10 to 18 % less time than 1,600.

On a GPU an operation on a block takes about 10 us to launch, in which it could read 20 to 50 MB.
"""

from __future__ import annotations

import itertools

from .arrays import Array, is_numpy, itemsize

SWEEP_BYTES = 3 * 2**19
"""Bytes of rows in a block of a sweep, on the CPU."""

STREAM_BYTES = 8 * 2**20
"""Bytes of rows in a block that is used once, and in a part of A x, at least."""

ONE_PASS_COLUMNS = 64
"""Columns up to which the sums of a normalised loss are taken from one read of rows in memory. Beyond, a
second read costs less than the time for which threads wait for each other while they prepare those sums' columns."""

BATCH_ENTRIES, BATCH_ROWS = 25_000, 25
"""Entries in a batch of rows that a few columns are multiplied with, and the least rows of one."""

GRAM_ROWS, GRAM_BYTES = 2048, 2**19
"""Rows in a block of a Gram pass on the CPU; more where rows are so narrow that these take less than so many bytes."""

WIDE = 128
"""Columns beyond which a block of a Gram pass leaves the core's cache anyway: with many rows it takes twice as many."""

TILE_BYTES = 2**19
"""Bytes of the largest temporary array of elementwise work on the CPU, so that it stays in cache."""

LAUNCH_BYTES = 256 * 2**20
"""Bytes of rows in any block elsewhere, for example on a GPU."""

STRIPES = 16
"""Into so many parts the rows are divided at most, which are cut into blocks, summed on their own and then in order."""


def sweep_rows(A: Array, row_bytes: int | None = None, nbytes: int | None = None) -> int:
    """How many rows of A (n, d), or of ``row_bytes`` each, a sweep takes at a time; ``nbytes`` for SWEEP_BYTES."""
    nbytes = block_bytes(A, SWEEP_BYTES if nbytes is None else nbytes)
    return max(16, nbytes // (row_bytes or A.shape[1] * itemsize(A)))


def block_bytes(like: Array, nbytes: int) -> int:
    """How large a temporary block beside ``like`` may be: ``nbytes``, which stay in a cache, on the CPU."""
    return nbytes if is_numpy(like) else LAUNCH_BYTES


def even_slices(n: int, rows: int) -> list[slice]:
    """Cut 0..n into the fewest slices of at most ``rows``, all of nearly the same length."""
    return _cut(n, max(1, -(-n // max(1, rows))))


def _cut(n: int, parts: int) -> list[slice]:
    bounds = [n * p // parts for p in range(parts + 1)]
    return [slice(low, high) for low, high in itertools.pairwise(bounds)]


def one_pass_pays(A: Array) -> bool:
    """Return whether rows A (n, d) in memory are better read once for several columns than twice for one."""
    return not is_numpy(A) or A.shape[1] <= ONE_PASS_COLUMNS


def batch_rows(X: Array) -> int:
    """How many rows of a block X (n, d) are multiplied with a few columns at a time."""
    return max(BATCH_ROWS, BATCH_ENTRIES // X.shape[1])


def gram_rows(A: Array) -> int:
    """How many rows of A (n, d) a Gram matrix takes at a time."""
    row_bytes = A.shape[1] * itemsize(A)
    if not is_numpy(A):
        return max(256, LAUNCH_BYTES // row_bytes)
    many = min(2 * GRAM_ROWS, A.shape[0] // 4) if A.shape[1] > WIDE else 0
    return max(GRAM_ROWS, many, GRAM_BYTES // row_bytes)


def stripes(A: Array, rows: int) -> list[slice]:
    """Divide the rows of A into at most STRIPES parts of equal size, one or an even number; elsewhere into one."""
    n = A.shape[0]
    count = min(STRIPES, -(-n // rows)) if is_numpy(A) else 1
    return _cut(n, min(n, count + count % 2) if count > 1 else 1)


def blocks(part: slice, rows: int) -> list[slice]:
    """Cut a part of the rows into blocks of equal size, at most ``rows``."""
    start = part.start
    return [slice(start + s.start, start + s.stop) for s in even_slices(part.stop - start, rows)]
