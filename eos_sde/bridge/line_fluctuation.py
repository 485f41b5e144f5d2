"""SGD's fluctuation along one line: the Markov kernel of the line's own map and noise, and the line's real batches."""

import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from eos_sde.bridge.alternation import PhaseChain
from eos_sde.bridge.experiments.line import Line, line_minimum, sgd_on_line, tabulate_line
from eos_sde.bridge.line_map import LineMap
from eos_sde.bridge.linear_fluctuation import burn_in
from eos_sde.bridge.task_library import Task
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers import Grid, TransferOperator, eigenmodes, stationary_density, tabulated
from solvers.errors import AccuracyWarning, InvalidInput

_CELLS = 600
_REACH = 8.0  # standard deviations
_AT_WALLS = 1e-6
_STATIONARY_STEPS = 200


class LineLaw(NamedTuple):
    """The law of the displacement along a line at some steps.

    Attributes
    ----------
    statistics : dict
        The names of `STATISTICS`, but for the tail.
    offsets : ndarray
        Cell edges about the mean at each step, shape (steps, m + 1).
    masses : ndarray
        Of the cells, shape (steps, m).
    second_eigenvalue : float
        Of the kernel: -log|.| is the rate at which the phase of the oscillation is forgotten.
    two_cycle : float
        Half the distance between the two points of the stable 2-cycle of the line's mean map; NaN without one.
    """

    statistics: dict[str, float]
    offsets: NDArray[np.float64]
    masses: NDArray[np.float64]
    second_eigenvalue: float
    two_cycle: float


class FluctuatingLine:
    """A line through the weights, tabulated far enough for the fluctuation.

    Parameters
    ----------
    task : Task
        The training problem.
    theta, direction : ndarray
        Weights and unit vector, shape (d,).
    eta : float
        Learning rate.
    batch_size : int
        B < n, without replacement.
    curvature, slope : float
        Of the loss along the line at the weights.
    deviation : float
        Standard deviation that is expected.
    window : (int, int) or None
        As for `second_moments`.
    resting : bool
        Whether the mean is at the minimum of the line, as where the averaged path has gone; the stationary law is about
        it in any case.

    other_noise : float
        Variance of the batch gradient along the line that fluctuations in other directions bring; in `law` only.

    Raises
    ------
    InvalidInput
        If it rests and the line has no minimum near.
    """

    def __init__(
        self,
        task: Task,
        theta: NDArray[np.float64],
        direction: NDArray[np.float64],
        *,
        eta: float,
        batch_size: int,
        curvature: float,
        slope: float,
        deviation: float,
        window: tuple[int, int] | None,
        resting: bool,
        other_noise: float = 0.0,
    ):
        self.eta, self.batch_size, self.window, self._curvature = eta, batch_size, window, curvature
        self._task, self._direction, self._other_noise = task, direction, other_noise
        self._p = noise_fraction(task.n, batch_size)
        shift = 0.0
        resting = resting or window is None
        if resting:
            shift = line_minimum(
                task, theta, direction, max(4 / np.sqrt(max(curvature, 1e-12)), 8 * deviation)
            )
        self._centre = theta + shift * direction
        travelled = 0.0
        if window is not None and not resting:
            travelled = abs(slope) / max(abs(curvature), 1 / (eta * (1 + window[1])))
        self._reach = _REACH * deviation + 2 * travelled

    def law(self) -> LineLaw:
        """By the kernel, on a table that is lengthened until next to nothing is near its ends.

        Raises
        ------
        InvalidInput
            If the mass keeps reaching them: the line does not hold it.
        """
        outer = np.inf
        for _ in range(4):
            found, outer = self._law()
            if outer < _AT_WALLS:
                return found
            self._reach *= 1.6
        raise InvalidInput(
            f"a share of {outer:.1g} keeps reaching the ends of the line, which does not hold SGD"
        )

    def path(self, replicas: int, seed: int) -> NDArray[np.float64]:
        """SGD restricted to the line with its real batches, shape (replicas, steps); NaN once off the table."""
        first, last = self.window or burn_in(np.array([self.eta * self._curvature]))
        save = np.arange(first, last + 1)
        start = np.zeros(replicas)
        alternating = sgd_on_line(
            self._table(), start, eta=self.eta, batch_size=self.batch_size, save=save, seed=seed
        )
        return np.where(save % 2 == 0, alternating, -alternating)

    def _table(self) -> Line:
        return tabulate_line(self._task, jnp.asarray(self._centre), jnp.asarray(self._direction), self._reach)

    def _map(self) -> LineMap:
        table = self._table()
        mean = table.slopes.mean(axis=0)
        noise = np.sqrt(self._p * table.slopes.var(axis=0) + self._other_noise)
        return LineMap(
            tabulated(table.points, mean),
            tabulated(table.points, noise),
            (-self._reach, self._reach),
            float(np.interp(0.0, table.points, np.gradient(mean, table.points))),
        )

    def _law(self) -> tuple[LineLaw, float]:
        eta, line = self.eta, self._map()
        grid = Grid.uniform(x=(*line.basin, _CELLS))
        edges, centres = grid.edges["x"], grid.centers["x"]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", AccuracyWarning
            )  # slow directions take small steps; the moments tell
            operator = TransferOperator.of_map(
                lambda x: x - eta * line.slope(x), lambda x: eta * line.noise(x), grid, allow_wall_mass=True
            )
            kernel = operator.matrix.toarray()
            if self.window is None:
                masses = stationary_density(operator).values * grid.volumes
            else:
                mean, spread = -eta * float(line.slope(0.0)), eta * float(line.noise(0.0))
                masses = np.diff(ndtr((edges - mean) / spread))  # after one step from the weights
                for _ in range(self.window[0] - 1):
                    masses = kernel @ masses
            second = float(np.real(eigenmodes(operator, 2)["eigenvalue"].values[1]))
        steps = _STATIONARY_STEPS if self.window is None else self.window[1] - self.window[0] + 1
        # the kernel spreads each cell over itself, which the moments would show
        statistics, offsets, path = _along(kernel, masses / masses.sum(), centres, edges, steps)
        outer = max(float(one[:3].sum() + one[-3:].sum()) for one in path)
        if self.window is None:
            offsets, path = offsets[:1], path[:1]
        return LineLaw(statistics, offsets, path, second, two_cycle(line, eta)), outer


def _along(kernel, masses, centres, edges, steps):
    """Statistics over some steps of a chain, the cells' edges about the mean of each, and their masses."""
    path, means = [masses], [float(centres @ masses)]
    for _ in range(steps - 1):
        path.append(kernel @ path[-1])
        means.append(float(centres @ path[-1]))
    path, means = np.array(path), np.array(means)
    about = centres - means[:, None]
    square, fourth = np.sum(path * about**2, axis=1), np.sum(path * about**4, axis=1)
    deviation = np.sqrt(square)
    landing = centres @ kernel  # mean of where each cell goes
    covariances = np.sum(path[:-1] * about[:-1] * (landing - means[1:, None]), axis=1)
    width = edges[1] - edges[0]
    chain, firm = PhaseChain(masses, about[0], width), PhaseChain(masses, about[0], width)
    flips, firm_flips, amplitudes = [], [], []
    settled = np.allclose(path[0], path[-1], atol=1e-12)
    for k in range(1, steps):
        flips.append(chain.step(kernel, about[k], 0.0))
        firm_flips.append(firm.step(kernel, about[k], deviation[k]))
        if k == 1 or not settled:
            jumps = np.abs(about[k][:, None] - about[k - 1])
            amplitudes.append(0.5 * float(np.sum(kernel * jumps, axis=0) @ path[k - 1]))
    statistics = {
        "variance": float(square.mean()),
        "kurtosis": float(np.mean(fourth - 3 * square**2) / np.mean(square**2)),
        "autocorrelation": float(covariances.sum() / np.sum(deviation[1:] * deviation[:-1])),
        "amplitude": float(np.mean(amplitudes)),
        "flip_rate": float(np.mean(flips)),
        "hysteresis_flip_rate": float(np.mean(firm_flips)),
    }
    return statistics, edges - means[:, None], path


def two_cycle(line: LineMap, eta: float) -> float:
    """Half the distance of the two points that the mean map ends up on from near its fixed point."""
    x, last = 1e-3 * line.basin[1], 0.0
    for _ in range(5000):
        last, x = x, x - eta * float(line.slope(x))
        if not line.basin[0] < x < line.basin[1]:
            return float("nan")
    amplitude = abs(x - last) / 2
    return amplitude if amplitude > 1e-4 * line.basin[1] else float("nan")
