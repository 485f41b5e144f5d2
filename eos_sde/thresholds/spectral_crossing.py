"""Thresholds of spectral gaps and escape rates, with few eigen-solves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from eos_sde.models.arguments import positive
from eos_sde.thresholds.grids import Models, discretisation_error, on_coarse_grids
from eos_sde.thresholds.result import Threshold
from solvers import Grid, InvalidInput
from solvers.decay_rates import RateSearch, checked_region, decay_rate
from solvers.root_search import Quantity, root_by_slopes

MARGINAL_RATIO = 3.254225852436075
"""Ratio of the second decay rate to the first of dA = -C A^3 dt + s dW, for any C and s.

The quartic well lies exactly between one well and two. A harmonic well has ratio 2; far beyond the onset of
metastability the ratio grows like the inverse of the escape rate. (Sinc collocation of the equivalent
Schroedinger equation in 30 digits: 4.45370916321473 / 1.36859252097722.)
"""

_SOURCES = {
    "gap": "",
    "escape": "Collet, Martinez and San Martin 2013, Quasi-Stationary Distributions",
}


def spectral_threshold(
    build: Callable[[float], Any],
    bracket: tuple[float, float],
    criterion: str,
    tolerance: float,
    settings: Mapping[str, Any],
) -> Threshold:
    """Where a decay rate, or a ratio of two, meets its critical value; arguments as checked by `locate`.

    Newton-like steps on the logarithm of the rate, with slopes from perturbation theory (`solvers.eigenvalue_root`).

    Raises
    ------
    InvalidInput
        If a setting is out of range, or the critical value is not crossed.
    """
    mode, critical, what = _wanted(criterion, settings)
    target = checked_region(settings.get("target"))
    absorbing = criterion == "escape" and target is None
    models = Models(build, settings, "absorbing" if absorbing else "reflecting")
    if absorbing and not _absorbs(settings.get("boundary", "absorbing")):
        raise InvalidInput(
            "nothing removes probability; give boundary='absorbing' on a wall, or a target, for criterion 'escape'"
        )
    search = RateSearch(models.around, mode, critical, bracket[1] - bracket[0], target)
    root = root_by_slopes(search.point, bracket, Quantity(what, critical), tol=tolerance)

    def excess(grid: Grid) -> float:
        return math.log(decay_rate(models.operator(root.value, grid), mode, target) / critical)

    coarse = on_coarse_grids(excess, models.coarser(root.value, target))
    size = abs(root.slope)
    error = math.hypot(root.error, discretisation_error(coarse) / size) if size > 0 else math.inf
    solves = len(root.points) + len(coarse)
    method = (
        f"where {what} is {critical:.6g}, in {len(root.points)} eigen-solves and {len(coarse)} on coarser grids; "
        "error: search and discretisation"
    )
    return Threshold(root.value, error, criterion, method, _SOURCES[criterion], solves)


def _wanted(criterion: str, settings: Mapping[str, Any]) -> tuple[Any, float, str]:
    """The mode, its critical rate, and what that is."""
    if criterion == "escape":
        horizon = positive("horizon", settings["horizon"], "give the training time, in the model's time unit")
        return 0, 1.0 / horizon, "the escape rate"
    if settings.get("level") is not None:
        if settings.get("ratio") is not None:
            raise InvalidInput("level and ratio are both given; give one of them")
        level = positive(
            "level", settings["level"], "give a decay rate; the gap of a model with noise is never 0"
        )
        return "gap", level, "the spectral gap"
    ratio = positive("ratio", MARGINAL_RATIO if settings.get("ratio") is None else settings["ratio"])
    if ratio <= 1:
        raise InvalidInput(
            f"ratio={ratio} is never crossed, since rates are in ascending order; give one above 1"
        )
    return "gap-ratio", ratio, "the second decay rate over the first"


def _absorbs(boundary: Any) -> bool:
    if isinstance(boundary, Mapping):
        return any(
            "absorbing" in ((pair,) if isinstance(pair, str) else tuple(pair)) for pair in boundary.values()
        )
    return boundary == "absorbing"
