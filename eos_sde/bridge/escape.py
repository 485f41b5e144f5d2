"""The learning rate at which training from given weights leaves its basin within a horizon, by real SGD runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.losses import LOSSES, best_constant
from eos_sde.bridge.minimum import Minimum
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.replicas import DIVERGED, sgd_step
from eos_sde.bridge.spectrum import top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.models.arguments import count, non_negative, positive
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.provenance import provenance

EVENTS = {
    "left": ("returned", "adrift", "diverged"),
    "lost": ("adrift", "diverged"),
    "diverged": ("diverged",),
}
"""What may be asked for, and the fates that count as it."""

FATES = {
    "stayed": "the loss never rose above the level",
    "returned": "it did, and was below the level again over the last tenth of the horizon",
    "adrift": "it did, and had not come back",
    "diverged": "it grew beyond a thousand times the larger of 1 and the first loss",
}

FRACTION = 1.0 - np.exp(-1.0)  # that of an exponential law after its mean time: rate * horizon = 1
_FEWEST = 10  # of fewer, all might show the event at the threshold in more than 2.5 % of cases
_LEVEL = 0.05  # probability that the interval misses
_LOOK = 5  # steps between two looks at the loss
_CHUNK = 20  # looks in one compiled call
_LAST = 0.1  # of the horizon
_BRACKET = (0.25, 1.25)  # times 2 / sharpness
_MOST_WIDENINGS = 8
_INTERPOLATES = 1e-10


@dataclass(frozen=True)
class _Outcome:
    """What became of the replicas at one learning rate."""

    eta: float
    counts: dict[str, int]
    step: float

    def number(self, event: str) -> int:
        return sum(self.counts[fate] for fate in EVENTS[event])


def constant_loss(task: Task) -> float:
    """Loss of the best constant output: what a network has that has lost all it learned.

    Parameters
    ----------
    task : Task
        The training problem.

    Returns
    -------
    float
        Half the total variance of the targets, or their entropy.
    """
    shape = task.output_shape
    outputs = jnp.broadcast_to(best_constant(task.loss_name, task.y, shape[-1]), (task.n, *shape))
    return float(jnp.mean(LOSSES[task.loss_name](outputs, task.y)))


def basin_level(task: Task, first: float) -> float:
    """Loss that bounds a basin unless another is given: that of the best constant output, or twice the first."""
    return max(constant_loss(task), 2 * first)


@double_precision
def measure_escape(
    task: Task,
    start: Minimum | ArrayLike,
    *,
    batch_size: int,
    horizon: int,
    seed: int,
    event: str = "left",
    replicas: int = 32,
    radius: float = 0.0,
    level: float | None = None,
    bracket: tuple[float, float] | None = None,
    tolerance: float = 0.02,
    progress: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Bisect for the learning rate at which SGD replicas leave their basin within a horizon.

    Every replica starts at the given weights (or at a distance from them) and takes the network's own SGD steps
    with batches of its own, those of `record` for the same seed; the same batches serve at every learning rate. The
    full-batch loss is read every 5 steps and after the last. A replica has *left* when that loss was above the level
    at a look; what left is told apart into what returned (a catapult), what is adrift, and what diverged.

    The learning rate sought is that at which a fraction 1 - 1/e of the replicas has left (or is lost, or has
    diverged): where an exponential law has rate * horizon = 1. Its interval is that of the learning rates at which this
    fraction is not rejected by the binomial test at 5 %, two-sided, found by bisecting for either end; where the
    probability grows with the learning rate it covers the truth 19 times in 20, whatever the law.

    Parameters
    ----------
    task : Task
        The training problem.
    start : Minimum or array
        A minimum, or weights of shape (size,).
    batch_size : int
        B; B = n is gradient descent.
    horizon : int
        Steps, at least 20.
    seed : int
        Of kicks and batches.
    event : {"left", "lost", "diverged"}
        "left": above the level at a look, whatever follows. "lost": left, and not returned by the end.
        "diverged": beyond a thousand times the larger of 1 and the first loss.
    replicas : int
        At least 10.
    radius : float
        Distance of each start from the given weights, in a random direction; needed where the noise vanishes.
    level : float, optional
        Loss above which the basin is left; that of the best constant output if left out, or twice the first loss if
        that is larger.
    bracket : (float, float), optional
        Learning rates below and above; from 0.25 to 1.25 times 2/sharpness if left out, widened where needed. No
        prediction enters.
    tolerance : float
        Relative width at which a bisection ends.
    progress : callable, optional
        Called with a line of text after each learning rate.

    Returns
    -------
    Dataset
        ``eta`` (geometric middle of the last bracket), ``eta_low``, ``eta_high`` (the interval); the same times
        sharpness / 2 as ``relative``, ``relative_low``, ``relative_high``; ``level``, ``sharpness``; over
        ``evaluation``: ``tried_eta``, the counts ``stayed``, ``returned``, ``adrift``, ``diverged``, and ``step``, the
        median look at which those that left had left (NaN if none).

    Raises
    ------
    InvalidInput
        For arguments that cannot be used.
    ConvergenceFailure
        If the fraction is not crossed in the bracket.
    """
    theta, sharpness = _start(task, start)
    batch_size = count("batch_size", batch_size, most=task.n)
    horizon, seed = count("horizon", horizon, least=20), count("seed", seed, least=0)
    replicas = count("replicas", replicas, least=_FEWEST)
    if event not in EVENTS:
        raise InvalidInput(f"event={event!r} is not known: choose one of {', '.join(EVENTS)}")
    radius = non_negative("radius", radius)
    if bracket is not None and not 0 < bracket[0] < bracket[1] < np.inf:
        raise InvalidInput(f"bracket={bracket} must be two increasing positive learning rates")
    if not 1e-4 <= tolerance < 1:
        raise InvalidInput(f"tolerance={tolerance} must lie between 1e-4 and 1")
    first = float(task.loss(jnp.asarray(theta)))
    if radius == 0 and first < _INTERPOLATES:
        raise InvalidInput(
            f"radius=0 at a loss of {first:.1e} moves nothing: every batch has its minimum there; give a radius"
        )
    level = basin_level(task, first) if level is None else positive("level", level)
    if level <= first:
        raise InvalidInput(
            f"level={level:.4g} is not above the first loss {first:.4g}: all have left at once"
        )
    runs = _Runs(task, theta, batch_size, replicas, radius, seed)
    tried: dict[float, _Outcome] = {}

    def number(eta: float) -> int:
        if eta not in tried:
            one = tried[eta] = runs.fates(eta, horizon=horizon, level=level, limit=DIVERGED * max(1.0, first))
            if progress is not None:
                told = ", ".join(f"{value} {fate}" for fate, value in one.counts.items())
                progress(f"eta = {eta:.5f}: {told}")
        return tried[eta].number(event)

    fewest, most = (int(binom.ppf(q, replicas, FRACTION)) for q in (_LEVEL / 2, 1 - _LEVEL / 2))
    middle = int(np.ceil(FRACTION * replicas))
    edge = 2 / sharpness
    ends = (_BRACKET[0] * edge, _BRACKET[1] * edge) if bracket is None else bracket
    _widen(number, ends, fewest, most + 1, fixed=bracket is not None, what=f"{event} of {replicas}")
    low, _ = _cross(number, tried, fewest, tolerance)
    _, high = _cross(number, tried, most + 1, tolerance)
    eta = float(np.sqrt(np.prod(_cross(number, tried, middle, tolerance))))
    history = [tried[key] for key in sorted(tried)]
    return _dataset(
        history, (eta, low, high, level, sharpness), task=task.name, description=task.description, event=event,
        batch_size=batch_size, horizon=horizon, seed=seed, replicas=replicas, radius=radius, tolerance=tolerance,
    )  # fmt: skip


class _Runs:
    """Replicas from one start, compiled once and run at many learning rates."""

    def __init__(
        self, task: Task, theta: NDArray, batch_size: int, replicas: int, radius: float, seed: int
    ) -> None:
        self.examples, self.batch_size, self.replicas, self.seed = task.n, batch_size, replicas, seed
        kicks = np.stack(
            [np.random.Generator(stream(seed, 1, r)).standard_normal(task.size) for r in range(replicas)]
        )
        kicks *= radius / np.linalg.norm(kicks, axis=1, keepdims=True)
        one_step, network, loss = sgd_step(task), task.network, LOSSES[task.loss_name]

        @jax.jit
        def advance(weights: Any, batches: jax.Array, eta: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
            def step(weights: Any, batch: jax.Array) -> tuple[Any, None]:
                return one_step(weights, batch, eta, x, y), None

            def look(weights: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
                weights, _ = jax.lax.scan(step, weights, batches)
                losses = jax.vmap(lambda w: jnp.mean(loss(network.apply_arrays(w, x), y)))(weights)
                return weights, losses

            return jax.lax.scan(look, weights, batches)

        self._advance, self._data = advance, (task.x, task.y)
        self._begin = jax.vmap(network.unravel)(jnp.asarray(theta + kicks))

    def fates(self, eta: float, *, horizon: int, level: float, limit: float) -> _Outcome:
        """Run all replicas and sort them."""
        sources = [stream(self.seed, 0, r) for r in range(self.replicas)]
        weights, losses, looks = self._begin, [], []
        for chunk in _chunks(horizon):
            batches = np.stack([self._draw(words, chunk) for words in sources], axis=2)
            weights, seen = self._advance(weights, batches, jnp.asarray(eta), *self._data)
            losses.append(np.asarray(seen))
            looks.extend([chunk[1]] * chunk[0])
            if not np.any(losses[-1][-1] <= limit):
                break
        path, steps = np.concatenate(losses), np.cumsum(looks)
        above, gone = ~(path <= level), ~(path <= limit)  # what is not a number is above everything
        left, diverged = above.any(axis=0), gone.any(axis=0)
        back = ~above[steps > (1 - _LAST) * horizon].any(axis=0)
        counts = {
            "stayed": int(np.sum(~left)),
            "returned": int(np.sum(left & ~diverged & back)),
            "adrift": int(np.sum(left & ~diverged & ~back)),
            "diverged": int(np.sum(diverged)),
        }
        when = steps[above.argmax(axis=0)[left]]
        return _Outcome(eta, counts, float(np.median(when)) if when.size else np.nan)

    def _draw(self, words: np.random.Philox, chunk: tuple[int, int]) -> NDArray[np.int32]:
        looks, steps = chunk
        drawn = draw_batches(words, looks * steps, examples=self.examples, batch_size=self.batch_size)
        return drawn.reshape(looks, steps, -1)


def _chunks(horizon: int) -> list[tuple[int, int]]:
    """(looks, steps between them) of the compiled calls that make up the horizon."""
    looks, rest = divmod(horizon, _LOOK)
    whole, more = divmod(looks, _CHUNK)
    return [(_CHUNK, _LOOK)] * whole + [(more, _LOOK)] * (more > 0) + [(1, rest)] * (rest > 0)


def _widen(
    number: Callable[[float], int],
    ends: tuple[float, float],
    fewest: int,
    most: int,
    *,
    fixed: bool,
    what: str,
) -> None:
    """Move the ends outwards until fewer than `fewest` happen at the low one and `most` at the high one."""
    low, high = ends
    for _ in range(1 if fixed else _MOST_WIDENINGS):
        if number(low) < fewest:
            break
        low /= 2
    for _ in range(1 if fixed else _MOST_WIDENINGS):
        if number(high) >= most:
            break
        high *= 1.5
    if not (number(low) < fewest and number(high) >= most):
        raise ConvergenceFailure(
            f"{number(low)} {what} at eta={low:.4g} and {number(high)} at {high:.4g}: fewer than {fewest} and at least "
            f"{most} are needed; give a wider bracket, or another event, level or horizon"
        )


def _cross(
    number: Callable[[float], int], tried: dict[float, _Outcome], least: int, tolerance: float
) -> tuple[float, float]:
    """Neighbouring learning rates, within the tolerance, below and at which `least` happen; the lowest such pair."""
    etas = sorted(tried)
    high = next(eta for eta in etas if number(eta) >= least)
    low = max(eta for eta in etas if eta < high)
    while high / low > 1 + tolerance:
        middle = float(np.sqrt(low * high))
        if number(middle) >= least:
            high = middle
        else:
            low = middle
    return low, high


def _start(task: Task, start: Minimum | ArrayLike) -> tuple[NDArray[np.float64], float]:
    """Weights and sharpness."""
    theta = np.asarray(start.theta if isinstance(start, Minimum) else start, np.float64)
    if theta.shape != (task.size,) or not np.all(np.isfinite(theta)):
        raise InvalidInput(
            f"start must be {task.size} finite weights of {task.name}, got shape {theta.shape}"
        )
    if isinstance(start, Minimum):
        return theta, start.sharpness
    sharpness = float(top_modes(task, jnp.asarray(theta), 1)[0][0])
    return theta, positive(
        "sharpness of the start", sharpness, "train further, or give a bracket from a minimum"
    )


def _dataset(history: list[_Outcome], result: tuple[float, ...], **settings: object) -> xr.Dataset:
    eta, low, high, level, sharpness = result

    def scalar(value: float, units: str, long_name: str) -> tuple:
        return (), value, {"units": units, "long_name": long_name}

    def tried(values: list, units: str, long_name: str) -> tuple:
        return ("evaluation",), np.array(values), {"units": units, "long_name": long_name}

    contents = {
        "eta": scalar(eta, "time", "learning rate at which 1 - 1/e of the replicas show the event"),
        "eta_low": scalar(low, "time", "lower end of its 95 % interval"),
        "eta_high": scalar(high, "time", "upper end of its 95 % interval"),
        "level": scalar(level, "1", "loss above which a replica has left"),
        "sharpness": scalar(sharpness, "1/time", "largest Hessian eigenvalue at the start"),
    }
    for name, value in (("relative", eta), ("relative_low", low), ("relative_high", high)):
        contents[name] = scalar(
            value * sharpness / 2, "1", f"eta{name.removeprefix('relative')} over 2/sharpness"
        )
    contents["tried_eta"] = tried([one.eta for one in history], "time", "learning rate tried, in order")
    for fate, meaning in FATES.items():
        contents[fate] = tried([one.counts[fate] for one in history], "1", meaning)
    contents["step"] = tried([one.step for one in history], "1", "median look at which leavers had left")
    return xr.Dataset(contents, attrs=provenance(method="bisection, real SGD replicas", **settings))
