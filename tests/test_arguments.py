"""Flags are True or False: a word, which Python counts as True whatever it says, is refused by name."""

import numpy as np
import pytest

import xpreg
from xpreg import diffusion

A, B = np.eye(3), np.full(3, 1 / 3)
MIXTURE = diffusion.GaussianMixture(np.array([[0.0, 1.0], [1.0, 0.0]]), np.full(2, 0.1))

CALLS = {
    "rescaled": lambda flag: xpreg.ExpRegression(A, B, rescaled=flag),
    "certify": lambda flag: xpreg.minimize(xpreg.SoftmaxRegression(A, B), certify=flag),
    "resume": lambda flag: xpreg.minimize(xpreg.SoftmaxRegression(A, B), checkpoint="run.npz", resume=flag),
    "pairs": lambda flag: xpreg.ExpNetwork.initialise(3, 4, pairs=flag),
    "to_zero": lambda flag: diffusion.sample(MIXTURE, 5, steps=2, t_min=0.1, t_max=1.0, to_zero=flag),
    "exclude_self": lambda flag: diffusion.nearest(A, A, exclude_self=flag),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("flag", ["no", 1, None])
def test_a_flag_is_true_or_false(name, flag):
    with pytest.raises(xpreg.InvalidArgumentError, match=f"{name} is {flag!r}, but True or False is needed"):
        CALLS[name](flag)


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"resume"}))
def test_numpys_flags_are_flags(name):
    assert CALLS[name](np.True_) is not None
    assert CALLS[name](np.False_) is not None
