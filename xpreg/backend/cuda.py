"""What CUDA kernels of our own need of CuPy: compilation, addresses, the size of the device."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat

from .arrays import Array, require_cupy


def runs_cuda(x: Array) -> bool:
    """Return True where ``x`` lies in the memory of a CUDA device and `cuda_module` compiles for it."""
    return compat.is_cupy_array(x)


def cuda_module(code: str, names: tuple[str, ...]) -> Any:
    """Compile the kernels ``names`` of a CUDA source for the current device (CuPy caches the result on disk)."""
    return require_cupy().RawModule(code=code, name_expressions=names, options=("--std=c++17",))


def multiprocessors(x: Array) -> int:
    """Return how many multiprocessors the CUDA device of ``x`` has."""
    return x.device.attributes["MultiProcessorCount"]


def memory(x: Array) -> tuple[int, bool]:
    """Return the address of a NumPy or CuPy array, and whether it is C-contiguous."""
    return (x.data.ptr if compat.is_cupy_array(x) else x.ctypes.data), x.flags.c_contiguous
