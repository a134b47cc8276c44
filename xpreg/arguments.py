"""What plain numbers among the arguments must be; arrays are `xpreg.checks`' business."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from .errors import InvalidArgumentError


def require_integers(least: int = 1, /, **values: Any) -> None:
    """Refuse what is no whole number, of Python or NumPy, or is below ``least``."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            needed = "a positive integer" if least == 1 else f"an integer >= {least}"
            raise InvalidArgumentError(f"{name} is {value!r}, but {needed} is needed.")


def require_number(name: str, value: Any, fits: Callable[[Any], bool], needed: str) -> None:
    """Refuse what is no real number, of Python or NumPy, or does not fit; ``needed`` says what would."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not fits(value):
        raise InvalidArgumentError(f"{name} is {value!r}, but {needed} is needed.")


def require_flags(**values: Any) -> None:
    """Refuse what is neither True nor False, of Python or NumPy: any word would count as True, 'no' too."""
    for name, value in values.items():
        of_numpy = getattr(value, "shape", None) == () and str(value.dtype) == "bool"
        if not isinstance(value, bool) and not of_numpy:
            raise InvalidArgumentError(f"{name} is {value!r}, but True or False is needed.")


def require_known(options: Any, method: str, known: Any) -> None:
    """Refuse options that a method has not."""
    for name in options:
        if name not in known:
            raise InvalidArgumentError(
                f"{name} is no option of method {method!r}, which has {', '.join(known) or 'none'}."
            )


def require_one_of(name: str, value: Any, known: Any) -> None:
    """Refuse what is none of some words."""
    if not isinstance(value, str) or value not in known:
        words = [repr(word) for word in known]
        needed = " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"
        raise InvalidArgumentError(f"{name} is {value!r}, but {needed} is needed.")
