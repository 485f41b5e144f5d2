"""Decay rates of a model of the catalogue along a parameter: how its gap opens and closes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.models.registry import Model
from eos_sde.thresholds.model_spectra import model_spectrum
from solvers import ConvergenceFailure, InvalidInput
from solvers.provenance import provenance


def spectrum_curve(
    model: Model,
    parameters: Mapping[str, float],
    *,
    along: tuple[str, Sequence[float]],
    modes: int = 6,
    progress: Callable[[float], Any] | None = None,
    **settings: Any,
) -> xr.Dataset:
    """The slowest modes of a model at each value of a parameter.

    Parameters
    ----------
    model : Model
    parameters : mapping of str to float
        Without the one that is varied.
    along : (name, values)
        The parameter that is varied.
    modes : int
        How many, at least 2.
    progress : callable, optional
        Called with the finished fraction.
    **settings
        grid, boundary and method, as for `model_spectrum`; without a grid each value gets its own.

    Returns
    -------
    Dataset
        ``decay_rate`` and ``frequency`` (of the phase, per time), ``residual`` over the parameter and the mode, slowest
        first, ``gap`` and ``reason`` (why there is no spectrum) over the parameter.

    Raises
    ------
    InvalidInput
        If a parameter or setting is unusable, or there is no spectrum at any value.
    ConvergenceFailure
        If no spectrum could be computed for that reason.
    """
    name, values = along
    if name in parameters:
        raise InvalidInput(f"{name} is both given and varied; leave out one of the two")
    if name not in model.parameters:
        raise InvalidInput(
            f"model {model.name!r} has no parameter {name!r}; it has {', '.join(model.parameters)}"
        )
    shape = (len(values), modes) if modes > 0 else (len(values), 0)
    columns = {key: np.full(shape, np.nan) for key in ("decay_rate", "frequency", "residual")}
    gaps, reasons, failures = np.full(len(values), np.nan), [""] * len(values), []
    for i, value in enumerate(values):
        try:
            found = model_spectrum(model, {**parameters, name: float(value)}, modes=modes, **settings)
        except (InvalidInput, ConvergenceFailure) as error:
            # told in the dataset; raised below where nothing else was found
            reasons[i] = str(error)
            failures.append(error)
        else:
            rates, frequencies = rates_of(found)
            columns["decay_rate"][i], columns["frequency"][i] = rates[:modes], frequencies[:modes]
            columns["residual"][i], gaps[i] = found["residual"].values[:modes], float(found["gap"])
        if progress is not None:
            progress((i + 1) / len(values))
    if len(failures) == len(values):
        raise failures[0]
    per_time = {"units": "1/time"}
    texts = {
        "decay_rate": per_time | {"long_name": "decay rate"},
        "frequency": per_time | {"long_name": "change of the phase per time"},
        "residual": {"units": "1", "long_name": "backward error of the eigenpair"},
    }
    return xr.Dataset(
        {key: ((name, "mode"), column, texts[key]) for key, column in columns.items()}
        | {
            "gap": (name, gaps, per_time | {"long_name": "decay rate of the slowest decaying mode"}),
            "reason": (name, reasons, {"units": "1", "long_name": "why there is no spectrum"}),
        },
        coords={
            name: (name, np.asarray(values, float), {"units": "1", "long_name": model.parameters[name]}),
            "mode": ("mode", np.arange(shape[1]), {"units": "1", "long_name": "mode, slowest first"}),
        },
        attrs=provenance(
            kind="spectra", model=model.name, description=model.description, along=name,
            parameters=json.dumps({k: v for k, v in {**model.defaults, **parameters}.items() if k != name}),
        ),
    )  # fmt: skip


def rates_of(spectrum: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Decay rate and change of the phase per time of every mode of a spectrum.

    Parameters
    ----------
    spectrum : Dataset
        From `model_spectrum`.

    Returns
    -------
    tuple of ndarray
        Both of shape (modes,) and not negative; the rate of a mode that is zero by structure is 0.
    """
    values, step = spectrum["eigenvalue"].values.astype(complex), spectrum.attrs.get("step")
    if step is None:
        rates, turning = -values.real, np.abs(values.imag)
    else:
        size = np.abs(values)
        rates = np.full(size.shape, np.inf)
        np.log(size, out=rates, where=size > 0)
        rates, turning = np.where(size > 0, -rates, np.inf) / step, np.abs(np.angle(values)) / step
    rates[: int(spectrum.attrs["zero_modes"])] = 0.0
    return rates, turning
