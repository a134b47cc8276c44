"""The proofs behind the constants of the theory, step by step, against searches that try to break them."""

import numpy as np
from support.problems import climb

from xpreg import theory


def test_a_search_does_not_break_any_inequality_behind_the_proved_softmax_constant(rng):
    """Each step of the docstring of `theory.softmax_lipschitz`, over f, h with |h| = 1, and c; and the whole."""
    sq2 = 2.0**0.5

    def terms(v, n):
        f = np.exp(v[:n] - v[:n].max())
        f /= f.sum()
        h = v[n : 2 * n] / np.linalg.norm(v[n : 2 * n])
        hh = h - f @ h
        var, kap = f @ hh**2, f @ hh**3
        f1, f2, f3 = f * hh, f * (hh**2 - var), f * (hh**3 - 3 * var * hh - kap)
        b = np.exp(v[2 * n :] - v[2 * n :].max())
        c = f - b / b.sum()
        bounds = {
            "|hh|": (np.abs(hh).max(), sq2),
            "sig^2": (var, 0.5),
            "|f'''|_1": (np.abs(f3).sum(), 3.5 / sq2),
            "|f'|": (np.linalg.norm(f1), 0.5),
            "|f''|_1": (np.abs(f2).sum(), 1.0),
            "range c": (np.ptp(c), 2.0),
            "whole": (abs(f3 @ c + 3 * f2 @ f1), theory.softmax_lipschitz(1.0)),
            "sum": (abs(f3.sum()), 1e-12),
        }
        return bounds, h, (f1, f2, f3)

    for n in (2, 3, 5):
        v, step = rng.standard_normal(3 * n), 1e-5
        _, h, here = terms(v, n)
        ahead, behind = (terms(v + sign * step * np.concatenate([h, 0 * h, 0 * h]), n)[2] for sign in (1, -1))
        for order in (0, 1):  # the second and third derivatives are those of the first and second along h
            np.testing.assert_allclose(here[order + 1], (ahead[order] - behind[order]) / (2 * step), atol=1e-9)
        for name in terms(v, n)[0]:
            best = climb(lambda v, n=n, name=name: terms(v, n)[0][name][0], 2 * rng.standard_normal(3 * n), rng, 400)
            assert best <= terms(rng.standard_normal(3 * n), n)[0][name][1] * (1 + 1e-12), (name, best)
