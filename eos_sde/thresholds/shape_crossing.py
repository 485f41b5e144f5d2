"""Thresholds at which a stationary density changes its number of modes (P-bifurcations)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eos_sde.thresholds.grids import Models, discretisation_error, on_coarse_grids
from eos_sde.thresholds.result import Threshold
from solvers import Grid, density_modes, p_bifurcation

_SOURCE = "Arnold 1998, Random Dynamical Systems, sec. 9.2"


def shape_threshold(
    build: Callable[[float], Any],
    bracket: tuple[float, float],
    criterion: str,
    tolerance: float,
    settings: Mapping[str, Any],
) -> Threshold:
    """Where the number of modes changes; arguments as checked by `locate`.

    The larger of what one grid tells (`solvers.p_bifurcation`) and of what coarser ones do is the error.

    Raises
    ------
    InvalidInput
        If a setting is out of range, or the number is the same at both ends.
    """
    models = Models(build, settings, "reflecting")
    shape: dict[str, Any] = {name: settings[name] for name in ("prominence", "floor") if name in settings}
    found = p_bifurcation(models.operator, bracket, tol=tolerance, **shape)
    value, error = float(found["value"]), float(found["uncertainty"])
    counts, densities = found["count"].values.tolist(), int(found.attrs["densities"])
    grids = models.coarser(value, None)[:1]
    coarse = [each for each in on_coarse_grids(_located(models, bracket, tolerance, shape), grids) if each]
    for shifted, number in coarse:
        error = max(error, discretisation_error([shifted - value]))
        densities += number
    method = (
        f"from {counts[0]} to {counts[1]} modes of the stationary density, in {densities} densities; error: how far "
        "apart modes must be for the grid to see them"
        + (", and a grid of twice the spacing" if coarse else "")
    )
    return Threshold(value, error, criterion, method, _SOURCE, densities)


def _located(
    models: Models, bracket: tuple[float, float], tolerance: float, shape: dict[str, Any]
) -> Callable[[Grid], tuple[float, int] | None]:
    """The threshold on another grid, and how many densities it took; None if that grid does not see it."""

    def located(grid: Grid) -> tuple[float, int] | None:
        counts = {int(density_modes(models.operator(end, grid), **shape)["count"]) for end in bracket}
        if len(counts) == 1:
            return None
        found = p_bifurcation(lambda value: models.operator(value, grid), bracket, tol=tolerance, **shape)
        return float(found["value"]), int(found.attrs["densities"]) + 2

    return located
