"""Experiment 4: phase flips of the oscillation beyond the edge, or escape from a basin before it."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import xarray as xr

from eos_sde.bridge.calibration import line_statistics
from eos_sde.bridge.experiments.comparison import Outcome, Row, variable
from eos_sde.bridge.experiments.line import Line, line_minimum, sgd_on_line, tabulate_line
from eos_sde.bridge.prediction import Phases, phases
from eos_sde.bridge.task_library import Task
from eos_sde.models import flip_normal_form, maps
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers import (
    FokkerPlanck,
    Grid,
    TransferOperator,
    eigenmodes,
    escape_rate,
    simulate,
    stationary_density,
)
from solvers.errors import InvalidInput

_GROUPS = 20


def run(
    task: Task,
    start: np.ndarray,
    calibration: xr.Dataset,
    *,
    batch_size: int,
    seed: int,
    barrier: float = 3.0,
    paths: int = 20_000,
    replicas: int = 1_000,
    progress: Callable[[float], None],
) -> Outcome:
    """Rate from the Fokker-Planck operator against the transfer operator, a simulation, and the network's line.

    The network is restricted to the line along its top eigenvector through the checkpoint, at the minimum on
    that line; the learning rate is where the barrier between the two phases of the oscillation is `barrier`
    noise units. The rate is the slowest relaxation rate: of the mean phase, or of the number still in the
    basin.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    calibration : Dataset
        At the checkpoint: its top eigenvector is the line.
    batch_size : int
        B.
    seed, paths, replicas : int
        Of the simulation of the normal form, and of SGD on the line.
    barrier : float
        Kramers exponent.
    progress : callable
        Called with the fraction done.

    Returns
    -------
    Outcome
        Three rows, and the densities of the amplitude.
    """
    direction = calibration["eigenvector"].values[0]
    scale = 4.0 / math.sqrt(float(calibration["eigenvalue"][0]))
    p = noise_fraction(task.n, batch_size)
    try:
        bottom = np.asarray(start) + line_minimum(task, start, direction, scale) * direction
        statistics = line_statistics(task, jnp.asarray(bottom), jnp.asarray(direction))
        form = phases(
            curvature=statistics["curvature"][0],
            third=statistics["third"][0],
            fourth=statistics["fourth"][0],
            gradient_variance=p * statistics["per_example_variance"][0],
            barrier=barrier,
        )
    except InvalidInput as reason:  # this checkpoint has no such oscillation or basin: the table says so
        nan = math.nan
        return Outcome([Row("metastability", "phase flip rate", str(reason), nan, nan, nan, nan, "1/step")])
    progress(0.3)
    # second order in the cells: a third of the difference between two grids estimates the error
    predicted, discrete = form.rate(discrete=False), form.rate(discrete=True)
    error = abs(predicted - form.rate(discrete=False, cells=300)) / 3
    discrete_error = abs(discrete - form.rate(discrete=True, cells=300)) / 3
    first = 0.1 / predicted + 3 / (2 * abs(form.mu))  # the fast relaxation within a phase is over
    times = np.unique(np.round(np.linspace(first, first + 1.5 / predicted, 31)).astype(int))
    inside = form.edge
    begin = inside if form.kind == "phase flip" else 0.0
    stop = None if form.kind == "phase flip" else _leaves(inside)
    sde = flip_normal_form(form.mu, form.C, form.s)
    simulated = simulate(
        sde,
        begin,
        t1=float(times[-1]),
        dt=1.0,
        paths=paths,
        seed=seed,
        resolution=53,
        save_at=times.astype(float),
        save_paths=True,
        stop=stop,
        allow_unstable_step=True,
    )
    progress(0.5)
    amplitudes = simulated["state"].values[:, :, 0]
    reach = form.grid().edges["A"][-1] * (1.5 if form.kind == "phase flip" else 1.0)
    line = tabulate_line(task, bottom, direction, reach)
    on_line = sgd_on_line(
        line, np.full(replicas, begin), eta=form.eta, batch_size=batch_size, save=times, seed=seed
    )
    progress(0.9)
    if form.kind == "escape":
        gone = simulated["exit_time"].values[:, None] <= times
        amplitudes = np.where(gone, np.nan, amplitudes)
    network = _relaxation(on_line, times, form)
    own = _line_rate(line, form, batch_size)
    own_error = abs(own - _line_rate(line, form, batch_size, cells=300)) / 3
    rows = [
        Row(
            "metastability",
            f"{form.kind} rate: {what}",
            "Fokker-Planck, normal form",
            predicted,
            error,
            *rate,
            "1/step",
        )
        for what, rate in (
            ("transfer operator of the map", (discrete, discrete_error)),
            ("simulation of the map", _relaxation(amplitudes, times, form)),
            ("network SGD on the line", network),
        )
    ]
    rows.append(
        Row(
            "metastability",
            f"{form.kind} rate: network SGD on the line",
            "transfer operator, the line's own slope and noise",
            own,
            own_error,
            *network,
            "1/step",
        )
    )
    if form.kind == "phase flip":
        density = stationary_density(FokkerPlanck(sde, form.grid(), boundary="reflecting")).values
    else:
        density = escape_rate(FokkerPlanck(sde, form.grid(), boundary="absorbing"))["quasi_stationary"].values
    axis = form.grid().centers["A"]
    counts, _ = np.histogram(on_line[:, -1], bins=form.grid(60).edges["A"], density=True)
    progress(1.0)
    paths_ = xr.Dataset(
        {
            "metastability_density": variable(
                "amplitude", density, "1/weight", "stationary density, normal form"
            ),
            "metastability_histogram": variable(
                "amplitude_bin", counts, "1/weight", "SGD on the line, last step"
            ),
        },
        coords={
            "amplitude": variable("amplitude", axis, "weight", "two-step amplitude"),
            "amplitude_bin": variable("amplitude_bin", form.grid(60).centers["A"], "weight", "bin centre"),
        },
        attrs={f"metastability_{key}": value for key, value in form._asdict().items()}
        | {"metastability_steps": int(times[-1])},
    )
    return Outcome(rows, paths_)


def _leaves(edge: float) -> Callable[..., object]:
    def leaves(t, y, p, xp):  # noqa: ARG001 - a model function's signature
        return xp.abs(y[0]) > edge

    return leaves


def _relaxation(amplitudes: np.ndarray, times: np.ndarray, form: Phases) -> tuple[float, float]:
    """Decay rate of the mean phase (or of survival) per step, and its jackknife error over groups of paths.

    From the first saved step, when the fast relaxation is over, to the last one at which the signal is still
    ten standard errors above zero.
    """
    if form.kind == "phase flip":
        signal = np.sign(np.nan_to_num(amplitudes, nan=0.0))
    else:
        signal = np.where(np.isnan(amplitudes) | (np.abs(amplitudes) > form.edge), 0.0, 1.0)
        signal = np.minimum.accumulate(signal, axis=1)
    mean = signal.mean(axis=0)
    clear = np.flatnonzero(mean > 10 * signal.std(axis=0) / math.sqrt(len(signal)) + 1e-12)
    last = int(clear[-1]) if clear.size else 0
    if last == 0 or mean[0] <= 0:
        return math.nan, math.nan
    sums = np.array([group[:, [0, last]].sum(axis=0) for group in np.array_split(signal, _GROUPS)])

    def rate(total: np.ndarray) -> float:
        return math.log(total[0] / total[1]) / (times[last] - times[0])

    whole = sums.sum(axis=0)
    left_out = np.array([rate(whole - one) for one in sums])
    return rate(whole), float(np.sqrt((_GROUPS - 1) * left_out.var()))


def _line_rate(line: Line, form: Phases, batch_size: int, cells: int = 600) -> float:
    """Rate per step by the transfer operator of the line's own map: its slope and its noise, Gaussian.

    The mean slope is fitted by a polynomial of degree 7 and the variance of the batch slope by one of degree 4,
    over the table, weighted equally.
    """
    n = len(line.slopes)
    p = noise_fraction(n, batch_size)
    slope = np.polynomial.Polynomial.fit(line.points, line.slopes.mean(axis=0), 7).convert().coef
    spread = np.polynomial.Polynomial.fit(line.points, p * line.slopes.var(axis=0), 4).convert().coef
    params = {f"a{k}": value for k, value in enumerate(slope)} | {f"v{k}": v for k, v in enumerate(spread)}
    rule = maps.loss_map(_polynomial_loss, form.eta, _polynomial_noise, params=params)
    reach = float(line.points[-1]) if form.kind == "phase flip" else form.edge
    walls = "reflecting" if form.kind == "phase flip" else "absorbing"
    operator = TransferOperator(
        rule.as_sde(),
        Grid.uniform(x=(-reach, reach, cells)),
        step=rule.dt,
        boundary=walls,
        allow_wall_mass=True,  # the table ends there; what SGD does beyond it is counted as leaving the line
    )
    values = eigenmodes(operator, 2)["eigenvalue"].values
    return -math.log(abs(values[1] if form.kind == "phase flip" else values[0]))


def _polynomial_loss(t, y, p, xp):  # noqa: ARG001 - a model function's signature
    x = y[0]
    slopes = (p.a0, p.a1, p.a2, p.a3, p.a4, p.a5, p.a6, p.a7)
    total = 0.0 * x
    for k in range(8):
        total = total + slopes[k] * x ** (k + 1) / (k + 1)
    return total


def _polynomial_noise(t, y, p, xp):  # noqa: ARG001 - a model function's signature
    x = y[0]
    return (xp.sqrt(xp.maximum(p.v0 + x * (p.v1 + x * (p.v2 + x * (p.v3 + x * p.v4))), 0.0)),)
