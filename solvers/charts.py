"""Maps of equal steps onto the cells of an axis, and which of them resolves a density with fewest cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.fluxes import excess_diffusion

# A uniform axis is taken unless another needs less than this share of its cells.
_PLAIN = 0.5


@dataclass(frozen=True)
class Chart:
    """How cells of an axis from `low` to `high` are spaced.

    Attributes
    ----------
    kind : str
        "uniform"; "sinh": cells of width proportional to sqrt(scale^2 + (x - center)^2); "log": one cell from
        `center`, an end of the axis, to `scale` away, then equal ratios of the distance to `center`.
    low, high, center, scale : float
    """

    kind: str
    low: float
    high: float
    center: float = 0.0
    scale: float = 1.0

    def edges(self, cells: int) -> np.ndarray:
        """Edges of so many cells."""
        low, high, center, scale = self.low, self.high, self.center, self.scale
        if self.kind == "uniform":
            edges = np.linspace(low, high, cells + 1)
        elif self.kind == "sinh":
            ends = np.arcsinh((low - center) / scale), np.arcsinh((high - center) / scale)
            steps = np.linspace(*ends, cells + 1)
            # symmetric ends give symmetric edges, and the center itself where the number of cells is even
            if ends[0] == -ends[1]:
                steps = 0.5 * (steps - steps[::-1])
            edges = center + scale * np.sinh(steps)
        elif center == low:
            edges = np.append(low, low + np.geomspace(scale, high - low, cells))
        else:
            edges = np.append(high - np.geomspace(scale, high - low, cells)[::-1], high)
        edges[0], edges[-1] = low, high
        return np.where(np.abs(edges) < 1e-13 * scale_of(edges), 0.0, edges)

    def width(self, x: np.ndarray) -> np.ndarray:
        """Width at x of a cell times the number of cells."""
        if self.kind == "uniform":
            return np.full(x.shape, self.high - self.low)
        if self.kind == "sinh":
            a, b = ((end - self.center) / self.scale for end in (self.low, self.high))
            return (np.arcsinh(b) - np.arcsinh(a)) * np.hypot(self.scale, x - self.center)
        decades = np.log((self.high - self.low) / self.scale)
        return decades * np.maximum(np.abs(x - self.center), self.scale)


@dataclass(frozen=True)
class Profile:
    """How steep a density is along an axis, and where its mass lies.

    Attributes
    ----------
    x, weight, steepness : ndarray
        Places, mass there, and drift / D there (the inverse length on which the scheme must resolve).
    deviation : float
        Standard deviation of the marginal, limited from below by a cell.
    noisy : bool
        Whether the axis has noise; without it `steepness` is 1 / deviation.
    """

    x: np.ndarray
    weight: np.ndarray
    steepness: np.ndarray
    deviation: float
    noisy: bool

    def excess(self, chart: Chart, cells: int) -> float:
        """Relative excess diffusion of exponential fitting, averaged over the mass."""
        peclet = np.minimum(self.steepness * (chart.width(self.x) / cells), 1e12)
        return float(np.average(excess_diffusion(peclet), weights=self.weight))

    def cells(self, chart: Chart, wanted: float, most: int) -> int:
        """The fewest cells, even and at most `most`, with at most that excess: it falls as they grow."""
        low, high = 1, most // 2
        while low < high:
            middle = (low + high) // 2
            if self.excess(chart, 2 * middle) <= wanted:
                high = middle
            else:
                low = middle + 1
        return 2 * high


def scale_of(edges: np.ndarray) -> float:
    """The width of the finest cell, to judge what is zero."""
    return float(np.diff(edges).min())


def best_chart(
    low: float,
    high: float,
    singular: tuple[float, float] | None,
    profile: Profile,
    wanted: float,
    most: int,
) -> tuple[Chart, int]:
    """The chart that resolves a density with fewest cells, and how many.

    Parameters
    ----------
    low, high : float
    singular : tuple (end, distance) or None
        An end of the axis where the noise vanishes, and how near to it mass is to be resolved.
    profile : Profile
    wanted : float
        The mean excess diffusion aimed at.
    most : int
        No more cells than these; if no chart is good enough with them, the best one.
    """
    charts = [Chart("uniform", low, high)]
    mean = float(np.average(profile.x, weights=profile.weight))
    center = min(max(mean, low), high)
    spread = max(profile.deviation, 1e-9 * (high - low))
    for scale in np.geomspace(1e-3, 3.0, 8) * spread:
        middle = round_to(center, 0.1 * scale)
        charts.append(Chart("sinh", low, high, min(max(middle, low), high) + 0.0, float(scale)))
    if singular is not None:
        charts.append(Chart("log", low, high, *singular))
    numbers = [profile.cells(chart, wanted, most) for chart in charts]
    fewest = min(numbers)
    if numbers[0] * _PLAIN <= fewest < most:
        return charts[0], numbers[0]
    if fewest < most:
        best = int(np.argmin(numbers))
    else:
        best = int(np.argmin([profile.excess(chart, most) for chart in charts]))
    return charts[best], numbers[best]


def round_to(value: float, step: float) -> float:
    """The nearest multiple of the power of ten at or below `step`."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(np.rint(value / power) * power)
