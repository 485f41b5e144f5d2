"""The learning rate at which a trained minimum loses its stability, measured on the network's own SGD."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.minimum import Minimum
from eos_sde.bridge.networks import Network
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.replicas import batch_gradient
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.provenance import provenance

CRITERIA = ("mean-square", "almost-sure")

_RADIUS = 1e-6  # far below the curvature scale of the network, far above the rounding of its gradients
_BLOCK = 5  # steps between two rescalings: even a factor of 10 a step stays within the linear range
_BURN_IN = 100  # steps, at least, until the fast modes of a random perturbation have died out
_BURN_IN_SHARE = 4  # of the horizon: the slow modes too, where a long horizon asks for them
_SKETCH = 32  # numbers kept of the output perturbation
_CHECK = 50  # steps between two looks at the significance
_SIGNIFICANT = 4.0  # standard errors at which the sign of a growth rate counts as known
_MAX_BISECTIONS = 8  # brackets tried before the search is given up
_WINDOW = (-0.011, 0.08)  # log eta around the bisected root in which the growth rate is taken as linear


@dataclass(frozen=True)
class _Growth:
    """Growth rate of the perturbation at one learning rate."""

    eta: float
    value: float
    stderr: float
    steps: int


@double_precision
def measure_onset(
    task: Task,
    minimum: Minimum,
    *,
    batch_size: int,
    seed: int,
    criterion: str = "mean-square",
    bracket: tuple[float, float] | None = None,
    populations: int = 8,
    replicas: int | None = None,
    horizon: int = 400,
    tolerance: float = 0.02,
    progress: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Bisect for the learning rate at which SGD leaves an interpolating minimum.

    Many replicas start at tiny random distances from the minimum and take the network's own SGD steps, each
    with its own batches without replacement. Every few steps the second moment |A delta|^2 of the
    output perturbation is read, A the rows W^(1/2) J of all examples (W the curvature of the loss in the outputs: the
    identity for the half squared error), and the replicas are put back to the tiny radius.

    "mean-square": E|A delta|^2 grows. Rare batches in a row carry that mean, and so few replicas would miss it.
    But second moments of linear maps depend on those before alone: between two steps the replicas of a
    population are therefore mixed by a random orthogonal matrix, which changes no second moment and hands what one
    of them has met to all. The mean growth of a population estimates exp of the moment Lyapunov exponent
    Lambda(2) per step.
    "almost-sure": the mean of log|A delta| grows: what a typical run does.

    Populations are independent; their scatter gives the standard error of a growth rate. After the
    bisection the onset is the root of a weighted straight line through the growth rates near it, and
    its standard error combines that of the root with the last bracket (uniform: width / sqrt 12).

    Parameters
    ----------
    task : Task
        The training problem.
    minimum : Minimum
        Its interpolating minimum, from `find_minimum`.
    batch_size : int
        B; B = n is gradient descent.
    seed : int
        Of perturbations and batches.
    criterion : {"mean-square", "almost-sure"}
        What is meant by losing stability.
    bracket : (float, float), optional
        Learning rates below and above the onset; from 0.3 to 1.15 times 2/sharpness if left out, widened
        where needed. No prediction enters.
    populations, replicas : int
        Independent populations (at least 3), and replicas in each (default 64; for "mean-square" a power of 2).
    horizon : int
        Most steps spent on one learning rate, after a burn-in of a quarter as many and at least
        100; fewer where the sign is clear. Slow modes hide the growth of the leading one for a time: an almost-sure
        onset is found too late by about 1/(horizon * slope of the growth rate).
    tolerance : float
        Relative width at which the bisection ends.
    progress : callable, optional
        Called with a line of text after each learning rate.

    Returns
    -------
    Dataset
        ``eta``, ``eta_stderr``, ``eta_low``, ``eta_high`` (last bracket), ``relative_to_edge`` = eta *
        sharpness / 2 and its ``relative_to_edge_stderr``; history over ``evaluation``: ``tried_eta``,
        ``growth`` and ``growth_stderr`` (per step, of the second moment), ``steps``.

    Raises
    ------
    InvalidInput
        For arguments that cannot be used.
    ConvergenceFailure
        If the growth rate has one sign on the whole of the given bracket.
    """
    _check(task, minimum, batch_size, criterion, bracket, populations, horizon, tolerance)
    replicas = _default_replicas(task.n, batch_size) if replicas is None else replicas
    if replicas < 1 or (criterion == "mean-square" and replicas & (replicas - 1)):
        raise InvalidInput(f"replicas={replicas} must be 1, 2, 4, 8, ...: they are mixed in pairs of pairs")
    cloud = _Cloud(task, minimum, batch_size, populations, replicas, mixed=criterion == "mean-square")
    history: list[_Growth] = []

    def growth(eta: float, *, full: bool = False) -> float:
        one = cloud.growth(eta, stream(seed, len(history)), horizon=horizon, full=full)
        history.append(one)
        if progress is not None:
            progress(f"eta = {one.eta:.5f}: growth {one.value:+.4f} +- {one.stderr:.4f} a step")
        return one.value

    low, high = _bisect(growth, minimum.sharpness, bracket, tolerance)
    root = float(np.sqrt(low * high))
    for factor in (1.02, 1.05):
        growth(factor * root, full=True)
    eta, stderr = _root(history, root)
    stderr = float(np.hypot(stderr, (high - low) / np.sqrt(12)))
    return _dataset(
        task, minimum, history, (eta, stderr, low, high), criterion=criterion, batch_size=batch_size,
        seed=seed, populations=populations, replicas=replicas, horizon=horizon, tolerance=tolerance,
    )  # fmt: skip


class _Cloud:
    """Replicas near a minimum, compiled once and run at many learning rates."""

    def __init__(
        self, task: Task, minimum: Minimum, batch_size: int, populations: int, replicas: int, *, mixed: bool
    ) -> None:
        self.shape = (populations, replicas)
        self.examples, self.batch_size, self.mixed = task.n, batch_size, mixed
        self.factors = minimum.factors
        # a fixed random projection of A delta: another quadratic form of the same growth, at less cost
        rng = np.random.default_rng(0)
        rows = min(_SKETCH, len(self.factors))
        self.sketch = rng.standard_normal((rows, len(self.factors))) / np.sqrt(rows) @ self.factors
        self._advance = _compiled(task.network, task.loss_name, replicas if mixed else 1)
        self._data = (jnp.asarray(minimum.theta), jnp.asarray(self.sketch), task.x, task.y)

    def growth(self, eta: float, words: np.random.Philox, *, horizon: int, full: bool) -> _Growth:
        """Growth rate of the second moment per step, over populations."""
        populations, replicas = self.shape
        total = populations * replicas
        rng = np.random.Generator(words)
        # a random perturbation of the outputs, carried back to the weights: no flat directions
        delta = rng.standard_normal((total, len(self.factors))) @ self.factors
        moment = self._moment(np.sum((delta @ self.sketch.T) ** 2, axis=1))
        state = jnp.asarray(delta)
        rates: list[NDArray[np.float64]] = []
        mean, stderr, block = np.nan, np.inf, 0
        burn_in = max(_BURN_IN, horizon // (_BURN_IN_SHARE * _BLOCK) * _BLOCK)
        for block in range(1, (burn_in + horizon) // _BLOCK + 1):
            batches = draw_batches(words, _BLOCK * total, examples=self.examples, batch_size=self.batch_size)
            scale = np.broadcast_to(_RADIUS / np.sqrt(moment), self.shape).ravel()
            mixing = self._mixing(rng)
            state, after = self._advance(
                state, scale, (batches.reshape(_BLOCK, total, -1), *mixing), eta, self._data
            )
            moment = self._moment(np.asarray(after))
            if not np.all(np.isfinite(moment)):
                return _Growth(eta, np.inf, 0.0, block * _BLOCK)
            rates.append(np.log(moment / _RADIUS**2).mean(axis=1) / _BLOCK)
            measured = block * _BLOCK - burn_in
            if measured > 0 and measured % _CHECK == 0:
                mean, stderr = _rate(np.array(rates[burn_in // _BLOCK :]), corrected=self.mixed)
                if not full and abs(mean) > _SIGNIFICANT * stderr:
                    break
        return _Growth(eta, mean, stderr, block * _BLOCK)

    def _moment(self, squares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Second moment of a population (populations, 1), or of each replica (populations, replicas)."""
        squares = squares.reshape(self.shape)
        return squares.mean(axis=1, keepdims=True) if self.mixed else squares

    def _mixing(self, rng: np.random.Generator) -> tuple[NDArray, ...]:
        """Signs and orders of the replicas in the rotations of a block, (steps, all replicas)."""
        populations, replicas = self.shape
        if not self.mixed or replicas == 1:
            return ()
        shape = (_BLOCK, populations, replicas)
        order = np.argsort(rng.random(shape), axis=2) + replicas * np.arange(populations)[:, None]
        signs = 2.0 * rng.integers(0, 2, shape) - 1.0
        return order.reshape(_BLOCK, -1), signs.reshape(_BLOCK, -1)


@lru_cache(maxsize=4)
def _compiled(network: Network, loss_name: str, mixed: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """SGD steps of all replicas, rotated among each `mixed` of them: compiled once for all minima of a network."""
    gradient = batch_gradient(network, loss_name)

    @jax.jit
    def advance(
        delta: jax.Array, scale: jax.Array, inputs: tuple[jax.Array, ...], eta: jax.Array, data: tuple
    ) -> tuple[jax.Array, jax.Array]:
        theta, sketch, x, y = data
        centre = network.unravel(theta)

        def step(delta: Any, inputs: tuple[jax.Array, ...]) -> tuple[Any, None]:
            batch, *mixing = inputs
            if mixing:
                delta = jax.tree.map(lambda d: _rotate(d, mixing[0], mixing[1], mixed), delta)
            slopes = gradient(jax.tree.map(jnp.add, centre, delta), batch, x, y)
            return jax.tree.map(lambda d, g: d - eta * g, delta, slopes), None

        moved, _ = jax.lax.scan(step, jax.vmap(network.unravel)(delta * scale[:, None]), inputs)
        flat = jax.vmap(lambda d: ravel_pytree(d)[0])(moved)
        return flat, jnp.sum((flat @ sketch.T) ** 2, axis=1)

    return advance


def _rotate(replicas: jax.Array, order: jax.Array, signs: jax.Array, size: int) -> jax.Array:
    """Random orthogonal mixture of each `size` replicas along the first axis: order, signs, Walsh-Hadamard."""
    mixed = replicas[order].reshape(len(replicas), -1) * signs[:, None]
    half = 1
    while half < size:
        pairs = mixed.reshape(-1, 2, half, mixed.shape[1])
        mixed = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        mixed = mixed.reshape(len(replicas), -1)
        half *= 2
    return (mixed / np.sqrt(size)).reshape(replicas.shape)


def _rate(rates: NDArray[np.float64], *, corrected: bool) -> tuple[float, float]:
    """Growth rate per step and its standard error from rates (block, population).

    The product Z of a population's mean factors is an unbiased estimate of the second moment after T
    steps, so that log E Z = T Lambda exactly, while the mean of log Z falls short of it by half its variance
    (to second cumulants). That variance grows by the long-run variance of the rate: of windows of `_CHECK` steps, plus
    twice the covariance of neighbours, without which bursts that decay again would count as growth.
    """
    populations = rates.shape[1]
    per_population = rates.mean(axis=0)
    mean, stderr = float(per_population.mean()), float(per_population.std(ddof=1) / np.sqrt(populations))
    if not corrected:
        return mean, stderr
    windows = rates.reshape(-1, _CHECK // _BLOCK, populations).mean(axis=1) - mean
    variance = float(np.sum(windows**2)) / (windows.size - 1)
    neighbours = float(np.mean(windows[1:] * windows[:-1])) if len(windows) > 1 else 0.0
    half = 0.5 * _CHECK * max(0.0, variance + 2 * neighbours)
    # for white noise the sum of the two has the variance 6 variance^2 / windows
    return mean + half, float(np.hypot(stderr, 0.5 * _CHECK * variance * np.sqrt(6 / windows.size)))


def _default_replicas(examples: int, batch_size: int) -> int:
    """Gradient descent needs one."""
    return 1 if batch_size == examples else 64


def _bisect(
    growth: Callable[[float], float], sharpness: float, bracket: tuple[float, float] | None, tolerance: float
) -> tuple[float, float]:
    """Halve the bracket (in log eta) down to the tolerance; an end that no halving replaced is checked."""
    edge = 2 / sharpness
    low, high = (0.3 * edge, 1.15 * edge) if bracket is None else bracket
    low_seen = high_seen = False
    for _ in range(_MAX_BISECTIONS):
        while high / low > 1 + tolerance:
            middle = float(np.sqrt(low * high))
            if growth(middle) > 0:
                high, high_seen = middle, True
            else:
                low, low_seen = middle, True
        if not low_seen and growth(low) > 0:
            low, high, high_seen = low / 2, low, True
        elif not high_seen and growth(high) <= 0:
            low, high, low_seen = high, 1.5 * high, True
        else:
            return low, high
        if bracket is not None:
            break
    raise ConvergenceFailure(
        f"the onset does not lie between {low:.3g} and {high:.3g}: give a wider bracket than {bracket}"
    )


def _root(history: list[_Growth], guess: float) -> tuple[float, float]:
    """Root of the weighted line through the growth rates near `guess`, with its standard error."""
    near = [g for g in history if _WINDOW[0] <= np.log(g.eta / guess) <= _WINDOW[1] and np.isfinite(g.value)]
    t = np.array([np.log(g.eta / guess) for g in near])
    value = np.array([g.value for g in near])
    # a floor keeps the nearly noiseless rates of large batches from outweighing the curvature of the law
    sigma = np.hypot([g.stderr for g in near], 1e-4)
    design = np.stack([np.ones_like(t), t], axis=1) / sigma[:, None]
    covariance = np.linalg.inv(design.T @ design)
    intercept, slope = covariance @ design.T @ (value / sigma)
    residual = value / sigma - design @ (intercept, slope)
    excess = max(1.0, float(residual @ residual) / max(1, len(near) - 2))
    shift = -intercept / slope
    gradient = np.array([-1 / slope, intercept / slope**2])
    stderr = np.sqrt(excess * gradient @ covariance @ gradient)
    return float(guess * np.exp(shift)), float(guess * stderr)


def _check(
    task: Task,
    minimum: Minimum,
    batch_size: int,
    criterion: str,
    bracket: tuple[float, float] | None,
    populations: int,
    horizon: int,
    tolerance: float,
) -> None:
    if criterion not in CRITERIA:
        raise InvalidInput(f"criterion={criterion!r} is not known: choose one of {', '.join(CRITERIA)}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= task.n:
        raise InvalidInput(f"batch_size={batch_size!r} must be an integer from 1 to {task.n}, the examples")
    if minimum.theta.shape != (task.size,):
        raise InvalidInput(f"minimum has {minimum.theta.size} weights, the task {task.size}: find it again")
    if bracket is not None and not 0 < bracket[0] < bracket[1] < np.inf:
        raise InvalidInput(f"bracket={bracket} must be two increasing positive learning rates")
    if populations < 3:
        raise InvalidInput(f"populations={populations} must be at least 3, for a standard error")
    if horizon < 2 * _CHECK:
        raise InvalidInput(f"horizon={horizon} must be at least {2 * _CHECK} steps")
    if not 1e-4 <= tolerance < 1:
        raise InvalidInput(f"tolerance={tolerance} must lie between 1e-4 and 1")


def _dataset(
    task: Task,
    minimum: Minimum,
    history: list[_Growth],
    result: tuple[float, float, float, float],
    **settings: object,
) -> xr.Dataset:
    eta, stderr, low, high = result
    scale = minimum.sharpness / 2

    def scalar(value: float, units: str, long_name: str) -> tuple:
        return (), value, {"units": units, "long_name": long_name}

    def tried(values: list, units: str, long_name: str) -> tuple:
        return ("evaluation",), np.array(values), {"units": units, "long_name": long_name}

    return xr.Dataset(
        {
            "eta": scalar(eta, "time", "measured onset of instability, learning rate"),
            "eta_stderr": scalar(stderr, "time", "standard error of the onset"),
            "eta_low": scalar(low, "time", "last learning rate found stable"),
            "eta_high": scalar(high, "time", "last learning rate found unstable"),
            "relative_to_edge": scalar(eta * scale, "1", "onset over 2/sharpness"),
            "relative_to_edge_stderr": scalar(stderr * scale, "1", "its standard error"),
            "sharpness": scalar(minimum.sharpness, "1/time", "largest Hessian eigenvalue at the minimum"),
            "tried_eta": tried([g.eta for g in history], "time", "learning rate tried"),
            "growth": tried([g.value for g in history], "1", "growth rate of the second moment per step"),
            "growth_stderr": tried([g.stderr for g in history], "1", "standard error of the growth rate"),
            "steps": tried([g.steps for g in history], "1", "SGD steps taken by each replica"),
        },
        attrs=provenance(
            task=task.name, description=task.description, method="bisection, real SGD", **settings
        ),
    )  # fmt: skip
