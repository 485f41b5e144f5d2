"""The Markov kernel of a noisy map on a grid: one Euler-Maruyama step, integrated exactly."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numba
import numpy as np
import scipy.sparse as sps

from solvers import boundary as boundaries
from solvers import memory
from solvers.coefficients import Coefficients
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.grid import Grid
from solvers.request import refuse_other
from solvers.sde import SDE

_REACH = 8.5  # standard deviations kept: the two tails beyond hold 2e-17 of the mass
_MAX_NODES = 32
_FOLDED = 1e-3  # stationary mass per step that may be sent beyond reflecting walls
_SETTLING = 300


class TransferOperator:
    """Transition matrix of one Euler-Maruyama step y -> y + step a(y) + sqrt(step) sigma(y) xi.

    ``matrix[i, j]`` is the probability that a point spread uniformly over cell j lands in cell i: exact over
    the target cell (differences of the normal distribution function), by Gauss-Legendre quadrature over the
    source cell. What remains is the projection on piecewise constant densities (Ulam's method), which acts
    like additional noise of variance (1 + f'^2) h^2/12 per step: second order in the cell size h. With step = eta and
    gradient noise this is SGD itself, the edge at eta h = 2 included, not an approximation to it.

    Stratonovich and Klimontovich models are converted to Ito first, since Euler-Maruyama is an Ito scheme.

    Parameters
    ----------
    sde : SDE
        Autonomous, diagonal noise, dimension 1 or 2.
    grid : Grid
    step : float
        Time step > 0.
    boundary : str or mapping
        As for `FokkerPlanck`. "reflecting" folds the landing point back at the wall (once; what goes further
        than a whole grid width beyond a wall is kept in the last cell it would fold to), "absorbing" removes
        it, "periodic" wraps it.
    allow_wall_mass : bool
        Accept a reflecting wall that the drift presses against along its whole length, or stationary mass whose
        mean landing point lies beyond one: then the fold is part of the model.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array
        Columns sum to 1 to rounding (less at absorbing walls).
    grid, sde, step, boundary

    Raises
    ------
    InvalidInput
        For unusable arguments, correlated noise or more than two dimensions, or if the grid misses the mass.

    Warns
    -----
    AccuracyWarning
        If cells are wider than the noise of one step over most of the grid: the grid's own spreading of
        h^2/12 per step then exceeds a twelfth of the noise variance.

    Notes
    -----
    The integrand over a source cell is a normal distribution function of width s / |f'| for the map f with
    noise s, so the number of Gauss-Legendre nodes is 4 plus 2 per noise width that the image of the cell
    covers, at most 32: with 4 nodes the error of a cell as wide as the noise is below 1e-7. Without noise
    along an axis the image of each node falls into one cell.

    References
    ----------
    Ulam, A Collection of Mathematical Problems (1960) ch. 6; Ding and Zhou, Physica D 92 (1996) 61.
    """

    def __init__(
        self,
        sde: Any,
        grid: Grid,
        *,
        step: float,
        boundary: boundaries.Boundary = "reflecting",
        allow_wall_mass: bool = False,
    ):
        refuse_other(sde, SDE, "sde")
        refuse_other(grid, Grid, "grid")
        if not (isinstance(step, (int, float, np.number)) and 0 < step < np.inf):
            raise InvalidInput(f"step={step!r}; give a positive time step")
        if grid.d > 2:
            raise InvalidInput(f"the grid has {grid.d} axes; a transfer operator is built for one or two")
        if sde.noise != "diagonal" and grid.d > 1:
            raise InvalidInput(
                "noise='general' is correlated in one step; a transfer operator needs 'diagonal'"
            )
        self.sde, self.grid, self.step = sde, grid, float(step)
        self.boundary = boundaries.walls(boundary, grid.names)
        Coefficients(sde, grid)  # refuses what cannot be read on this grid
        ito = sde.to("ito")
        if not allow_wall_mass:
            self._refuse_outward_walls(ito)
        self.matrix = self._assemble(ito, self._nodes(ito))
        if not allow_wall_mass:
            self._refuse_folded_mass(ito)

    def __repr__(self) -> str:
        return f"TransferOperator({self.grid!r}, step={self.step:g}, boundary={self.boundary})"

    def _move(self, ito: Any, coords: tuple[np.ndarray, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Mean and standard deviation of the landing point, per axis."""
        with np.errstate(all="ignore"):
            drift, sigma = ito.drift_at(0.0, coords), ito.diffusion_at(0.0, coords)
        if ito.noise == "general":
            sigma = [np.sqrt(sum(s**2 for s in row)) for row in sigma]
        mean = [y + self.step * a for y, a in zip(coords, drift, strict=True)]
        deviation = [np.sqrt(self.step) * np.abs(s) for s in sigma]
        for values in (*mean, *deviation):
            if not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values)))
                place = ", ".join(
                    f"{n}={c.flat[bad]:g}" for n, c in zip(self.grid.names, coords, strict=True)
                )
                raise InvalidInput(f"one step from {place} is not finite; leave this point out of the grid")
        return mean, deviation

    def _refuse_outward_walls(self, ito: Any) -> None:
        """Refuse a reflecting wall that the mean step leaves along its whole length, as `FokkerPlanck` does."""
        grid = self.grid
        for axis, name in enumerate(grid.names):
            for side, word, outward in ((0, "low", -1.0), (-1, "high", 1.0)):
                if self.boundary[name][side] != "reflecting":
                    continue
                wall, steps = grid.edges[name][side], []
                for position in (wall, grid.centers[name][side]):
                    lines = list(grid.centers.values())
                    lines[axis] = np.array([position])
                    mean, _ = self._move(ito, tuple(np.meshgrid(*lines, indexing="ij")))
                    steps.append(outward * (mean[axis] - position))
                if np.all(steps[0] > 0) and np.all(steps[1] > 0):
                    raise InvalidInput(
                        f"the grid misses the mass: along the whole {word} wall {name}={wall:g} the mean step "
                        f"is {float(np.median(steps[0])):.4g} out of the grid, so probability piles up there; "
                        f"widen the grid {'below' if side == 0 else 'above'} {name}={wall:g}, or pass "
                        "allow_wall_mass=True if the wall is part of the model"
                    )

    def _refuse_folded_mass(self, ito: Any) -> None:
        """Refuse a map whose mean sends stationary mass beyond a reflecting wall: an unstable map does."""
        grid = self.grid
        mean, _ = self._move(ito, grid.coords())
        beyond = np.zeros(grid.shape, dtype=bool)
        for axis, name in enumerate(grid.names):
            low, high = self.boundary[name]
            beyond |= (low == "reflecting") & (mean[axis] < grid.edges[name][0])
            beyond |= (high == "reflecting") & (mean[axis] > grid.edges[name][-1])
        if not beyond.any():
            return
        masses = grid.volumes.ravel() / grid.volumes.sum()
        for _ in range(_SETTLING):
            before, masses = masses, self.matrix @ masses
            masses /= masses.sum()
            if np.abs(masses - before).sum() < 1e-6:
                break
        folded = float(masses[beyond.ravel()].sum())
        if folded > _FOLDED:
            raise InvalidInput(
                f"the grid misses the mass: for {folded:.2g} of the stationary mass the mean step leads beyond a "
                "reflecting wall, so the map is unstable or the grid too narrow; widen the grid, use a smaller "
                "step, or pass allow_wall_mass=True if the wall is part of the model"
            )

    def _nodes(self, ito: Any) -> int:
        grid = self.grid
        mean, deviation = self._move(ito, grid.coords())
        covered, coarse = 0.0, 0.0
        for axis, name in enumerate(grid.names):
            widths = grid.widths[name].reshape((1,) * axis + (-1,) + (1,) * (grid.d - axis - 1))
            noisy = deviation[axis] > 0
            if not noisy.any():
                covered = max(covered, 0.5 * _MAX_NODES)
                continue
            safe = np.where(noisy, deviation[axis], 1.0)
            for other in range(grid.d):
                stretch = np.abs(np.diff(mean[axis], axis=other))
                covered = max(covered, float(np.quantile(stretch / _low(safe, other), 0.9)))
            coarse = max(coarse, float(np.median(np.where(noisy, widths / safe, 0.0))))
        if coarse > 1.0:
            warnings.warn(
                AccuracyWarning(
                    f"cells are {coarse:.2g} times as wide as the noise of one step, so the grid itself "
                    f"spreads {coarse**2 / 12:.1g} times its variance; use {math.ceil(4 * coarse)} times "
                    "as many cells"
                ),
                stacklevel=3,
            )
        return int(min(4 + 2 * math.ceil(covered), _MAX_NODES))

    def _assemble(self, ito: Any, nodes: int) -> sps.csr_array:
        grid = self.grid
        abscissae, weights = np.polynomial.legendre.leggauss(nodes)
        targets = [_images(grid, name, self.boundary[name]) for name in grid.names]
        fine = [
            (grid.centers[n][:, None] + 0.5 * grid.widths[n][:, None] * abscissae[None, :]).ravel()
            for n in grid.names
        ]
        memory.require(
            8 * (8 + 6 * grid.d) * grid.size * nodes**grid.d,
            f"a kernel on {grid.size} cells",
            "use fewer cells",
        )
        coords = tuple(np.meshgrid(*fine, indexing="ij"))
        mean, deviation = self._move(ito, coords)
        split = [size for n in grid.shape for size in (n, nodes)]
        order = [*range(0, 2 * grid.d, 2), *range(1, 2 * grid.d, 2)]
        means, deviations = [], []
        for axis, name in enumerate(grid.names):
            value = mean[axis].reshape(split).transpose(order).reshape(grid.size, -1)
            if self.boundary[name][0] == "periodic":
                edges = grid.edges[name]
                value = edges[0] + np.mod(value - edges[0], edges[-1] - edges[0])
            spread = deviation[axis].reshape(split).transpose(order).reshape(grid.size, -1)
            means.append(value)
            # no noise: a step function, still a difference of distribution functions
            deviations.append(np.maximum(spread, 1e-12 * float(grid.widths[name].min())))
        quadrature = 0.5 * weights
        if grid.d == 2:
            quadrature = np.multiply.outer(quadrature, quadrature).ravel()
        else:
            targets.append((np.array([-np.inf, np.inf]), np.array([0])))
            means.append(np.zeros((grid.size, 1)))
            deviations.append(np.ones((grid.size, 1)))
        windows = []
        for (edges, _), value, spread in zip(targets, means, deviations, strict=True):
            inner = edges[1:-1]
            first = np.searchsorted(inner, (value - _REACH * spread).min(axis=1), side="right")
            last = np.searchsorted(inner, (value + _REACH * spread).max(axis=1), side="right")
            windows.append((first, last + 1))
        counts = (windows[0][1] - windows[0][0]) * (windows[1][1] - windows[1][0])
        if counts.sum() > 1e8:
            raise InvalidInput(
                f"the matrix would hold {counts.sum():.2g} numbers; use fewer cells or a smaller step"
            )
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows, data = _fill(
            starts, windows[0][0], windows[0][1], windows[1][0], windows[1][1],
            targets[0][0], targets[0][1], targets[1][0], targets[1][1],
            means[0], deviations[0], means[1], deviations[1],
            quadrature, grid.shape[1] if grid.d == 2 else 1,
        )  # fmt: skip
        columns = np.repeat(np.arange(grid.size), counts)
        kept = (rows >= 0) & (data > 0)
        matrix = sps.csr_array((data[kept], (rows[kept], columns[kept])), shape=(grid.size, grid.size))
        matrix.sum_duplicates()
        if all("absorbing" not in pair for pair in self.boundary.values()):
            matrix = sps.csr_array(matrix @ sps.diags_array(1.0 / matrix.sum(axis=0)))
        return matrix


def _low(values: np.ndarray, axis: int) -> np.ndarray:
    return values[(slice(None),) * axis + (slice(None, -1),)]


def _images(grid: Grid, name: str, kinds: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the cells and their images beyond the walls, and the cell of each (-1: removed)."""
    edges, n = grid.edges[name], grid.shape[grid.names.index(name)]
    cells = np.arange(n)
    length = edges[-1] - edges[0]
    if kinds[0] == "periodic":
        below, above = (edges[:-1] - length, cells), (edges[1:] + length, cells)
    else:
        below = (2 * edges[0] - edges[:0:-1], cells[::-1])
        above = (2 * edges[-1] - edges[-2::-1], cells[::-1])
        if kinds[0] == "absorbing":
            below = (np.array([-np.inf]), np.array([-1]))
        if kinds[1] == "absorbing":
            above = (np.array([np.inf]), np.array([-1]))
    all_edges = np.concatenate([below[0], edges, above[0]])
    all_edges[0], all_edges[-1] = -np.inf, np.inf
    return all_edges, np.concatenate([below[1], cells, above[1]])


@numba.njit(inline="always")
def _mass(low, high):
    """Standard normal probability between two points, without cancellation in either tail."""
    root = 0.7071067811865476
    if low > 0:
        return 0.5 * (math.erfc(low * root) - math.erfc(high * root))
    if high < 0:
        return 0.5 * (math.erfc(-high * root) - math.erfc(-low * root))
    return 0.5 * (math.erf(high * root) - math.erf(low * root))


@numba.njit
def _fill(
    starts,
    first1,
    last1,
    first2,
    last2,
    edges1,
    cells1,
    edges2,
    cells2,
    mean1,
    sd1,
    mean2,
    sd2,
    quadrature,
    n2,
):
    rows = np.empty(starts[-1], np.int64)
    data = np.zeros(starts[-1])
    buffer1 = np.empty(np.max(last1 - first1))
    buffer2 = np.empty(np.max(last2 - first2))
    for source in range(len(starts) - 1):
        a, b = first1[source], last1[source]
        c, d = first2[source], last2[source]
        for node in range(len(quadrature)):
            m, s = mean1[source, node], sd1[source, node]
            for i in range(a, b):
                buffer1[i - a] = _mass((edges1[i] - m) / s, (edges1[i + 1] - m) / s)
            m, s = mean2[source, node % mean2.shape[1]], sd2[source, node % mean2.shape[1]]
            for j in range(c, d):
                buffer2[j - c] = _mass((edges2[j] - m) / s, (edges2[j + 1] - m) / s) * quadrature[node]
            place = starts[source]
            for i in range(b - a):
                for j in range(d - c):
                    data[place] += buffer1[i] * buffer2[j]
                    place += 1
        place = starts[source]
        for i in range(a, b):
            for j in range(c, d):
                gone = cells1[i] < 0 or cells2[j] < 0
                rows[place] = -1 if gone else cells1[i] * n2 + cells2[j]
                place += 1
    return rows, data
