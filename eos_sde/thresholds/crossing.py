"""Thresholds of any model by root finding: where a stability criterion crosses its critical value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eos_sde.models.arguments import positive
from eos_sde.models.maps import NoisyMap
from eos_sde.thresholds.exponent_crossing import exponent_threshold
from eos_sde.thresholds.result import Threshold
from eos_sde.thresholds.shape_crossing import shape_threshold
from eos_sde.thresholds.spectral_crossing import spectral_threshold
from solvers import SDE, InvalidInput
from solvers.root_search import checked_bracket

_SIMULATION = ("method", "seed", "dt", "duration", "paths")
_SPACE = ("boundary", "flux", "advection", "allow_wall_mass")
_REQUIRED = {
    "almost_sure": ("at",),
    "moment": ("at",),
    "gap": ("grid",),
    "escape": ("grid", "horizon"),
    "density_shape": ("grid",),
}
_OPTIONAL = {
    "almost_sure": _SIMULATION,
    "moment": ("p", *_SIMULATION),
    "gap": (*_SPACE, "level", "ratio"),
    "escape": (*_SPACE, "target"),
    "density_shape": (*_SPACE, "prominence", "floor"),
}
_SEARCHES = {
    "almost_sure": exponent_threshold,
    "moment": exponent_threshold,
    "gap": spectral_threshold,
    "escape": spectral_threshold,
    "density_shape": shape_threshold,
}


def locate(
    build: Callable[[float], SDE | NoisyMap],
    *,
    bracket: tuple[float, float],
    criterion: str,
    tolerance: float = 1e-6,
    **settings: Any,
) -> Threshold:
    """Value of a control parameter at which a model meets a stability criterion.

    Parameters
    ----------
    build : callable
        ``build(value)`` returns the model at that value: an SDE, or a `eos_sde.models.maps.NoisyMap`, whose
        transfer operator, or random matrix product, then replaces the Fokker-Planck operator, or the linear SDE.
    bracket : (float, float)
        Two values between which the criterion is crossed.
    criterion : {"almost_sure", "moment", "gap", "escape", "density_shape"}
        "almost_sure": the top Lyapunov exponent at the fixed point is 0 (a D-bifurcation).
        "moment": the moment Lyapunov exponent Lambda(p) at the fixed point is 0.
        "gap": the spectral gap (slowest nonzero decay rate) equals `level`; or, without a level, the ratio of
        the second decay rate to the first equals `ratio`: the onset of metastability.
        "escape": the quasi-stationary escape rate times `horizon` is 1.
        "density_shape": the number of modes of the stationary density changes (a P-bifurcation).
    tolerance : float
        Of the root, as a fraction of the bracket.
    **settings
        "almost_sure", "moment": ``at`` (fixed point: a number, d numbers, or ``at(value)``), ``p`` (2 if left
        out), and ``method``, ``seed``, ``dt``, ``duration``, ``paths`` as in `solvers.lyapunov_exponent`. Maps
        have closed forms in one component, and for p = 2; else simulation, whose `dt` is their own.
        "gap", "escape", "density_shape": ``grid`` (a Grid, or ``grid(value)``), ``boundary`` ("reflecting"),
        ``flux``, ``advection`` and ``allow_wall_mass`` as in `solvers.FokkerPlanck`.
        "gap": ``level`` (per time) or ``ratio`` (`MARGINAL_RATIO`: that of a quartic well, exactly between one
        well and two).
        "escape": ``horizon`` (time), and ``target`` (predicate on coordinates) or ``boundary`` with an absorbing
        wall ("absorbing" if neither is given).
        "density_shape": ``prominence`` (1e-6) and ``floor`` (1e-9) as in `solvers.density_modes`.

    Returns
    -------
    Threshold
        Its stderr adds in squares what the search leaves, the sampling error and bias of a simulated exponent or
        the truncation of a spectral one, and the discretisation error, estimated from grids of twice and four
        times the spacing, each divided by the slope of the criterion. `evaluations` counts eigen-solves (of
        coarser grids too), densities, or simulations.

    Raises
    ------
    InvalidInput
        If a setting is unknown, missing or out of range, or the criterion is not crossed in the bracket: its values
        at both ends are told.
    ConvergenceFailure
        If an eigen-solve fails.

    Examples
    --------
    >>> from eos_sde.models import flip_normal_form
    >>> from solvers import Grid
    >>> onset = locate(lambda mu: flip_normal_form(mu, 1.0, 0.1), bracket=(-0.1, 0.2), criterion="gap",
    ...                grid=Grid.uniform(A=(-0.8, 0.8, 200)))
    >>> abs(float(onset)) < 1e-3
    True
    """
    if not callable(build):
        raise InvalidInput(
            f"build={build!r} is not callable; give a function of the value that returns the model"
        )
    ends = checked_bracket(bracket)
    tolerance = positive("tolerance", tolerance, "give the wanted fraction of the bracket, such as 1e-6")
    if tolerance >= 1:
        raise InvalidInput(
            f"tolerance={tolerance:g} is no fraction of the bracket; give a number below 1, such as 1e-6"
        )
    _check_settings(criterion, settings)
    return _SEARCHES[criterion](build, ends, criterion, tolerance, settings)


def _check_settings(criterion: str, settings: Mapping[str, Any]) -> None:
    if criterion not in _REQUIRED:
        raise InvalidInput(f"criterion={criterion!r} is unknown; choose {', '.join(map(repr, _REQUIRED))}")
    known = (*_REQUIRED[criterion], *_OPTIONAL[criterion])
    missing = [name for name in _REQUIRED[criterion] if name not in settings]
    if missing:
        raise InvalidInput(
            f"criterion {criterion!r} needs the setting {missing[0]!r}; its settings: {', '.join(known)}"
        )
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidInput(
            f"criterion {criterion!r} has no setting {unknown[0]!r}; its settings: {', '.join(known)}"
        )
