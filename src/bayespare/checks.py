"""Numbers that a user gives in Python, where the command line has read its own."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from bayespare.errors import BayespareError


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Refuse what is no whole number, or too small a one.

    Args:
        name: Of the option, for the message.
        value: As it was given.
        least: Smallest value that is right; None: any.

    Raises:
        BayespareError: The message names the option.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        limits = "" if least is None else f", {least} or more"
        raise BayespareError(f"{name}={value!r}: must be a whole number{limits}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False: text such as ``"no"`` would count as True.

    Args:
        name: Of the option, for the message.
        value: As it was given.

    Raises:
        BayespareError: The message names the option.
    """
    if not isinstance(value, bool | np.bool_):
        raise BayespareError(f"{name}={value!r}: must be True or False")


def check_least(name: str, value: Any, least: float) -> None:
    """Refuse what is no number, or too small a one.

    Args:
        name: Of the option, for the message.
        value: As it was given.
        least: Smallest value that is right.

    Raises:
        BayespareError: The message names the option.
    """
    if not (_is_number(value) and value >= least):
        raise BayespareError(f"{name}={value!r}: must be a number, {least:g} or more")


def check_positive(name: str, value: Any, below: float = math.inf) -> None:
    """Refuse what is no number above 0 and below a bound.

    Args:
        name: Of the option, for the message.
        value: As it was given.
        below: The bound.

    Raises:
        BayespareError: The message names the option.
    """
    if not (_is_number(value) and 0 < value < below):
        limits = "above 0" if below == math.inf else f"between 0 and {below:g}"
        raise BayespareError(f"{name}={value!r}: must be a number {limits}")


def _is_number(value: Any) -> bool:
    """Whether a value can be compared with numbers; True and False are answers, not numbers."""
    return isinstance(value, Real) and not isinstance(value, bool)
