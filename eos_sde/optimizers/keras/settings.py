"""What the Keras optimizers accept for settings, each refusal in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from eos_sde.optimizers import rule
from solvers.errors import InvalidInput

_PASSED_ON = {
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
}
REFUSED = {
    "weight_decay": "add the decay to the loss as a regularizer, so that its curvature is measured",
    "loss_scale_factor": "gradient and curvature are taken of the loss as it is, so compute it in float32",
    "gradient_accumulation_steps": "the curvature is that of one batch, so use a larger batch",
}
"""Settings of every Keras optimizer that those of this package refuse, each with what to do instead."""


def check_keywords(keywords: dict[str, Any], *, owner: str, refused: Mapping[str, str]) -> None:
    """Refuse keyword arguments that are neither the optimizer's nor handed on to Keras.

    Parameters
    ----------
    keywords : dict
        Those that no argument took.
    owner : str
        Class of the optimizer.
    refused : mapping
        Names that it refuses, each with what to do instead.

    Raises
    ------
    InvalidInput
        Naming the argument, its value and the remedy.
    """
    taken = _PASSED_ON - set(refused)
    for name in sorted(set(keywords) - taken):
        remedy = refused.get(name, f"of Keras's own it takes {', '.join(sorted(taken))}")
        raise InvalidInput(f"{name}={keywords[name]!r} is no setting of {owner}; {remedy}.")


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no integer.

    Raises
    ------
    InvalidInput
        With its value.
    """
    if not hasattr(seed, "__index__"):
        raise InvalidInput(f"seed must be an integer, got {seed!r}.")


def check_momentum(momentum: Any) -> None:
    """Refuse a momentum that is neither None nor a number in [0, 1).

    Raises
    ------
    InvalidInput
        With its value.
    """
    if momentum is not None and not (
        isinstance(momentum, float | int | np.integer | np.floating) and 0 <= momentum < 1
    ):
        raise InvalidInput(f"momentum must lie in [0, 1), or be None for none, got {momentum!r}.")


def base_rate(learning_rate: Any) -> Any:
    """Return a base rate that Keras takes, a float or a schedule.

    Raises
    ------
    InvalidInput
        If it is no positive finite number, nor a schedule of Keras, nor a function without arguments.
    """
    if learning_rate is None:
        raise InvalidInput("learning_rate must be a number or a schedule of Keras, got None.")
    rule.validate(learning_rate=learning_rate)
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        return learning_rate
    if not callable(learning_rate):
        return float(learning_rate)
    try:
        inspect.signature(learning_rate).bind()
    except TypeError as error:
        raise InvalidInput(
            f"learning_rate must be a number, a keras.optimizers.schedules.LearningRateSchedule or a function "
            f"without arguments, got {learning_rate!r}, which takes arguments as optax's schedules do."
        ) from error
    return learning_rate
