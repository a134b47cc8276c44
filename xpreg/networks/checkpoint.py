"""Checkpoints of training: one .npz file without pickles, replaced atomically."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from .. import backend as B
from .. import io
from ..backend import Array
from ..errors import InvalidArgumentError


class Checkpoint:
    """Where a run is kept, and what it must agree with.

    Parameters
    ----------
    path : of the file; its folder must exist
    identity : the options of the run
    fingerprint : a hash of its network and data
    """

    def __init__(self, path: Any, identity: dict[str, Any], fingerprint: str) -> None:
        self.path = pathlib.Path(path)
        self.identity = json.loads(json.dumps(identity | {"data": fingerprint}))
        io.check_writable(self.path)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file. Whoever reads it sees the old or the new one, never a part."""
        method = {name: v for name, v in state["method"].items() if not isinstance(v, float)}
        meta = {
            "identity": self.identity,
            "best_nit": state["best_nit"],
            "method": {name: v for name, v in state["method"].items() if isinstance(v, float)},
        }
        arrays: dict[str, Any] = {name: B.to_numpy(state[name]) for name in ("W", "best_W")}
        arrays |= {"meta": np.array(json.dumps(meta)), "history": np.array(state["history"])}
        arrays |= {f"method_{name}": B.to_numpy(v) for name, v in method.items()}
        with io.atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def load(self, like: Array) -> dict[str, Any]:
        """Read the state, with its arrays beside ``like``.

        Raises
        ------
        InvalidArgumentError
            The file is missing, is no checkpoint, or belongs to another run.
        """
        data = io.load_arrays(self.path)
        try:
            meta = json.loads(str(data["meta"]))
        except (KeyError, ValueError) as error:
            raise InvalidArgumentError(f"{self.path} is no checkpoint of xpreg.train: it has no {error}.") from error
        different = sorted(k for k, v in self.identity.items() if meta["identity"].get(k) != v)
        if different:
            raise InvalidArgumentError(
                f"checkpoint {str(self.path)!r} belongs to another run: {', '.join(different)} differ(s). "
                "Pass the same network, data and options (maxiter may grow), or resume=False."
            )
        arrays = {name: B.new(v, like) for name, v in data.items() if name not in ("meta", "history")}
        return {
            "W": arrays["W"],
            "best_W": arrays["best_W"],
            "best_nit": meta["best_nit"],
            "history": data["history"].tolist(),
            "method": meta["method"]
            | {name.removeprefix("method_"): v for name, v in arrays.items() if name.startswith("method_")},
        }
