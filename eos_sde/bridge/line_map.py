"""SGD on the line through the top eigenvector, as a one-dimensional map with the line's own slopes and noise."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde import thresholds
from eos_sde.bridge.experiments.line import line_minimum, tabulate_line
from eos_sde.bridge.task_library import Task
from eos_sde.thresholds import Threshold
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.thresholds.escape import undecided
from solvers import Grid, TransferOperator, escape_rate, tabulated
from solvers.errors import AccuracyWarning, InvalidInput

_HIGHEST, _LOWEST, _RATIO = 2.5, 0.02, 1.1  # of the edge, where escape is sought, and the step down
_MARGIN = 1.03  # on either side, since a finer grid gives slightly other rates
_RESOLVED = 1e-9  # rates of a transfer operator above this keep three digits and more
_CELLS = 600


def line_bottom(task: Task, theta: jax.Array, direction: np.ndarray, sharpness: float) -> np.ndarray:
    """Weights at the minimum of the loss along a line, within 4/sqrt(sharpness)."""
    return np.asarray(theta) + line_minimum(task, theta, direction, 4 / sharpness**0.5) * direction


class LineMap(NamedTuple):
    """The map x+ = x - eta slope(x) + eta noise(x) xi on the basin of the line's minimum at 0.

    Attributes
    ----------
    slope, noise : callable
        Mean and standard deviation of the batch gradient along the line.
    basin : (float, float)
        Nearest positions on either side at which the loss on the line is the level.
    curvature : float
        Second derivative of the loss at the minimum.
    """

    slope: Callable[[Any], Any]
    noise: Callable[[Any], Any]
    basin: tuple[float, float]
    curvature: float

    @classmethod
    def of(
        cls, task: Task, bottom: np.ndarray, direction: np.ndarray, batch_size: int, level: float
    ) -> "LineMap":
        """Tabulate a network's line.

        Parameters
        ----------
        task : Task
            The training problem.
        bottom, direction : ndarray
            The minimum along the line and its unit vector, shape (d,).
        batch_size : int
            B < n, without replacement.
        level : float
            Loss that bounds the basin.

        Returns
        -------
        LineMap
            Of linear tables.

        Raises
        ------
        InvalidInput
            For a batch of all examples, or if the loss along the line does not reach the level.
        """
        if batch_size == task.n:
            raise InvalidInput(
                "batch_size is the whole set: without noise the map on the line has no escape rate"
            )
        low, high = _basin(task, bottom, direction, level)
        table = tabulate_line(task, bottom, direction, max(-low, high))
        mean = table.slopes.mean(axis=0)
        p = noise_fraction(task.n, batch_size)
        return cls(
            slope=tabulated(table.points, mean),
            noise=tabulated(table.points, np.sqrt(p * table.slopes.var(axis=0))),
            basin=(low, high),
            curvature=float(np.interp(0.0, table.points, np.gradient(mean, table.points))),
        )

    def rate(self, eta: float) -> float:
        """Escape rate per step at a learning rate, on half the cells that `threshold` uses."""
        slope, noise = self.slope, self.noise
        grid = Grid.uniform(x=(*undecided(*self.basin, eta, slope, noise), _CELLS // 2))
        operator = TransferOperator.of_map(
            lambda x: x - eta * slope(x), lambda x: eta * noise(x), grid, boundary="absorbing"
        )
        with warnings.catch_warnings():
            # only on which side of 1/horizon a rate lies counts here
            warnings.simplefilter("ignore", AccuracyWarning)
            return float(escape_rate(operator)["rate"])

    def threshold(self, horizon: int) -> Threshold:
        """The learning rate of one escape within a horizon, first found on a scan upwards, then by `line_escape`.

        Parameters
        ----------
        horizon : int
            Steps.

        Returns
        -------
        Threshold
            In the units of the learning rate; criterion "escape".

        Raises
        ------
        InvalidInput
            If nothing between 0.02 and 2.5 of the edge is the threshold.
        """
        return thresholds.line_escape(
            self.slope, self.noise, interval=self.basin, horizon=horizon, bracket=self._bracket(horizon), cells=_CELLS
        )  # fmt: skip

    def _bracket(self, horizon: int) -> tuple[float, float]:
        """From far beyond the edge downwards to where the rate is below 1/horizon, yet not below rounding."""
        edge = 2 / self.curvature
        high = _HIGHEST * edge
        if self.rate(high) * horizon <= 1:
            raise InvalidInput(
                f"even {_HIGHEST:g} times the edge does not leave along the line within the horizon"
            )
        low = high / _RATIO
        while self.rate(low) * horizon > 1:
            low, high = low / _RATIO, low
            if low < _LOWEST * edge:
                raise InvalidInput(
                    f"even {_LOWEST:g} of the edge leaves along the line: the noise is too large"
                )
        while self.rate(low) < _RESOLVED and high / low > 1 + 1e-6:
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if self.rate(middle) * horizon > 1 else (middle, high)
        return low / _MARGIN, high * _MARGIN


def _basin(task: Task, bottom: np.ndarray, direction: np.ndarray, level: float) -> tuple[float, float]:
    """Nearest positions on either side at which the loss on the line is the level."""
    theta, step = jnp.asarray(bottom), jnp.asarray(direction)
    losses = jax.jit(lambda s: jax.lax.map(lambda r: task.loss(theta + r * step), s))
    ends = []
    for side in (-1.0, 1.0):
        reach = 1e-3
        while True:
            points = np.linspace(0.0, side * reach, 257)
            above = np.flatnonzero(np.asarray(losses(jnp.asarray(points))) > level)
            if above.size:
                break
            reach *= 2
            if reach > 1e3:
                raise InvalidInput(f"the loss along the line never reaches level={level:.4g}; lower it")
        ends.append(float(points[above[0]]))
    return ends[0], ends[1]
