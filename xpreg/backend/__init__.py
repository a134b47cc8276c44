"""Array libraries and devices. This is the only package that names a backend.

Everything else in xpreg is written against the array API standard. What the standard lacks, or what the libraries do
differently (factorisations that raise or do not, triangular solves, the way to a device, the way back to the host), is
here.
"""

from .arrays import (
    Array,
    Namespace,
    arange,
    common_namespace,
    cuda_is_available,
    describe,
    device,
    empty,
    eye,
    full,
    itemsize,
    namespace,
    new,
    on_device,
    peek,
    quiet,
    read,
    require_array,
    require_cupy,
    scratch,
    to_device,
    to_host,
    to_numpy,
    using,
    zeros,
)
from .blocking import (
    blocks,
    gram_rows,
    stripes,
    sweep_rows,
)
from .cuda import (
    cuda_module,
    memory,
    multiprocessors,
    runs_cuda,
)
from .draws import (
    Seed,
    generator,
    random_normal,
    random_permutation,
    random_uniform,
)
from .linalg import (
    cholesky,
    qr_factor,
    solve_if_posdef,
    solve_posdef,
    weighted_gram,
)
from .machine import (
    free_memory,
    info,
)
from .parallel import (
    in_order,
    sum_over,
    threads,
)

__all__ = [
    "Array",
    "Namespace",
    "Seed",
    "arange",
    "blocks",
    "cholesky",
    "common_namespace",
    "cuda_is_available",
    "cuda_module",
    "describe",
    "device",
    "empty",
    "eye",
    "free_memory",
    "full",
    "generator",
    "gram_rows",
    "in_order",
    "info",
    "itemsize",
    "memory",
    "multiprocessors",
    "namespace",
    "new",
    "on_device",
    "peek",
    "qr_factor",
    "quiet",
    "random_normal",
    "random_permutation",
    "random_uniform",
    "read",
    "require_array",
    "require_cupy",
    "runs_cuda",
    "scratch",
    "solve_if_posdef",
    "solve_posdef",
    "stripes",
    "sum_over",
    "sweep_rows",
    "threads",
    "to_device",
    "to_host",
    "to_numpy",
    "using",
    "weighted_gram",
    "zeros",
]
