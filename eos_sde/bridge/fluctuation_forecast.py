"""Forecast the fluctuations of SGD about its averaged path from given weights, before it is run."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.fluctuation_densities import PROBABILITIES, DensityTable
from eos_sde.bridge.fluctuation_loss import FluctuationLoss, fluctuation_loss, noise_outside
from eos_sde.bridge.fluctuation_statistics import RUNAWAY, STATISTICS, path_statistics
from eos_sde.bridge.gaussian_fluctuation import gaussian_statistics
from eos_sde.bridge.line_fluctuation import FluctuatingLine
from eos_sde.bridge.linear_fluctuation import (
    SecondMoments,
    noise_from_elsewhere,
    sampled_path,
    second_moments,
)
from eos_sde.bridge.local_noise import LocalNoise, curvature_rows, local_noise
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.second_moment_errors import sampling_error, truncation_error
from eos_sde.bridge.slow_fluctuation import with_slow_kicks
from eos_sde.bridge.stochastic_flow import stochastic_central_flow
from eos_sde.bridge.tail_forecast import directional_tails, tail_variables
from eos_sde.bridge.task_library import Task
from eos_sde.models.arguments import count, positive
from eos_sde.thresholds.sgd_tail import sgd_tail_exponent
from solvers.errors import InvalidInput
from solvers.provenance import provenance

MODELS = ("gaussian", "linear map", "line kernel", "line with batches")
"""What forecasts: see `forecast_fluctuations`."""

_TAIL_MODES, _FLOW_MODES = 4, 16

HYSTERESIS = 1.0
"""Of the phase of the oscillation, in standard deviations of the step."""


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
    follow: bool = True,
    modes: int = 16,
    replicas: int = 1000,
    seed: int = 0,
    tails: bool = False,
) -> xr.Dataset:
    """Forecast the law of SGD's fluctuation along the leading Hessian eigendirections at given weights.

    Nothing but the weights and the task enters. Four models, each without the error of another:

    - "gaussian": the exact second moments of the linear map in the modes, with gradient and curvature noise, in a
      normal law; its flips by the arcsine law. Blind to tails and to everything beyond second derivatives.
    - "linear map": replicas of x+ = x - eta (g_B + H_B x) in the modes with real batches of the examples' gradients
      and Hessians: multiplicative noise, hence heavy tails (Kesten), and the batches' own shape. No network is run.
    - "line kernel": the map along the line through the weights, with its own slopes and its own Gaussian noise that
      depends on the place, as a Markov kernel. Sees anharmonicity, and a two-cycle; other directions only as noise.
    - "line with batches": the same line with the examples' slopes and real batches, blind to other directions.

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
    follow : bool
        With a horizon: carry the weights along `stochastic_central_flow` to the middle of the window first, and take
        the averaged path to rest there. Otherwise everything is expanded about the weights given, and the mean
        moves on the quadratic model: for a few steps only, or where the sharpness does not change.
    modes : int
        Hessian modes that are resolved, at least `directions`; 5 modes must be fewer than the weights.
    replicas : int
        Of the two models that are sampled, at least 100.
    seed : int
        Of their batches.
    tails : bool
        Whether to solve for the tail exponent of the map in the four leading modes together, which can take longer
        than the rest.

    Returns
    -------
    Dataset
        Over (model, direction), each with ``*_stderr``, the sampling error of the sampled models: ``variance``,
        ``kurtosis``, ``autocorrelation``, ``amplitude``, ``flip_rate``, ``hysteresis_flip_rate``, ``tail`` (see
        `measure_fluctuations`; NaN where a model has no answer, infinite where moments diverge),
        ``density(model, direction, bin)`` at ``position`` between ``edge``,
        ``quantile(model, direction, probability)``.
        Over direction: ``eigenvalue``, ``direction_vector``, ``scale`` (unit of the bins), ``variance_sampling`` (error
        of the Gaussian variance if the examples are a draw from a population, by a jackknife over ten groups; for this
        training set it is exact), ``variance_truncation`` (its change from half the modes to all), ``tail_exponent``
        with ``*_stderr`` and ``*_low`` (Kesten, along one direction), ``kernel_eigenvalue`` (the second of the line's
        kernel: 1 - eta h on a quadratic; where there is a two-cycle its phase flips at the rate -log|.|/2 each
        way), ``two_cycle`` (amplitude of the mean map's stable 2-cycle on the line, NaN without one).
        ``covariance(direction, direction2)`` of the linear map. Scalars:
        ``loss`` at the weights; ``excess_loss`` = ``excess_loss_resolved`` + ``excess_loss_unresolved`` (with
        ``*_stderr``, ``*_low``, ``*_high``; see `fluctuation_loss`), mean loss above that of the averaged weights;
        ``loss_deviation``, standard deviation of the loss of an iterate in a Gaussian law, and
        ``loss_deviation_sampled`` in that of the linear map; ``radius`` of the mean-square recursion;
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
    theta = checked_weights(task, params)
    resting = window is None or follow
    if window is not None and follow:
        theta = _followed(task, theta, batch_size, eta, sum(window) // 2, modes)
    settings = {"eta": eta, "batch_size": batch_size, "window": window}
    local = _noise_with_slow_kicks(task, theta, modes, settings, resting=resting, seed=seed)
    moments = second_moments(local, **settings)
    scale = _scale(local, moments, eta, batch_size)[:directions]
    table = DensityTable(MODELS, scale)
    statistics = {
        (model, i): dict.fromkeys(STATISTICS, (np.nan, np.nan)) for model in MODELS for i in range(directions)
    }
    path = sampled_path(local, **settings, replicas=replicas, seed=seed)
    average = moments.covariance.mean(axis=0)
    elsewhere = (
        noise_from_elsewhere(local, average, batch_size) if np.all(np.isfinite(average)) else 0.0 * scale
    )
    line: dict[str, list[float]] = {"kernel_eigenvalue": [], "two_cycle": []}
    for i in range(directions):
        statistics["gaussian", i] = gaussian_statistics(moments, local.eigenvalues, i, eta, HYSTERESIS)
        table.add_gaussian(i, moments.covariance[:, i, i])
        found = _Sampled(table, statistics)
        found.add("linear map", i, path[:, :, i])
        line_settings = settings | {"resting": resting, "other_noise": float(elsewhere[i])}
        kernel, cycle = _along_line(
            task, local, i, float(scale[i]), line_settings, found, seed=seed, replicas=replicas
        )
        line["kernel_eigenvalue"].append(kernel)
        line["two_cycle"].append(cycle)
    loss = fluctuation_loss(
        task, local, moments.covariance, moments.means, moving=not resting, seed=seed, **settings
    )
    along = directional_tails(local, directions, eta, batch_size, seed)
    left = local.gradients.mean(axis=0)
    scalars = _scalars(local, loss, moments, loss.sampled_deviation(path[:, -1], left, local.eigenvalues))
    if tails:
        leading = jnp.asarray(local.modes[:, :_TAIL_MODES])
        rows = np.asarray(curvature_rows(task, jnp.asarray(local.theta), leading))
        scalars |= tail_variables(
            "tail_exponent_modes", sgd_tail_exponent(rows, eta, batch_size=batch_size, seed=seed)
        )
    per_direction = {
        "eigenvalue": (local.eigenvalues[:directions], "1/time", "Hessian eigenvalue"),
        "scale": (scale, "weight", "unit of the bins"),
        "variance_sampling": (
            sampling_error(local, settings, directions),
            "weight^2",
            "error of the Gaussian variance if the examples are drawn from a population",
        ),
        "variance_truncation": (
            truncation_error(local, moments, settings, directions),
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


def _followed(task: Task, theta: jax.Array, batch_size: int, eta: float, steps: int, modes: int) -> jax.Array:
    """The averaged weights some steps later, by the flow in no fewer modes than it takes by default, if it can."""
    flow = stochastic_central_flow(
        task, theta, batch_size=batch_size, eta=eta, steps=steps, save_every=steps, stride=_stride(steps),
        modes=max(modes, min(_FLOW_MODES, (task.size - 1) // 5)),
    )  # fmt: skip
    if flow.attrs["stopped"]:
        raise InvalidInput(
            f"the averaged path cannot be followed ({flow.attrs['stopped']}); lower eta, or follow=False"
        )
    return jnp.asarray(flow["final_params"].values)


def _stride(steps: int) -> int:
    """The largest divisor up to 5."""
    return next(size for size in (5, 4, 3, 2, 1) if steps % size == 0)


def _noise_with_slow_kicks(
    task: Task, theta: jax.Array, modes: int, settings: Mapping, *, resting: bool, seed: int
) -> LocalNoise:
    """The quadratic model with the noise that outside fluctuations bring, themselves raised by the resolved ones."""
    local = local_noise(task, theta, modes)
    if resting:
        local = local.resting()
    first = second_moments(local, **settings).covariance.mean(axis=0)
    gain = 1.0
    if np.all(np.isfinite(first)):
        gradient, curvature = noise_outside(local, first)
        gain += curvature / gradient if gradient > 0 else 0.0
    steps = None if settings["window"] is None else sum(settings["window"]) // 2
    common = {"eta": settings["eta"], "batch_size": settings["batch_size"]}
    return with_slow_kicks(task, local, steps=steps, seed=seed, gain=gain, **common)


class _Sampled:
    """Where the statistics and densities of sampled paths go."""

    def __init__(self, table: DensityTable, statistics: dict):
        self.table, self.statistics = table, statistics

    def add(self, model: str, direction: int, path: NDArray[np.float64]) -> None:
        """Nothing is added where a replica ran away: no law to show."""
        if np.all(np.abs(path) < RUNAWAY) and np.all(path.var(axis=0) > 0):
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


def _scalars(
    local: LocalNoise, loss: FluctuationLoss, moments: SecondMoments, sampled: tuple[float, float]
) -> dict[str, tuple]:
    values = {
        "loss": (local.loss, "full-batch loss at the weights"),
        "excess_loss": (loss.resolved + loss.unresolved, "mean loss above that of the averaged weights"),
        "excess_loss_stderr": (loss.unresolved_stderr, "error of the quadrature in it"),
        "excess_loss_resolved": (loss.resolved, "excess loss in the modes"),
        "excess_loss_unresolved": (loss.unresolved, "excess loss outside the modes"),
        "excess_loss_unresolved_stderr": (loss.unresolved_stderr, "its quadrature error"),
        "excess_loss_unresolved_low": (loss.low, "its lower bound"),
        "excess_loss_unresolved_high": (loss.high, "its upper bound"),
        "loss_deviation": (
            loss.standard_deviation,
            "standard deviation of the loss at the last step, Gaussian",
        ),
        "loss_deviation_sampled": (sampled[0], "the same with the law of the linear map"),
        "loss_deviation_sampled_stderr": (sampled[1], "its sampling error"),
        "radius": (moments.radius, "spectral radius of the mean-square recursion"),
    }
    return {name: ((), value, {"units": "1", "long_name": text}) for name, (value, text) in values.items()}
