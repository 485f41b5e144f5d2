"""What the models of the catalogue show at one point: spectra, moments, exponents, thresholds, escape rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.models.registry import Model, catalogue
from eos_sde.sweeps.quiet_threads import listened, point_threads
from solvers.errors import InvalidInput

_ONE = {"units": "1"}


def split(model: str, given: Mapping[str, Any]) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """The model, its parameters, and the other settings."""
    chosen = catalogue()[model]
    parameters = {key: value for key, value in given.items() if key in chosen.parameters}
    return chosen, parameters, {key: value for key, value in given.items() if key not in parameters}


def operator_of(model: str, grid: Mapping[str, Any], boundary: Any, parameters: Mapping[str, Any]) -> Any:
    """The generator of a model on a grid, or the transfer operator of a map."""
    from solvers import FokkerPlanck, Grid, TransferOperator

    chosen = catalogue()[model]
    cells = Grid.uniform(**{name: tuple(axis) for name, axis in grid.items()})
    walls = boundary if isinstance(boundary, str) else {name: tuple(pair) for name, pair in boundary.items()}
    if chosen.discrete:
        rule = chosen.build_map(**parameters)
        return TransferOperator(rule.sde, cells, step=rule.dt, boundary=walls)
    return FokkerPlanck(chosen.build(**parameters), cells, boundary=walls)


def gap(
    *, model: str, grid: Mapping[str, Any], boundary: Any = "reflecting", **parameters: Any
) -> xr.DataArray:
    """The slowest nonzero decay rate.

    Returns
    -------
    DataArray
        ``gap``, in 1/time.
    """
    from solvers import eigenmodes

    operator = operator_of(model, grid, boundary, parameters)
    return eigenmodes(operator, k=2)["gap"].rename("gap").reset_coords(drop=True)


def spectrum(
    *, model: str, grid: Mapping[str, Any], boundary: Any = "reflecting", k: int = 6, **parameters: Any
) -> xr.Dataset:
    """The k slowest eigenvalues.

    Returns
    -------
    Dataset (mode)
        ``eigenvalue_real``, ``eigenvalue_imag``; ``gap``.
    """
    from solvers import eigenmodes

    found = eigenmodes(operator_of(model, grid, boundary, parameters), k=k).isel(mode=slice(k))
    table = _eigenvalues(found.eigenvalue.values, found.eigenvalue.attrs.get("units", "1/time"))
    return table.assign(gap=found["gap"].reset_coords(drop=True))


def followed(points: list[dict[str, Any]]) -> list[tuple[Any, list[str]]]:
    """The modes that are slowest at the first point of a line, each followed along it by `solvers.continuation`.

    Parameters
    ----------
    points : list of dict
        One whole line, in order.

    Returns
    -------
    list of (Dataset, warnings)
        ``eigenvalue_real``, ``eigenvalue_imag``, ``overlap`` (mode): what happens along the line is told at its first
        point.
    """
    from solvers import continuation

    line, k = points[0]["follow"], points[0].get("k", 6)
    values = [point[line] for point in points]
    held = {key: value for key, value in points[0].items() if key not in {line, "follow", "k"}}

    def build(value: float) -> Any:
        given: dict[str, Any] = {"boundary": "reflecting"} | held | {line: value}
        model, grid, boundary = (given.pop(name) for name in ("model", "grid", "boundary"))
        return operator_of(model, grid, boundary, given)

    with listened() as heard:
        try:
            found = continuation(build, values, k=k, name=line, keep_vectors=False).isel(mode=slice(k))
        except Exception as failure:  # one line of many: its text is kept, and the others go on
            return [(failure, heard)] * len(points)
    units = found.eigenvalue.attrs.get("units", "1/time")
    tables = [
        _eigenvalues(found.eigenvalue.values[n], units).assign(
            overlap=("mode", found.overlap.values[n], dict(_ONE))
        )
        for n in range(len(points))
    ]
    return [(table, heard if n == 0 else []) for n, table in enumerate(tables)]


def _eigenvalues(values: np.ndarray, units: str) -> xr.Dataset:
    real, imaginary = np.real(values).astype(float), np.imag(values).astype(float)
    return xr.Dataset(
        {
            "eigenvalue_real": ("mode", real, {"units": units, "long_name": "eigenvalue, real part"}),
            "eigenvalue_imag": (
                "mode",
                imaginary,
                {"units": units, "long_name": "eigenvalue, imaginary part"},
            ),
        },
        coords={"mode": ("mode", np.arange(len(values)), _ONE | {"long_name": "number of the mode"})},
    )


def moments(
    *, model: str, grid: Mapping[str, Any], boundary: Any = "reflecting", **parameters: Any
) -> xr.Dataset:
    """Mean and covariance of the stationary density.

    Returns
    -------
    Dataset (component, component2)
        ``mean``, ``variance``, ``covariance``.
    """
    from solvers import stationary_density

    operator = operator_of(model, grid, boundary, parameters)
    masses = stationary_density(operator).values * operator.grid.volumes
    names = list(operator.grid.names)
    centres = [operator.grid.coordinates()[name] for name in names]
    at = np.meshgrid(
        *(np.asarray(one[1] if isinstance(one, tuple) else one) for one in centres), indexing="ij"
    )
    mean = np.array([np.sum(masses * x) for x in at])
    offset = [x - m for x, m in zip(at, mean, strict=True)]
    covariance = np.array([[np.sum(masses * a * b) for b in offset] for a in offset])
    about = {"long_name": "component of the state"}
    return xr.Dataset(
        {
            "mean": ("component", mean, _ONE | {"long_name": "stationary mean"}),
            "variance": (
                "component",
                np.diag(covariance).copy(),
                _ONE | {"long_name": "stationary variance"},
            ),
            "covariance": (
                ("component", "component2"),
                covariance,
                _ONE | {"long_name": "stationary covariance"},
            ),
        },
        coords={"component": ("component", names, about), "component2": ("component2", names, about)},
    )


def escape(
    *, model: str, grid: Mapping[str, Any], boundary: Any = "absorbing", **parameters: Any
) -> xr.DataArray:
    """The rate at which a population that has lasted long leaves the grid.

    Returns
    -------
    DataArray
        ``rate``, in 1/time.
    """
    from solvers import escape_rate

    return escape_rate(operator_of(model, grid, boundary, parameters))["rate"].reset_coords(drop=True)


def lyapunov(*, model: str, at: Any, **given: Any) -> xr.Dataset:
    """The top Lyapunov exponent at a fixed point.

    Returns
    -------
    Dataset
        ``value``, ``stderr``, in 1/time.
    """
    from solvers import lyapunov_exponent

    _, parameters, settings = split(model, given)
    found = lyapunov_exponent(_continuous(model, parameters), at=at, **_threads(settings))
    return found[["value", "stderr"]].reset_coords(drop=True)


def moment_lyapunov(*, model: str, at: Any, p: Any = 2.0, **given: Any) -> xr.Dataset:
    """The growth rate of E|y|^p at a fixed point.

    Returns
    -------
    Dataset
        ``value``, ``stderr``, in 1/time; over p where it is a list.
    """
    from solvers import moment_lyapunov_exponent

    _, parameters, settings = split(model, given)
    found = moment_lyapunov_exponent(_continuous(model, parameters), p, at=at, **_threads(settings))
    about = {"units": "1/time", "long_name": "moment Lyapunov exponent"}
    error = {"units": "1/time", "long_name": "standard error"}
    values, errors = np.atleast_1d(found.values), np.atleast_1d(found["stderr"].values)
    if np.ndim(p) == 0:
        return xr.Dataset({"value": ((), values[0], about), "stderr": ((), errors[0], error)})
    coords = {"p": ("p", np.asarray(p, dtype=float), _ONE | {"long_name": "order of the moment"})}
    return xr.Dataset({"value": ("p", values, about), "stderr": ("p", errors, error)}, coords=coords)


def threshold(*, model: str, over: str, bracket: Any, criterion: str, **given: Any) -> xr.Dataset:
    """Where a model meets a stability criterion, by `eos_sde.thresholds.locate`.

    Returns
    -------
    Dataset
        ``value``, ``stderr``, in the units of the parameter that is sought.
    """
    from eos_sde.thresholds import locate
    from solvers import Grid

    chosen, parameters, settings = split(model, given)
    if "grid" in settings:
        settings["grid"] = Grid.uniform(**{name: tuple(axis) for name, axis in settings["grid"].items()})

    def build(value: float) -> Any:
        made = {**parameters, over: value}
        return chosen.build_map(**made) if chosen.discrete else chosen.build(**made)

    found = locate(build, bracket=tuple(bracket), criterion=criterion, **settings)
    return xr.Dataset(
        {
            "value": ((), found.value, _ONE | {"long_name": f"threshold of {over}"}),
            "stderr": ((), found.stderr, _ONE | {"long_name": "its standard error"}),
        }
    )


def _continuous(model: str, parameters: Mapping[str, Any]) -> Any:
    chosen = catalogue()[model]
    if chosen.discrete:
        raise InvalidInput(f"model={model!r} is a map; its exponent vanishes at the observable 'threshold'")
    return chosen.build(**parameters)


def _threads(settings: Mapping[str, Any]) -> dict[str, Any]:
    return (
        {**settings, "threads": point_threads()} if settings.get("method") == "simulation" else dict(settings)
    )
