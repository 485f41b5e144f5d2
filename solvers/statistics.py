"""Merging the results of blocks in a fixed order, and the datasets that users see."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from solvers import wiener
from solvers.errors import AccuracyWarning
from solvers.provenance import provenance

if TYPE_CHECKING:
    from solvers.request import Request


class Moments:
    """Means and summed products of deviations, merged block by block (Chan, Golub, LeVeque 1983).

    Blocks are always merged one at a time and in the order of their paths: the result has the same bits
    however they were spread over chunks and threads.
    """

    def __init__(self, times: int, d: int, pairs: bool):
        self.count = 0
        self.mean = np.zeros((times, d))
        rows, columns = np.triu_indices(d) if pairs else (np.arange(d), np.arange(d))
        self._rows, self._columns = rows, columns
        self.second = np.zeros((times, rows.size))

    def merge(self, mean: np.ndarray, second: np.ndarray, count: int) -> None:
        """Add one block of `count` paths: its means (times, d) and sums (times, q)."""
        total = self.count + count
        with np.errstate(invalid="ignore", over="ignore"):  # diverged paths are reported, not hidden
            shift = mean - self.mean
            weight = self.count * count / total
            self.second += second + weight * shift[:, self._rows] * shift[:, self._columns]
            self.mean += shift * (count / total)
        self.count = total

    def variance(self) -> np.ndarray:
        """(times, d), divided by the number of paths."""
        return self.second[:, self._rows == self._columns] / self.count

    def covariance(self) -> np.ndarray:
        """(times, d, d), divided by the number of paths."""
        times, d = self.mean.shape
        full = np.empty((times, d, d))
        full[:, self._rows, self._columns] = full[:, self._columns, self._rows] = self.second / self.count
        return full


def dataset(
    request: Request,
    *,
    convention: str,
    moments: Moments,
    final: np.ndarray,
    diverged: np.ndarray,
    states: np.ndarray,
    counts: np.ndarray | None,
    exits: np.ndarray | None,
) -> xr.Dataset:
    """The result of `simulate`; warns if any path diverged."""
    names = list(request.sde.names)
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {
        "time": ("time", request.times, {"units": "time", "long_name": "time"}),
        "component": ("component", names, {"long_name": "component of the state"}),
        "path": ("path", np.arange(request.paths), {"units": "1", "long_name": "path number"}),
    }
    if "mean" in request.statistics:
        data["mean"] = (("time", "component"), moments.mean, _about("mean over the paths"))
    if "variance" in request.statistics:
        about = _about("variance over the paths, divided by their number")
        data["variance"] = (("time", "component"), moments.variance(), about)
    if "covariance" in request.statistics:
        about = _about("covariance over the paths, divided by their number")
        coords["component2"] = ("component2", names, {"long_name": "component of the state"})
        data["covariance"] = (("time", "component", "component2"), moments.covariance(), about)
    data["final"] = (("path", "component"), final, _about("state at the end of the run"))
    bad = diverged >= 0
    data["diverged"] = ("path", bad, _about("whether the path left the finite numbers"))
    if request.save_paths:
        data["state"] = (("path", "time", "component"), states, _about("state"))
    if counts is not None:
        data.update(_density(request, counts, coords))
    if exits is not None:
        found = request.stop is not None and request.stop.components.size > 0
        how = "inside steps by a Brownian bridge" if found else "at the end of a step"
        data["exit_time"] = (
            "path",
            exits,
            {
                "units": "time",
                "long_name": "time of first meeting the stop condition, nan if never",
                "found": how,
            },
        )
        data["exited"] = ("path", ~np.isnan(exits), _about("whether the stop condition was met"))
    if bad.any():
        first = request.t0 + diverged[bad].min() * request.dt
        warnings.warn(
            f"{bad.sum()} of {request.paths} paths diverged, the first by t={first:.6g}; they are part of "
            "the statistics and marked in `diverged`: reduce dt or check the model",
            AccuracyWarning,
            stacklevel=4,
        )
    attrs = provenance(
        title="ensemble of SDE paths",
        convention=convention,
        scheme=request.scheme.name,
        noise=request.sde.noise,
        dt=request.dt,
        t0=request.t0,
        steps=request.steps,
        paths=request.paths,
        seed=request.seed,
        generator=f"threefry2x64-{wiener.ROUNDS}, Box-Muller from 53-bit uniforms",
        parameters=repr(request.sde.params),
    )
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _density(request: Request, counts: np.ndarray, coords: dict[str, Any]) -> dict[str, Any]:
    """Density per cell volume, and the fraction of paths off the grid."""
    grid = request.grid
    shape = tuple(grid.shape)
    for name in grid.names:
        coords[name] = (
            name,
            grid.centers[name],
            {"units": "1", "long_name": f"centre of the cells in {name}"},
        )
    density = counts.reshape(-1, *shape) / (request.paths * grid.volumes)
    outside = 1.0 - counts.sum(axis=1) / request.paths
    return {
        "density": (("time", *grid.names), density, _about("probability density (histogram)")),
        "outside": ("time", outside, _about("fraction of the paths off the grid")),
    }


def _about(long_name: str) -> dict[str, str]:
    return {"units": "1", "long_name": long_name}
