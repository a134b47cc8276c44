"""Newton-CG with the Hessian of an earlier iteration as preconditioner."""

from __future__ import annotations

from typing import Any, ClassVar

from ..backend import Array, namespace
from ..curvature import Curvature
from ..errors import InvalidArgumentError
from ..problem import Point, Problem
from ..scaling import rounding_shift, whiten
from .base import Direction
from .kinked import on_kinks
from .newton_cg import NewtonCG, Variables
from .whitening import positive_diagonals, repair_shift, whitened, with_low_rank

MANY = 0.5
"""A step with more products than this share of what a Gram matrix costs asks for a new preconditioner."""

LEAST_LIMIT = 8
"""Products that a step may take at least, where a Gram matrix costs hardly more than one."""

POOR = 6
"""A new preconditioner that takes more products than this has lost too many digits in float32."""


class NewtonPCG(NewtonCG):
    """Conjugate gradients on exact Hessian-vector products, in variables in which an earlier Hessian is the identity.

    A Gram matrix costs as much as `Map.gram_products` products. Near the solution the Hessian hardly changes, and a few
    products with it replace another one. The preconditioner has D_+ = max(D, 0) in place of D, so that it is positive
    definite; it is made anew after a step that took too many products with the old one.

    Parameters
    ----------
    precision : of the preconditioner, ``"double"`` or ``"single"``. With ``"single"`` its Gram matrix is multiplied in
        float32, in half the time, where A is float64 on the CPU. Products and answers stay in the dtype of A.
        Good up to a condition number of about 1e4 of A with scaled columns; where it shows that it is not, the run goes
        on with double.
    max_products : limit of products per step; default is what a Gram matrix costs
    """

    name: ClassVar[str] = "newton-pcg"
    counters: ClassVar[tuple[str, ...]] = ("stale", "age", "grams", "rough", "max_products")
    forcing: ClassVar[float] = 0.1

    def __init__(self, precision: str = "double", max_products: int | None = None):
        super().__init__(max_products)
        if precision not in ("double", "single"):
            raise InvalidArgumentError(f"precision is {precision!r}, but 'double' or 'single' is needed.")
        self.precision = precision

    def start(self, problem: Problem) -> None:
        super().start(problem)
        self.stale, self.age, self.grams = True, 0, 0
        self.rough = self.precision == "single"
        self.gram_products = problem.rows.inner.gram_products

    @property
    def limit(self) -> int:
        return self.max_products or max(LEAST_LIMIT, int(self.gram_products))

    def direction(self, point: Point, stationary: Any) -> Direction:
        grams = self.grams
        self.age += 1
        direction = super().direction(point, stationary)
        made = self.grams > grams
        new = f"new {'float32 ' if self.rough else ''}preconditioner"
        direction.label += f", {new if made else f'preconditioner of {self.age} iterations ago'}"
        self.stale = direction.products > min(max(4, MANY * self.gram_products), self.limit - 1)
        if made and self.rough and direction.products > POOR:
            self.rough, self.stale = False, True
        direction.products += made
        return direction

    def variables(self, point: Point, curvature: Curvature, again: bool = False) -> Variables:
        """Whitened: T^T H~ T = I. The second curvature of an iteration takes the same T, if it is for all problems."""
        if "T" not in self.state or (self.stale and not again) or self.state["T"].shape[0] != point.x.shape[0]:
            self.grams += 1
            T, ridge = self._whitener(point, curvature, again)
            if not again:
                self.age = 0
                self.state |= {"T": T, "ridge": ridge}
        else:
            T, ridge = self.state["T"], self.state["ridge"]
        T, _ = with_low_rank(T, point.hessian(curvature))
        return whitened(T, ridge)

    def _whitener(self, point: Point, curvature: Curvature, again: bool) -> tuple[Array, Array]:
        parts, squares = positive_diagonals(point, curvature), point.problem.rows.inner.column_squares
        if not self.rough:
            G = on_kinks(point, sum(rows.gram(D, centre) for rows, D, centre in parts))
            return whiten(G, squares, repair_shift(G) if again else 0.0)
        G = on_kinks(point, sum(rows.rough_gram(D, centre) for rows, D, centre in parts))
        xp = namespace(G)
        T, shift = whiten(G, squares, rounding_shift(G, float(xp.finfo(xp.float32).eps)))
        return T, 0.0 * shift  # it is the preconditioner that needs it, not the Hessian
