"""Forecast the fluctuations of SGD about its averaged path from given weights, before it is run."""

from collections.abc import Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.fluctuation_densities import PROBABILITIES, DensityTable
from eos_sde.bridge.fluctuation_loss import FluctuationLoss, fluctuation_loss
from eos_sde.bridge.fluctuation_statistics import STATISTICS, path_statistics
from eos_sde.bridge.gaussian_fluctuation import gaussian_statistics
from eos_sde.bridge.line_fluctuation import FluctuatingLine
from eos_sde.bridge.linear_fluctuation import (
    SecondMoments,
    batch_means,
    largest_multiplier,
    sampled_path,
    second_moments,
)
from eos_sde.bridge.local_noise import LocalNoise, curvature_rows, local_noise
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from eos_sde.models.arguments import count, positive
from eos_sde.thresholds.random_recurrence import TailExponent, kesten_exponent
from eos_sde.thresholds.sgd_tail import sgd_tail_exponent
from solvers.errors import InvalidInput
from solvers.provenance import provenance

MODELS = ("gaussian", "linear map", "line kernel", "line with batches")
"""What forecasts: see `forecast_fluctuations`."""

HYSTERESIS = 1.0
"""Of the phase of the oscillation, in standard deviations of the step."""

_GROUPS = 10


@threadpool_limits.wrap(1, "blas")
@double_precision
def forecast_fluctuations(
    task: Task,
    params: ArrayLike,
    *,
    batch_size: int,
    eta: float | None = None,
    directions: int = 2,
    horizon: int | tuple[int, int] | None = None,
    modes: int = 8,
    replicas: int = 1000,
    seed: int = 0,
    tails: bool = False,
) -> xr.Dataset:
    """Forecast the law of SGD's fluctuation along the leading Hessian eigendirections at given weights.

    Nothing but the weights and the task enters. Four models, each without the error of another:

    - "gaussian": the exact second moments of the linear map in the modes, with gradient and curvature noise, in a normal
      law; its flips by the arcsine law. Blind to tails and to everything beyond second derivatives.
    - "linear map": replicas of x+ = x - eta (g_B + H_B x) in the modes with real batches of the examples' gradients and
      Hessians: multiplicative noise, hence heavy tails (Kesten), and the batches' own shape. No network is evaluated.
    - "line kernel": the map along the line through the weights, with its own slopes and its own Gaussian noise that
      depends on the place, as a Markov kernel. Sees anharmonicity, and a two-cycle, but one direction only.
    - "line with batches": the same line with the examples' slopes and real batches.

    Parameters
    ----------
    task : Task
        The training problem.
    params : array
        Weights, shape (d,).
    batch_size : int
        B < n, without replacement.
    eta : float, optional
        Learning rate; the task's if left out.
    directions : int
        How many of the leading eigendirections are forecast.
    horizon : int, (int, int) or None
        The step after the weights, as one point, at which; or the first and last step of a window, over which the
        law is averaged. None: the stationary law about the weights, as if the averaged path rested there.
    modes : int
        Hessian modes that are resolved, at least `directions`; 5 modes must be fewer than the weights.
    replicas : int
        Of the two models that are sampled, at least 100.
    seed : int
        Of their batches.
    tails : bool
        Whether to solve for the tail exponent of the map in all modes, which takes longer than the rest.

    Returns
    -------
    Dataset
        Over (model, direction), each with ``*_stderr``, the sampling error of the sampled models: ``variance``,
        ``kurtosis``, ``autocorrelation``, ``amplitude``, ``flip_rate``, ``hysteresis_flip_rate``, ``tail`` (see
        `measure_fluctuations`; NaN where a model has no answer, infinite where moments diverge),
        ``density(model, direction, bin)`` at ``position`` between ``edge``, ``quantile(model, direction, probability)``.
        Over direction: ``eigenvalue``, ``direction_vector``, ``scale`` (unit of the bins), ``variance_sampling`` (error
        of the Gaussian variance if the examples are a draw from a population, by a jackknife over ten groups; for this
        training set it is exact), ``variance_truncation`` (its change from half the modes to all), ``tail_exponent``
        with ``*_stderr`` and ``*_low`` (Kesten, along one direction), ``kernel_eigenvalue`` (the second of the line's
        kernel: -log|.| is the rate at which a phase is forgotten), ``two_cycle`` (amplitude of the mean map's stable
        2-cycle on the line, NaN without one). ``covariance(direction, direction2)`` of the linear map. Scalars:
        ``loss`` at the weights; ``excess_loss`` = ``excess_loss_resolved`` + ``excess_loss_unresolved`` (with
        ``*_stderr``, ``*_low``, ``*_high``; see `fluctuation_loss`), mean loss above that of the averaged weights;
        ``loss_deviation``, standard deviation of the loss of an iterate; ``radius`` of the mean-square recursion;
        ``tail_exponent_modes`` with errors if `tails`.

    Raises
    ------
    InvalidInput
        If the weights or a number cannot be used.

    Examples
    --------
    >>> from eos_sde import bridge
    >>> task = bridge.load_task("digits-mlp", examples=60, hidden=(4,), pool=2)
    >>> weights = bridge.checkpoint(task, eta=0.1, steps=100, seed=0)
    >>> forecast = bridge.forecast_fluctuations(task, weights, batch_size=8, eta=0.1, horizon=(10, 40))
    >>> measured = bridge.measure_fluctuations(task, weights, forecast=forecast)
    """
    eta = positive("eta", task.eta if eta is None else eta)
    batch_size = count("batch_size", batch_size, most=task.n - 1)
    directions = count("directions", directions)
    modes = count("modes", max(modes, directions))
    replicas, seed = count("replicas", replicas, least=100), count("seed", seed, least=0)
    window = checked_window(horizon)
    local = local_noise(task, checked_weights(task, params), modes)
    settings = {"eta": eta, "batch_size": batch_size, "window": window}
    moments = second_moments(local, **settings)
    scale = _scale(local, moments, eta, batch_size)[:directions]
    table = DensityTable(MODELS, scale)
    statistics = {
        (model, i): dict.fromkeys(STATISTICS, (np.nan, np.nan)) for model in MODELS for i in range(directions)
    }
    path = sampled_path(local, **settings, replicas=replicas, seed=seed)
    line: dict[str, list[float]] = {"kernel_eigenvalue": [], "two_cycle": []}
    for i in range(directions):
        statistics["gaussian", i] = gaussian_statistics(moments, local.eigenvalues, i, eta, HYSTERESIS)
        table.add_gaussian(i, moments.covariance[:, i, i])
        found = _Sampled(table, statistics)
        found.add("linear map", i, path[:, :, i])
        kernel, cycle = _along_line(
            task, local, i, float(scale[i]), settings, found, seed=seed, replicas=replicas
        )
        line["kernel_eigenvalue"].append(kernel)
        line["two_cycle"].append(cycle)
    loss = fluctuation_loss(task, local, moments.covariance, moments.means, seed=seed, **settings)
    along = _tails(local, directions, eta, batch_size, seed)
    scalars = _scalars(local, loss, moments)
    if tails:
        rows = np.asarray(curvature_rows(task, jnp.asarray(local.theta), jnp.asarray(local.modes)))
        scalars |= _tail_variables(
            "tail_exponent_modes", sgd_tail_exponent(rows, eta, batch_size=batch_size, seed=seed)
        )
    per_direction = {
        "eigenvalue": (local.eigenvalues[:directions], "1/time", "Hessian eigenvalue"),
        "scale": (scale, "weight", "unit of the bins"),
        "variance_sampling": (
            _sampling_error(local, settings, directions),
            "weight^2",
            "error of the Gaussian variance if the examples are drawn from a population",
        ),
        "variance_truncation": (
            _truncation(local, moments, settings, directions),
            "weight^2",
            "change of the Gaussian variance from half the modes to all",
        ),
        "tail_exponent": ([t.value for t in along], "1", "Kesten exponent of the map along the direction"),
        "tail_exponent_stderr": ([t.stderr for t in along], "1", "its sampling error"),
        "tail_exponent_low": ([t.low for t in along], "1", "its lower bound, given what no draw showed"),
        "kernel_eigenvalue": (line["kernel_eigenvalue"], "1", "second eigenvalue of the kernel on the line"),
        "two_cycle": (line["two_cycle"], "weight", "amplitude of the 2-cycle of the line's mean map"),
    }
    contents = {
        name: ("direction", np.asarray(value, float), {"units": units, "long_name": text})
        for name, (value, units, text) in per_direction.items()
    } | scalars
    contents["direction_vector"] = (
        ("direction", "weight"),
        local.modes[:, :directions].T,
        {"units": "1", "long_name": "Hessian eigenvector"},
    )
    contents["covariance"] = (
        ("direction", "direction2"),
        moments.covariance.mean(axis=0)[:directions, :directions],
        {"units": "weight^2", "long_name": "covariance of the linear map, mean over the steps"},
    )
    for name, (units, text) in STATISTICS.items():
        for suffix, part in (("", 0), ("_stderr", 1)):
            contents[name + suffix] = (
                ("model", "direction"),
                np.array([[statistics[m, i][name][part] for i in range(directions)] for m in MODELS]),
                {"units": units, "long_name": f"standard error of {text}" if part else text},
            )
    details = {"first": window[0], "last": window[1]} if window else {}
    return xr.Dataset(
        contents | table.variables(),
        coords={"model": list(MODELS), "direction": np.arange(directions), "probability": list(PROBABILITIES)},
        attrs=provenance(
            task=task.name, description=task.description, eta=eta, batch_size=batch_size, modes=modes,
            replicas=replicas, seed=seed, horizon="window" if window else "stationary",
            tail_reasons="; ".join(t.reason for t in along), **details,
        ),
    )  # fmt: skip


def checked_window(horizon: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """First and last step of a window that a horizon asks for; one step becomes that and the next, for what needs two.

    Raises
    ------
    InvalidInput
        If the steps are not positive and increasing.
    """
    if horizon is None:
        return None
    if isinstance(horizon, tuple | list):
        if len(horizon) != 2:
            raise InvalidInput(f"horizon={horizon} must be one step, or the first and last of a window")
        first = count("first step of horizon", horizon[0])
        return first, count("last step of horizon", horizon[1], least=first + 1)
    step = count("horizon", horizon)
    return step, step + 1


class _Sampled:
    """Where the statistics and densities of sampled paths go."""

    def __init__(self, table: DensityTable, statistics: dict):
        self.table, self.statistics = table, statistics

    def add(self, model: str, direction: int, path: NDArray[np.float64]) -> None:
        """Nothing is added where a replica ran away: no law to show."""
        if np.all(np.isfinite(path)) and np.all(path.var(axis=0) > 0) and np.max(np.abs(path)) < 1e100:
            self.statistics[model, direction] = path_statistics(path, hysteresis=HYSTERESIS)
            self.table.add_path(model, direction, path)


def _along_line(
    task: Task,
    local: LocalNoise,
    i: int,
    deviation: float,
    settings: Mapping,
    found: _Sampled,
    *,
    seed,
    replicas,
) -> tuple[float, float]:
    """Add what the line forecasts; the second eigenvalue of its kernel and the amplitude of its 2-cycle, or NaN."""
    try:
        line = FluctuatingLine(
            task, local.theta, local.modes[:, i], curvature=float(local.eigenvalues[i]),
            slope=float(local.gradients[:, i].mean()), deviation=deviation, **settings,
        )  # fmt: skip
        law = line.law()
    except InvalidInput:  # told by NaN: no minimum near, or the line does not hold SGD
        return np.nan, np.nan
    found.table.add_law("line kernel", i, law.offsets, law.masses)
    tail = found.table.hill("line kernel", i)
    found.statistics["line kernel", i] = {name: (law.statistics.get(name, tail), 0.0) for name in STATISTICS}
    found.add("line with batches", i, line.path(replicas, seed))
    return law.second_eigenvalue, law.two_cycle


def _scale(local: LocalNoise, moments: SecondMoments, eta: float, batch_size: int) -> NDArray[np.float64]:
    """Standard deviation of the linear map, or without one that of the kicks with the damping of the mean map."""
    variances = np.diagonal(moments.covariance.mean(axis=0))
    kicks = eta**2 * local.batch_variance(batch_size) * local.gradients.var(axis=0)
    damping = np.maximum(1 - (1 - eta * local.eigenvalues) ** 2, 0.01)
    return np.sqrt(np.where(np.isfinite(variances) & (variances > 0), variances, kicks / damping))


def _sampling_error(local: LocalNoise, settings: Mapping, directions: int) -> NDArray[np.float64]:
    """Jackknife of the Gaussian variance over groups of examples, at fixed directions."""
    groups = np.array_split(np.arange(local.examples), _GROUPS)
    left_out = []
    for group in groups:
        curvatures = np.delete(local.curvatures, group, axis=0)
        # the eigenvalues of a part are those of its own mean curvature, to first order
        h = local.eigenvalues + np.diagonal(curvatures.mean(axis=0) - local.curvatures.mean(axis=0))
        part = local._replace(
            eigenvalues=h, gradients=np.delete(local.gradients, group, axis=0), curvatures=curvatures
        )
        covariance = second_moments(part, **settings).covariance.mean(axis=0)
        left_out.append(np.diagonal(covariance)[:directions])
    with np.errstate(invalid="ignore"):
        return np.sqrt((_GROUPS - 1) * np.var(left_out, axis=0))


def _truncation(
    local: LocalNoise, moments: SecondMoments, settings: Mapping, directions: int
) -> NDArray[np.float64]:
    few = max(directions, len(local.eigenvalues) // 2)
    fewer = second_moments(local.within(few), **settings).covariance.mean(axis=0)
    with np.errstate(invalid="ignore"):
        difference = np.abs(
            np.diagonal(moments.covariance.mean(axis=0))[:directions] - np.diagonal(fewer)[:directions]
        )
    return difference


def _tails(local: LocalNoise, directions: int, eta: float, batch_size: int, seed: int) -> list[TailExponent]:
    curvatures = np.stack([local.curvatures[:, i, i] for i in range(directions)], axis=1)
    sampled = batch_means(curvatures, batch_size=batch_size, seed=seed)
    largest = partial(largest_multiplier, eta=eta, batch_size=batch_size)
    return [
        kesten_exponent(1 - eta * sampled[:, i], largest=largest(curvatures[:, i])) for i in range(directions)
    ]


def _tail_variables(name: str, tail: TailExponent) -> dict[str, tuple]:
    return {
        name: (
            (),
            tail.value,
            {"units": "1", "long_name": "tail exponent of the map in all modes", "reason": tail.reason},
        ),
        f"{name}_stderr": ((), tail.stderr, {"units": "1", "long_name": "its sampling error"}),
        f"{name}_low": ((), tail.low, {"units": "1", "long_name": "its lower bound"}),
    }


def _scalars(local: LocalNoise, loss: FluctuationLoss, moments: SecondMoments) -> dict[str, tuple]:
    values = {
        "loss": (local.loss, "full-batch loss at the weights"),
        "excess_loss": (loss.resolved + loss.unresolved, "mean loss above that of the averaged weights"),
        "excess_loss_stderr": (loss.unresolved_stderr, "error of the quadrature in it"),
        "excess_loss_resolved": (loss.resolved, "excess loss in the modes"),
        "excess_loss_unresolved": (loss.unresolved, "excess loss outside the modes"),
        "excess_loss_unresolved_stderr": (loss.unresolved_stderr, "its quadrature error"),
        "excess_loss_unresolved_low": (loss.low, "its lower bound"),
        "excess_loss_unresolved_high": (loss.high, "its upper bound"),
        "loss_deviation": (loss.standard_deviation, "standard deviation of the loss at the last step"),
        "radius": (moments.radius, "spectral radius of the mean-square recursion"),
    }
    return {name: ((), value, {"units": "1", "long_name": text}) for name, (value, text) in values.items()}
