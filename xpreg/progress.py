"""A progress bar as a callback: how many of the wanted digits the gradient has lost."""

from __future__ import annotations

import importlib
import math
import types
from typing import Any

from .errors import XpregError
from .result import IterationRecord


class ProgressBar:
    """Show the digits by which the largest gradient entry has fallen, out of the -log10(tol) that are asked for.

    A callback of `minimize` and a context manager; needs tqdm.

    Parameters
    ----------
    tol : of the run
    options : for tqdm, for example ``file`` or ``disable``

    Examples
    --------
    >>> import io, numpy as np, xpreg
    >>> from xpreg.progress import ProgressBar
    >>> problem = xpreg.SoftmaxRegression(np.eye(3)[:, :2], np.array([0.5, 0.3, 0.2]))
    >>> with ProgressBar(tol=1e-8, file=io.StringIO()) as bar:
    ...     xpreg.minimize(problem, tol=1e-8, callback=bar).success
    True
    """

    def __init__(self, tol: float = 1e-8, **options: Any):
        try:
            tqdm = importlib.import_module("tqdm").tqdm
        except ImportError as error:
            raise XpregError(
                "a progress bar needs tqdm, which is not installed: pip install 'xpreg[progress]'."
            ) from error
        self.digits = -math.log10(max(tol, 1e-16))
        self.start = 0.0
        layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        self.bar = tqdm(total=self.digits, bar_format=layout, desc="xpreg", **options)

    def __call__(self, record: IterationRecord) -> None:
        """Take in one record."""
        if record.nit == 0:
            self.bar.reset()
            self.start = record.grad_norm
        postfix = {"iteration": record.nit, "loss": f"{record.fun:.3e}", "gradient": f"{record.grad_norm:.1e}"}
        if record.problems[1] - record.problems[0] > 1:
            postfix["problems left"] = f"{record.active} of {record.problems[0]}-{record.problems[1]}"
        self.show(record.grad_norm, postfix)

    def show(self, value: float, postfix: dict[str, Any]) -> None:
        """Draw the bar at the digits that ``value`` has lost since ``start``, with these facts behind it."""
        if value > 0 and self.start > 0:
            done = math.log10(self.start) - math.log10(value)
            self.bar.n = min(max(self.bar.n, done), self.digits)
        self.bar.set_postfix(postfix, refresh=False)
        self.bar.refresh()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.bar.close()
