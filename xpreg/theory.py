"""The constants and bounds of the theorems, as plain functions: what `certify` evaluates and the examples check.

Everything for softmax regression assumes nothing of the data but what its docstring says. "Numerical" means the
largest value that searches found, rounded up: not a proof.
"""

from __future__ import annotations

import math

SOFTMAX_LOWEST = -0.2405
"""Numerical infimum of the eigenvalues of B for f and b in the simplex: 4 p^2 (2 - 3p) (1 - p) at
p = (15 + sqrt 33)/24, which n = 2 and a vertex b attain (-0.240409)."""

SOFTMAX_HIGHEST = 0.3082
"""Numerical supremum of the same, at p = (15 - sqrt 33)/24 (0.308117)."""

SOFTMAX_SANDWICH = 2.7731
"""w^2 from which on 0.9 (B + W^2) <= W^2 <= 1.1 (B + W^2): 9 times the supremum 0.308117, numerical."""

SOFTMAX_LIPSCHITZ = 0.5715
"""Numerical supremum of the Hessian's Lipschitz constant over |A|^3, for f and b in the simplex."""

KL_LIPSCHITZ = 0.2722
"""Lipschitz constant of the Hessian of the Kullback-Leibler loss over sum(b) |A|^3: sqrt(2)^3/(6 sqrt 3), the largest
third central moment on an interval of length sqrt 2."""

RESNET_LOWEST, RESNET_SANDWICH = -0.2405, 2.78
"""The same as for softmax, for ResNet-softmax with columns of zero mean and n >= 10; numerical."""


def extreme_eigenvalue(p: float) -> float:
    """Return the eigenvalue 4 p^2 (2 - 3p) (1 - p) of B at n = 2, b = (0, 1), f = (p, 1 - p)."""
    return 4.0 * p * p * (2.0 - 3.0 * p) * (1.0 - p)


def softmax_lipschitz(b_range: float) -> float:
    """Return a proved bound of the Lipschitz constant of softmax regression's Hessian over |A|^3.

    For any real b with max b - min b = ``b_range``, along z + t h with |h| = 1, hh = h - <f,h>, sig^2 = <f,hh^2>,
    kap = <f,hh^3>:  f' = f*hh,  f'' = f*(hh^2 - sig^2),  f''' = f*(hh^3 - 3 sig^2 hh - kap), and the third derivative
    of the loss is <f''',c> + 3 <f'',f'>. Entries of h differ by at most sqrt 2, so |hh| <= sqrt 2 and sig^2 <= 1/2;
    then |f'''|_1 <= 3.5/sqrt 2, |f'| <= 1/2, |f''|_1 <= 1. Entries of c differ by at most 1 + b_range; <f''',1> = 0.
    A symmetric trilinear form attains its norm on the diagonal. In the simplex (b_range 1) this gives 3.98.
    """
    return 3.5 / math.sqrt(2.0) * 0.5 * (1.0 + b_range) + 1.5


def softmax_weight(b_min: float, b_max: float) -> float:
    """Return a proved w_i^2 from which on B + W^2 >= 0 at every x: half of max(b_i + s - 2 f_i), s <= 1 - min b."""
    return max(0.0, 0.5 * (b_max + 1.0 - b_min))


def contraction(l: float, M: float, r: float, eps: float = 0.0) -> float | None:
    """Return 2 (eps + M r/(l - M r)): by it approximate Newton shrinks a distance r to the minimum; None if M r >= l.

    References
    ----------
    arXiv 2304.10411 (the shrinking lemma); MATH section 4.
    """
    return None if not M * r < l else 2.0 * (eps + M * r / (l - M * r))


def greedy_contraction(l: float, Lam: float, eps: float) -> float:
    """Return 1 - ((1 - eps) l/((1 + eps) Lam))^2: by it a greedy step shrinks L - L* where l I <= H <= Lam I.

    With (1 - eps) H <= H~ <= (1 + eps) H the eigenvalues of H~ lie between l~ >= (1 - eps) l and
    Lam~ <= (1 + eps) Lam. The step t = (1 - eps) l~/Lam~ of -H~^-1 g lowers L by at least
    t/2 <g, H~^-1 g> >= t/2 |g|^2/Lam~ >= t l (L - L*)/Lam~.

    References
    ----------
    arXiv 2308.08358 (convergence of the loss, with l/Lam known: 1 - (1 - eps) l^2/((1 + eps) Lam^2)); MATH section 4.
    """
    return 1.0 - ((1.0 - eps) * l / ((1.0 + eps) * Lam)) ** 2


def minimiser_within(l: float, M: float, eta: float) -> tuple[float, float] | None:
    """Return r and l* >= 0: a minimiser lies within r of x, and the Hessian there is at least l* I; or None.

    Newton-Kantorovich: the Hessian at x is at least l I (l > 0) and M-Lipschitz, and its Newton step has length at
    most ``eta``; it applies when M eta <= l/2.

    References
    ----------
    Ortega and Rheinboldt, Iterative Solution of Nonlinear Equations (1970), section 12.6.
    """
    if not (l > 0 and 2.0 * M * eta <= l):
        return None
    root = math.sqrt(1.0 - 2.0 * M * eta / l)
    return 2.0 * eta / (1.0 + root), l * root


def elementwise_floor(name: str, b_min: float, b_max: float) -> float:
    """Return the smallest curvature g'^2 + (g - b) g'' over all z and all entries of b."""

    def floor(b: float) -> float:
        if name == "exp":
            return -(max(b, 0.0) ** 2) / 8.0
        if name == "sinh":
            return 1.0 - b * b / 8.0
        return 1.0 - b if b <= 4.0 else -1.0 - b * b / 8.0

    return min(floor(b_min), floor(b_max))
