"""Ensembles of simulated paths at many points: those that differ in one parameter of the SDE share one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.sweeps.evaluation import attempted
from eos_sde.sweeps.model_observables import split
from eos_sde.sweeps.quiet_threads import listened, point_threads

_MOST_STATES = 1 << 24
"""Paths of all points in one call."""


def ensemble(**given: Any) -> xr.Dataset:
    """Statistics of an ensemble of paths.

    Parameters
    ----------
    **given
        ``model`` and its parameters; ``y0``, ``paths``, ``seed``, ``statistics``, ``scheme``; ``t1``, ``dt``,
        ``save_at`` (times) of an SDE, or ``steps``, ``save_at`` (steps) of a map.

    Returns
    -------
    Dataset (component), or (time or step, component) with ``save_at``
        The statistics, at the end without ``save_at``; ``diverged``, the fraction of the paths.
    """
    from solvers import simulate

    sde, request, finish = _request(given)
    return finish(simulate(sde, request.pop("y0"), **request))


def ensembles(points: list[dict[str, Any]]) -> list[tuple[Any, list[str]]]:
    """The same at many points, with the bits that each has alone.

    Parameters
    ----------
    points : list of dict

    Returns
    -------
    list of (Dataset or exception, warnings)
    """
    found: list[tuple[Any, list[str]]] = []
    for group in _groups(points):
        try:
            found += _together(group)
        except Exception:  # whichever point it was, each tells its own reason
            found += [attempted(ensemble, point) for point in group]
    return found


def _groups(points: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Neighbours that differ in nothing but parameters of one model."""
    group: list[dict[str, Any]] = []
    for point in points:
        states = (len(group) + 1) * int(point["paths"])
        if group and (states > _MOST_STATES or _rest(point) != _rest(group[0])):
            yield group
            group = []
        group.append(point)
    if group:
        yield group


def _rest(point: Mapping[str, Any]) -> dict[str, Any]:
    return split(point["model"], point)[2]


def _together(group: list[dict[str, Any]]) -> list[tuple[Any, list[str]]]:
    from solvers import simulate

    requests = [_request(point) for point in group]
    sde, request, _ = requests[0]
    params = [tuple(one.params) for one, _, _ in requests]
    fields = getattr(sde.params, "_fields", ())
    varying = [k for k in range(len(fields)) if len({row[k] for row in params}) > 1]
    steps = {tuple(sorted((k, v) for k, v in r.items() if k in ("t1", "dt"))) for _, r, _ in requests}
    same = all(one.drift is sde.drift and one.diffusion is sde.diffusion for one, _, _ in requests)
    if len(group) == 1 or len(varying) != 1 or len(steps) > 1 or not same:
        return [attempted(ensemble, point) for point in group]
    name, values = fields[varying[0]], [row[varying[0]] for row in params]
    with listened():  # each point's own paths say below what the warning says of all together
        swept = simulate(sde, request.pop("y0"), sweep={name: values}, **request)
    return [
        (finish(swept.isel({name: k}, drop=True)), _divergence(swept.isel({name: k})))
        for k, (_, _, finish) in enumerate(requests)
    ]


def _divergence(result: xr.Dataset) -> list[str]:
    """The warning of `simulate`, of one point."""
    lost = result["diverged"].values
    if not lost.any():
        return []
    first = float(np.nanmin(result["divergence_time"].values))
    return [
        f"AccuracyWarning: {int(lost.sum())} of {lost.size} paths diverged, the first by t={first:.6g}; they are part "
        "of the statistics and marked in `diverged`: reduce dt or check the model"
    ]


def _request(given: Mapping[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """The SDE, the arguments of `simulate`, and what makes its result that of a point."""
    chosen, parameters, settings = split(given["model"], given)
    del settings["model"]
    saved, threads = settings.pop("save_at", None), point_threads()
    if chosen.discrete:
        rule = chosen.build_map(**parameters)
        steps, step = settings.pop("steps"), rule.dt
        request = {
            **settings, "t1": steps * step, "dt": step, "allow_unstable_step": True,
            "save_at": [k * step for k in saved or [steps]],
        }  # fmt: skip
        return rule.sde, request | {"threads": threads}, lambda result: _finished(result, saved, "step")
    request = {**settings, "save_at": saved or [settings["t1"]], "threads": threads}
    return chosen.build(**parameters), request, lambda result: _finished(result, saved, "time")


def _finished(result: xr.Dataset, saved: list[float] | None, axis: str) -> xr.Dataset:
    diverged = result["diverged"]
    kept = result.drop_vars(["diverged", "final", "divergence_time", "path"], errors="ignore")
    if saved is None:
        kept = kept.isel(time=-1, drop=True)
    elif axis == "step":
        steps = ("step", np.asarray(saved), {"units": "1", "long_name": "steps"})
        kept = kept.rename(time="step").assign_coords(step=steps)
    about = {"units": "1", "long_name": "fraction of the paths that left the finite numbers"}
    return kept.assign(diverged=((), float(diverged.mean()), about))
