"""Checks of numeric arguments, shared by models and thresholds: one sentence, before any work."""

from __future__ import annotations

import math
import operator
from typing import Any

from solvers.errors import InvalidInput


def finite(name: str, value: Any, remedy: str = "give one finite real number") -> float:
    """The argument as a float.

    Raises
    ------
    InvalidInput
        If it is not one finite real number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name}={value!r} is not a number; {remedy}") from error
    if not math.isfinite(number):
        raise InvalidInput(f"{name}={number} is not finite; {remedy}")
    return number


def positive(name: str, value: Any, remedy: str = "give a number greater than 0") -> float:
    """The argument as a float greater than zero.

    Raises
    ------
    InvalidInput
        If it is not finite, or not positive.
    """
    number = finite(name, value, remedy)
    if number <= 0:
        raise InvalidInput(f"{name}={number} is not positive; {remedy}")
    return number


def non_negative(name: str, value: Any, remedy: str = "give a number of at least 0") -> float:
    """The argument as a float of at least zero.

    Raises
    ------
    InvalidInput
        If it is not finite, or negative.
    """
    number = finite(name, value, remedy)
    if number < 0:
        raise InvalidInput(f"{name}={number} is negative; {remedy}")
    return number


def fraction(name: str, value: Any, remedy: str = "give a number in [0, 1)") -> float:
    """The argument as a float in [0, 1), such as a momentum coefficient.

    Raises
    ------
    InvalidInput
        If it is outside [0, 1).
    """
    number = finite(name, value, remedy)
    if not 0 <= number < 1:
        raise InvalidInput(f"{name}={number} is outside [0, 1); {remedy}")
    return number


def count(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """The argument as an integer in [least, most].

    Raises
    ------
    InvalidInput
        If it is not an integer, or out of range.
    """
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidInput(f"{name}={value!r} is not an integer; give an integer {bounds}") from error
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise InvalidInput(f"{name}={value} is out of range; give an integer {bounds}")
    return number
