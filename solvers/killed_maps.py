"""Noisy maps killed in regions: cells cut by an edge, the steps that stay outside, and their equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sps

from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.grid import Grid
from solvers.regions import Region, evaluated_region, place
from solvers.source_cells import by_cell
from solvers.step_elimination import StepElimination, kept_for_ever
from solvers.transfer import TransferOperator

_LINES, _INTERVALS, _BISECTIONS = 16, 8, 45
_INSET = 1e-9  # of a cell


class KilledSteps(NamedTuple):
    """What is left of a transfer operator outside regions.

    Attributes
    ----------
    states : ndarray of int
        Cells not wholly inside.
    matrix : sparse array
        Steps between the states that end outside the regions.
    entering : list of ndarray
        Probability that a step from each state ends in each region.
    loss : ndarray
        That it leads through an absorbing wall.
    """

    states: np.ndarray
    matrix: sps.csr_array
    entering: list[np.ndarray]
    loss: np.ndarray

    @property
    def absorbed(self) -> np.ndarray:
        """Probability to be removed by a step from each state."""
        return np.sum(self.entering, axis=0) + self.loss

    def refuse_kept(self, grid: Grid) -> None:
        """Refuse regions, or walls, that some state never reaches.

        Raises
        ------
        InvalidInput
            With the place of one.
        """
        kept = kept_for_ever(self.matrix, self.absorbed)
        if kept.size:
            raise InvalidInput(
                f"what starts at {place(grid, int(self.states[kept[0]]))} never reaches the region; check the "
                "region and the noise"
            )


def killed_steps(operator: TransferOperator, regions: list[Region]) -> KilledSteps:
    """Steps of a map that is stopped when one ends in a region.

    Of a cell cut by the edge of a region, landing points in the part inside are removed. Those in the rest go on as
    from the whole cell: an error of second order, as that of the cells themselves.
    """
    grid = operator.grid
    shares = [region_share(grid, region) for region in regions]
    outside = np.maximum(1.0 - np.sum(shares, axis=0), 0.0) if shares else np.ones(grid.size)
    states = np.flatnonzero(outside > 0)
    columns = sps.csr_array(operator.matrix[:, states])
    matrix = sps.csr_array(sps.diags_array(outside[states]) @ columns[states])
    return KilledSteps(states, matrix, [columns.T @ share for share in shares], operator.loss[states])


def steps_until(killed: KilledSteps, right: np.ndarray, what: str) -> np.ndarray:
    """The solution of (1 - Q^T) q = right >= 0 on the states.

    Raises
    ------
    ConvergenceFailure
        If it exceeds the floats.
    """
    solution = StepElimination(killed.matrix, killed.absorbed).solve(right)
    if not np.isfinite(solution).all():
        raise ConvergenceFailure(
            f"the {what} exceeds {np.finfo(float).max:.2g}, the largest float; use more noise, or a target that is "
            "reached sooner"
        )
    return solution


def slowest_removal(killed: KilledSteps) -> tuple[float, np.ndarray] | None:
    """Probability per step to be removed from the quasi-stationary state, and its masses, by inverse iteration.

    All entries are sums of nonnegative numbers, so that both are accurate relatively. None if the iteration settles
    too slowly, because another state lives as long, or leads beyond the floats.
    """
    elimination = StepElimination(killed.matrix, killed.absorbed)
    masses = np.full(len(killed.states), 1.0 / len(killed.states))
    for _ in range(500):
        grown = elimination.solve_transposed(masses)
        if not np.isfinite(grown).all():
            return None
        total = grown.sum()
        change = float(np.abs(grown / total - masses).sum())
        masses = grown / total
        if change < 1e-12:
            return float(1.0 / total), masses
    return None


def region_share(grid: Grid, region: Region) -> np.ndarray:
    """The share of each cell that lies in a region, shape (size,).

    Cells whose corners, middles of sides and centre agree are taken as wholly inside or outside; in the others the
    edge is found by bisection along the first axis, on lines across the others.
    """
    samples = _on_thirds(grid, region)
    inside = samples.all(axis=1)
    cut = np.flatnonzero(samples.any(axis=1) & ~inside)
    share = inside.astype(float)
    if not cut.size:
        return share
    index = np.unravel_index(cut, grid.shape)
    low = [grid.edges[n][:-1][i] for n, i in zip(grid.names, index, strict=True)]
    width = [grid.widths[n][i] for n, i in zip(grid.names, index, strict=True)]
    lines, weights = np.ones((1, 0)), np.ones(1)
    if grid.d == 2:
        # a cell's edge may leave it through a side, where the length inside has a kink: equal weights suit it
        lines = ((np.arange(_LINES) + 0.5) / _LINES)[:, None]
        weights = np.full(_LINES, 1.0 / _LINES)
    for line, weight in zip(lines, weights, strict=True):
        fixed = [a + w * t for a, w, t in zip(low[1:], width[1:], line, strict=True)]

        def at(t: np.ndarray, fixed: list[np.ndarray] = fixed) -> np.ndarray:
            return evaluated_region(region, (low[0] + width[0] * t, *fixed), "the region", grid.names)

        share[cut] += weight * _length_inside(at, cut.size)
    return np.clip(share, 0.0, 1.0)


def _length_inside(at: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """The length within [0, 1] on which a predicate holds, of `size` lines at once."""
    knots = np.linspace(0.0, 1.0, _INTERVALS + 1)
    inner = np.clip(knots, _INSET, 1.0 - _INSET)
    length, before = np.zeros(size), at(np.full(size, inner[0]))
    for k in range(_INTERVALS):
        after = at(np.full(size, inner[k + 1]))
        near, far = np.full(size, knots[k]), np.full(size, knots[k + 1])
        for _ in range(_BISECTIONS if np.any(before != after) else 0):
            middle = 0.5 * (near + far)
            same = at(middle) == before
            near, far = np.where(same, middle, near), np.where(same, far, middle)
        free = np.where(before, 0.5 * (near + far) - knots[k], knots[k + 1] - 0.5 * (near + far))
        length += np.where(before == after, np.where(before, knots[k + 1] - knots[k], 0.0), free)
        before = after
    return length


def _on_thirds(grid: Grid, region: Region) -> np.ndarray:
    """The region at the corners, middles of sides and centre of every cell, corners moved inwards: (cells, 3^d)."""
    lines = [
        (grid.edges[n][:-1, None] + grid.widths[n][:, None] * np.array([_INSET, 0.5, 1.0 - _INSET])).ravel()
        for n in grid.names
    ]
    values = evaluated_region(region, tuple(np.meshgrid(*lines, indexing="ij")), "the region", grid.names)
    return by_cell(values, grid, 3)
