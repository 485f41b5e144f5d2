"""Phase flips of the alternating process (-1)^k x_k: by the arcsine law, by Markov kernels, by counting."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from solvers.errors import InvalidInput

_SETTLED = 1e-12
_MOST_STEPS = 20_000


def sign_change_rate(correlation: float) -> float:
    """Sign changes per step of a stationary Gaussian sequence, from its correlation at lag 1: arccos(rho)/pi.

    For the linear map x+ = (1 - eta h) x + noise the alternating process (-1)^k x_k has rho = eta h - 1: beyond
    eta h = 1 it keeps its sign for longer than a coin would, and at the edge for ever.

    Parameters
    ----------
    correlation : float
        rho in [-1, 1].

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    InvalidInput
        If it is no correlation.

    References
    ----------
    Rice 1944, Bell Syst. Tech. J. 23, 282; Kedem 1994, Time Series Analysis by Higher Order Crossings.
    """
    if not -1 <= correlation <= 1:
        raise InvalidInput(f"correlation={correlation} must lie in [-1, 1]")
    return math.acos(correlation) / math.pi


def count_flips(x: NDArray[np.float64], level: float | NDArray[np.float64]) -> NDArray[np.int64]:
    """Flips of the phase of the alternating process along the second axis.

    The phase is the sign of y_k = (-1)^k x_k at first; it flips when y passes the level on the other side. At level 0
    these are the sign changes of y.

    Parameters
    ----------
    x : ndarray
        Shape (paths, steps).
    level : float or ndarray
        At least 0; one number or one for each step.

    Returns
    -------
    ndarray
        Flips of each path, shape (paths,).
    """
    steps = x.shape[1]
    alternating = x * (1 - 2 * (np.arange(steps) % 2))
    levels = np.broadcast_to(np.asarray(level, float), (steps,))
    phase = np.where(alternating[:, 0] < 0, -1, 1)
    flips = np.zeros(len(x), dtype=np.int64)
    for k in range(1, steps):
        crossed = -phase * alternating[:, k] > levels[k]
        flips += crossed
        phase = np.where(crossed, -phase, phase)
    return flips


class PhaseChain:
    """Mass on both phases of the alternating process under a Markov kernel on cells of a line.

    Parameters
    ----------
    masses : ndarray
        Of the cells at the first step, shape (m,).
    offsets : ndarray
        Cell centres about the mean of the first step.
    width : float
        Of the cells; those that a level cuts are shared in proportion.
    """

    def __init__(self, masses: NDArray[np.float64], offsets: NDArray[np.float64], width: float):
        # phase times (-1)^k is the sign that x is expected to have; it turns with every step that is no flip
        self._width = width
        self._positive, self._negative = (
            masses * self._above(offsets, 0.0),
            masses * self._above(-offsets, 0.0),
        )

    def step(self, kernel, offsets: NDArray[np.float64], level: float) -> float:
        """One application of the kernel; `offsets` about the mean after it. Returns the probability of a flip."""
        positive, negative = kernel @ self._positive, kernel @ self._negative
        flipped_up = positive * self._above(offsets, level)
        flipped_down = negative * self._above(-offsets, level)
        self._positive = negative - flipped_down + flipped_up
        self._negative = positive - flipped_up + flipped_down
        return float(flipped_up.sum() + flipped_down.sum())

    def _above(self, offsets: NDArray[np.float64], level: float) -> NDArray[np.float64]:
        """Share of each cell beyond the level."""
        return np.clip(0.5 + (offsets - level) / self._width, 0.0, 1.0)


def gaussian_flip_rate(
    correlation: float, level: float, *, steps: int | None = None, cells: int = 240
) -> float:
    """Flips per step of the stationary linear Gaussian map with a hysteresis, by its kernel on a grid.

    Parameters
    ----------
    correlation : float
        Of the alternating process at lag 1, in (-1, 1).
    level : float
        In standard deviations.
    steps : int, optional
        Mean over so many steps after the phase was taken to be the sign; if left out, the limit.
    cells : int
        On seven standard deviations either side; the error is of second order in their width.

    Returns
    -------
    float
        At level 0 `sign_change_rate` to that error.
    """
    if not -1 < correlation < 1:
        raise InvalidInput(f"correlation={correlation} must lie in (-1, 1)")
    edges = np.linspace(-7.0, 7.0, cells + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    spread = math.sqrt(1 - correlation**2)
    bounds = ndtr((edges[:, None] + correlation * centres) / spread)  # x+ = -correlation x + noise
    kernel = np.diff(bounds, axis=0)
    kernel /= kernel.sum(axis=0)
    masses = np.diff(ndtr(edges))
    chain, rate = PhaseChain(masses / masses.sum(), centres, edges[1] - edges[0]), math.nan
    if steps is not None:
        return float(np.mean([chain.step(kernel, centres, level) for _ in range(steps)]))
    for _ in range(_MOST_STEPS):
        last, rate = rate, chain.step(kernel, centres, level)
        if abs(rate - last) < _SETTLED:
            break
    return rate
