"""The datasets that users of `simulate` see."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from solvers.errors import AccuracyWarning
from solvers.exit_times import level_attributes
from solvers.observers import about
from solvers.provenance import provenance
from solvers.request import TITLE

if TYPE_CHECKING:
    from solvers.request import Request
    from solvers.running import Run


def dataset(run: Run, *, convention: str) -> xr.Dataset:
    """The result of one run of `simulate`."""
    request = run.request
    names = list(request.sde.names)
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {
        "time": ("time", request.times, {"units": "time", "long_name": "time"}),
        "component": ("component", names, {"long_name": "component of the state"}),
        # A range takes no memory.
        "path": xr.Variable("path", pd.RangeIndex(request.paths), about("path number")),
    }
    if "mean" in request.statistics:
        data["mean"] = (("time", "component"), run.moments.mean, about("mean over the paths"))
    if "variance" in request.statistics:
        text = about("variance over the paths, divided by their number")
        data["variance"] = (("time", "component"), run.moments.variance(), text)
    if "covariance" in request.statistics:
        text = about("covariance over the paths, divided by their number")
        coords["component2"] = ("component2", names, {"long_name": "component of the state"})
        data["covariance"] = (("time", "component", "component2"), run.moments.covariance(), text)
    if "mean_stderr" in request.statistics:
        text = about("standard error of the mean over the paths")
        data["mean_stderr"] = (("time", "component"), run.moments.stderr(), text)
    data["final"] = (("path", "component"), run.final, about("state at the end of the run"))
    bad = run.diverged >= 0
    data["diverged"] = ("path", bad, about("whether the path left the finite numbers"))
    if bad.any():
        when = np.where(bad, request.t0 + run.diverged * request.dt, np.nan)
        text = about("end of the step at which the path left the finite numbers, nan if never", "time")
        data["divergence_time"] = ("path", when, text)
    if request.save_paths and not request.to_store:
        data["state"] = (("path", "time", "component"), run.states, about("state"))
    if run.exits is not None:
        data.update(_exits(request, run.exits))
    for observer in run.observers:
        data.update(observer.variables(request, coords))
    attrs = provenance(
        title=TITLE,
        convention=convention,
        scheme=request.scheme.name,
        scheme_reason=request.scheme_reason,
        noise=request.sde.noise,
        dt=request.dt,
        t0=request.t0,
        steps=request.last_step,
        paths=request.paths,
        seed=request.seed,
        **run.source.about,
        parameters=repr(request.sde.params),
    )
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _exits(request: Request, exits: np.ndarray) -> dict[str, Any]:
    found = request.stop is not None and request.stop.components.size > 0
    text = about("time of first meeting the stop condition, nan if never", "time")
    text["found"] = "inside steps by a Brownian bridge" if found else "at the end of a step"
    if request.stop is not None:
        text |= level_attributes(request.stop, request.sde.names)
    return {
        "exit_time": ("path", exits, text),
        "exited": ("path", ~np.isnan(exits), about("whether the stop condition was met")),
    }


def warn_of_divergence(results: list[xr.Dataset]) -> None:
    """Warn, once for all, if paths left the finite numbers."""
    bad = [result for result in results if "divergence_time" in result]
    if bad:
        count = sum(int(result["diverged"].sum()) for result in bad)
        total = sum(result.sizes["path"] for result in results)
        first = min(float(result["divergence_time"].min()) for result in bad)
        warnings.warn(
            f"{count} of {total} paths diverged, the first by t={first:.6g}; they are part of "
            "the statistics and marked in `diverged`: reduce dt or check the model",
            AccuracyWarning,
            stacklevel=3,
        )
