"""The machine: how much memory is free, and what is installed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import platform

import array_api_compat as compat

from ..errors import DeviceNotAvailableError
from .arrays import Array, require_cupy
from .parallel import blas_threads


def free_memory(like: Array) -> int | None:
    """Return the bytes that are free where ``like`` lives, or None where the platform does not say."""
    if compat.is_cupy_array(like):
        with like.device:
            return int(like.device.mem_info[0]) + int(require_cupy().get_default_memory_pool().free_bytes())
    return min((room for room in (_machine_room(), _container_room()) if room is not None), default=None)


def _machine_room() -> int | None:
    """Bytes that the machine can give: on Linux with the file cache, which it gives up for those who ask."""
    with contextlib.suppress(OSError, KeyError), open("/proc/meminfo") as lines:
        facts = dict(line.split(":") for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container_room(folder: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that the container's limit leaves (Linux control groups, version 2); None without a limit."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit, used = (int(pathlib.Path(folder, name).read_text()) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in pathlib.Path(folder, "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(facts["inactive_file"]))
    return None


def info() -> dict[str, str]:
    """Describe the machine and the installed libraries: what ``xpreg info`` prints."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("xpreg", "numpy", "array-api-compat", "threadpoolctl", "scipy", "dask", "zarr", "matplotlib", "tqdm"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    facts["threads"] = f"{blas_threads()} share large passes over the rows"
    try:
        cupy = require_cupy()
    except DeviceNotAvailableError as error:
        facts["cuda"] = f"not available: {error}"
        return facts
    facts["cupy"] = cupy.__version__
    facts["cuda"] = f"runtime {cupy.cuda.runtime.runtimeGetVersion()}, driver {cupy.cuda.runtime.driverGetVersion()}"
    for i in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(i)
        free, total = cupy.cuda.Device(i).mem_info
        facts[f"cuda:{i}"] = f"{properties['name'].decode()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return facts
