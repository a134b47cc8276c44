"""Array libraries and devices. This is the only module that names a backend.

Everything else in xpreg is written against the array API standard. What the standard lacks, or what
the libraries do differently (factorisations that raise or do not, triangular solves, the way to a
device, the way back to the host), is here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import array_api_compat as compat
import numpy as np

from .errors import DeviceMismatchError, DeviceNotAvailableError, InvalidArgumentError

Array = Any
"""Any array of a library that follows the array API standard."""

Namespace = Any
"""An array API namespace."""


# ---------------------------------------------------------------------------------------------
# where arrays live


def namespace(x: Array) -> Namespace:
    """Return the array API namespace of ``x``."""
    return compat.array_namespace(x)


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
    if compat.is_array_api_obj(x) and not isinstance(x, (np.ma.MaskedArray, np.matrix)):
        return
    raise InvalidArgumentError(
        f"{name} is a {type(x).__module__}.{type(x).__name__}, but an array is needed: "
        f"for example numpy.asarray({name}, dtype=float) or cupy.asarray({name}, dtype=float)."
    )


def _check_current(name: str, x: Array) -> None:
    """CuPy computes on the current device, whatever device its operands are on: refuse arrays of another one."""
    if compat.is_cupy_array(x) and x.device.id != (current := _cupy().cuda.runtime.getDevice()):
        raise DeviceMismatchError(
            f"{name} is on CUDA device {x.device.id}, but the current device is {current}: "
            f"work inside `with cupy.cuda.Device({x.device.id}):`."
        )


def _cupy() -> Any:
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
        _cupy()
    except DeviceNotAvailableError:
        return False
    return True


def _cuda_index(name: str) -> int:
    head, _, index = name.partition(":")
    if head != "cuda" or not ((index.isascii() and index.isdigit()) or (index == "" and ":" not in name)):
        raise InvalidArgumentError(f"device is {name!r}, but 'cpu', 'cuda' or 'cuda:N' is needed.")
    return int(index or 0)


def to_device(x: Array, target: str | None) -> Array:
    """Move ``x`` to ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; ``None`` leaves it where it is.

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
    require_array(x, "an array that is to be moved")
    if target == "cpu":
        if compat.is_cupy_array(x):
            return to_numpy(x)
        return x if compat.is_numpy_array(x) else compat.to_device(x, _cpu_device(namespace(x)))
    index = _cuda_index(target)
    cupy = _cupy()
    if index >= cupy.cuda.runtime.getDeviceCount():
        raise DeviceNotAvailableError(
            f"device is {target!r}, but this machine has {cupy.cuda.runtime.getDeviceCount()} CUDA device(s)."
        )
    with cupy.cuda.Device(index):  # CuPy's creation functions ignore device=
        return cupy.asarray(x)


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
    if compat.is_numpy_array(like):
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


def smallest_block(x: Array) -> int:
    """Bytes below which a block of a large array costs more in launches than in reading.

    Nothing on the CPU. Elsewhere 256 MiB: on a GPU every operation on a block takes about 10 us to launch, in which
    it could read 20 to 50 MB.
    """
    return 0 if compat.is_numpy_array(x) else 256 * 2**20


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
    if compat.is_numpy_array(x) or isinstance(x, np.generic):
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
    if all(compat.is_numpy_array(v) or isinstance(v, np.generic) for v in values):
        return [np.asarray(v) for v in values]
    return list(to_numpy(xp.stack([xp.astype(v, dtype, copy=False) for v in values])))


def peek(x: Array) -> np.ndarray | None:
    """Return ``x`` as a NumPy array where looking costs nothing (NumPy), and None where it would synchronise."""
    return np.asarray(x) if compat.is_numpy_array(x) or isinstance(x, np.generic) else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let overflow become inf and invalid operations NaN without a warning: the caller tests for them."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        yield


# ---------------------------------------------------------------------------------------------
# factorisations and solves


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
    try:
        L = xp.linalg.cholesky(H)
    except np.linalg.LinAlgError:
        if H.ndim == 2:
            return H, full((), False, H, dtype=xp.bool)
        if H.shape[0] > 1:
            half = H.shape[0] // 2
            parts = [cholesky(H[:half, ...]), cholesky(H[half:, ...])]
            return xp.concat([L for L, _ in parts]), xp.concat([ok for _, ok in parts])
        L, ok = cholesky(H[0, ...])
        return L[None, ...], xp.reshape(ok, (1, *ok.shape))
    L = xp.tril(L)
    diagonal, pivots = xp.linalg.diagonal(H), xp.linalg.diagonal(L)
    error = xp.abs(xp.sum(L * L, axis=-1) - diagonal)
    tolerance = 64 * H.shape[-1] * float(xp.finfo(H.dtype).eps)
    return L, xp.all((pivots > 0) & (error <= tolerance * xp.abs(diagonal)), axis=-1)


def qr_factor(X: Array) -> Array:
    """Return the (d, d) factor R of ``X = Q R`` for X (n, d), n >= d, without forming Q where the library can."""
    if compat.is_numpy_array(X):
        return np.linalg.qr(X, mode="r")
    return namespace(X).linalg.qr(X, mode="reduced")[1]


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


def solve_if_posdef(H: Array, g: Array, ridge: Array) -> tuple[Array, Array]:
    """Solve ``(H + diag(ridge)) p = g`` for a stack H (k, d, d), g and ridge (k, d), where that is positive definite.

    Returns
    -------
    p : (k, d), meaningless where ``ok`` is False
    ok : (k,) bool, whether the matrix is positive definite
    """
    if compat.is_numpy_array(H) and H.shape[0] >= max(4, H.shape[1] // 2):
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
        L, y = np.ascontiguousarray(np.moveaxis(H[part], 0, -1)), np.ascontiguousarray(g[part].T)
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
    if not compat.is_numpy_array(x):
        return None
    try:
        return importlib.import_module("scipy.linalg").solve_triangular
    except ImportError:
        return None


def weighted_gram(X: Array, D: Array, mean: Array | None = None) -> Array:
    """Return ``Y^T diag(D) Y``, Y = X - mean, for a block of rows X (n, d) and D (n,) of any sign.

    NumPy turns ``Z.T @ Z`` into a symmetric rank-k update, half the work of a product. So it takes Z = sqrt|D| Y, and
    takes twice the rows of the rarer sign away again. Elsewhere one plain product does it without a synchronisation.
    """
    xp = namespace(X)
    Y = X if mean is None else X - mean
    if not compat.is_numpy_array(X):
        G = xp.matrix_transpose(Y * D[:, None]) @ Y
        return 0.5 * (G + xp.matrix_transpose(G))
    root = np.sqrt(np.abs(D))[:, None]
    Z = np.multiply(Y, root, out=None if mean is None else Y)
    G = Z.T @ Z
    negative = D < 0
    count = int(negative.sum())
    if count == 0:
        return G
    if 2 * count <= len(D):
        Z = Z[negative]
        return G - 2.0 * (Z.T @ Z)
    Z = Z[~negative]
    return 2.0 * (Z.T @ Z) - G


def gram_rows(X: Array) -> int:
    """How many rows of X (n, d) a Gram matrix takes at a time: measured, NumPy with OpenBLAS, 2 cores.

    On the CPU half a megabyte, which stays in the second-level cache between its three uses, but at least 2 d rows (at
    most 2,048): below that, adding up the (d, d) parts shows. Elsewhere `smallest_block`.
    """
    d = X.shape[1]
    if not compat.is_numpy_array(X):
        return max(256, smallest_block(X) // (d * itemsize(X)))
    return max(2**19 // (d * itemsize(X)), min(2 * d, 2048))


# ---------------------------------------------------------------------------------------------
# CUDA kernels of our own


def runs_cuda(x: Array) -> bool:
    """Return True where ``x`` lies in the memory of a CUDA device and `cuda_module` compiles for it."""
    return compat.is_cupy_array(x)


def cuda_module(code: str, names: tuple[str, ...]) -> Any:
    """Compile the kernels ``names`` of a CUDA source for the current device (CuPy caches the result on disk)."""
    return _cupy().RawModule(code=code, name_expressions=names, options=("--std=c++17",))


def multiprocessors(x: Array) -> int:
    """Return how many multiprocessors the CUDA device of ``x`` has."""
    return x.device.attributes["MultiProcessorCount"]


def memory(x: Array) -> tuple[int, bool]:
    """Return the address of a NumPy or CuPy array, and whether it is C-contiguous."""
    return (x.data.ptr if compat.is_cupy_array(x) else x.ctypes.data), x.flags.c_contiguous


def using(target: str | None) -> contextlib.AbstractContextManager[Any]:
    """Make the CUDA device ``target`` the current one inside a block; nothing for the CPU and None."""
    if target is None or target == "cpu" or not isinstance(target, str):  # what is no name, `to_device` refuses
        return contextlib.nullcontext()
    return _cupy().cuda.Device(_cuda_index(target))


def on_device(x: Array) -> contextlib.AbstractContextManager[Any]:
    """Make the device of ``x`` the current one: CuPy allocates results and launches kernels there, whatever x is."""
    return x.device if compat.is_cupy_array(x) else contextlib.nullcontext()


# ---------------------------------------------------------------------------------------------
# random numbers: drawn on the host, so that one seed gives one sample on every device

Seed = np.random.Generator | int | Sequence[int]
"""What NumPy's `default_rng` takes: a generator goes on, numbers begin a new stream."""


def generator(seed: Seed) -> np.random.Generator:
    """Return a host generator: the same seed draws the same numbers for every device."""
    return np.random.default_rng(seed)


def random_normal(shape: Sequence[int], rng: Seed, like: Array) -> Array:
    """Draw standard normal numbers on the host and move them beside ``like``."""
    return new(np.random.default_rng(rng).standard_normal(tuple(shape)), like)


def random_uniform(shape: Sequence[int], rng: Seed, like: Array) -> Array:
    """Draw uniform numbers in [0, 1) on the host and move them beside ``like``."""
    return new(np.random.default_rng(rng).random(tuple(shape)), like)


def random_permutation(n: int, rng: Any, like: Array) -> Array:
    """Draw a permutation of 0, ..., n-1 on the host and move it beside ``like``. ``rng``: a Generator or a seed."""
    return new(np.random.default_rng(rng).permutation(n), like, dtype=namespace(like).int64)


# ---------------------------------------------------------------------------------------------


def free_memory(like: Array) -> int | None:
    """Return the bytes that are free where ``like`` lives, or None where the platform does not say."""
    if compat.is_cupy_array(like):
        with like.device:
            return int(like.device.mem_info[0]) + int(_cupy().get_default_memory_pool().free_bytes())
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


def scratch(target: str | None, dtype: str) -> Array:
    """Return an empty array on device ``target`` (None: NumPy): something to create other arrays beside."""
    return to_device(np.empty(0, dtype=dtype), target)


# ---------------------------------------------------------------------------------------------


def info() -> dict[str, str]:
    """Describe the machine and the installed libraries: what ``xpreg info`` prints."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("xpreg", "numpy", "array-api-compat", "scipy", "matplotlib", "tqdm", "dask"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    try:
        cupy = _cupy()
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
