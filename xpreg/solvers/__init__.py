"""Solvers: one algorithm per file; the loop, the line search and the statuses are shared."""

from .entry import METHODS, minimize

__all__ = ["METHODS", "minimize"]
