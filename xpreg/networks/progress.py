"""A progress bar for training."""

from __future__ import annotations

import math
from typing import Any

from ..progress import ProgressBar
from .result import TrainRecord


class TrainingBar(ProgressBar):
    """Show the digits by which the residual has fallen, out of the -log10(tol) that are asked for.

    A callback of `train` and a context manager; needs tqdm.

    Parameters
    ----------
    tol : of the run
    options : for tqdm, for example ``file`` or ``disable``

    Examples
    --------
    >>> import io, numpy as np, xpreg
    >>> from xpreg.networks.progress import TrainingBar
    >>> network = xpreg.ExpNetwork.initialise(2, 100)
    >>> with TrainingBar(tol=1e-2, file=io.StringIO()) as bar:
    ...     xpreg.train(network, np.eye(2), np.array([1.0, -1.0]), tol=1e-2, callback=bar).success
    True
    """

    def __init__(self, tol: float = 1e-6, **options: Any):
        super().__init__(tol, **options)

    def __call__(self, record: TrainRecord) -> None:  # type: ignore[override]
        """Take in one record."""
        if record.nit == 0 or not self.start:
            self.start = record.residual
        postfix = {"iteration": record.nit, "residual": f"{record.residual:.3e}"}
        if not math.isnan(record.validation):
            postfix["validation"] = f"{record.validation:.3e}"
        self.show(record.residual, postfix)
