"""Sweeps over parameters inside one call of `simulate`: the points, and their results as one dataset."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from solvers.errors import InvalidInput

if TYPE_CHECKING:
    from solvers.sde import SDE

_SHARED = ("time", "component", "component2", "path", "lag", "q")


def sweep_points(
    sde: SDE, sweep: Mapping[str, Any], checkpoint: Any
) -> tuple[dict[str, np.ndarray], list[SDE]]:
    """The axes of a sweep and the model at each point of their product, the last axis fastest.

    Raises
    ------
    InvalidInput
        If the sweep is no mapping of parameter names to finite numbers.
    """
    if not isinstance(sweep, Mapping) or not sweep:
        raise InvalidInput(f"sweep={sweep!r}; give a mapping such as {{'k': [0.5, 1.0]}}")
    if checkpoint is not None:
        raise InvalidInput(
            "checkpoint cannot be combined with sweep; call simulate for each point with its own"
        )
    axes: dict[str, np.ndarray] = {}
    for name, values in sweep.items():
        try:
            axis = np.atleast_1d(np.asarray(values, dtype=float))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"sweep of {name!r} is {values!r}; give numbers") from error
        if axis.ndim != 1 or axis.size == 0 or not np.isfinite(axis).all():
            raise InvalidInput(f"sweep of {name!r} is {values!r}; give a list of finite numbers")
        if name in {*sde.names, *_SHARED}:
            raise InvalidInput(
                f"sweep over {name!r}: the result has a dimension of that name; rename the parameter"
            )
        axes[name] = axis
    points = [
        sde.replace(**{name: float(v) for name, v in zip(axes, values, strict=True)})
        for values in itertools.product(*axes.values())
    ]
    return axes, points


def combined(points: list[xr.Dataset], axes: dict[str, np.ndarray]) -> xr.Dataset:
    """The results at all points, with the axes as leading dimensions of every variable.

    The points are emptied.
    """
    results = [dict(point.data_vars) for point in points]
    coords, told = dict(points[0].coords), dict(points[0].attrs)
    points.clear()
    shape = tuple(axis.size for axis in axes.values())
    names = sorted({str(name) for result in results for name in result})
    data = {}
    for name in names:
        like = next(result[name] for result in results if name in result)
        complete = all(name in result for result in results)
        values = np.empty((len(results), *like.shape), like.dtype if complete else float)
        for k, result in enumerate(results):
            values[k] = result[name].values if name in result else np.nan
            result.pop(name, None)  # so that a sweep is held once, not twice
        data[name] = ((*axes, *like.dims), values.reshape(*shape, *like.shape), like.attrs)
    for name, axis in axes.items():
        coords[name] = (name, axis, {"units": "1", "long_name": f"parameter {name}"})  # type: ignore[assignment]
    attrs = {key: value for key, value in told.items() if key != "parameters"}
    return xr.Dataset(data, coords=coords, attrs=attrs | {"swept": ", ".join(axes)})
