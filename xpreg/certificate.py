"""What a certificate is: claims, each with its value, what it is, what it is worth, and its source."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

PROVED, NUMERICAL, MEASURED = "proved", "numerical", "measured"
PUBLISHED, ABSENT = "published, unverified", "not available"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One number, and what it is worth.

    Attributes
    ----------
    value : number or bool; None where nothing can be said, and ``what`` says why
    what : what the number is
    kind : ``"proved"`` (a theorem; floating-point rounding is allowed for), ``"numerical"`` (computed, or the extreme
        of searches: not a proof), ``"published, unverified"``, ``"measured"``, or ``"not available"``
    source : where it comes from
    """

    value: Any
    what: str
    kind: str
    source: str = ""

    def unless_nan(self) -> Claim:
        """Return the claim itself, or where its number has overflowed to NaN that nothing can be said."""
        undefined = isinstance(self.value, float) and math.isnan(self.value)
        return absent(f"{self.what}: overflows") if undefined else self


def absent(why: str) -> Claim:
    """Return the claim that nothing can be said, and why."""
    return Claim(None, why, ABSENT)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What the theorems assume, evaluated at a point. For a stack: the worst problem of each line.

    B is the second derivative of the loss in z (without regulariser), H the Hessian in x (with it), x* the minimiser
    next to x, W = diag(w) the regulariser's weights.

    Attributes
    ----------
    head : the loss
    problems : how many problems the numbers are the worst of
    curvature_low, curvature_high : bracket of the eigenvalues of B, O(n)
    hessian_low : lower bound of the eigenvalues of H, from the bracket
    hessian_min : smallest eigenvalue of H
    psd_weight_here : w_i^2 that makes H positive semidefinite at x
    psd_weight : w_i^2 that makes it so at every x, proved
    psd_weight_sharp, psd_weight_published : the same, numerical and published
    sandwich_weight_sharp, sandwich_weight_published : w_i^2 from which on W^2 alone is within 10 % of B + W^2
    lipschitz, lipschitz_sharp, lipschitz_published : M, the Lipschitz constant of H
    distance : r with |x - x*| <= r
    strong_convexity : l with H(x*) >= l I
    good_radius : a start within this distance of x* has M |x0 - x*| <= 0.1 l
    good : whether x itself is such a start: M |x - x*| <= 0.1 l, proved
    good_sharp : the same with the numerical M
    contraction_predicted : the factor by which the next step shrinks the distance to x*, at most
    contraction_measured : by how much the last step shrank the gradient
    sampling_promised, sampling_measured : eps of the sample's sandwich (1 - eps) H <= H~ <= (1 + eps) H
    """

    head: str
    problems: int
    curvature_low: Claim
    curvature_high: Claim
    hessian_low: Claim
    hessian_min: Claim
    psd_weight_here: Claim
    psd_weight: Claim
    psd_weight_sharp: Claim
    psd_weight_published: Claim
    sandwich_weight_sharp: Claim
    sandwich_weight_published: Claim
    lipschitz: Claim
    lipschitz_sharp: Claim
    lipschitz_published: Claim
    distance: Claim
    strong_convexity: Claim
    good_radius: Claim
    good: Claim
    good_sharp: Claim
    contraction_predicted: Claim
    contraction_measured: Claim
    sampling_promised: Claim
    sampling_measured: Claim

    def claims(self) -> Iterator[tuple[str, Claim]]:
        """Yield every claim with its name."""
        for field in dataclasses.fields(self):
            claim = getattr(self, field.name)
            if isinstance(claim, Claim):
                yield field.name, claim

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Certificate:
        """Make a certificate of what `dataclasses.asdict` made of one."""
        made: dict[str, Any] = {k: Claim(**v) if isinstance(v, dict) else v for k, v in fields.items()}
        return cls(**made)

    def table(self) -> str:
        """Return a table for people: name, value, kind, what it is and its source."""
        rows = [
            (name, _shown(c.value), c.kind, c.what + (f" [{c.source}]" if c.source else ""))
            for name, c in self.claims()
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        many = f", the worst of {self.problems} problems" if self.problems > 1 else ""
        lines = [f"Certificate of a {self.head} regression{many}"]
        lines += ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return "\n".join(lines)

    __str__ = table

    def __repr__(self) -> str:
        known = ", ".join(f"{name}={_shown(c.value)}" for name, c in self.claims() if c.value is not None)
        return f"<Certificate of a {self.head} regression: {known}>"


def _shown(value: Any) -> str:
    return "-" if value is None else ("yes" if value else "no") if isinstance(value, bool) else f"{value:.4g}"
