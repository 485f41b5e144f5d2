"""The directions that a rule for the learning rate can be put on: gradient, momentum, Adam, or any of optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import optax

from solvers.errors import InvalidInput

MOMENTUM = 0.9
DIRECTIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "gradient": optax.identity,
    "momentum": lambda: optax.ema(MOMENTUM),
    "adam": lambda: optax.scale_by_adam(b1=MOMENTUM, b2=0.999, eps=1e-4),
}
"""Ascent directions by name: the gradient, its debiased exponential mean over ten updates, Adam's quotient of means
(with the eps = 1e-4 of the code of L4)."""


def chosen_direction(direction: str | optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return the transformation that makes the ascent direction of the gradient.

    Parameters
    ----------
    direction : {"gradient", "momentum", "adam"} or optax transformation
        One that does not flip the sign, such as ``optax.scale_by_adam()``.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        The transformation.

    Raises
    ------
    InvalidInput
        For another name or thing.
    """
    if isinstance(direction, str) and direction in DIRECTIONS:
        return optax.with_extra_args_support(DIRECTIONS[direction]())
    if isinstance(direction, str) or not (hasattr(direction, "init") and hasattr(direction, "update")):
        raise InvalidInput(
            f"direction={direction!r} must be one of {', '.join(DIRECTIONS)} or an optax transformation"
        )
    return optax.with_extra_args_support(direction)


def check_setting(name: str, value: Any, *, below: float = float("inf"), zero: bool = False) -> None:
    """Refuse a setting that is not a positive number; one that is traced has no value yet and passes.

    Parameters
    ----------
    name : str
        Of the argument.
    value : number
        What was given.
    below : float
        What it has to lie below.
    zero : bool
        Whether 0 is allowed.

    Raises
    ------
    InvalidInput
        Naming the argument, the value and the range.
    """
    if isinstance(value, jax.core.Tracer | jax.Array):
        return
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not (number and (value >= 0 if zero else value > 0) and value < below):
        least = "0 or above" if zero else "positive"
        most = "" if below == float("inf") else f" and below {below:g}"
        raise InvalidInput(f"{name}={value!r} must be a finite number, {least}{most}")
