"""The learning rate from the sharpness, as the optimizers call it: NumPy, plain numbers and JAX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eos_sde.models.capped_rate import capped_rate
from solvers.errors import InvalidInput

EDGE = 2.0
"""Gradient descent on a quadratic of curvature lambda is stable while eta * lambda < 2."""


def learning_rate(base: Any, sharpness: Any, delta: Any, *, error_bound: Any = 0.0, xp: Any = np) -> Any:
    """Return ``min(base, (2 - delta) / sharpness)``, and ``base`` wherever the sharpness is not positive.

    Flat or negative curvature does not throttle: gradient descent leaves it at any rate. A NaN sharpness
    gives a NaN rate, so that a failed measurement is seen and not trained through.

    Parameters
    ----------
    base : float or array
        The learning rate that is never exceeded, eta_base >= 0.
    sharpness : float or array
        The largest algebraic eigenvalue of the loss Hessian, lambda, in units of 1/eta.
    delta : float or array
        Distance kept from the edge, in units of eta * lambda: below 2. With delta = 0 the rate rests on the
        edge, with delta < 0 beyond it; both let the iterate oscillate, which is what limits the sharpness.
    error_bound : float or array, optional
        Added to the sharpness: the rate then respects the edge for the worst sharpness that is consistent
        with the estimate.
    xp : module, optional
        Namespace of the arrays: ``numpy`` (the default; also for plain numbers) or ``jax.numpy``.

    Returns
    -------
    float or array
        The rate, of the broadcast shape of the arguments.

    Examples
    --------
    >>> float(learning_rate(0.5, 8.0, 0.4))
    0.2
    >>> float(learning_rate(0.5, -8.0, 0.4))
    0.5
    """
    return capped_rate(base, sharpness + error_bound, delta, xp)[()]


def edge_factor(momentum: Any, *, nesterov: bool = False) -> Any:
    """Return how many times further than gradient descent's the edge lies with momentum b: 1 + b.

    Parameters
    ----------
    momentum : float or None
        Heavy-ball momentum b, as in ``optax.sgd``; None for none.
    nesterov : bool
        Whether it is Nesterov's: (1 + b)/(1 + 2 b).

    Returns
    -------
    float
        The edge is at eta * lambda = 2 times it.

    Examples
    --------
    >>> edge_factor(0.5), edge_factor(0.5, nesterov=True), edge_factor(None)
    (1.5, 0.75, 1.0)
    """
    if momentum is None:
        return 1.0
    return (1.0 + momentum) / (1.0 + 2.0 * momentum if nesterov else 1.0)


def validate(*, learning_rate: Any = None, delta: Any = None) -> None:
    """Refuse a base rate or a distance from the edge with which the rule cannot work.

    ``delta <= 0`` is allowed: the rate then rests on the edge or beyond it.

    Parameters
    ----------
    learning_rate : float or callable, optional
        The base rate; a schedule (callable) is not inspected.
    delta : float, optional
        The distance from the edge.

    Raises
    ------
    InvalidInput
        If the base rate is not a positive finite number, or delta is not a finite number below 2.
    """
    if learning_rate is not None and not callable(learning_rate):
        rate = _number("learning_rate", learning_rate)
        if not (math.isfinite(rate) and rate > 0):
            raise InvalidInput(
                f"learning_rate must be positive and finite, got {rate!r}; "
                "it is the base rate that the rule never exceeds."
            )
    if delta is not None:
        distance = _number("delta", delta)
        if not math.isfinite(distance) or distance >= EDGE:
            raise InvalidInput(
                f"delta must be a finite number below 2, got {distance!r}: the learning rate is capped at "
                "(2 - delta) / sharpness, which would not be positive; use 0.1, or 0 to rest on the edge."
            )


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must be a single number, got {value!r}.") from error
