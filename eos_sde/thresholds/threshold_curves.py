"""Thresholds of a model of the catalogue, one or a curve of them, as datasets with the closed form beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.models.registry import Model
from eos_sde.thresholds.automatic_grids import automatic_grid, common_grid
from eos_sde.thresholds.catalogue_thresholds import CRITERIA, GROWTH, closed_form, refuse_unavailable
from eos_sde.thresholds.crossing import locate
from eos_sde.thresholds.result import Threshold
from eos_sde.thresholds.spectral_crossing import MARGINAL_RATIO
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.provenance import provenance


def threshold_curve(
    model: Model,
    parameters: Mapping[str, float],
    *,
    over: str,
    bracket: tuple[float, float],
    criterion: str,
    along: tuple[str, Sequence[float]] | None = None,
    progress: Callable[[float], Any] | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Locate a threshold of a model of the catalogue, or one at each value of a second parameter.

    Parameters
    ----------
    model : Model
    parameters : mapping of str to float
        Without `over` and the second parameter; those with defaults may be left out.
    over : str
        Parameter whose threshold is looked for.
    bracket : (float, float)
        Between which values.
    criterion : str
        One of `CRITERIA`.
    along : (name, values), optional
        The second parameter.
    progress : callable, optional
        Called with the finished fraction.
    **settings
        Of `locate`. Left out, "at" is the model's fixed point and "grid" is chosen from the model at both ends of the
        bracket; "escape" needs one. The additive noise of a linear model is left out of criteria of growth, which it
        does not change.

    Returns
    -------
    Dataset
        ``threshold``, ``stderr``, ``evaluations``, ``closed_form`` (NaN where none is known), ``method``,
        ``closed_form_method`` and ``reason`` (why there is no threshold), over the second parameter or nothing.

    Raises
    ------
    InvalidInput
        If the model does not have the criterion, a parameter or setting is unusable, or there is no threshold at any
        value.
    ConvergenceFailure
        If no threshold could be computed for that reason.
    """
    name, values = along if along is not None else ("", [math.nan])
    fixed = _others(model, parameters, over, name, values, criterion, settings)
    results, failures = [], []
    for done, value in enumerate(values):
        here = fixed | ({name: float(value)} if name else {})
        known = closed_form(model, criterion, over, here, bracket, **settings)
        try:
            results.append((_located(model, here, over, bracket, criterion, settings), known, ""))
        except (InvalidInput, ConvergenceFailure) as error:
            # told in the dataset; raised below where nothing else was found
            results.append((None, known, str(error)))
            failures.append(error)
        if progress is not None:
            progress((done + 1) / len(values))
    if len(failures) == len(values):
        raise failures[0]
    table = _table(results, model, over, name, values)
    return table.assign_attrs(
        provenance(
            kind="threshold", model=model.name, criterion=criterion, meaning=_meaning(criterion, settings), over=over,
            bracket=json.dumps(list(bracket)), parameters=json.dumps(fixed), along=name,
            source=next(found.source for found, _, _ in results if found is not None),
            **{key: settings[key] for key in ("p", "level", "ratio", "horizon", "seed") if key in settings},
        )
    )  # fmt: skip


def _meaning(criterion: str, settings: Mapping[str, Any]) -> str:
    """What the threshold is of, with the numbers that it was asked for."""
    if criterion == "moment":
        order = float(settings.get("p", 2.0))
        return f"the moment Lyapunov exponent Lambda({order:g}) at the fixed point is 0" + (
            " (mean-square)" if order == 2 else ""
        )
    if criterion == "gap" and "level" in settings:
        return f"the spectral gap is {settings['level']:g} per time"
    if criterion == "gap":
        return (
            f"the second decay rate is {float(settings.get('ratio', MARGINAL_RATIO)):.6g} times the slowest"
        )
    if criterion == "escape":
        return f"one escape is expected in a time of {settings['horizon']:g}"
    return CRITERIA[criterion]


def _others(
    model: Model,
    parameters: Mapping[str, float],
    over: str,
    name: str,
    values: Sequence[float],
    criterion: str,
    settings: Mapping[str, Any],
) -> dict[str, float]:
    """All parameters but the one that is varied and the second; refuses what cannot be asked."""
    for varied in (over, *([name] if name else [])):
        if varied in parameters:
            raise InvalidInput(f"{varied} is both given and varied; leave out one of the two")
    if over == name:
        raise InvalidInput(f"{over} cannot be varied and run along at once; choose another parameter")
    if name and name not in model.parameters:
        raise InvalidInput(
            f"model {model.name!r} has no parameter {name!r}; it has {', '.join(model.parameters)}"
        )
    farthest = {name: max(values, key=abs)} if name else {}
    known = {over: 1.0} if over in model.parameters else {}
    whole = model.complete(**parameters, **farthest, **known)
    whole.pop(over, None)
    refuse_unavailable(model, criterion, over, whole, level=settings.get("level"))
    if criterion == "escape" and "grid" not in settings:
        raise InvalidInput("criterion 'escape' needs a grid: its walls are what is escaped through")
    if criterion in GROWTH and model.linear:
        whole["noise"] = 0.0
    whole.pop(name, None)
    return whole


def _located(
    model: Model,
    parameters: Mapping[str, float],
    over: str,
    bracket: tuple[float, float],
    criterion: str,
    settings: Mapping[str, Any],
) -> Threshold:
    def build(value: float) -> Any:
        make = model.build_map if model.discrete else model.build
        return make(**parameters, **{over: value})

    chosen = dict(settings)
    if criterion in GROWTH:
        point = model.fixed_point or {}
        chosen.setdefault("at", tuple(point.values()))
    elif "grid" not in chosen:
        walls = chosen.get("boundary", "reflecting")
        ends = [automatic_grid(build(end), start=model.start, boundary=walls) for end in bracket]
        chosen["grid"] = common_grid(ends)
    if criterion not in GROWTH and not model.discrete and len(model.components) > 1:
        chosen.setdefault("advection", "second-order")
    return locate(build, bracket=bracket, criterion=criterion, **chosen)


def _table(
    results: list[tuple[Threshold | None, Threshold | None, str]],
    model: Model,
    over: str,
    name: str,
    values: Sequence[float],
) -> xr.Dataset:
    units = {"units": "1"}
    found = [result for result, _, _ in results]
    known = [formula for _, formula, _ in results]
    columns: dict[str, tuple[list[Any], dict[str, str]]] = {
        "threshold": (
            [math.nan if t is None else t.value for t in found],
            {"long_name": f"threshold in {over}"},
        ),
        "stderr": ([math.nan if t is None else t.stderr for t in found], {"long_name": "its error"}),
        "evaluations": (
            [0 if t is None else t.evaluations or 0 for t in found],
            {"long_name": "eigen-solves, densities or simulations"},
        ),
        "closed_form": (
            [math.nan if t is None else t.value for t in known],
            {"long_name": f"threshold in {over} in closed form"},
        ),
        "method": (["" if t is None else t.method for t in found], {"long_name": "how it was computed"}),
        "closed_form_method": (["" if t is None else t.method for t in known], {"long_name": "formula"}),
        "reason": ([reason for _, _, reason in results], {"long_name": "why there is no threshold"}),
    }
    contents = {
        key: ((name,), column, units | text) if name else ((), column[0], units | text)
        for key, (column, text) in columns.items()
    }
    if not name:
        return xr.Dataset(contents)
    return xr.Dataset(
        contents,
        coords={name: (name, np.asarray(values, float), units | {"long_name": model.parameters[name]})},
    )
