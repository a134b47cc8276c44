"""Files: problems and results as .npz, readable on any machine; never a pickle, never half a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import backend as B
from .blocked import Rows, open_rows
from .certificate import Certificate
from .errors import InvalidArgumentError
from .problem import Problem
from .regressions import LOSSES, TWO_LAYER_LOSSES
from .result import IterationRecord, Result, Status

__all__ = [
    "Rows",
    "atomic_path",
    "check_writable",
    "load_arrays",
    "load_problem",
    "load_result",
    "open_rows",
    "save_arrays",
    "save_result",
]

OPTIONAL_ARRAYS = ("weights", "x0")

CSR_PARTS = ("data", "indices", "indptr", "shape")

_RESULT_ARRAYS = ("x", "fun", "grad", "status", "converged")

_RESULT_FACTS = ("success", "message", "nit", "nfev", "ngev", "nhev")

_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy.load raises for files that are damaged, encrypted, pickled, or something else."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` when the block succeeds, else it vanishes."""
    path = Path(path).resolve()  # a link stays a link
    check_writable(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else _default_mode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _default_mode() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def check_writable(path: str | os.PathLike) -> None:
    """Refuse a path whose folder does not exist or cannot be written, or that is a folder."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{path}: the folder {path.parent} does not exist; create it first.")
    if path.exists() and not path.is_file():
        raise InvalidArgumentError(f"{path} exists and is no regular file: give the output another name.")
    if not os.access(path.parent, os.W_OK):
        raise InvalidArgumentError(f"{path}: the folder {path.parent} cannot be written.")


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write arrays, numbers and texts as .npz; whoever reads ``path`` sees the old or the new file, never a part."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: str | os.PathLike, *names: str) -> dict[str, np.ndarray]:
    """Read every array of an .npz file, or those of some ``names`` that it has; refuses pickled objects.

    Raises
    ------
    InvalidArgumentError
        The file is missing, or is no .npz file of plain arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidArgumentError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}.")
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if not names or name in names}
    except _UNREADABLE as error:
        raise InvalidArgumentError(
            f"{path} is no .npz file of plain arrays (numpy.savez writes one): {error}"
        ) from error


def load_problem(
    path: str | os.PathLike, loss: str, *, rows: str | os.PathLike | None = None, device: str | None = None
) -> tuple[Problem, Any, tuple[str, ...]]:
    """Make the problem that an .npz file describes.

    Parameters
    ----------
    path : a file with A, b (A1, A2, b for two layers) and optionally weights and x0. In the place of A it may hold
        the parts of a CSR matrix: A_data, A_indices, A_indptr, A_shape
    loss : one of `xpreg.regressions.LOSSES` and ``TWO_LAYER_LOSSES``
    rows : where A is instead, in a form that `open_rows` reads; not for two layers
    device : where to put it

    Returns
    -------
    problem, x0 (or None), the names of arrays in the file that were not used
    """
    kinds = {**LOSSES, **TWO_LAYER_LOSSES}
    if loss not in kinds:
        raise InvalidArgumentError(f"loss is {loss!r}, but one of {', '.join(kinds)} is needed.")
    names = ("A1", "A2", "b") if loss in TWO_LAYER_LOSSES else ("A", "b")
    if rows is not None and loss in TWO_LAYER_LOSSES:
        raise InvalidArgumentError(f"rows is {rows}, but the {loss} loss needs A1 and A2 in {path}.")
    opened: dict[str, Any] = {} if rows is None else {"A": open_rows(rows)}
    arrays: dict[str, Any] = load_arrays(path)
    if "A" not in arrays and all(f"A_{part}" in arrays for part in CSR_PARTS):
        arrays["A"] = B.csr_from_parts({part: arrays.pop(f"A_{part}") for part in CSR_PARTS})
    missing = [name for name in names if name not in arrays and name not in opened]
    if missing:
        raise InvalidArgumentError(
            f"{path} has no array {' and '.join(missing)}: it holds {', '.join(sorted(arrays)) or 'nothing'}. "
            f"The {loss} loss needs {', '.join(names)}; {' and '.join(OPTIONAL_ARRAYS)} are optional."
        )
    weights = arrays.get("weights", 0.0)
    if isinstance(weights, np.ndarray) and weights.ndim == 0 and weights.dtype.kind in "fiu":
        weights = float(weights)
    given = arrays | opened
    problem = kinds[loss](*(given[name] for name in names), weights=weights, device=device)
    x0 = arrays.get("x0")
    unused = tuple(sorted(set(arrays) - {*names, *OPTIONAL_ARRAYS} | set(arrays) & set(opened)))
    return problem, B.to_device(x0, device), unused


def save_result(path: str | os.PathLike, result: Result, **facts: Any) -> None:
    """Write a result as .npz: its arrays, its history as one array per field, and the rest as JSON in ``header``.

    Parameters
    ----------
    path : replaced atomically
    result : from any device
    facts : further plain facts for the header, for example the method
    """
    history = {
        f"history_{field.name}": np.asarray([getattr(record, field.name) for record in result.history])
        for field in dataclasses.fields(IterationRecord)
    }
    header = {
        "format": "xpreg result 1",
        **{name: getattr(result, name) for name in _RESULT_FACTS},
        "certificate": None if result.certificate is None else dataclasses.asdict(result.certificate),
        **facts,
    }
    arrays = {name: B.to_host(getattr(result, name)) for name in _RESULT_ARRAYS}
    if result.activation is not None:
        arrays["activation"] = B.to_host(result.activation)
    save_arrays(path, {"header": json.dumps(header), **arrays, **history})


def load_result(path: str | os.PathLike, *, device: str | None = None) -> Result:
    """Read a result that `save_result` wrote, on whatever device; as NumPy arrays, or on ``device``.

    Raises
    ------
    InvalidArgumentError
        The file is missing, or is no such file.
    """
    arrays = load_arrays(path)
    header = _header(arrays)
    if header.get("format") != "xpreg result 1":
        raise InvalidArgumentError(f"{path} is no result file of xpreg: it holds {', '.join(sorted(arrays))}.")
    fields = [field.name for field in dataclasses.fields(IterationRecord)]
    needed = {*_RESULT_ARRAYS, *(f"history_{name}" for name in fields)}
    if missing := sorted(needed - set(arrays)):
        raise InvalidArgumentError(f"{path} is a damaged result file: it has no {', '.join(missing)}.")
    if missing := [name for name in _RESULT_FACTS if name not in header]:
        raise InvalidArgumentError(f"{path} is a damaged result file: its header has no {', '.join(missing)}.")
    single = arrays["x"].ndim == 1
    rows = zip(*(arrays[f"history_{name}"].tolist() for name in fields), strict=True)
    history = []
    for row in rows:
        values: dict[str, Any] = dict(zip(fields, row, strict=True))
        history.append(IterationRecord(**values | {"problems": tuple(values["problems"])}))
    if unknown := sorted(set(arrays["status"].ravel().tolist()) - {int(status) for status in Status}):
        raise InvalidArgumentError(f"{path} is a damaged result file: {unknown[0]} is no status.")
    certificate = header.get("certificate")
    result = Result(
        x=arrays["x"],
        fun=float(arrays["fun"]) if single else arrays["fun"],
        grad=arrays["grad"],
        status=Status.of(int(arrays["status"])) if single else arrays["status"],
        converged=bool(arrays["converged"]) if single else arrays["converged"],
        **{name: header[name] for name in _RESULT_FACTS},
        history=tuple(history),
        certificate=None if certificate is None else Certificate.of(certificate),
        activation=arrays.get("activation"),
    )
    return result.to_device(device)


def _header(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        header = json.loads(str(arrays.get("header", "")))
    except json.JSONDecodeError:
        return {}
    return header if isinstance(header, dict) else {}
