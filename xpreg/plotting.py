"""Pictures; needs matplotlib, which is imported only here and only when a picture is wanted."""

from __future__ import annotations

import importlib
import os
import pathlib
from typing import Any

from .errors import InvalidArgumentError, XpregError
from .io import atomic_path
from .result import Result

PICTURES = (".png", ".pdf", ".svg")

BLUE, RED, GREY = "#3264a8", "#c4432b", "#7f7f7f"


def require_matplotlib() -> Any:
    """Return ``matplotlib.figure``, or say how to get it."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise XpregError("a picture needs matplotlib, which is not installed: pip install 'xpreg[plot]'.") from error


def check_picture(path: str | os.PathLike) -> None:
    """Refuse a name that does not end as pictures do; and when matplotlib is not there, any."""
    require_matplotlib()
    if pathlib.Path(path).suffix.lower() not in PICTURES:
        raise InvalidArgumentError(f"{path} is no picture: a name that ends in {', '.join(PICTURES)} is needed.")


def plot_convergence(result: Result, title: str = "") -> Any:
    """Draw the largest gradient entry and the loss against the iteration, and for a stack the problems left.

    Parameters
    ----------
    result : with a history
    title : above the picture

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = require_matplotlib().Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    first = min(record.problems for record in result.history)
    records = [record for record in result.history if record.problems == first]
    nit = [record.nit for record in records]
    axes.semilogy(nit, [_positive(r.grad_norm) for r in records], "o-", color=BLUE, label="largest gradient entry")
    axes.semilogy(nit, [_positive(r.fun) for r in records], "s--", color=RED, ms=4, label="loss")
    size = first[1] - first[0]
    axes.set_xlabel("iteration")
    axes.set_ylabel("worst of the problems still running" if size > 1 else "")
    axes.grid(True, which="major", alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower left", frameon=False)
    if size > 1:
        left = axes.twinx()
        left.fill_between(nit, [r.active / size for r in records], step="post", color=GREY, alpha=0.2, lw=0)
        left.set_ylim(0, 1.02)
        left.set_ylabel(f"share of the {size} problems still running", color=GREY)
    axes.set_title(title or result.message.partition(" (")[0], fontsize=10, parse_math=False)
    return figure


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure atomically; the ending of ``path`` chooses the format."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _positive(value: float) -> float:
    return value if value > 0 else float("nan")
