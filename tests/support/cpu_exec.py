"""Run CUDA kernels on the CPU: the interface of `cupy.RawModule` for NumPy arrays, and the same unmodified source.

    module = CpuRawModule(code=source, name_expressions=["scale<double>"])
    module.get_function("scale<double>")((blocks,), (threads,), (x, y, 3))

A divergent barrier, a shuffle from a lane that is not there and an argument of the wrong kind are errors. The order in
which threads and blocks run is permuted by the environment variable ``CUDACPU_SEED``. ``sanitize`` is
``"address,undefined"`` or ``"thread"``; Python must then have been started with that sanitizer's library preloaded
(`preload`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import numpy as np

HEADER = pathlib.Path(__file__).with_name("cudacpu.h")
COMPILER = os.environ.get("CUDACPU_CXX", "g++")

_WRAPPER = """
extern "C" const char* cudacpu_k{i}(const unsigned* g, unsigned long smem, void** p, const int* kinds, int count) {{
  static std::string error;
  try {{
    cudacpu::Launch<&::{name}>::go(dim3(g[0], g[1], g[2]), dim3(g[3], g[4], g[5]), smem, p, kinds, count);
    return nullptr;
  }} catch (std::exception& e) {{ error = e.what(); return error.c_str(); }}
}}
"""


class KernelError(RuntimeError):
    """The kernel does not compile, or did something that a GPU would not forgive."""


def missing() -> str | None:
    """Return why kernels cannot run here, or None when they can."""
    if platform.machine() != "x86_64":
        return f"CUDA on the CPU switches threads by x86-64 assembly, and this machine is {platform.machine()}"
    return None if shutil.which(COMPILER) else f"no C++ compiler: {COMPILER} is not installed"


def preload(library: str) -> str | None:
    """Return the path of ``libasan`` or ``libtsan`` of the compiler, or None when it has none."""
    found = subprocess.run(
        [COMPILER, f"-print-file-name={library}.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if os.path.isabs(found) else None


class CpuRawModule:
    """Compile ``code`` for the CPU, once: the result is kept in the temporary folder, under a hash of everything."""

    def __init__(self, *, code, name_expressions, options=(), sanitize=None, optimise="-O0"):
        names = list(name_expressions)
        wrappers = "".join(_WRAPPER.format(i=i, name=name) for i, name in enumerate(names))
        source = (
            f'#include "{HEADER}"\n#line 1 "kernel.cu"\n{code}\n'
            f"#undef threadIdx\n#undef blockIdx\n#undef blockDim\n#undef gridDim\n{wrappers}"
        )
        flags = ["-std=c++20", optimise, "-fPIC", "-shared", "-pthread", "-mfma", "-ffp-contract=fast"]
        flags += ["-Wno-unknown-pragmas", *(o for o in options if "std=" not in o)]
        if sanitize:
            flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
            flags += ["-DCUDACPU_NO_POISON"] if "address" in sanitize else []  # it guards plain statics only
            flags += ["-DCUDACPU_THREADS"] if "thread" in sanitize else []
        self._library = ctypes.CDLL(str(_build(source, flags)))
        self._index = {name: i for i, name in enumerate(names)}

    def get_function(self, name):
        """Return ``launch(grid, block, arguments, shared_mem=0)``."""
        function = getattr(self._library, f"cudacpu_k{self._index[name]}")
        function.restype = ctypes.c_char_p

        def launch(grid, block, arguments, shared_mem=0):
            shape = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
            values, kinds = zip(*map(_argument, arguments), strict=True)
            pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            error = function(
                shape, ctypes.c_ulong(shared_mem), pointers, (ctypes.c_int * len(kinds))(*kinds), len(kinds)
            )
            if error:
                raise KernelError(error.decode())

        return launch


def _build(source, flags):
    key = "\0".join([source, HEADER.read_text(), COMPILER, *flags])
    folder = pathlib.Path(os.environ.get("CUDACPU_CACHE", pathlib.Path(tempfile.gettempdir(), "cudacpu-cache")))
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not built.exists():
        text, fresh = built.with_suffix(f".{os.getpid()}.cpp"), built.with_suffix(f".{os.getpid()}.so")
        text.write_text(source)
        done = subprocess.run([COMPILER, *flags, "-o", fresh, text], capture_output=True, text=True)
        text.unlink()
        if done.returncode:
            raise KernelError(f"the kernel does not compile for the CPU:\n{done.stderr[:4000]}")
        fresh.replace(built)
    return built


def _argument(value):
    """Return a ctypes object that holds ``value``, and its kind: a letter times 256 plus the size in bytes.

    As in CuPy, a Python int is 64 bits and a Python float is a double, whatever the kernel declares.
    """
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data), ord("p") * 256 + 8
    if isinstance(value, bool | np.bool_):
        return ctypes.c_bool(value), ord("i") * 256 + 1
    if isinstance(value, int):
        return ctypes.c_longlong(value), ord("i") * 256 + 8
    if isinstance(value, float) and not isinstance(value, np.generic):
        return ctypes.c_double(value), ord("f") * 256 + 8
    if isinstance(value, np.generic) and value.dtype.kind in "fiu":
        holder = np.ctypeslib.as_ctypes(value[None].copy())
        return holder, ord("f" if value.dtype.kind == "f" else "i") * 256 + value.dtype.itemsize
    raise TypeError(f"a {type(value).__name__} cannot be a kernel argument")
