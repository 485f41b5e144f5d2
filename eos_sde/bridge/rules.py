"""Update rules by name, as optax transformations."""

from typing import Any

import optax

from solvers.errors import InvalidInput

RULES = ("gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "adamw", "caeo", "caeo-ss")
PLANNED = ("l4", "cdat")


def make_rule(
    name: str, *, eta: float, delta: float = 0.1, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Update rule by name.

    Parameters
    ----------
    name : {"gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "adamw", "caeo", "caeo-ss"}
        "gd" and "sgd" are the same update and differ in the batches. "sgdm" is the heavy ball
        v' = b v + g with b = 0.9, "nesterov" its Nesterov form. "caeo-ss" is
        self-stabilizing CAEO, whose rate does not run away.
    eta : float
        Learning rate; for "caeo" and "caeo-ss" the base rate, which is never exceeded.
    delta : float
        Margin of "caeo" and "caeo-ss", below 2; the other rules do not have one.
    **options
        For optax: ``momentum`` ("sgdm", "nesterov"), ``b1``, ``b2``, ``eps`` ("adam", "adamw"), ``weight_decay``
        ("adamw"), ``b2`` (0.9; optax calls it decay), ``eps``, ``eps_in_sqrt``, ``bias_correction`` ("rmsprop": by
        default eps is inside the root and the second moments start from 0 uncorrected), anything that
        `eos_sde.optimizers.caeo` or `self_stabilizing_caeo` takes.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``value_fn``, which rules that do not measure curvature ignore.

    Raises
    ------
    InvalidInput
        For an unknown rule, option or value.
    """
    if name in PLANNED:
        raise InvalidInput(f"rule={name!r} is not available yet: choose one of {', '.join(RULES)}")
    if name not in RULES:
        raise InvalidInput(f"rule={name!r} is not known: choose one of {', '.join(RULES)}")
    if not 0 < eta < float("inf"):
        raise InvalidInput(f"eta={eta!r} must be a positive learning rate")
    try:
        return optax.with_extra_args_support(_build(name, eta, delta, options))
    except TypeError as error:
        raise InvalidInput(f"rule={name!r} does not take one of the options {', '.join(options)}") from error


def _build(name: str, eta: float, delta: float, options: dict[str, Any]) -> optax.GradientTransformation:
    if name in ("sgdm", "nesterov"):
        return optax.sgd(eta, nesterov=name == "nesterov", **{"momentum": 0.9, **options})
    if name == "rmsprop":
        given = dict(options)
        return optax.rmsprop(eta, decay=given.pop("b2", given.pop("decay", 0.9)), **given)
    if name == "adam":
        return optax.adam(eta, **options)
    if name == "adamw":
        return optax.adamw(eta, **options)
    if name == "caeo":
        from eos_sde.optimizers import caeo

        return caeo(eta, delta=delta, **{"refresh": 1, **options})
    if name == "caeo-ss":
        from eos_sde.optimizers import self_stabilizing_caeo

        return self_stabilizing_caeo(eta, delta=delta, **{"refresh": 1, **options})
    return optax.sgd(eta, **options)
