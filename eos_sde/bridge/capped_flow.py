"""The flow of full-batch CAEO with a margin, which does not oscillate: gradient flow at the capped rate."""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from eos_sde.bridge.averaged_path import advance, checked_weights, loss_and_modes, stable_stride
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.rule import learning_rate
from solvers.errors import InvalidInput
from solvers.provenance import provenance


@threadpool_limits.wrap(1, "blas")
@double_precision
def caeo_flow(
    task: Task, start: ArrayLike, *, eta: float, delta: float, steps: int, modes: int = 16, stride: int = 5
) -> xr.Dataset:
    """Forecast full-batch CAEO from a checkpoint: gradient flow at the capped rate.

    With delta > 0 the iterate does not oscillate, so no fluctuation acts on the averaged path:
    ``dw/dk = -eta_k grad L``, ``eta_k = min(eta, (2 - delta)/sharpness)``.

    Parameters
    ----------
    task : Task
        The training problem.
    start : Array
        Weights of the checkpoint, shape (d,).
    eta, delta : float
        Base learning rate, and margin above 0.
    steps : int
        Steps to forecast, a multiple of `stride`.
    modes, stride : int
        Hessian modes that are relaxed exactly, and steps of the rule between saved points (and at most per step
        of the flow).

    Returns
    -------
    Dataset
        ``sharpness`` and ``learning_rate`` over ``step``.

    Raises
    ------
    InvalidInput
        If delta is not positive (the iterate then oscillates), steps is no multiple of stride, or eta or the
        weights are no usable numbers.
    """
    if not (eta > 0 and np.isfinite(eta)):
        raise InvalidInput(f"eta={eta} must be a positive learning rate")
    if not 0 < delta < 2:
        raise InvalidInput(f"delta={delta} must lie between 0 and 2: without a margin the iterate oscillates")
    if steps < 1 or steps % stride:
        raise InvalidInput(f"steps={steps} must be a positive multiple of stride={stride}")
    theta = checked_weights(task, start)
    block = top_modes(task, theta, modes, tol=1e-3)[1]
    rows = []
    reached = 0
    while True:
        _, gradient, eigenvalues, vectors, block = loss_and_modes(task, theta, block)
        rate = float(learning_rate(eta, float(eigenvalues[0]), delta))
        rows.append((reached, float(eigenvalues[0]), rate))
        if reached == steps:
            break
        target = reached + stride
        while reached < target:
            ahead = stable_stride(eigenvalues, rate, target - reached)
            theta = advance(theta, -gradient, eigenvalues, vectors, rate, ahead)
            reached += ahead
            if reached < target:
                _, gradient, eigenvalues, vectors, block = loss_and_modes(task, theta, block)
                rate = float(learning_rate(eta, float(eigenvalues[0]), delta))
    step, sharpness, rates = np.array(rows).T
    return xr.Dataset(
        {
            "sharpness": ("step", sharpness, {"units": "1/time", "long_name": "sharpness"}),
            "learning_rate": (
                "step",
                rates,
                {"units": "time", "long_name": "learning rate of the next step"},
            ),
        },
        coords={
            "step": ("step", step.astype(int), {"units": "1", "long_name": "steps since the checkpoint"})
        },
        attrs=provenance(task=task.name, method="gradient flow at the capped rate", eta=eta, delta=delta),
    )
