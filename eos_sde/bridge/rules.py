"""Update rules by name, as optax transformations."""

from collections.abc import Callable
from typing import Any

import jax.core
import optax

from solvers.errors import InvalidInput

RULES = (
    "gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "adamw", "caeo", "caeo-ss", "l4", "cdat", "inverse-sharpness",
)  # fmt: skip
SELF_SET = ("l4", "cdat", "inverse-sharpness")
"""Rules that make their rate themselves: eta, where it is given, is a bound."""


def make_rule(
    name: str,
    *,
    eta: float | Callable[..., Any] | None = None,
    delta: float = 0.1,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Update rule by name.

    Parameters
    ----------
    name : str
        One of `RULES`. "gd" and "sgd" are the same update and differ in the batches. "sgdm" is the heavy ball
        v' = b v + g with b = 0.9, "nesterov" its Nesterov form. "caeo-ss" is self-stabilizing CAEO, whose rate does
        not run away. "l4" (loss-based), "cdat" (curvature along the update) and "inverse-sharpness" (1/|lambda|) make
        their rate themselves.
    eta : float, schedule or None
        Learning rate; for "caeo" and "caeo-ss" the base rate, which is never exceeded; a function of the number of
        updates, as of optax, for all of these. For the rules that make their own rate a bound (a number), or None.
    delta : float
        Margin of "caeo" and "caeo-ss", below 2; the other rules do not have one.
    **options
        For optax: ``momentum`` ("sgdm", "nesterov"), ``b1``, ``b2``, ``eps`` ("adam", "adamw"), ``weight_decay``
        ("adamw"), ``b2`` (0.9; optax calls it decay), ``eps``, ``eps_in_sqrt``, ``bias_correction`` ("rmsprop": by
        default eps is inside the root and the second moments start from 0 uncorrected), anything that
        `eos_sde.optimizers.caeo`, `self_stabilizing_caeo`, `l4`, `cdat` or `inverse_sharpness` takes.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``value_fn``, which rules that do not measure curvature ignore ("l4" computes its loss by it
        where ``value`` is not given).

    Raises
    ------
    InvalidInput
        For an unknown rule, option or value.
    """
    if name not in RULES:
        raise InvalidInput(f"rule={name!r} is not known: choose one of {', '.join(RULES)}")
    if eta is None and name not in SELF_SET:
        raise InvalidInput(f"rule={name!r} needs eta, a positive learning rate")
    if callable(eta) and name in SELF_SET:
        raise InvalidInput(
            f"rule={name!r} makes its own rate and takes no schedule: give eta as a number or not"
        )
    given = eta is not None and not callable(eta) and not isinstance(eta, jax.core.Tracer)
    if given and not 0 < eta < float("inf"):  # pyright: ignore[reportOperatorIssue]
        raise InvalidInput(f"eta={eta!r} must be a positive learning rate")
    try:
        return optax.with_extra_args_support(_build(name, eta, delta, options))
    except TypeError as error:
        raise InvalidInput(f"rule={name!r} does not take one of the options {', '.join(options)}") from error


def _build(name: str, eta: Any, delta: float, options: dict[str, Any]) -> optax.GradientTransformation:
    if name in ("sgdm", "nesterov"):
        return optax.sgd(eta, nesterov=name == "nesterov", **{"momentum": 0.9, **options})
    if name == "rmsprop":
        given = dict(options)
        return optax.rmsprop(eta, decay=given.pop("b2", given.pop("decay", 0.9)), **given)
    if name == "adam":
        return optax.adam(eta, **options)
    if name == "adamw":
        return optax.adamw(eta, **options)
    if name in ("caeo", "caeo-ss"):
        from eos_sde.optimizers import caeo, self_stabilizing_caeo

        made = caeo if name == "caeo" else self_stabilizing_caeo
        return made(eta, delta=delta, **{"refresh": 1, **options})
    if name in SELF_SET:
        from eos_sde.optimizers import cdat, inverse_sharpness, l4

        if name == "inverse-sharpness":
            return inverse_sharpness(learning_rate=eta, **{"refresh": 1, **options})
        return (l4 if name == "l4" else cdat)(learning_rate=eta, **options)
    return optax.sgd(eta, **options)
