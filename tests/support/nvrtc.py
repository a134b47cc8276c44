"""Compile CUDA sources for several GPU architectures on a machine without a GPU, and read what ptxas says of them.

It needs the wheel ``nvidia-cuda-nvrtc`` (or a system CUDA toolkit) and neither CuPy nor a driver: NVRTC runs ptxas
inside when it is asked for ``sm_XX``. As a script it compiles all kernels in all layouts and prints a table:

    python -m support.nvrtc          (in the folder tests)
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import pathlib
import re

ARCHITECTURES = ("80", "90", "100")

CUPY_OPTIONS = ("--std=c++17", "-ftz=true", "--device-as-default-execution-space")
"""What CuPy 14 passes for a RawModule."""


class NvrtcError(RuntimeError):
    """NVRTC refuses the source, or its own interface reports an error."""


@dataclasses.dataclass
class Kernel:
    """What ptxas reports of one kernel."""

    name: str
    arch: str
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0

    @property
    def spills(self) -> int:
        """Bytes, the larger of stores and loads."""
        return max(self.spill_stores, self.spill_loads)


def _folders() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("nvidia")
    return [pathlib.Path(p) for p in (spec.submodule_search_locations or ())] if spec else []


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load NVRTC from the wheel or the system; None where there is none."""
    found = [
        path
        for folder in _folders()
        for pattern in ("cu*/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*")
        for path in sorted(folder.glob(pattern))
        if ".alt." not in path.name
    ]
    path = found[0] if found else pathlib.Path("libnvrtc.so")
    try:
        for builtins in path.parent.glob("libnvrtc-builtins.so*"):  # NVRTC opens them by their bare name
            if ".alt." not in builtins.name:
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        loaded = ctypes.CDLL(str(path))
    except OSError:
        return None
    loaded.nvrtcGetErrorString.restype = ctypes.c_char_p
    return loaded


def missing() -> str | None:
    """Return why nothing can be compiled here, or None when it can."""
    return None if library() else "NVRTC is not installed: pip install nvidia-cuda-nvrtc"


def _check(code: int) -> None:
    if code:
        raise NvrtcError(library().nvrtcGetErrorString(code).decode())


def compile_kernels(source: str, names: list[str], arch: str, options=CUPY_OPTIONS) -> tuple[list[Kernel], list[str]]:
    """Compile the template instances ``names`` for ``sm_<arch>``; return what ptxas says of each, and all warnings."""
    nvrtc = library()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        for name in names:
            _check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        flags = [f"-arch=sm_{arch}", "--ptxas-options=-v", "--display-error-number", *options]
        code = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*map(str.encode, flags)))
        size = ctypes.c_size_t()
        _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetProgramLog(program, buffer))
        log = buffer.value.decode(errors="replace")
        if code:
            raise NvrtcError(f"does not compile for sm_{arch}:\n{log[:4000]}")
        lowered = {}
        for name in names:
            pointer = ctypes.c_char_p()
            _check(nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(pointer)))
            lowered[pointer.value.decode()] = name
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return _parse(log, arch, lowered), [
        line.strip() for line in log.splitlines() if re.search(r"\bwarning\b", line, re.I)
    ]


def _parse(log: str, arch: str, lowered: dict[str, str]) -> list[Kernel]:
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '([^']+)'", line):
            kernels.append(Kernel(lowered.get(m[1], m[1]), arch))
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[-1].stack, kernels[-1].spill_stores, kernels[-1].spill_loads = map(int, m.groups())
        elif m := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(m[1])
            if m := re.search(r"(\d+) bytes smem", line):
                kernels[-1].shared = int(m[1])
    return kernels


def main() -> int:
    """Compile every layout that occurs for d from 1 to the largest, and print one line per kernel and architecture."""
    from xpreg.kernels import rowstream

    names, bad = rowstream_names(), 0
    for arch in ARCHITECTURES:
        kernels, warnings = compile_kernels(rowstream.source(), names, arch)
        for k in sorted(kernels, key=lambda k: -k.spills):
            bad += k.spills > 16
            print(f"sm_{arch:<4} {k.name:<56} {k.registers:>3} registers {k.shared:>6} B shared  spills {k.spills} B")
        bad += len(warnings)
        print("\n".join(warnings))
    print(f"{len(names)} kernels, {len(ARCHITECTURES)} architectures, {bad} with warnings or spills above 16 bytes")
    return 1 if bad else 0


def rowstream_names(widths=range(1, 2049)) -> list[str]:
    """Return all template instances that rows of these widths need, for both dtypes and every alignment."""
    from xpreg.kernels import rowstream

    names = {"merge"}
    for ctype, itemsize in (("float", 4), ("double", 8)):
        for layout in {
            rowstream.layout(d, itemsize, alignment)
            for d in widths
            for alignment in (4, 8, 16)
            if alignment >= itemsize
        }:
            names |= {f"gram_product<{ctype},{centred},{layout.arguments}>" for centred in ("false", "true")}
            names |= {
                f"value_and_grad<{ctype},{activation},{regularised},{layout.arguments}>"
                for activation in (0, 1)
                for regularised in ("false", "true")
            }
    return sorted(names)


if __name__ == "__main__":
    raise SystemExit(main())
