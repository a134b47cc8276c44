"""certify: what the theorems assume, evaluated on the user's data."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from . import backend as B
from . import theory
from .backend import Array, namespace
from .brackets import bracket, simplex_bounds
from .certificate import MEASURED, NUMERICAL, PROVED, PUBLISHED, Certificate, Claim, absent
from .curvature import Curvature
from .errors import InvalidArgumentError
from .geometry import Geometry
from .problem import Point, Problem
from .result import IterationRecord

DENSE_COLUMNS = 1000
"""Up to this d the (d, d) Hessian and A^T A are formed, for exact eigenvalues."""

SM, ECS = "arXiv 2304.10411", "arXiv 2303.15725"

IN_CELL = " in the activation cell of x"


def certify(problem: Problem, x: Array, *, history: Sequence[IterationRecord] = (), method: Any = None) -> Certificate:
    """Evaluate what the theorems assume, at x.

    Costs O(n d), and for d <= 1000 two Gram matrices (n d^2) and their eigenvalues. Proved bounds allow for rounding.
    Between the kinks of softmax-ReLU the theorems are those of softmax regression with the rows N = A2 S A1. What is
    claimed for every x holds there wherever the Hessian exists; M and what follows from it hold in the cell of x, and
    a minimiser near x is proved only where the ball that must hold it crosses no face.

    Parameters
    ----------
    problem : a regression
    x : (d,), or (..., d) for a stack: every line is then the worst of the stack
    history : of a result, for the measured contraction
    method : an `ApproximateNewton`, for the error of its sample

    Returns
    -------
    Certificate

    References
    ----------
    arXiv 2304.10411, 2309.13482 (assumptions of the convergence theorems); MATH sections 1 to 4.

    Examples
    --------
    >>> import numpy as np, xpreg
    >>> A = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> problem = xpreg.SoftmaxRegression(A, np.array([0.5, 0.3, 0.2]), weights=1.0)
    >>> certificate = xpreg.certify(problem, np.array([0.1, 0.0]))
    >>> certificate.hessian_low.value > 0, certificate.hessian_low.kind
    (True, 'proved')
    >>> certificate.psd_weight_sharp.value
    0.2405
    """
    if not isinstance(problem, Problem):
        raise InvalidArgumentError(f"problem is a {type(problem).__name__}, but an xpreg problem is needed.")
    point = problem.at(x)
    with B.quiet():
        claims = _Evaluation(point, history, method).claims()
    return Certificate(head=problem.kind, problems=point.x.shape[0], **claims)


def _has_layers(point: Point) -> bool:
    return point.rows.inner is not point.rows


class _Evaluation:
    """One certificate in the making. Arrays (k,) are reduced to the worst problem on the host."""

    def __init__(self, point: Point, history: Sequence[IterationRecord], method: Any):
        self.point, self.problem, self.rows = point, point.problem, point.rows
        self.geometry = Geometry(point, DENSE_COLUMNS)
        self.layers, self.smooth = _has_layers(point), not point.problem.rows.has_kinks
        self.history, self.method = history, method
        self.xp = namespace(point.x)
        self.eps = float(self.xp.finfo(point.x.dtype).eps)
        self.d = self.problem.d
        self.dense = self.d <= DENSE_COLUMNS

    def claims(self) -> dict[str, Claim]:
        claims = (
            self.curvature_claims() | self.weight_claims() | self.lipschitz_claims() | self.goodness() | self.sampling()
        )
        return {name: claim.unless_nan() for name, claim in claims.items()}

    def host(self, *values: Array) -> list[list[float]]:
        return [[float(v) for v in row] for row in B.read(*values)]

    # -- the data -------------------------------------------------------------------------------

    @functools.cached_property
    def b(self) -> tuple[float, float, bool]:
        """Min b, max b, and whether every b is a distribution."""
        b = self.problem.b
        xp = namespace(b)
        sums = xp.sum(xp.astype(b, xp.float64), axis=-1)
        low, high = (float(v) for v in B.read(xp.min(b), xp.max(b)))
        (error,) = B.read(namespace(sums).max(namespace(sums).abs(sums - 1.0)))
        return low, high, bool(low >= 0 and error <= self.rounding_of_a_mean)

    @property
    def rounding_of_a_mean(self) -> float:
        """How far the sum of n numbers may be off, relative to their size, when its rounding errors are random."""
        return 8 * self.eps * self.problem.b.shape[-1] ** 0.5

    # -- eigenvalues ----------------------------------------------------------------------------

    @functools.cached_property
    def brackets(self) -> tuple[Array, Array, Array, Array]:
        """Bounds of B, and of B + W^2."""
        xp, head, w2 = self.xp, self.point.head, None if self.layers else self.problem.w2
        loss = head.curvature()
        low, high = bracket(loss)
        low_w, high_w = bracket(loss, w2)
        extra = simplex_bounds(head)
        if extra is not None:
            least, most = (0.0, 0.0) if w2 is None else (namespace(w2).min(w2), namespace(w2).max(w2))
            low, high = xp.maximum(low, extra[0]), xp.minimum(high, extra[1])
            low_w, high_w = xp.maximum(low_w, extra[0] + least), xp.minimum(high_w, extra[1] + most)
        return low, high, low_w, high_w

    @functools.cached_property
    def hessian(self) -> tuple[list[float], list[float], list[float], list[float]]:
        """Smallest eigenvalues of H, proved lower bounds from the bracket, |H^-1 g| and |H|, of every problem."""
        xp, point = self.xp, self.point
        _, _, low, _ = self.brackets
        bounds = self.geometry.lower_bounds(self.host(low)[0])
        g_norm = xp.linalg.vector_norm(point.grads, axis=-1)
        if not self.dense:
            return [], bounds, self.host(g_norm)[0], []
        parts: list[list[float]] = [[], [], []]
        size = max(1, 2**24 // self.d**2)
        for start in range(0, point.x.shape[0], size):
            stop = min(start + size, point.x.shape[0])
            part = point
            if size < point.x.shape[0]:
                part = self.problem.stacked(point.shape).slice(start, stop).point(point.x[start:stop, :])
            values, V = xp.linalg.eigh(part.hessian().dense())
            c = (V.mT @ part.grads[..., None])[..., 0]
            safe = B.safe_divisor(values)
            step = xp.linalg.vector_norm(c / safe, axis=-1)
            for kept, new in zip(parts, self.host(values[:, 0], step, xp.max(xp.abs(values), axis=-1)), strict=True):
                kept += new
        return parts[0], bounds, parts[1], parts[2]

    def rounding(self) -> float:
        """A bound of the rounding error of an eigenvalue of the dense H."""
        _, _, low, high = self.brackets
        largest = max(max(abs(v) for v in row) for row in self.host(low, high))
        return 16 * self.d * self.eps * self.geometry.size(largest)

    def curvature_claims(self) -> dict[str, Claim]:
        low, high, _, _ = self.host(*self.brackets)
        smallest, bounds, _, _ = self.hessian
        many = "" if self.dense else f"; d = {self.d} > {DENSE_COLUMNS}, so with sigma_min(A) >= 0, sigma_max <= |A|_F"
        source = "Weyl's inequality for a diagonal plus rank 2"
        outer, bend = self.geometry.outer**2, self.geometry.bend
        here = max(max(0.0, -v) * outer - floor for v, floor in zip(low, bend, strict=True))
        times = "sigma(N)^2, plus that of W^2 and bend on A1" if self.layers else "sigma(A)^2"
        return {
            "curvature_low": Claim(min(low), "every eigenvalue of B at x is at least this", PROVED, source),
            "curvature_high": Claim(max(high), "every eigenvalue of B at x is at most this", PROVED, source),
            "hessian_low": Claim(
                min(bounds),
                f"every eigenvalue of H at x is at least this (bracket times {times}{many})",
                PROVED,
                source,
            ),
            "hessian_min": Claim(
                min(smallest), f"smallest eigenvalue of H at x, computed, to {self.rounding():.1g}", NUMERICAL, "eigh"
            )
            if self.dense
            else absent(f"smallest eigenvalue of H: d = {self.d} is above {DENSE_COLUMNS}"),
            "psd_weight_here": Claim(max(0.0, here), "w_i^2 that makes H >= 0 at this x", PROVED, source),
        }

    # -- regularisation -------------------------------------------------------------------------

    def weight_claims(self) -> dict[str, Claim]:
        name, (b_min, b_max, simplex) = self.problem.head.name, self.b
        everywhere = "w_i^2 that makes H >= 0 at every x"
        outer = self.geometry.outer**2
        sandwich = "w_i^2 from which on 0.9 (B + W^2) <= W^2 <= 1.1 (B + W^2) at every x"
        if self.layers:
            everywhere += " off the kinks"
            sandwich = "w_i^2 from which on A1^T W^2 A1 is within 10 % of H, as above, at every x off the kinks"
        no_published = absent("no published constant is known to us for this loss")
        claims = dict.fromkeys(("psd_weight_published", "sandwich_weight_published"), no_published)
        none = absent(f"{everywhere}: no constant is known for this loss; psd_weight_here holds at x")
        claims |= {"psd_weight": none, "psd_weight_sharp": none}
        claims["sandwich_weight_sharp"] = absent("no constant is known for this loss")
        outside = absent("the constant is for b on the simplex, which this b is not")
        searched = "supremum found by search"
        if self.layers and self.smooth:
            bent = absent("the bend of a smoothed relu grows with 1/smoothing: psd_weight_here holds at x")
            claims |= dict.fromkeys(("psd_weight", "psd_weight_sharp", "sandwich_weight_sharp"), bent)
        elif name == "softmax":
            claims["psd_weight"] = Claim(
                theory.softmax_weight(b_min, b_max) * outer, everywhere, PROVED, "half of max(b_i + s - 2 f_i)"
            )
            claims["psd_weight_sharp"], claims["sandwich_weight_sharp"] = (
                (
                    Claim(-theory.SOFTMAX_LOWEST * outer, everywhere, NUMERICAL, searched),
                    Claim(theory.SOFTMAX_SANDWICH * outer, sandwich, NUMERICAL, searched),
                )
                if simplex
                else (outside, outside)
            )
            if self.layers:
                return claims
            claims["psd_weight_published"] = Claim(40.0, f"{everywhere}: order of magnitude, 20 to 40", PUBLISHED, SM)
            claims["sandwich_weight_published"] = Claim(200.0, f"{sandwich}: order of magnitude", PUBLISHED, SM)
        elif name == "softmax-kl":
            claims["psd_weight"] = claims["psd_weight_sharp"] = Claim(
                0.0, f"{everywhere}: convex in z", PROVED, "f is a distribution"
            )
        elif name == "resnet-softmax":
            why = "no constant is enough: B grows like (alpha/n)^-3 where the normaliser alpha is small"
            claims["psd_weight"] = absent(f"{why}; psd_weight_here holds at x")
            if self.problem.n >= 10 and self._columns_are_centred() and simplex:
                claims["psd_weight_sharp"] = Claim(-theory.RESNET_LOWEST, everywhere, NUMERICAL, searched)
                claims["sandwich_weight_sharp"] = Claim(theory.RESNET_SANDWICH, sandwich, NUMERICAL, searched)
            else:
                why = f"{why}; one is known for columns of zero mean, n >= 10 and b on the simplex only"
                claims["psd_weight_sharp"] = claims["sandwich_weight_sharp"] = absent(why)
        elif name in ("exp", "sinh", "cosh"):
            floor = theory.elementwise_floor(name, b_min, b_max)
            claims["psd_weight"] = Claim(max(0.0, -floor), everywhere, PROVED, f"{ECS}, curvature floor")
            claims["psd_weight_sharp"] = absent("psd_weight is attained where g(z_i) is b_i/4 (or z_i = 0)")
        return claims

    def _columns_are_centred(self) -> bool:
        xp = self.xp
        norms = self.rows.column_norms
        relative = xp.abs(self.rows.adjoint(self.rows.full(1.0))) / B.safe_divisor(norms)
        return float(xp.max(relative)) / self.problem.n**0.5 <= self.rounding_of_a_mean

    # -- Lipschitz constants --------------------------------------------------------------------

    @functools.cached_property
    def lipschitz(self) -> tuple[float, float] | None:
        """M proved and M numerical (or None): for the losses that have one."""
        name, (b_min, b_max, simplex) = self.problem.head.name, self.b
        cube = self.geometry.rows[1] ** 3
        if self.layers and self.smooth:
            return None
        if name == "softmax":
            return theory.softmax_lipschitz(
                b_max - b_min
            ) * cube, theory.SOFTMAX_LIPSCHITZ * cube if simplex else math.nan
        if name == "softmax-kl":
            return theory.KL_LIPSCHITZ * (1 + 1e-6) * cube, math.nan
        return None

    def lipschitz_claims(self) -> dict[str, Claim]:
        what = f"M: |H(x) - H(y)| <= M |x - y| for all x, y{IN_CELL if self.layers else ''}"
        norm = ("|N|" if self.layers else "|A|") + ("" if self.dense else "_F")
        unknown = absent("no constant: the third derivative of this loss is unbounded")
        if self.problem.head.name == "resnet-softmax":
            unknown = absent("no constant: the third derivative is unbounded towards the pole alpha = 0")
        if self.layers and self.smooth:
            unknown = absent("no constant: the third derivative of a smoothed relu grows with 1/smoothing^2")
        if self.lipschitz is None:
            return dict.fromkeys(("lipschitz", "lipschitz_sharp", "lipschitz_published"), unknown)
        proved, sharp = self.lipschitz
        cube = self.geometry.rows[1] ** 3
        softmax = self.problem.head.name == "softmax"
        return {
            "lipschitz": Claim(
                proved,
                f"{what} ({proved / cube if cube else 0.0:.4g} {norm}^3)",
                PROVED,
                "xpreg.theory" if softmax else "third cumulant",
            ),
            "lipschitz_sharp": absent(
                "the constant is for b on the simplex, which this b is not" if softmax else "the proved M is sharp"
            )
            if math.isnan(sharp)
            else Claim(sharp, f"{what} (0.5715 {norm}^3)", NUMERICAL, "supremum found by search"),
            "lipschitz_published": absent(f"n^1.5 exp(O(R^2)) with an unknown constant in the exponent [{SM}]")
            if softmax and not self.layers
            else absent("no published constant is known to us for this loss"),
        }

    # -- (l, M)-good ----------------------------------------------------------------------------

    def _minimisers(self, M: float) -> list[tuple[float, float] | None]:
        smallest, bounds, step, _ = self.hessian
        if not self.dense:
            ls, etas = bounds, [g / l if l > 0 else math.inf for g, l in zip(step, bounds, strict=True)]
        else:
            slack = self.rounding()
            ls = [max(v - slack, bound) for v, bound in zip(smallest, bounds, strict=True)]
            etas = [s * (v / l) if l > 0 else math.inf for s, v, l in zip(step, smallest, ls, strict=True)]
        found = [theory.minimiser_within(l, M, eta) for l, eta in zip(ls, etas, strict=True)]
        return [f if f is not None and f[0] < r else None for f, r in zip(found, self.geometry.reach, strict=True)]

    def goodness(self) -> dict[str, Claim]:
        names = ("distance", "strong_convexity", "good_radius", "good", "good_sharp", "contraction_predicted")
        measured = self._measured_contraction()
        if self.lipschitz is None:
            return dict.fromkeys(names, absent("needs a Lipschitz constant M, which this loss has not")) | measured
        M, sharp = self.lipschitz
        source = "Newton-Kantorovich"
        found = self._minimisers(M)
        claims = {"good_sharp": absent("needs lipschitz_sharp")}
        if not math.isnan(sharp):
            with_sharp = self._minimisers(sharp)
            good = all(f is not None and sharp * f[0] <= 0.1 * f[1] for f in with_sharp)
            claims["good_sharp"] = Claim(good, "M |x - x*| <= 0.1 l with lipschitz_sharp", NUMERICAL, source)
        known = [f for f in found if f is not None]
        if len(known) < len(found):
            why = "not proved: M |H^-1 g| <= l/2 fails at x (x is too far from a minimum, or H too ill-conditioned)"
            if self.layers:
                why += ", or the ball in question crosses a kink"
            return (
                dict.fromkeys(names, absent(why)) | {"good": Claim(False, why, NUMERICAL, source)} | claims | measured
            )
        r, l = max(f[0] for f in known), min(f[1] for f in known)
        good = all(M * f[0] <= 0.1 * f[1] for f in known)
        inside = min(reach - f[0] for f, reach in zip(known, self.geometry.reach, strict=True))
        claims |= {
            "distance": Claim(r, "a minimiser x* lies within this distance of x", PROVED, source),
            "strong_convexity": Claim(l, "l: H(x*) >= l I", PROVED, source),
            "good_radius": Claim(
                min(0.1 * l / M if M else math.inf, inside),
                "every start within this of x* has M |x0 - x*| <= 0.1 l",
                PROVED,
                source,
            ),
            "good": Claim(good, "M |x - x*| <= 0.1 l: (l, M)-good at x", PROVED, source)
            if good
            else Claim(False, "not proved: the bounds do not give M |x - x*| <= 0.1 l", NUMERICAL, source),
            "contraction_predicted": self._predicted_contraction(M, known),
        }
        return claims | measured

    def _predicted_contraction(self, M: float, known: list[tuple[float, float]]) -> Claim:
        """The shrinking lemma: a theorem for exact steps. With a sample the published one bounds the Euclidean
        distance, for which the sandwich alone gives a factor that depends on the condition number: marked unverified.
        """
        eps, kind = 0.0, PROVED
        if getattr(self.method, "reading", "") == "papers":
            curvature = self.point.curvature()
            if self.method.diagonal != "curvature" or curvature.U is not None or self._has_negative(curvature):
                return absent("the shrinking lemma is for a sample of the whole curvature, a positive diagonal")
            eps, kind = self.method.eps, PUBLISHED
        factors = [theory.contraction(l, M, r, eps) for r, l in known]
        bounds = [f for f in factors if f is not None]
        if len(bounds) < len(factors):
            return absent("M |x - x*| >= l: the shrinking lemma says nothing")
        what = f"|x+ - x*| <= this |x - x*| for the next full step (eps = {eps:g})"
        return Claim(max(bounds), what, kind, f"shrinking lemma, {SM}")

    def _has_negative(self, curvature: Curvature) -> bool:
        return any(D is not None and float(namespace(D).min(D)) < 0 for D in (curvature.D, curvature.inner))

    def _measured_contraction(self) -> dict[str, Claim]:
        steps = [record.grad_norm for record in self.history]
        while len(steps) > 1 and steps[-1] == steps[-2]:  # the last step only looked for negative curvature
            steps.pop()
        if len(steps) < 2 or steps[-2] == 0 or self.point.x.shape[0] > 1:
            why = "needs the history of a run of one problem: minimize(..., certify=True)"
            return {"contraction_measured": absent(why)}
        ratio = steps[-1] / steps[-2]
        return {
            "contraction_measured": Claim(
                ratio, "largest gradient entry: last step / the one before", MEASURED, "history"
            )
        }

    # -- sampling -------------------------------------------------------------------------------

    def sampling(self) -> dict[str, Claim]:
        if not hasattr(self.method, "sample_at"):
            return dict.fromkeys(("sampling_promised", "sampling_measured"), absent("no sample was used"))
        if self.point.x.shape[0] > 1:
            why = absent("the sample is examined for one problem only, not for a stack")
            return dict.fromkeys(("sampling_promised", "sampling_measured"), why)
        eps, kept, low, high = self.method.sample_at(self.point)
        what = f"(1 - this) H+ <= H~ <= (1 + this) H+ for a sample of {kept} rows at x, H+ with max(D, 0)"
        measured = Claim(max(1.0 - low, high - 1.0), what, MEASURED, "eigenvalues of the whitened sample")
        if eps is None:
            promised = absent("a preconditioner of prescribed size promises nothing")
        else:
            promised = Claim(
                eps, f"the same, promised with probability {1 - self.method.delta:g}", PROVED, f"{SM}, SubSample"
            )
        return {"sampling_promised": promised, "sampling_measured": measured}
