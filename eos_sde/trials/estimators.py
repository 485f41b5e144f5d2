"""Curvature estimators by name, for the rules of a trial that measure the sharpness."""

from typing import Any

import jax.numpy as jnp

from eos_sde.bridge.losses import LOSSES
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers import curvature
from solvers.errors import InvalidInput

NAMES = (*curvature.ESTIMATORS, "kfac")
DEFAULT = "lanczos"
"""What the rules take if nothing is said: in short passes where measurements are paid for by a budget."""


def estimator_of(name: str, task: Task, x: Any, y: Any) -> Any:
    """An estimator with its default settings.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    task : Task
        Whose network and loss "kfac" asks for the layers; of the weights as they are held.
    x, y : Array
        The examples whose curvature is measured, of which "kfac" computes its factors; may be traced.

    Returns
    -------
    Estimator or None
        For the argument ``curvature`` of the rules; None for their own.

    Raises
    ------
    InvalidInput
        For an unknown name, or a network that does not tell its layers.
    """
    if name not in NAMES:
        raise InvalidInput(f"estimator={name!r} is not known: choose one of {', '.join(NAMES)}")
    if name == DEFAULT:
        return None
    if name != "kfac":
        return curvature.ESTIMATORS[name]()
    model, loss = task.network.layered, LOSSES[task.loss_name]
    if model is None:
        raise InvalidInput(
            f"estimator='kfac' needs the layers of the network, which {task.name} does not tell: take a task of dense "
            "layers, such as digits-mlp, fashion-cnn or chars74k-cnn, or another estimator"
        )
    return curvature.kfac(
        lambda weights, layers: model(weights, x, layers), lambda outputs: jnp.mean(loss(outputs, y))
    )
