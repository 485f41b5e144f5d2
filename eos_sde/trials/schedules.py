"""Schedules of the learning rate that people use, by name."""

from typing import Any

import optax

from solvers.errors import InvalidInput

SCHEDULES = ("constant", "warmup-cosine")
WARMUP = 0.1
"""The part of the updates over which the rate rises from nothing, where it warms up."""


def scheduled_rate(name: str, eta: Any, *, steps: int) -> Any:
    """Learning rate over a run.

    Parameters
    ----------
    name : {"constant", "warmup-cosine"}
        The second rises linearly from 0 over the first tenth of the updates and falls to 0 as a half cosine.
    eta : float or traced value
        The rate, or the highest one.
    steps : int
        Updates of the whole run.

    Returns
    -------
    float or schedule
        As optax takes it: a number, or a function of the number of updates.

    Raises
    ------
    InvalidInput
        For an unknown name, or a run too short to warm up.
    """
    if name not in SCHEDULES:
        raise InvalidInput(f"schedule={name!r} is not known: choose one of {', '.join(SCHEDULES)}")
    if name == "constant":
        return eta
    warmup = round(WARMUP * steps)
    if warmup < 1:
        raise InvalidInput(f"steps={steps} is too short for schedule={name!r}: take 10 or more")
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=warmup, decay_steps=steps)
    return lambda count: eta * shape(count)  # a traced rate too
