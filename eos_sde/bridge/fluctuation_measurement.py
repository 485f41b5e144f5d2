"""Measure the fluctuations of SGD: replicas of the network's own steps from given weights, about their mean."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.fluctuation_densities import PROBABILITIES, DensityTable
from eos_sde.bridge.fluctuation_forecast import HYSTERESIS, checked_window
from eos_sde.bridge.fluctuation_statistics import STATISTICS, jackknife, path_statistics
from eos_sde.bridge.losses import LOSSES
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.replicas import sgd_step
from eos_sde.bridge.task_library import Task
from eos_sde.models.arguments import count, positive
from solvers.errors import InvalidInput
from solvers.provenance import provenance

_LOOK = 10  # steps between readings of the full-batch loss


@double_precision
def measure_fluctuations(
    task: Task,
    params: ArrayLike,
    *,
    forecast: xr.Dataset | None = None,
    directions: ArrayLike | None = None,
    batch_size: int | None = None,
    eta: float | None = None,
    horizon: int | tuple[int, int] | None = None,
    replicas: int = 256,
    seed: int = 1,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Run replicas of SGD from given weights and measure how they fluctuate about their mean.

    The averaged path is the mean of the replicas at each step: it moves with them, so that no motion of it counts as
    fluctuation, and nothing is smoothed in time. About the mean of R replicas a variance is too low by 1/R, for which
    variances and kurtosis are corrected (other statistics are off by 1/R relative); the excess of the mean loss over
    the loss of the mean weights likewise. What drives replicas apart slowly, such as diffusion along flat directions
    that shifts the others, is part of the fluctuation here.

    Parameters
    ----------
    task : Task
        The training problem.
    params : array
        Weights, shape (d,): the one point from which all replicas start.
    forecast : Dataset, optional
        From `forecast_fluctuations`: its directions, batch size, learning rate, window and bins are taken. Its numbers
        are not.
    directions : array, optional
        Without a forecast: unit vectors, shape (m, d).
    batch_size, eta, horizon
        As for `forecast_fluctuations`; here a horizon is needed.
    replicas : int
        R, at least 40.
    seed : int
        Of the batches, drawn without replacement, for each replica its own.
    progress : callable, optional
        Called with the number of steps done.

    Returns
    -------
    Dataset
        Over direction, each with ``*_stderr`` by a jackknife over the replicas: ``variance``; ``kurtosis`` (excess);
        ``autocorrelation`` (at lag 1); ``amplitude``, E|x(k+1) - x(k)|/2; ``flip_rate``, sign changes of (-1)^k x(k)
        per step; ``hysteresis_flip_rate``, flips of its phase that pass one standard deviation on the other side;
        ``tail``, the Hill exponent of the largest 2 % of |x|. ``density`` and ``quantile`` as in the forecast,
        ``covariance(direction, direction2)``; ``mean(time, direction)``, displacement of the averaged path.
        Scalars with errors: ``excess_loss``, mean loss above that of the mean weights, mean over readings every tenth
        step; ``loss_deviation``, standard deviation of the loss over the replicas at the last one; ``mean_loss``.

    Raises
    ------
    InvalidInput
        If the weights or a number cannot be used, or replicas diverged.
    """
    theta = checked_weights(task, params)
    if forecast is not None:
        settings = forecast.attrs
        directions = forecast["direction_vector"].values if directions is None else directions
        batch_size = settings["batch_size"] if batch_size is None else batch_size
        eta = settings["eta"] if eta is None else eta
        if horizon is None and "first" in settings:
            horizon = (settings["first"], settings["last"])
    if batch_size is None or directions is None:
        raise InvalidInput("batch_size and directions are missing; give them, or a forecast that has them")
    window = checked_window(horizon)
    if window is None:
        raise InvalidInput("horizon is missing; give the first and last step of the window that is measured")
    eta = positive("eta", task.eta if eta is None else eta)
    batch_size = count("batch_size", batch_size, most=task.n - 1)
    replicas, seed = count("replicas", replicas, least=40), count("seed", seed, least=0)
    vectors = np.asarray(directions, float)
    if vectors.ndim != 2 or vectors.shape[1] != task.size:
        raise InvalidInput(
            f"directions has shape {vectors.shape}; give unit vectors as rows, (m, {task.size})"
        )
    path, losses = _run(task, theta, vectors, batch_size, eta, window, replicas, seed, progress)
    if not (np.all(np.isfinite(path)) and np.all(np.isfinite(losses["loss"]))):
        raise InvalidInput(
            f"eta={eta:g} makes replicas diverge within {window[1]} steps; lower it or the horizon"
        )
    return _dataset(
        path, losses, forecast,
        provenance(
            task=task.name, description=task.description, eta=eta, batch_size=batch_size, first=window[0],
            last=window[1], replicas=replicas, seed=seed,
        ),
    )  # fmt: skip


def _run(
    task: Task, theta, vectors, batch_size, eta, window, replicas, seed, progress
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Displacement along the directions before each step of the window, (replicas, steps, m), and losses at looks."""
    advance, look = _compiled(task)
    begin = task.network.unravel(theta)
    towards = jax.vmap(task.network.unravel)(jnp.asarray(vectors))
    weights = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (replicas, *leaf.shape)), begin)
    sources = [stream(seed, 0, r) for r in range(replicas)]
    pieces, looks, done = [], [], 0
    while True:
        if done >= window[0]:
            looks.append([np.asarray(value) for value in look(weights, task.x, task.y)])
        if done > window[1]:
            break
        target = window[0] if done < window[0] else window[1] + 1
        steps = min(_LOOK, target - done)
        batches = np.stack(
            [draw_batches(words, steps, examples=task.n, batch_size=batch_size) for words in sources], axis=1
        )
        weights, piece = advance(weights, batches, eta, begin, towards, task.x, task.y)
        if done >= window[0]:
            pieces.append(np.asarray(piece))
        done += steps
        if progress is not None:
            progress(done)
    loss, of_mean = (np.array(column) for column in zip(*looks, strict=True))
    return np.concatenate(pieces).transpose(1, 0, 2), {"loss": loss.T, "of_mean": of_mean}


@lru_cache(maxsize=8)
def _compiled(task: Task) -> tuple[Callable, Callable]:
    one_step, loss, network = sgd_step(task), LOSSES[task.loss_name], task.network

    @jax.jit
    def advance(weights: Any, batches, eta, begin: Any, towards: Any, x, y) -> tuple[Any, jax.Array]:
        def along(weights: Any) -> jax.Array:
            parts = jax.tree.map(
                lambda w, b, u: (w - b).reshape(len(w), -1) @ u.reshape(len(u), -1).T, weights, begin, towards
            )
            return sum(jax.tree.leaves(parts))  # pyright: ignore[reportReturnType]

        def step(weights: Any, batch) -> tuple[Any, jax.Array]:
            return one_step(weights, batch, eta, x, y), along(weights)

        return jax.lax.scan(step, weights, batches)

    @jax.jit
    def look(weights: Any, x, y) -> tuple[jax.Array, jax.Array]:
        def full(one: Any) -> jax.Array:
            return jnp.mean(loss(network.apply_arrays(one, x), y))

        return jax.lax.map(full, weights), full(jax.tree.map(lambda leaf: leaf.mean(axis=0), weights))

    return advance, look


def _dataset(path, losses, forecast: xr.Dataset | None, attrs: dict) -> xr.Dataset:
    replicas, _, m = path.shape
    statistics = [path_statistics(path[:, :, i], hysteresis=HYSTERESIS) for i in range(m)]
    scale = (
        np.sqrt([one["variance"][0] for one in statistics]) if forecast is None else forecast["scale"].values
    )
    table = DensityTable(("measured",), scale)
    for i in range(m):
        table.add_path("measured", i, path[:, :, i])
    centred = path - path.mean(axis=0)
    covariance = np.einsum("rti,rtj->ij", centred, centred) / ((replicas - 1) * path.shape[1])
    contents: dict[str, tuple] = {
        "covariance": (("direction", "direction2"), covariance, {"units": "weight^2", "long_name": "covariance"}),
        "mean": (
            ("time", "direction"), path.mean(axis=0), {"units": "weight", "long_name": "displacement of the mean"}
        ),
    }  # fmt: skip
    for name, (units, text) in STATISTICS.items():
        for suffix, part in (("", 0), ("_stderr", 1)):
            contents[name + suffix] = (
                "direction",
                np.array([one[name][part] for one in statistics]),
                {"units": units, "long_name": f"standard error of {text}" if part else text},
            )
    for name, (value, error) in _losses(losses, replicas).items():
        text = name.replace("_", " ")
        contents[name] = ((), value, {"units": "1", "long_name": text})
        contents[f"{name}_stderr"] = ((), error, {"units": "1", "long_name": f"standard error of {text}"})
    for name, (dims, value, details) in table.variables().items():
        contents[name] = (dims[1:], value[0], details) if dims[0] == "model" else (dims, value, details)
    coords = {
        "direction": np.arange(m),
        "probability": list(PROBABILITIES),
        "time": ("time", attrs["first"] + np.arange(path.shape[1]), {"units": "1", "long_name": "steps"}),
    }
    return xr.Dataset(contents, coords=coords, attrs=attrs)


def _losses(losses: dict[str, NDArray[np.float64]], replicas: int) -> dict[str, tuple[float, float]]:
    """Excess loss, its correction by R/(R - 1) for the mean of R replicas, and the spread of the loss."""
    baseline = losses["of_mean"].mean()

    def summary(loss: NDArray[np.float64]) -> dict[str, float]:
        return {
            "mean_loss": float(loss.mean()),
            "excess_loss": float(loss.mean() - baseline) * replicas / (replicas - 1),
            "loss_deviation": float(loss[:, -1].std(ddof=1)),
        }

    return jackknife(summary, losses["loss"])
