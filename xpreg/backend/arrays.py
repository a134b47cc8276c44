"""Where arrays live, how they are made and moved, and the only ways in which numbers reach the host."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import array_api_compat as compat
import array_api_compat.numpy
import numpy as np

from ..errors import DeviceMismatchError, DeviceNotAvailableError, InvalidArgumentError

Array = Any
"""Any array of a library that follows the array API standard."""

Namespace = Any
"""An array API namespace."""


def namespace(x: Array) -> Namespace:
    """Return the array API namespace of ``x``."""
    if type(x) is np.ndarray:  # asked for so often that the general way shows in small problems
        return array_api_compat.numpy
    return compat.array_namespace(x)


def is_numpy(x: Any) -> bool:
    """Return whether ``x`` is an array, or a scalar, of NumPy."""
    return isinstance(x, (np.ndarray, np.generic))


def device(x: Array) -> Any:
    """Return the device of ``x``, as its own library names it."""
    return compat.device(x)


def describe(x: Array) -> str:
    """Return ``"numpy on cpu"``, ``"cupy on <CUDA Device 0>"``: for messages."""
    name = namespace(x).__name__.removeprefix("array_api_compat.").removesuffix(".xp")
    return f"{name} on {device(x)}"


def common_namespace(**arrays: Array | None) -> Namespace:
    """Check that all ``arrays`` live in one library, on one device and in one dtype; return their namespace.

    Arguments that are None are left out.

    Raises
    ------
    InvalidArgumentError
        An argument is no array, or not of a real floating dtype, or of another dtype than the first.
    DeviceMismatchError
        Two arguments live in different places.
    """
    present = {name: x for name, x in arrays.items() if x is not None}
    for name, x in present.items():
        require_array(x, name)
    first_name, first = next(iter(present.items()))
    xp = namespace(first)
    for name, x in present.items():
        if namespace(x) is not xp or device(x) != device(first):
            raise DeviceMismatchError(
                f"{first_name} is {describe(first)}, but {name} is {describe(x)}: all arrays of one call must live "
                f"in one place. Move {name} there first, or pass device='cpu' or device='cuda' to move all of them."
            )
        if x.dtype not in (xp.float32, xp.float64):
            raise InvalidArgumentError(
                f"{name} has dtype {x.dtype}, but float32 or float64 is needed: xp.astype({name}, xp.float64)."
            )
        if x.dtype != first.dtype:
            raise InvalidArgumentError(
                f"{name} has dtype {x.dtype}, but {first_name} has {first.dtype}: xpreg does not change precision "
                f"behind your back. Convert one of them, for example {name}.astype({first_name}.dtype)."
            )
    _check_current(first_name, first)
    return xp


def require_array(x: Any, name: str) -> None:
    """Refuse what is no plain array."""
    if compat.is_torch_array(x) or compat.is_jax_array(x):
        library = type(x).__module__.partition(".")[0].removesuffix("lib")
        raise InvalidArgumentError(
            f"{name} is an array of {library}, but xpreg computes with NumPy and CuPy: "
            f"numpy.from_dlpack({name}), or cupy.from_dlpack({name}) on a GPU."
        )
    if compat.is_array_api_obj(x) and not isinstance(x, (np.ma.MaskedArray, np.matrix)):
        return
    if hasattr(x, "toarray"):  # scipy.sparse, cupyx
        raise InvalidArgumentError(
            f"{name} is a sparse {type(x).__name__}, but a plain array is needed here: {name}.toarray()."
        )
    raise InvalidArgumentError(
        f"{name} is a {type(x).__module__}.{type(x).__name__}, but an array is needed: "
        f"for example numpy.asarray({name}, dtype=float) or cupy.asarray({name}, dtype=float)."
    )


def _check_current(name: str, x: Array) -> None:
    """CuPy computes on the current device, whatever device its operands are on: refuse arrays of another one."""
    if compat.is_cupy_array(x) and x.device.id != (current := require_cupy().cuda.runtime.getDevice()):
        raise DeviceMismatchError(
            f"{name} is on CUDA device {x.device.id}, but the current device is {current}: "
            f"work inside `with cupy.cuda.Device({x.device.id}):`."
        )


def require_cupy() -> Any:
    """Return CuPy, or say what is missing: the package or the GPU."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise DeviceNotAvailableError(
            "device 'cuda' needs CuPy, which is not installed: pip install 'xpreg[cuda13]' (or 'xpreg[cuda12]')."
        ) from error
    if not cupy.cuda.is_available():
        raise DeviceNotAvailableError(
            "device 'cuda' was asked for, but CuPy finds no usable NVIDIA GPU on this machine "
            "(see nvidia-smi and cupy.show_config()). Leave device out, or use device='cpu'."
        )
    return cupy


def cuda_is_available() -> bool:
    """Return True when CuPy is installed and finds a GPU."""
    try:
        require_cupy()
    except DeviceNotAvailableError:
        return False
    return True


def _cuda_index(name: str) -> int:
    head, _, index = name.partition(":")
    if head != "cuda" or not ((index.isascii() and index.isdigit()) or (index == "" and ":" not in name)):
        raise InvalidArgumentError(f"device is {name!r}, but 'cpu', 'cuda' or 'cuda:N' is needed.")
    return int(index or 0)


def to_device(x: Array, target: str | None, name: str = "an array that is to be moved") -> Array:
    """Move ``x``, called ``name``, to ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; ``None`` leaves it where it is.

    NumPy arrays become CuPy arrays on a CUDA device, and CuPy arrays become NumPy arrays on the CPU.

    Raises
    ------
    DeviceNotAvailableError
        CuPy or the GPU is missing. There is no fallback.
    """
    if target is None or x is None:
        return x
    if not isinstance(target, str):
        raise InvalidArgumentError(f"device is {target!r}, but 'cpu', 'cuda' or 'cuda:N' is needed.")
    require_array(x, name)
    if target == "cpu":
        if compat.is_cupy_array(x):
            return to_numpy(x)
        return x if is_numpy(x) else compat.to_device(x, _cpu_device(namespace(x)))
    with _cuda_device(target):  # CuPy's creation functions ignore device=
        return require_cupy().asarray(x)


def _cuda_device(target: str) -> Any:
    index, cupy = _cuda_index(target), require_cupy()
    if index >= cupy.cuda.runtime.getDeviceCount():
        raise DeviceNotAvailableError(
            f"device is {target!r}, but this machine has {cupy.cuda.runtime.getDeviceCount()} CUDA device(s)."
        )
    return cupy.cuda.Device(index)


def _cpu_device(xp: Namespace) -> Any:
    devices = [d for d in xp.__array_namespace_info__().devices() if "cpu" in str(d).lower()]
    return devices[0]


def new(values: Any, like: Array, *, dtype: Any = None) -> Array:
    """Create an array from Python or NumPy ``values`` beside ``like``: same library, same device, same dtype.

    This is an explicit copy from the host. Every array that does not come from other arrays is made here.
    """
    xp = namespace(like)
    dtype = like.dtype if dtype is None else dtype
    if compat.is_cupy_array(like):
        with like.device:
            return xp.asarray(values, dtype=dtype)
    if is_numpy(like):
        return xp.asarray(values, dtype=dtype)
    if isinstance(values, np.ndarray):
        values = values.tolist() if values.dtype == bool or values.size < 64 else _from_numpy(xp, values)
    return xp.asarray(values, dtype=dtype, device=device(like))


def _from_numpy(xp: Namespace, values: np.ndarray) -> Any:
    try:
        return xp.from_dlpack(np.ascontiguousarray(values))
    except (BufferError, TypeError):
        return values


def zeros(shape: tuple[int, ...], like: Array, *, dtype: Any = None) -> Array:
    """Create zeros of ``shape`` beside ``like``."""
    return full(shape, 0, like, dtype=dtype)


def full(shape: tuple[int, ...], value: float, like: Array, *, dtype: Any = None) -> Array:
    """Create an array of ``shape`` filled with ``value`` beside ``like``."""
    xp = namespace(like)
    dtype = like.dtype if dtype is None else dtype
    if compat.is_cupy_array(like):
        with like.device:
            return xp.full(shape, value, dtype=dtype)
    return xp.full(shape, value, dtype=dtype, device=device(like))


def eye(d: int, like: Array) -> Array:
    """Create the identity matrix of size ``d`` beside ``like``."""
    xp = namespace(like)
    if compat.is_cupy_array(like):
        with like.device:
            return xp.eye(d, dtype=like.dtype)
    return xp.eye(d, dtype=like.dtype, device=device(like))


def empty(shape: tuple[int, ...], like: Array, *, dtype: Any = None) -> Array:
    """Create an array of ``shape`` beside ``like`` whose entries are still to be written."""
    xp = namespace(like)
    dtype = like.dtype if dtype is None else dtype
    if compat.is_cupy_array(like):
        with like.device:
            return xp.empty(shape, dtype=dtype)
    return xp.empty(shape, dtype=dtype, device=device(like))


def itemsize(x: Array) -> int:
    """Bytes of one entry of ``x``."""
    return namespace(x).finfo(x.dtype).bits // 8


def eps(x: Array) -> float:
    """The machine epsilon of the dtype of ``x``."""
    return float(namespace(x).finfo(x.dtype).eps)


def safe_divisor(x: Array) -> Array:
    """Return x with 1 in the place of what is not positive: a safe divisor."""
    return namespace(x).where(x > 0, x, namespace(x).ones_like(x))


def indices(mask: np.ndarray, like: Array) -> Array:
    """Return where a boolean array (k,) on the host is True, as integers beside ``like``: what `take` takes."""
    return new(mask.nonzero()[0], like, dtype=namespace(like).int64)


def arange(n: int, like: Array) -> Array:
    """Create the integers 0, ..., n-1 beside ``like``."""
    xp = namespace(like)
    if compat.is_cupy_array(like):
        with like.device:
            return xp.arange(n)
    return xp.arange(n, device=device(like))


# ---------------------------------------------------------------------------------------------
# reading on the host


def to_numpy(x: Array) -> np.ndarray:
    """Copy ``x`` to the host as a NumPy array (for files, pictures and tests; one synchronisation)."""
    if is_numpy(x):
        return np.asarray(x)
    if hasattr(x, "get"):  # CuPy
        return x.get()
    if hasattr(x, "to_device"):
        x = compat.to_device(x, _cpu_device(namespace(x)))
    return np.asarray(x)


def to_host(x: Any) -> np.ndarray:
    """Copy an array, or a Python number, to the host as a NumPy array."""
    return to_numpy(x) if compat.is_array_api_obj(x) else np.asarray(x)


def read(*values: Array) -> list[np.ndarray]:
    """Read several arrays of one shape on the host, with one synchronisation: the only way scalars leave a device.

    Booleans and integers come back as floats of the first argument's dtype.
    """
    xp = namespace(values[0])
    dtype = values[0].dtype
    if all(is_numpy(v) for v in values):
        return [np.asarray(v) for v in values]
    return list(to_numpy(xp.stack([xp.astype(v, dtype, copy=False) for v in values])))


def peek(x: Array) -> np.ndarray | None:
    """Return ``x`` as a NumPy array where looking costs nothing (NumPy), and None where it would synchronise."""
    return np.asarray(x) if is_numpy(x) else None


LOOK_EVERY = 8
"""Steps of an iteration between two looks at its flags, where looking costs a synchronisation."""


def look(flags: Array, step: int, like: Array) -> np.ndarray | None:
    """Return boolean ``flags`` on the host after every step where that costs nothing, else after every eighth; None
    between. ``like`` lends its dtype for the way.
    """
    known = peek(flags)
    if known is None and step % LOOK_EVERY == 0:
        known = read(namespace(flags).astype(flags, like.dtype))[0] != 0
    return known


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let overflow become inf and invalid operations NaN without a warning: the caller tests for them."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        yield


def scratch(target: str | None, dtype: str) -> Array:
    """Return an empty array on device ``target`` (None: NumPy): something to create other arrays beside."""
    return to_device(np.empty(0, dtype=dtype), target)


def using(target: str | None) -> contextlib.AbstractContextManager[Any]:
    """Make the CUDA device ``target`` the current one inside a block; nothing for the CPU and None."""
    if target is None or target == "cpu" or not isinstance(target, str):  # what is no name, `to_device` refuses
        return contextlib.nullcontext()
    return _cuda_device(target)


def on_device(x: Array) -> contextlib.AbstractContextManager[Any]:
    """Make the device of ``x`` the current one: CuPy allocates results and launches kernels there, whatever x is."""
    return x.device if compat.is_cupy_array(x) else contextlib.nullcontext()
