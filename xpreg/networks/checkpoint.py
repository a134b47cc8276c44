"""Checkpoints of training: what of a run is kept."""

from __future__ import annotations

from typing import Any

from .. import backend as B
from .. import checkpoint
from ..backend import Array


class Checkpoint(checkpoint.Checkpoint):
    """Where a run is kept, and what it must agree with.

    Parameters
    ----------
    path : of the file; its folder must exist
    identity : the options of the run
    fingerprint : a hash of its network and data
    """

    def __init__(self, path: Any, identity: dict[str, Any], fingerprint: str) -> None:
        super().__init__(path, identity | {"data": fingerprint}, "xpreg.train", "network, data and options")

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file."""
        numbers = {name: v for name, v in state["method"].items() if isinstance(v, float)}
        arrays = {name: state[name] for name in ("W", "best_W", "history")}
        arrays |= {f"method_{name}": v for name, v in state["method"].items() if name not in numbers}
        self.write({"best_nit": state["best_nit"], "method": numbers}, arrays)

    def load(self, like: Array) -> dict[str, Any]:
        """Read the state, with its arrays beside ``like``.

        Raises
        ------
        InvalidArgumentError
            The file is missing, is no checkpoint, or belongs to another run.
        """
        meta, data = self.read()
        history = data.pop("history").tolist()
        arrays = {name: B.new(v, like) for name, v in data.items()}
        return {
            "W": arrays["W"],
            "best_W": arrays["best_W"],
            "best_nit": meta["best_nit"],
            "history": history,
            "method": meta["method"]
            | {name.removeprefix("method_"): v for name, v in arrays.items() if name.startswith("method_")},
        }
