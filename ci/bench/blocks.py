"""Time of a sweep and of a Gram matrix against the size of the blocks: what xpreg/backend/blocking.py rests on.

python ci/bench/blocks.py [--rounds 5] [--megabytes 160]
"""

import argparse
import statistics

import numpy as np
from common import interleaved, write

from xpreg import backend
from xpreg.backend import blocking
from xpreg.maps import DenseRows

COLUMNS = (16, 64, 100, 256, 500, 2000)
SWEEPS = (2**17, 2**18, 2**19, 2**20, 3 * 2**19, 2**21, 2**22, 2**23)
GRAMS = (256, 512, 1024, 2048, 4096)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=256, help="size of A; default: %(default)s")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    lines = ["Time over the best of its line; * is what the policy takes.", ""]
    lines += _table("sweep (a Hessian-vector product), at most so many KiB of rows", SWEEPS, options, rng, _sweep)
    lines += ["", *_table("Gram matrix, at most so many rows", GRAMS, options, rng, _gram)]
    write("blocks", lines)


def _table(title, sizes, options, rng, make):
    shown = [size // 1024 if make is _sweep else size for size in sizes]
    lines = [title, "d".rjust(6) + "".join(f"{size:>9}" for size in shown)]
    for d in COLUMNS:
        n = options.megabytes * 2**20 // (8 * d)
        functions, taken = make(rng.standard_normal((n, d)), rng, sizes)
        seconds = {size: statistics.median(s) for size, s in interleaved(functions, options.rounds).items()}
        best = min(seconds.values())
        cells = [f"{seconds[size] / best:.2f}{'*' if size == taken else ' '}" for size in sizes]
        lines.append(f"{d:6d}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


def _sweep(A, rng, sizes):
    rows, D, v = DenseRows(A), rng.random((1, len(A))), rng.standard_normal((1, A.shape[1]))

    def at(size):
        def run():
            blocking.SWEEP_BYTES, kept = size, blocking.SWEEP_BYTES
            rows.gram_operator(D)(v)
            blocking.SWEEP_BYTES = kept

        return run

    return {size: at(size) for size in sizes}, blocking.SWEEP_BYTES


def _gram(A, rng, sizes):
    rows, D = DenseRows(A), rng.standard_normal((1, len(A)))

    def at(size):
        def run():
            backend.gram_rows = lambda A: size
            rows.gram(D)
            backend.gram_rows = blocking.gram_rows

        return run

    return {size: at(size) for size in sizes}, blocking.gram_rows(A)


if __name__ == "__main__":
    main()
