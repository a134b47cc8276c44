"""Checkpoints of a run: one .npz file without pickles, replaced atomically."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from . import backend as B
from . import io
from .backend import Array
from .errors import InvalidArgumentError

VERSION = 1


def _layout(x: Any) -> tuple[int, ...]:
    """Return the axes of a NumPy or CuPy array in the order in which they lie in memory."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    """Return the permutation that takes ``order`` back."""
    return tuple(order.index(axis) for axis in range(len(order)))


def place(x: Any, like: Array) -> Array:
    """Copy a host array beside ``like``, with its memory layout: sums depend on that in the last bit."""
    order = _layout(x)
    return B.namespace(like).permute_dims(B.new(x.transpose(order).copy(order="C"), like), _inverse(order))


class Checkpoint:
    """Where a run is kept, and what it must agree with.

    Parameters
    ----------
    path : of the file; its folder must exist
    identity : plain facts that tell one run from another
    of : the function whose runs these are, for messages
    same : what must be passed again to go on, for messages
    """

    def __init__(self, path: Any, identity: dict[str, Any], of: str, same: str) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InvalidArgumentError(f"checkpoint is a {type(path).__name__}, but the path of a file is needed.")
        self.path = pathlib.Path(path)
        self.identity = json.loads(json.dumps(identity))
        self.of, self.same = of, same
        io.check_writable(self.path)
        if self.path.exists():
            self._meta(io.load_arrays(self.path, "meta"))  # any other file is not replaced

    def write(self, meta: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Replace the file. Whoever reads it sees the old or the new one, never a part."""
        values = {name: v if hasattr(v, "strides") else B.to_host(v) for name, v in arrays.items()}
        order = {name: _layout(v) for name, v in values.items()}
        host: dict[str, Any] = {
            name: B.to_host(B.namespace(v).permute_dims(v, order[name])) for name, v in values.items()
        }
        facts = {"version": VERSION, "identity": self.identity, "order": order}
        io.save_arrays(self.path, host | {"meta": json.dumps(meta | facts)})

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the plain facts and the arrays, on the host, with the memory layout that they had.

        Raises
        ------
        InvalidArgumentError
            The file is missing, is no checkpoint, or belongs to another run.
        """
        arrays = io.load_arrays(self.path)
        meta = self._meta(arrays)
        del arrays["meta"]
        different = sorted(k for k, v in self.identity.items() if meta["identity"].get(k) != v)
        if different:
            raise self.foreign(", ".join(different))
        if meta["version"] != VERSION:
            raise InvalidArgumentError(
                f"checkpoint {str(self.path)!r} has version {meta['version']}, but this release writes {VERSION}: "
                "go on with the release that wrote it, or pass resume=False."
            )
        with self.intact():
            return meta, {name: v.transpose(_inverse(meta["order"][name])) for name, v in arrays.items()}

    def _meta(self, arrays: dict[str, Any]) -> dict[str, Any]:
        try:
            meta = json.loads(str(arrays["meta"]))
            facts = {name: dict(meta[name]) for name in ("identity", "order")}
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidArgumentError(
                f"{self.path} is no checkpoint of {self.of}: it has no {error}. It is not replaced: give the "
                "checkpoint another name."
            ) from error
        return {"version": 0} | meta | facts

    @contextlib.contextmanager
    def intact(self) -> Iterator[None]:
        """Take what goes wrong inside for what it is: a damaged file."""
        try:
            yield
        except InvalidArgumentError:
            raise
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise InvalidArgumentError(
                f"checkpoint {str(self.path)!r} is damaged ({type(error).__name__}: {error}): pass resume=False."
            ) from error

    def foreign(self, different: str) -> InvalidArgumentError:
        """Return the error that the file belongs to another run."""
        return InvalidArgumentError(
            f"checkpoint {str(self.path)!r} belongs to another run: {different} differ(s). "
            f"Pass the same {self.same} (maxiter may grow), or resume=False."
        )
