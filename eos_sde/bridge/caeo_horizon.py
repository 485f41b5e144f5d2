"""At which margin CAEO has run away by the end of a run: its central flow at several margins against that of SGD.

What a run shows after T steps is not the onset of the averaged well alone. The drift alpha that lifts the sharpness
changes along the path by a factor of two and more, the climb from the plateau takes a good part of the run, and the
margin decides about both. The stochastic central flow of the rule, whose rate is capped by the sharpness of single
iterates, has all of it: alpha, its feedback and the noise are those of the averaged path at each step, of all modes,
and exact for the given training set, so that they bring no sampling error over the examples. The margin is sought at
which the flow's late sharpness is that at which `measure_caeo_boundary` counts a run as run away: so many standard
deviations above SGD's own plateau. Then half of the runs have run away, since they scatter evenly about the averaged
path.

Left out is the escape of single runs from a plateau that holds on average. It lowers the boundary where the horizon is
long beside the climb; `thresholds.caeo_stability` has its rate in the reduced model.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from scipy.stats import norm

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.caeo_boundary import DEVIATIONS, NEVER
from eos_sde.bridge.calibration import calibrate
from eos_sde.bridge.cells import check_counts
from eos_sde.bridge.covariance import covariance_recursion, per_example_modes
from eos_sde.bridge.plateau_forecast import error_of_mean
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.reduced_map import reduced_map, sharp_modes, swings
from eos_sde.bridge.spectrum import top_modes
from eos_sde.bridge.stochastic_flow import stochastic_central_flow
from eos_sde.bridge.task_library import Task
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.training.linear_rules import linear_rule
from solvers.errors import InvalidInput
from solvers.provenance import provenance

_RATIO = 1.35  # of neighbouring margins
_LEAST, _MOST = 0.01, 1.9
_FLOWS = 9  # with a cap, at most
_STRIDE, _POINTS = 5, 30
_SETTLED = 400  # steps after which the fluctuation of the sharpest modes is that of the plateau
_DRAWS = 6  # times 16 runs of the reduced map
_FLOW = 0.03  # relative error of the late sharpness of flows of CAEO, seen on digits
_SWING = 0.15  # relative error of the deviation, likewise
_BAND = float(norm.ppf(0.975))


class Reading(NamedTuple):
    """What one flow says of the end of a run.

    Attributes
    ----------
    sharpness, stderr : float
        Of iterates, mean over the steps that count, and its sampling error.
    capped : float
        Share of the last third of the path on which the rate is below the base rate.
    final : ndarray
        Averaged weights at the end.
    """

    sharpness: float
    stderr: float
    capped: float
    final: NDArray


@double_precision
def forecast_caeo_boundary(
    task: Task,
    start: ArrayLike,
    *,
    batch_size: int,
    steps: int,
    eta: float | None = None,
    deviations: float = DEVIATIONS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Forecast what `measure_caeo_boundary` finds after as many steps, from the checkpoint, without running CAEO.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    batch_size : int
        B, fewer than all examples.
    steps : int
        The horizon: of the runs, at least 150, a multiple of 5.
    eta : float, optional
        Base learning rate; the task's if left out.
    deviations : float
        How far above SGD's plateau, in standard deviations of its sharpness, a run counts as run away.
    seed : int
        Of the flows.
    progress : callable, optional
        Called with a line about each flow.

    Returns
    -------
    Dataset
        Over ``delta``, the margins at which flows were run: ``late_sharpness`` (1/time, mean over the last tenth) with
        its error of sampling, ``capped`` (share of the last third), and ``share`` of runs that are expected to have
        run away, under the errors. Scalars: ``plateau`` and ``plateau_deviation`` of SGD, ``threshold`` (the sharpness
        at which a run counts), ``alpha`` at the checkpoint and on the plateau (1/time^2); ``boundary``, the margin at
        which half of the runs run away, with ``boundary_stderr`` and the ends ``boundary_low`` and
        ``boundary_high`` of its 95 % interval. inf where no margin up to 1.9 lets the flow climb so far, and 0 where
        all do: the boundary, or an end, is then outside the margins.

    Raises
    ------
    InvalidInput
        If a number is out of range, or the flow of SGD ends early.
    """
    check_counts(steps=(steps, 150), batch_size=(batch_size, 1))
    if steps % _STRIDE or batch_size >= task.n:
        raise InvalidInput(
            f"steps={steps} must be a multiple of {_STRIDE}, and batch_size={batch_size} fewer than the {task.n} "
            "examples"
        )
    rate = task.eta if eta is None else float(eta)
    theta = checked_weights(task, start)

    def read(delta: float) -> Reading:
        found = _reading(task, theta, rate, batch_size, delta, steps, seed)
        if progress is not None:
            name = "SGD" if delta == NEVER else f"delta {delta:.3f}"
            progress(f"{name}: eta * sharpness {rate * found.sharpness:.3f}")
        return found

    sgd = read(NEVER)
    if not math.isfinite(sgd.sharpness):
        raise InvalidInput(f"the flow of SGD at eta={rate:g}, batch_size={batch_size} ended early; lower eta")
    deviation = _deviation(task, sgd.final, rate, batch_size, seed)
    threshold = sgd.sharpness + deviations * deviation
    own = math.hypot(sgd.stderr, deviations * _SWING * deviation)

    def score(found: Reading) -> float:
        """How far beyond the threshold, in errors; a flow that ended early has run away."""
        if not math.isfinite(found.sharpness):
            return math.inf
        return (found.sharpness - threshold) / math.hypot(own, found.stderr, _FLOW * found.sharpness)

    readings = _ladder(read, score, max(2.0 - rate * sgd.sharpness, 0.0))
    margins = np.array(sorted(readings))
    scores = np.array([score(readings[margin]) for margin in margins])
    boundary, low, high = (crossing(margins, scores, level) for level in (0.0, -_BAND, _BAND))
    one = [crossing(margins, scores, level) for level in (-1.0, 1.0)]
    alphas = [
        float(calibrate(task, jnp.asarray(w), batch_size=batch_size, k=1)["alpha"])
        for w in (theta, sgd.final)
    ]
    columns = {
        "late_sharpness": ([readings[m].sharpness for m in margins], "1/time", "late sharpness of iterates"),
        "late_sharpness_stderr": ([readings[m].stderr for m in margins], "1/time", "its error of sampling"),
        "capped": ([readings[m].capped for m in margins], "1", "share of the last third under the cap"),
        "share": (norm.cdf(scores), "1", "share of runs expected to have run away"),
    }
    scalars = {
        "plateau": (sgd.sharpness, "1/time", "late sharpness of SGD"),
        "plateau_deviation": (deviation, "1/time", "standard deviation of SGD's sharpness"),
        "threshold": (threshold, "1/time", "sharpness from which on a run counts as run away"),
        "alpha_start": (alphas[0], "1/time^2", "progressive sharpening at the checkpoint"),
        "alpha": (alphas[1], "1/time^2", "progressive sharpening on SGD's plateau"),
        "boundary": (boundary, "1", "margin at which half of the runs run away"),
        "boundary_stderr": (0.5 * (one[1] - one[0]) if one[1] < math.inf else math.inf, "1", "its error"),
        "boundary_low": (low, "1", "lower end of its 95 % interval"),
        "boundary_high": (high, "1", "upper end of its 95 % interval"),
    }
    contents: dict[str, Any] = {
        name: ("delta", v, {"units": units, "long_name": text}) for name, (v, units, text) in columns.items()
    } | {name: ((), v, {"units": units, "long_name": text}) for name, (v, units, text) in scalars.items()}
    return xr.Dataset(
        contents,
        coords={"delta": ("delta", margins, {"units": "1", "long_name": "margin delta"})},
        attrs=provenance(
            task=task.name, eta=rate, batch_size=batch_size, steps=steps, deviations=deviations, seed=seed,
            method="stochastic central flow of the capped rule",
        ),
    )  # fmt: skip


def _reading(
    task: Task, theta: jax.Array, eta: float, batch_size: int, delta: float, steps: int, seed: int
) -> Reading:
    """Follow the flow at a margin to the end of the run; not finite where it ends early."""
    every = _STRIDE * max(1, steps // (_STRIDE * _POINTS))
    flow = stochastic_central_flow(
        task, theta, batch_size=batch_size, rule="caeo", eta=eta, delta=delta, steps=steps, stride=_STRIDE,
        save_every=every, seed=seed,
    )  # fmt: skip
    final = flow["final_params"].values
    if flow.attrs["stopped"]:
        return Reading(math.inf, 0.0, math.nan, final)
    last = flow.sel(step=slice(2 * steps // 3, None))
    tail = last if delta == NEVER else flow.sel(step=slice(steps - steps // 10 - every // 2, None))
    values = tail["iterate_sharpness"].values
    drawn = float(np.sqrt(np.mean(tail["iterate_sharpness_stderr"].values ** 2) / values.size))
    error = max(drawn, float(np.nan_to_num(error_of_mean(values))))
    capped = float(np.mean(last["learning_rate"].values < eta * (1.0 - 1e-9)))
    return Reading(float(values.mean()), error, capped, final)


def _deviation(task: Task, weights: NDArray, eta: float, batch_size: int, seed: int) -> float:
    """Standard deviation of SGD's sharpness at a plateau, between runs too, by the reduced map of the sharpest modes.

    Nothing takes the wandering of the map back: runs of a few hundred steps part along flat directions, and what
    `measure_caeo_boundary` measures has their differences in it. On digits, batch 8, the map that forgets in 50 steps
    shows the deviation within 50 steps, 0.055 of 0.078. On the held-out network (fashion-mlp, batch 8) it is half of
    what was measured, 0.026 of 0.059, and the error that is stated for it too small.
    """
    theta, m = jnp.asarray(weights), sharp_modes(task.size, task.size)
    eigenvalues, modes = top_modes(task, theta, m)[:2]
    scale = jnp.full(task.size, eta**0.5)
    gradients, curvatures = per_example_modes(task, theta, modes)
    p = noise_fraction(task.n, batch_size)
    recursion = covariance_recursion(eigenvalues, gradients, curvatures, eta=eta, p=p)
    settled = recursion.after(jnp.zeros((m, m)), _SETTLED)
    covariance = jnp.zeros((m, 2, m, 2)).at[:, 0, :, 0].set(settled / eta)
    around = reduced_map(task, theta, eta * eigenvalues, modes, scale)
    noise = (eta**0.5 * gradients, eta * curvatures, p)
    tops = []
    for key in jax.random.split(jax.random.key(seed), _DRAWS):
        found = swings(around, linear_rule("gd"), noise, covariance, key)
        tops.append(np.asarray(found.tops)[np.isfinite(np.asarray(found.mean_tops))])
    return float(np.concatenate(tops).std(ddof=1)) / eta


def _ladder(
    read: Callable[[float], Reading], score: Callable[[Reading], float], gap: float
) -> dict[float, Reading]:
    """Flows at margins in a fixed ratio, from near the gap of SGD until the scores leave the 95 % interval."""
    first = float(np.clip(1.3 * gap, 0.05, 1.0))
    found = {first: read(first)}
    for direction, beyond in ((1, lambda s: s > _BAND), (-1, lambda s: s < -_BAND)):
        margin = first
        while not beyond(score(found[margin])) and len(found) < _FLOWS:
            margin *= _RATIO**direction
            if not _LEAST <= margin <= _MOST:
                break
            found[margin] = read(margin)
    return found


def crossing(margins: NDArray, scores: NDArray, level: float) -> float:
    """Margin at which scores cross a level, by a monotone cubic in log(margin).

    Parameters
    ----------
    margins : ndarray
        Increasing, positive.
    scores : ndarray
        Of each; inf has run away for sure. Where they fall, the highest before stands in.
    level : float
        To be crossed.

    Returns
    -------
    float
        0 where all scores are above the level, inf where none is.
    """
    known = np.maximum.accumulate(np.where(np.isfinite(scores), scores, np.maximum(level, 0.0) + 10.0))
    if known[0] > level:
        return 0.0
    if known[-1] < level:
        return math.inf
    x = np.log(margins)
    if x.size == 1:
        return float(margins[0])
    curve = PchipInterpolator(x, known)
    grid = np.linspace(x[0], x[-1], 2001)
    return float(np.exp(grid[int(np.argmax(curve(grid) >= level))]))
