"""One run of a trial: trained, logged, checkpointed, resumed bit for bit."""

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from eos_sde.bridge.cells import check_counts, plain
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.replicas import DIVERGED
from eos_sde.trials.checkpoints import Checkpoints
from eos_sde.trials.costs import work_of
from eos_sde.trials.devices import check_divisible, describe_mesh
from eos_sde.trials.energy import EnergyMeter
from eos_sde.trials.image_stream import Drawn
from eos_sde.trials.placement import OnMesh, Placement, placement_of
from eos_sde.trials.programs import knob_of, programs_of, scores_at
from eos_sde.trials.run_log import RunLog
from eos_sde.trials.trial import Trial, epoch_length, split_task
from eos_sde.trials.warm_start import layers_of
from solvers.errors import InvalidInput
from solvers.provenance import provenance, with_commit
from solvers.whole_files import write_netcdf

SERIES = {
    "epoch": ("1", "passes over the training examples"),
    "train_loss": ("1", "loss of all training examples"),
    "validation_loss": ("1", "loss of the validation examples"),
    "validation_accuracy": ("1", "part of the validation examples classified correctly"),
    "batch_loss": ("1", "mean loss of the batches since the row before"),
    "batch_loss_variance": ("1", "variance of these losses"),
    "learning_rate": ("time", "learning rate of the last update"),
    "sharpness": ("1/time", "top eigenvalue of the Hessian of all training examples"),
    "sharpness_residual": ("1/time", "residual norm of its estimate, an error bound"),
    "linearizations": ("1", "linearizations for the curvature that the rule measured, so far"),
    "products": ("1", "Hessian-vector products for it, so far"),
    "slopes": ("1", "gradients of the sharpness for it, so far"),
    "gradient_equivalents": ("1", "updates and measured curvature in gradients of a batch, so far"),
    "seconds": ("s", "wall-clock time in updates, without compilation, measurements and reading, so far"),
    "energy_joules": (
        "J",
        "energy in that time, with all that ran beside; the attribute energy says of what",
    ),
}
NOT_REPRODUCED = ("seconds", "energy_joules")
"""What a clock or a counter tells: the only numbers that differ when a run is repeated or resumed."""
_MOST_WORKERS = 8
_COUNTED = ("linearizations", "products", "slopes")


@double_precision
def train(
    trial: Trial,
    *,
    folder: Path | None = None,
    checkpoint_every: int | None = None,
    progress: Callable[[int], None] | None = None,
    mesh: Mesh | str | None = None,
    workers: int | None = None,
) -> xr.Dataset:
    """Train, and log as it goes.

    With a folder, every row of the log is written before the next update (with checkpoints, it is on disk by then),
    and a run that was killed goes on from its last checkpoint, or from the start if there is none: to the same bits as
    a run that was not. A run that has finished is read.

    Parameters
    ----------
    trial : Trial
        What is run.
    folder : path, optional
        For ``log.jsonl``, ``run.nc`` and ``checkpoints``. If left out nothing is written.
    checkpoint_every : int, optional
        Updates between checkpoints of the weights and the state of the rule, a multiple of the trial's ``every``; none
        if left out.
    progress : callable, optional
        Called with the number of updates done.
    mesh : Mesh or str, optional
        Devices over which weights, state and batches are spread, or its sizes, such as "data=4,model=2": see
        `eos_sde.trials.devices`. The numbers are those of one device up to the order of sums. A run may go on on
        another mesh. With several processes (`eos_sde.trials.cluster`) all call this, on one file system, and the
        first writes.
    workers : int, optional
        Threads that read and decode the images of a task with a stream, whatever the numbers: by default one for each
        processor core that the process may use, eight at most.

    Returns
    -------
    Dataset
        Over ``step`` (0, every, ..., steps; up to where it was seen, if the run diverged): `SERIES`. Scalars:
        ``diverged``, ``final_sharpness``, ``test_loss``, ``test_accuracy``, ``test_nll``, ``test_brier``,
        ``test_ece`` (NaN where they do not exist). Over ``bin``: ``reliability_confidence``, ``reliability_accuracy``,
        ``reliability_count``. ``final_params`` (weight). Attributes hold the settings as JSON.

    Raises
    ------
    InvalidInput
        For a trial that cannot be run, or a folder of another one.
    """
    placement = placement_of(mesh)
    trial.check()
    settings = trial.settings
    if isinstance(placement, OnMesh):
        check_divisible({"batch_size": trial.batch_size, "probe": trial.probe}, placement.mesh)
        settings["weights"] = "arrays"  # as they are kept in checkpoints
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_WORKERS)
    check_counts(workers=(workers, 1))
    if checkpoint_every is not None:
        if folder is None:
            raise InvalidInput(f"checkpoint_every={checkpoint_every} needs a folder for the checkpoints")
        if isinstance(checkpoint_every, bool) or checkpoint_every < 1 or checkpoint_every % trial.every:
            raise InvalidInput(
                f"checkpoint_every={checkpoint_every} must be a positive multiple of every={trial.every}"
            )
    log = (
        None
        if folder is None
        else RunLog(folder / "log.jsonl", settings, synced=checkpoint_every is not None, writes=_first())
    )
    if folder is not None and (folder / "run.nc").exists():
        finished = xr.load_dataset(folder / "run.nc", engine="h5netcdf")
        if json.loads(finished.attrs["settings"]) != settings:
            raise InvalidInput(f"{folder / 'run.nc'} is of a run with other settings; choose another folder")
        return finished
    keeper = None
    if folder is not None and checkpoint_every is not None:
        keeper = Checkpoints(folder / "checkpoints")
    try:
        rows, theta = _run(trial, placement, log, keeper, checkpoint_every or trial.steps, progress, workers)
    finally:
        if keeper is not None:
            keeper.close()
    dataset = with_commit(_dataset(trial, placement, settings, rows, theta))
    if folder is not None and _first():
        write_netcdf(dataset, folder / "run.nc")
    return dataset


def _first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def _run(
    trial: Trial,
    placement: Placement,
    log: RunLog | None,
    keeper: Checkpoints | None,
    checkpoint_every: int,
    progress: Callable[[int], None] | None,
    workers: int,
) -> tuple[list[dict[str, Any]], Any]:
    task, programs = split_task(trial).training, programs_of(trial, placement)
    knob = placement.whole(np.asarray(knob_of(trial)[1]))
    own: dict[str, Any] = (
        {"seed": trial.seed} if "refresh" in trial.rule_options else {}
    )  # of the estimator's random vectors
    theta, state = placement.start(task, trial.transformation(**own), trial.weights()[0])
    rows, done = [], 0
    found = None if keeper is None else keeper.latest((theta, state))
    if found is not None:
        done, (theta, state) = found
    if log is not None:
        rows = log.keep_until(done if found is not None else -1)
        if found is not None and (not rows or rows[-1]["step"] != done):
            raise InvalidInput(
                f"the log has lost the row of the checkpoint at step {done}; choose another folder"
            )
    meter, before = EnergyMeter(), rows[-1] if rows else {}
    seconds = before.get("seconds", 0.0)
    energy = before.get("energy_joules", 0.0)
    energy = np.nan if energy is None else energy  # a part of the run was made where no counter was
    counts = [before.get(name, 0) for name in _COUNTED]
    told: tuple = (np.nan, np.nan, np.nan, 0, 0, 0)
    order = {"seed": trial.seed, "batch_size": trial.batch_size, "every": trial.every}
    with closing(Drawn(task, **order, first=done, workers=workers)) as drawn:
        while True:
            if not rows or rows[-1]["step"] < done:
                counts = [count + int(new) for count, new in zip(counts, told[3:], strict=True)]
                row = _row(trial, programs, done, theta, told[:3], counts)
                row["seconds"] = seconds
                row["energy_joules"] = plain(energy if meter.readable else np.nan)
                rows.append(row)
                if log is not None:
                    log.append(row)
            if keeper is not None and done and (done % checkpoint_every == 0 or done == trial.steps):
                keeper.save(done, (theta, state))
            if progress is not None:
                progress(done)
            if done == trial.steps or _lost(rows):
                return rows, placement.vector(theta)
            placed = placement.examples(drawn.next(), axis=1), placement.whole(np.asarray(done))
            work = programs.advance(knob, theta, state, *placed)
            began, used = time.perf_counter(), meter.joules()
            theta, state, told = work()
            seconds += time.perf_counter() - began
            energy += meter.joules() - used
            done += trial.every


def _lost(rows: list[dict[str, Any]]) -> bool:
    """Whether the last row is of a run that diverged."""
    loss = rows[-1]["train_loss"]
    return loss is None or loss > DIVERGED * max(1.0, rows[0]["train_loss"] or 0.0)


def _row(
    trial: Trial, programs: Any, done: int, theta: Any, told: tuple, counts: list[int]
) -> dict[str, Any]:
    """All that is known of a step but what clocks tell."""
    train_loss, validation_loss, accuracy = programs.evaluate(theta)
    last = done == trial.steps
    wanted = trial.curvature_every and (done // trial.every) % trial.curvature_every == 0
    sharpness = residual = np.nan
    if np.isfinite(train_loss) and (last or wanted):
        sharpness, residual = programs.sharpness(theta)
    work = work_of(counts)
    values = {
        "epoch": done / epoch_length(trial),
        "train_loss": train_loss,
        "validation_loss": validation_loss,
        "validation_accuracy": accuracy,
        "batch_loss": told[0],
        "batch_loss_variance": told[1],
        "learning_rate": told[2],
        "sharpness": sharpness,
        "sharpness_residual": residual,
        "gradient_equivalents": done + work.gradients((trial.probe or trial.batch_size) / trial.batch_size),
    }
    return {"step": done} | {key: plain(value) for key, value in values.items()} | work._asdict()


def _dataset(
    trial: Trial, placement: Placement, settings: dict[str, Any], rows: list[dict[str, Any]], theta: Any
) -> xr.Dataset:
    split = split_task(trial)
    diverged = _lost(rows)
    loss, accuracy, scores = (np.nan, np.nan, None) if diverged else scores_at(split.training, theta)

    def variable(dims: tuple[str, ...], values: Any, units: str, long_name: str) -> tuple:
        return dims, values, {"units": units, "long_name": long_name}

    contents = {
        name: variable(("step",), np.array([row[name] for row in rows], dtype=float), *text)
        for name, text in SERIES.items()
    }
    scalars = {
        "final_sharpness": (rows[-1]["sharpness"], "1/time", "sharpness at the last weights"),
        "test_loss": (loss, "1", "loss of the test examples"),
        "test_accuracy": (accuracy, "1", "part of the test examples classified correctly"),
        "test_nll": (scores and scores.nll, "1", "mean negative log probability of the test labels, nats"),
        "test_brier": (scores and scores.brier, "1", "Brier score on the test examples"),
        "test_ece": (scores and scores.ece, "1", "expected calibration error on the test examples"),
    }
    for name, (value, *text) in scalars.items():
        contents[name] = variable((), np.nan if value is None or diverged else float(value), *text)
    contents["diverged"] = variable((), bool(diverged), "1", "whether the run diverged")
    contents["final_params"] = variable(("weight",), np.asarray(theta), "1", "weights after the last update")
    if scores is not None:
        for name, values, text in (
            ("confidence", scores.bin_confidence, "mean confidence of the test examples in a bin"),
            ("accuracy", scores.bin_accuracy, "part of them classified correctly"),
            ("count", scores.count, "how many they are"),
        ):
            contents[f"reliability_{name}"] = variable(("bin",), values, "1", text)
    coords = {"step": variable(("step",), np.array([row["step"] for row in rows]), "1", "updates made")}
    attrs = provenance(
        task=trial.task, rule=trial.rule, seed=trial.seed, description=split.training.description,
        settings=json.dumps(settings),
        energy=EnergyMeter().source,
        curvature_of=_curvature_of(trial), start=trial.weights()[1] if trial.start else None,
        layers=json.dumps(layers_of(split.training.network)),
        mesh=describe_mesh(placement.mesh) if isinstance(placement, OnMesh) else None,
    )  # fmt: skip
    return xr.Dataset(contents, coords, attrs)


def _curvature_of(trial: Trial) -> str | None:
    if not trial.rule_options.get("refresh") and trial.rule != "cdat":
        return None
    return f"a fixed batch of {trial.probe} training examples" if trial.probe else "the batch of each update"
