"""Reflecting walls that a noisy map leads beyond: refusals of a grid that misses the mass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse as sps

from solvers.errors import InvalidInput
from solvers.grid import Grid

Walls = Mapping[str, tuple[str, str]]
_FOLDED = 1e-3  # stationary mass per step that may be sent beyond reflecting walls
_SETTLING = 300


def refuse_outward_walls(
    grid: Grid, walls: Walls, mean_of: Callable[[tuple[np.ndarray, ...]], list[np.ndarray]]
) -> None:
    """Refuse a reflecting wall that the mean step leaves along its whole length, as `FokkerPlanck` does.

    Raises
    ------
    InvalidInput
        With the wall and how far the step leads.
    """
    for axis, name in enumerate(grid.names):
        for side, word, outward in ((0, "low", -1.0), (-1, "high", 1.0)):
            if walls[name][side] != "reflecting":
                continue
            wall, steps = grid.edges[name][side], []
            for position in (wall, grid.centers[name][side]):
                lines = list(grid.centers.values())
                lines[axis] = np.array([position])
                mean = mean_of(tuple(np.meshgrid(*lines, indexing="ij")))
                steps.append(outward * (mean[axis] - position))
            if np.all(steps[0] > 0) and np.all(steps[1] > 0):
                raise InvalidInput(
                    f"the grid misses the mass: along the whole {word} wall {name}={wall:g} the mean step "
                    f"is {float(np.median(steps[0])):.4g} out of the grid, so probability piles up there; "
                    f"widen the grid {'below' if side == 0 else 'above'} {name}={wall:g}, or pass "
                    "allow_wall_mass=True if the wall is part of the model"
                )


def refuse_folded_mass(grid: Grid, walls: Walls, mean: list[np.ndarray], matrix: sps.csr_array) -> None:
    """Refuse a map whose mean sends stationary mass beyond a reflecting wall: an unstable map does.

    Raises
    ------
    InvalidInput
        With the share of the mass.
    """
    beyond = np.zeros(grid.shape, dtype=bool)
    for axis, name in enumerate(grid.names):
        low, high = walls[name]
        beyond |= (low == "reflecting") & (mean[axis] < grid.edges[name][0])
        beyond |= (high == "reflecting") & (mean[axis] > grid.edges[name][-1])
    if not beyond.any():
        return
    masses = grid.volumes.ravel() / grid.volumes.sum()
    for _ in range(_SETTLING):
        before, masses = masses, matrix @ masses
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
