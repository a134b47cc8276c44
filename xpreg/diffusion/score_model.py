"""A learned score: the denoiser, the score that follows from it, and its file."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, Self

from .. import backend as B
from ..backend import Array
from ..errors import InvalidArgumentError
from ..io import load_arrays, save_arrays
from ..networks import SoftmaxNetwork
from .baseline import GaussianBaseline
from .embedding import Embedding
from .kernel_regression import KernelExpansion
from .process import OrnsteinUhlenbeck, per_row, require_points

FORMAT = "xpreg.diffusion.ScoreModel"
VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreRecord:
    """One step of a fit, in plain numbers.

    Attributes
    ----------
    nit : iteration or epoch of the network, from 0 (the start), or number of the ridge
    loss : mean of |F - X_0|^2/c^2 over the noisy points that are fitted, see `GaussianBaseline`
    validation : the same over the noisy points of held-out data
    ridge : of the kernel, in units of k(u, u); nan for the network
    """

    nit: int
    loss: float
    validation: float
    ridge: float = float("nan")


@dataclasses.dataclass(frozen=True)
class ScoreModel:
    """An estimate of E[X_0 | X_t = x] and of the score of X_t, for t in [t_min, t_max]; made by `fit_score`.

    Attributes
    ----------
    regressor : `SoftmaxNetwork` or `KernelExpansion`, from the embedded (t, x) to (X_0 - G)/c, see `GaussianBaseline`
    embedding : `Embedding`, with the mean and the spread of the data
    covariance : (d, d) of the data: with their mean it makes the baseline and the start of the reverse process
    radius : the denoiser's values are clipped to this distance from the mean, the largest that the data have
    t_min, t_max : the interval of times that was learned
    method : "gradient-descent", "gram-gauss-newton" or "kernel"
    message : how the fit ended
    history : one `ScoreRecord` per iteration or epoch of the network, or per ridge of the kernel
    """

    regressor: SoftmaxNetwork | KernelExpansion = dataclasses.field(repr=False)
    embedding: Embedding = dataclasses.field(repr=False)
    covariance: Array = dataclasses.field(repr=False)
    radius: float
    t_min: float
    t_max: float
    method: str
    message: str
    history: tuple[ScoreRecord, ...] = dataclasses.field(repr=False)

    @property
    def mean(self) -> Array:
        """(d,) mean of the data."""
        return self.embedding.centre

    @functools.cached_property
    def _baseline(self) -> GaussianBaseline:
        return GaussianBaseline(self.mean, self.covariance)

    @property
    def d(self) -> int:
        """Dimension of the data."""
        return self.mean.shape[0]

    def denoise(self, x: Array, t: Any) -> Array:
        """Estimate E[X_0 | X_t = x].

        Parameters
        ----------
        x : (n, d)
        t : a number or (n,), in [t_min, t_max]; outside, the estimate extrapolates

        Returns
        -------
        (n, d)
        """
        xp = B.common_namespace(mean=self.mean, x=x)
        require_points(x=x)
        if x.shape[1] != self.d:
            raise InvalidArgumentError(f"x has shape {tuple(x.shape)}, but (n, {self.d}) is needed for this model.")
        G, c = self._baseline(x, t)
        F = G + c * self.regressor.predict(self.embedding(x, t)) - self.mean
        length = xp.sqrt(xp.sum(F * F, axis=1, keepdims=True))
        return self.mean + F * (self.radius / xp.where(length > self.radius, length, xp.full_like(length, self.radius)))

    def score(self, x: Array, t: Any) -> Array:
        """Estimate the gradient of log p_t at x by Tweedie's formula, (alpha denoise(x, t) - x)/h. Shapes as there."""
        process, row_t = OrnsteinUhlenbeck(), per_row(t, x)
        return (process.alpha(row_t) * self.denoise(x, t) - x) / process.h(row_t)

    def to_device(self, device: str) -> Self:
        """Return the model with its arrays on ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
        arrays, header = self._parts()
        return self._from_parts({name: B.to_device(v, device) for name, v in arrays.items()}, header, self.history)

    # -- files ----------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the model as .npz with a JSON header, without pickles; an old file is replaced atomically."""
        arrays, header = self._parts()
        data: dict[str, Any] = {name: B.to_numpy(v) for name, v in arrays.items()}
        history = [dataclasses.astuple(record) for record in self.history]
        save_arrays(path, data | {"header": json.dumps(header), "history": history})

    @classmethod
    def load(cls, path: Any, *, device: str | None = None) -> Self:
        """Read a model that `save` wrote, on any device, into NumPy arrays or onto ``device``.

        Raises
        ------
        InvalidArgumentError
            The file is missing, damaged, or no such model.
        """
        try:
            data = load_arrays(path)
            header = json.loads(str(data.pop("header")))
            if (header["format"], header["version"]) != (FORMAT, VERSION):
                raise ValueError(f"its header says {header['format']} version {header['version']}")
            history = tuple(ScoreRecord(int(nit), *rest) for nit, *rest in data.pop("history").tolist())
            model = cls._from_parts(data, header, history)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                f"path is {str(path)!r}, which cannot be read as {FORMAT} version {VERSION}: {error}."
            ) from error
        return model if device is None else model.to_device(device)

    def _parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Split into arrays, and plain numbers and words."""
        arrays = {"covariance": self.covariance, "centre": self.embedding.centre}
        if isinstance(self.regressor, SoftmaxNetwork):
            arrays |= {"W": self.regressor.W, "a": self.regressor.a}
        else:
            arrays |= {"centres": self.regressor.centres, "coefficients": self.regressor.coefficients}
        embedding = {name: getattr(self.embedding, name) for name in ("spread", "log_h", "sqrt_h")}
        names = ("radius", "t_min", "t_max", "method", "message")
        header = {"format": FORMAT, "version": VERSION, "sigma": self.regressor.sigma, "embedding": embedding}
        return arrays, header | {name: getattr(self, name) for name in names}

    @classmethod
    def _from_parts(cls, arrays: dict[str, Array], header: dict[str, Any], history: tuple[Any, ...]) -> Self:
        regressor: SoftmaxNetwork | KernelExpansion
        if "W" in arrays:
            regressor = SoftmaxNetwork(arrays["W"], arrays["a"], sigma=header["sigma"])
        else:
            regressor = KernelExpansion(arrays["centres"], arrays["coefficients"], header["sigma"])
        constants = header["embedding"]
        embedding = Embedding(
            arrays["centre"], constants["spread"], tuple(constants["log_h"]), tuple(constants["sqrt_h"])
        )
        return cls(
            regressor=regressor,
            embedding=embedding,
            covariance=arrays["covariance"],
            radius=header["radius"],
            t_min=header["t_min"],
            t_max=header["t_max"],
            method=header["method"],
            message=header["message"],
            history=history,
        )
