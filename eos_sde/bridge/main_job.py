"""The main job: a real network is trained, calibrated, predicted and measured, and both are put side by side."""

import math
from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from threadpoolctl import threadpool_limits

from eos_sde.bridge.calibration import calibrate
from eos_sde.bridge.experiments import caeo, fluctuations, metastability, minimum, plateau
from eos_sde.bridge.experiments.comparison import Outcome, Row
from eos_sde.bridge.interpolation_tasks import interpolating
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.prediction import RULES
from eos_sde.bridge.recorder import record
from eos_sde.bridge.task_library import Task, load_task, tasks
from eos_sde.optimizers import rule as caeo_rule
from solvers.errors import InvalidInput
from solvers.provenance import provenance

Progress = Callable[[str, float], None]
_CAEO_STEPS = 120


@threadpool_limits.wrap(1, "blas")  # many small LAPACK calls: more BLAS threads only wait for each other
@double_precision
def replay(
    task: Task | str = "fashion-mlp",
    rule: str = "caeo",
    *,
    steps: int = 500,
    seed: int = 0,
    eta: float | None = None,
    batch_size: int = 8,
    deltas: Sequence[float] = (0.1, 0.5),
    warmup: int = 150,
    progress: Progress | None = None,
    keep: Callable[[xr.Dataset], None] | None = None,
) -> xr.Dataset:
    """Replay a rule on a real network against the continuous predictions.

    A checkpoint is made by `warmup` steps of SGD at batch 32 with a learning rate rising to `eta`, and calibrated
    there. Then, for every rule, 1. the onset of instability of a trained minimum; with batch noise (rules "sgd" and
    "caeo") 2. the sharpness plateau at batch B and 8 B, 3. the variance along the top eigenvector, 4. the
    rate of phase flips or escape; and for "caeo" 5. its learning-rate and sharpness path at each delta. No
    predictor sees the run that judges it.

    Parameters
    ----------
    task : Task or str
        A task or its name.
    rule : {"caeo", "sgd", "gd"}
        How far to go.
    steps : int
        Of SGD after the checkpoint, in experiment 2; at least 150.
    seed : int
        Of everything.
    eta : float, optional
        Learning rate; the task's if left out. CAEO gets twice as much for its base rate, so that its cap binds.
    batch_size : int
        B of experiments 2 and 3; 8 B serves in 2 and 4.
    deltas : sequence of float
        Margins of CAEO, each below 2; from 0 down the iterate oscillates and the gradient flow predicts nothing.
    warmup : int
        Steps to the checkpoint.
    progress : callable, optional
        Called with the name of the experiment at hand and the fraction of it done.
    keep : callable, optional
        Called after each experiment with the dataset so far (``attrs["complete"]`` 0 until the last), so that an
        interrupted replay loses nothing that was finished.

    Returns
    -------
    Dataset
        Over ``quantity``: ``predicted``, ``predicted_stderr``, ``measured``, ``measured_stderr``, ``units``,
        ``experiment``, ``model``, ``verdict``; and the paths of each experiment, named after it.

    Raises
    ------
    InvalidInput
        For an unknown task or rule, or a number out of range; before any work.
    """
    name = task if isinstance(task, str) else task.name
    if name in tasks() and name not in interpolating():
        choices = ", ".join(interpolating())
        raise InvalidInput(f"the replay needs one-hot classes of images, not {name}: choose one of {choices}")
    if isinstance(task, str):
        task = load_task(task)
    eta = task.eta if eta is None else eta
    _check(task, rule, steps, seed, eta, batch_size, deltas, warmup)
    report = progress or (lambda name, fraction: None)  # noqa: ARG005
    eta, deltas = float(eta), tuple(float(delta) for delta in deltas)

    def stage(name: str) -> Callable[[float], None]:
        report(name, 0.0)
        return lambda fraction: report(name, fraction)

    attrs = provenance(
        task=task.name, description=task.description, rule=rule, eta=eta, batch_size=batch_size, steps=steps,
        warmup=warmup, seed=seed, data_source=task.source, data_licence=task.licence,
    )  # fmt: skip
    outcomes: list[Outcome] = []

    def finish(outcome: Outcome, *, last: bool) -> xr.Dataset:
        outcomes.append(outcome)
        dataset = _dataset(outcomes, attrs | {"complete": int(last)})
        if keep is not None:
            keep(dataset)
        return dataset

    dataset = finish(minimum.run(task.name, seed=seed, progress=stage("minimum")), last=rule == "gd")
    if rule == "gd":
        return dataset
    start = checkpoint(task, eta=eta, steps=warmup, seed=seed, progress=stage("checkpoint"))
    calibration = calibrate(task, jnp.asarray(start), batch_size=batch_size, seed=seed)
    attrs |= {"calibration_sharpness": float(calibration["eigenvalue"][0])}
    common = (task, start, calibration)
    both = (batch_size, 8 * batch_size)
    run = plateau.run(*common, eta=eta, batch_sizes=both, steps=steps, seed=seed, progress=stage("plateau"))
    finish(run, last=False)
    run = fluctuations.run(*common, batch_size=batch_size, seed=seed, progress=stage("fluctuations"))
    finish(run, last=False)
    run = metastability.run(*common, batch_size=8 * batch_size, seed=seed, progress=stage("metastability"))
    dataset = finish(run, last=rule == "sgd")
    if rule == "sgd":
        return dataset
    run = caeo.run(*common, eta=2 * eta, deltas=deltas, steps=_CAEO_STEPS, seed=seed, progress=stage("caeo"))
    return finish(run, last=True)


@double_precision
def checkpoint(
    task: Task,
    *,
    eta: float,
    steps: int,
    seed: int,
    batch_size: int = 32,
    progress=lambda fraction: None,  # noqa: ARG005
) -> np.ndarray:
    """Weights after a few steps of SGD whose learning rate rises linearly to eta over the first half.

    Parameters
    ----------
    task : Task
        The training problem.
    eta : float
        Final learning rate.
    steps, batch_size : int
        How many, and B; one example fewer than the task has, if that is less, and never none.
    seed : int
        Of the initial weights and the batches.
    progress : callable
        Called with the fraction done.

    Returns
    -------
    ndarray
        Shape (d,).

    Raises
    ------
    InvalidInput
        If training diverged.
    """
    schedule = optax.linear_schedule(eta / 10, eta, max(1, steps // 2))
    run = record(
        task,
        optax.sgd(schedule),
        steps=steps,
        seed=seed,
        eta=eta,
        batch_size=min(batch_size, max(1, task.n - 1)),
        every=max(1, steps // 2),
        curvature=False,
        progress=lambda k: progress(k / steps),
    )
    if bool(run["diverged"].any()):
        raise InvalidInput(f"eta={eta:g} makes {task.name} diverge before the checkpoint; lower eta")
    return run["final_params"].values[0]


def _check(task: Task, rule, steps, seed, eta, batch_size, deltas, warmup) -> None:
    if rule not in RULES:
        raise InvalidInput(f"rule={rule!r} has no reduced model to replay: choose one of {', '.join(RULES)}")
    for name, value, least in (
        ("steps", steps, 150), ("warmup", warmup, 2), ("batch_size", batch_size, 1), ("seed", seed, 0),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInput(f"{name}={value!r} must be an integer of at least {least}")
    if not isinstance(eta, int | float | np.number) or not (math.isfinite(eta) and eta > 0):
        raise InvalidInput(f"eta={eta!r} must be a positive learning rate")
    if 8 * batch_size >= task.n:
        raise InvalidInput(
            f"batch_size={batch_size} is too large: the replay compares B with 8 B, which must be below the "
            f"{task.n} examples of {task.name}"
        )
    if task.n < 32 or task.settings["outputs"] != "one-hot":
        raise InvalidInput(
            f"{task.name} has {task.n} examples; the replay needs at least 32 with one-hot outputs"
        )
    if isinstance(deltas, str) or not isinstance(deltas, Iterable) or not list(deltas):
        raise InvalidInput(f"deltas={deltas!r} must be a sequence of one or more margins, such as (0.1, 0.5)")
    for delta in deltas:
        caeo_rule.validate(delta=delta)


def _dataset(outcomes: list[Outcome], attrs: dict) -> xr.Dataset:
    rows: list[Row] = [row for outcome in outcomes for row in outcome.rows]
    numbers = {
        "predicted": "predicted value",
        "predicted_stderr": "error of the prediction",
        "measured": "measured value",
        "measured_stderr": "standard error of the measurement",
    }
    words = {
        "units": "units of both",
        "experiment": "experiment",
        "model": "theory that predicts, or its reason not to",
        "verdict": "agrees (2 standard errors), close (5 %), or off",
    }
    table = xr.Dataset(
        {
            name: (
                "quantity",
                [getattr(row, name) for row in rows],
                {"units": "see units", "long_name": text},
            )
            for name, text in numbers.items()
        }
        | {
            name: ("quantity", [getattr(row, name) for row in rows], {"units": "1", "long_name": text})
            for name, text in words.items()
        },
        coords={
            "quantity": ("quantity", [row.quantity for row in rows], {"units": "1", "long_name": "quantity"})
        },
    )
    paths = [outcome.paths for outcome in outcomes]
    details = {key: value for path in paths for key, value in path.attrs.items()}
    return xr.merge([table, *paths], combine_attrs="drop_conflicts").assign_attrs(attrs | details)
