"""Files: problems and results as .npz, readable on any machine; never a pickle, never half a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import backend as B
from .errors import InvalidArgumentError
from .problem import Problem
from .regressions import LOSSES
from .result import IterationRecord, Result, Status

PROBLEM_ARRAYS = ("A", "b", "weights", "x0")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` when the block succeeds, else it vanishes."""
    path = Path(path)
    check_writable(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Refuse a path whose folder does not exist or cannot be written, or that is a folder."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{path}: the folder {path.parent} does not exist; create it first.")
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder, but a file name is needed.")
    if not os.access(path.parent, os.W_OK):
        raise InvalidArgumentError(f"{path}: the folder {path.parent} cannot be written.")


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read every array of an .npz file; refuses pickled objects.

    Raises
    ------
    InvalidArgumentError
        The file is missing, or is no .npz file of plain arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidArgumentError(f"{path}: no such file.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InvalidArgumentError(
            f"{path} is no .npz file of plain arrays (numpy.savez writes one): {error}"
        ) from error


def load_problem(
    path: str | os.PathLike, loss: str, *, device: str | None = None
) -> tuple[Problem, Any, tuple[str, ...]]:
    """Make the problem that an .npz file describes.

    Parameters
    ----------
    path : a file with A, b and optionally weights and x0
    loss : one of `xpreg.regressions.LOSSES`
    device : where to put it

    Returns
    -------
    problem, x0 (or None), the names of arrays in the file that were not used
    """
    if loss not in LOSSES:
        raise InvalidArgumentError(f"loss is {loss!r}, but one of {', '.join(LOSSES)} is needed.")
    arrays = load_arrays(path)
    missing = [name for name in PROBLEM_ARRAYS[:2] if name not in arrays]
    if missing:
        raise InvalidArgumentError(
            f"{path} has no array {' and '.join(missing)}: it holds {', '.join(sorted(arrays)) or 'nothing'}. "
            f"The {loss} loss needs A and b; weights and x0 are optional."
        )
    weights = arrays.get("weights", 0.0)
    if isinstance(weights, np.ndarray) and weights.ndim == 0 and np.isrealobj(weights):
        weights = float(weights)
    problem = LOSSES[loss](arrays["A"], arrays["b"], weights=weights, device=device)
    x0 = arrays.get("x0")
    unused = tuple(sorted(set(arrays) - set(PROBLEM_ARRAYS)))
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
        "success": result.success,
        "message": result.message,
        **{name: getattr(result, name) for name in ("nit", "nfev", "ngev", "nhev")},
        **facts,
    }
    arrays = {name: B.to_host(getattr(result, name)) for name in ("x", "fun", "grad", "status", "converged")}
    contents: dict[str, Any] = {"header": json.dumps(header), **arrays, **history}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **contents)


def load_result(path: str | os.PathLike, *, device: str | None = None) -> Result:
    """Read a result that `save_result` wrote, on whatever device; as NumPy arrays, or on ``device``.

    Raises
    ------
    InvalidArgumentError
        The file is missing, or is no such file.
    """
    arrays = load_arrays(path)
    header = json.loads(str(arrays["header"])) if "header" in arrays else {}
    if header.get("format") != "xpreg result 1":
        raise InvalidArgumentError(f"{path} is no result file of xpreg: it holds {', '.join(sorted(arrays))}.")
    single = arrays["x"].ndim == 1
    fields = [field.name for field in dataclasses.fields(IterationRecord)]
    rows = zip(*(arrays[f"history_{name}"].tolist() for name in fields), strict=True)
    history = []
    for row in rows:
        values: dict[str, Any] = dict(zip(fields, row, strict=True))
        history.append(IterationRecord(**values | {"problems": tuple(values["problems"])}))
    result = Result(
        x=arrays["x"],
        fun=float(arrays["fun"]) if single else arrays["fun"],
        grad=arrays["grad"],
        success=header["success"],
        status=_status(int(arrays["status"])) if single else arrays["status"],
        converged=bool(arrays["converged"]) if single else arrays["converged"],
        message=header["message"],
        nit=header["nit"],
        nfev=header["nfev"],
        ngev=header["ngev"],
        nhev=header["nhev"],
        history=tuple(history),
    )
    return result.to_device(device)


def _status(value: int) -> Status:
    return next(status for status in Status if status == value)
