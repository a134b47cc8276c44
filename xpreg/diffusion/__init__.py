"""Score estimation for diffusion models with softmax networks and their kernels, and sampling from the score."""

from .baseline import GaussianBaseline
from .distances import nearest, sliced_wasserstein
from .embedding import Embedding
from .fitting import fit_score, noisy_pairs
from .kernel_regression import KernelExpansion
from .mixture import GaussianMixture
from .process import OrnsteinUhlenbeck
from .sampling import SampleRecord, sample
from .score_model import ScoreModel, ScoreRecord

load = ScoreModel.load

__all__ = [
    "Embedding",
    "GaussianBaseline",
    "GaussianMixture",
    "KernelExpansion",
    "OrnsteinUhlenbeck",
    "SampleRecord",
    "ScoreModel",
    "ScoreRecord",
    "fit_score",
    "load",
    "nearest",
    "noisy_pairs",
    "sample",
    "sliced_wasserstein",
]
