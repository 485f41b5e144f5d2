"""Points evaluated: what a function returns becomes arrays of one shape, what it raises or warns of becomes text."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eos_sde.store.layout import DONE, FAILED, RESERVED, Batch, Template, Variable
from eos_sde.sweeps.quiet_threads import as_worker, listened, one_blas_thread
from solvers.errors import InvalidInput

VALUE = "value"
"""Name of the variable of a function that returns one number."""
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}")
_LONGEST = 2000
Outcome = tuple[Any, list[str]]
"""What a point gave, or the exception that it raised; and its warnings."""


@dataclass(frozen=True)
class Job:
    """What is done at every point; travels to the workers.

    Attributes
    ----------
    function : callable
        Of the point's parameters and the settings, by name.
    settings : mapping
        The same at every point.
    together : callable, optional
        Instead: of a list of points, all settings included, to a list of outcomes, with the bits that each has alone.
    template : Template, optional
        What the results must look like.
    shared : bool
        Whether the point has the machine to itself; kernels of a worker keep to one thread.
    """

    function: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    together: Callable[[list[dict[str, Any]]], list[Outcome]] | None = None
    template: Template | None = None
    shared: bool = False

    def with_template(self, template: Template) -> Job:
        """The same, whose results must look so."""
        return replace(self, template=template)


def outcomes(job: Job, points: list[dict[str, Any]], seconds: float = math.inf) -> list[Outcome]:
    """What each point gives, computed with one thread of BLAS.

    Parameters
    ----------
    job : Job
    points : list of dict
        Their parameters.
    seconds : float
        No point but the first is begun later than this. Points that are computed together all are.

    Returns
    -------
    list of (result or exception, warnings)
        Of the first points; of all, unless the time is over before.
    """
    full, until = [{**job.settings, **point} for point in points], time.monotonic() + seconds
    with one_blas_thread(), as_worker() if job.shared else nullcontext():
        if job.together is not None:
            return job.together(full)
        found = []
        for point in full:
            if found and time.monotonic() > until:
                break
            found.append(attempted(job.function, point))
        return found


def attempted(function: Callable[..., Any], point: Mapping[str, Any]) -> Outcome:
    """What a function gives at a point, or the exception that it raises; and its warnings."""
    with listened() as heard:
        try:
            found = function(**point)
        except Exception as failure:  # one point of many: its text is kept, and the others go on
            found = failure
    return found, heard


def evaluate(
    job: Job, numbers: NDArray[np.int64], columns: Mapping[str, list], seconds: float = math.inf
) -> Batch:
    """Evaluate some points: this is what a worker does.

    Parameters
    ----------
    job : Job
        With a template.
    numbers : ndarray of int64
        Of the points.
    columns : mapping of str to list
        Their parameters.
    seconds : float
        As for `outcomes`.

    Returns
    -------
    Batch
        Of the first points; of all, unless the time is over before.
    """
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    found = outcomes(job, rows, seconds)
    return packed(job, numbers[: len(found)], found)


def packed(job: Job, numbers: NDArray[np.int64], found: Sequence[Outcome]) -> Batch:
    """Outcomes as a batch; those that do not look like the template have failed."""
    template = job.template
    assert template is not None
    n = len(numbers)
    columns = {
        name: np.full((n, *one.shape), _missing(one.dtype), one.dtype)
        for name, one in template.variables.items()
    }
    status = np.full(n, DONE, np.uint8)
    errors, warnings = [""] * n, [""] * n
    for k, (value, heard) in enumerate(found):
        warnings[k] = _plain("\n".join(heard))
        try:
            if isinstance(value, Exception):
                raise value
            _fill(template, as_arrays(value), columns, k)
        except Exception as failure:
            status[k], errors[k] = FAILED, in_words(failure)
            for name, one in template.variables.items():
                columns[name][k] = _missing(one.dtype)
    return Batch(np.asarray(numbers, np.int64), status, errors, warnings, columns)


def in_words(failure: BaseException) -> str:
    """The text that is kept of an exception, without addresses in memory."""
    return _plain(f"{type(failure).__name__}: {failure}")


def _plain(text: str) -> str:
    return _ADDRESS.sub("0x...", text)[:_LONGEST]


def _missing(dtype: np.dtype) -> complex | float:
    return complex(np.nan, np.nan) if dtype.kind == "c" else np.nan


@dataclass(frozen=True)
class Arrays:
    """One result as arrays."""

    template: Template
    values: Mapping[str, NDArray]


def as_arrays(value: Any) -> Arrays:
    """A number, a mapping of numbers, a DataArray or a Dataset as arrays of float64 or complex128.

    Raises
    ------
    InvalidInput
        If it is something else.
    """
    if isinstance(value, xr.DataArray):
        value = value.to_dataset(name=value.name if isinstance(value.name, str) else VALUE)
    if isinstance(value, xr.Dataset):
        parts = {str(name): (one.dims, one.values, one.attrs) for name, one in value.data_vars.items()}
        coords = {
            str(name): (tuple(map(str, one.dims)), _coordinate(one.values), _attributes(one.attrs))
            for name, one in value.coords.items()
            if one.dims
        }
        attrs = {k: v for k, v in _attributes(value.attrs).items() if k == "convention"}  # others may vary
    else:
        numbers = value if isinstance(value, Mapping) else {VALUE: value}
        parts, coords, attrs = {str(name): ((), one, {}) for name, one in numbers.items()}, {}, {}
    if not parts:
        raise InvalidInput(
            "the function returned nothing; return a number, a mapping of numbers or a Dataset"
        )
    values = {name: _numbers(name, one, len(dims)) for name, (dims, one, _) in parts.items()}
    variables = {
        name: Variable(tuple(map(str, dims)), values[name].shape, values[name].dtype, _attributes(about))
        for name, (dims, _, about) in parts.items()
    }
    for name in {*variables, *coords} & {*RESERVED}:
        raise InvalidInput(
            f"the function returned a variable {name!r}, which the result needs for itself; rename it"
        )
    return Arrays(Template(variables, coords, attrs), values)


def _numbers(name: str, value: Any, dimensions: int) -> NDArray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInput(f"the function returned {name}={value!r}, which is no number") from error
    if array.dtype.kind not in "biufc":
        raise InvalidInput(
            f"the function returned {name} of type {type(value).__name__}; return a number, a mapping of numbers, a "
            "DataArray or a Dataset"
        )
    if array.ndim != dimensions:
        raise InvalidInput(
            f"the function returned {name} of shape {array.shape}; return a DataArray, which names its dimensions"
        )
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if array.dtype.kind in "iu" and ((array > 2**53) | (array < -(2**53))).any():
        raise InvalidInput(f"the function returned {name} beyond 2^53, which float64 does not hold exactly")
    return wide


def _coordinate(values: NDArray) -> NDArray:
    if values.dtype.kind in "UTO":
        return np.array([str(one) for one in values.ravel()], dtype=object).reshape(values.shape)
    if values.dtype.kind not in "biuf":
        raise InvalidInput(
            f"the function returned a coordinate of type {values.dtype}; give numbers or texts"
        )
    return values


def _attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Those that JSON holds."""
    plain = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in attrs.items()}
    return {k: v for k, v in plain.items() if isinstance(v, str | int | float | bool) and v == v}


def _fill(template: Template, found: Arrays, columns: Mapping[str, NDArray], k: int) -> None:
    wanted, given = template.variables, found.template.variables
    if set(wanted) != set(given):
        raise InvalidInput(
            f"the function returned {', '.join(sorted(given))}, and at another point {', '.join(sorted(wanted))}; "
            "return the same variables everywhere"
        )
    for name, one in given.items():
        like = wanted[name]
        if (one.dims, one.shape) != (like.dims, like.shape):
            raise InvalidInput(
                f"the function returned {name} over {dict(zip(one.dims, one.shape, strict=True))}, and at another "
                f"point over {dict(zip(like.dims, like.shape, strict=True))}; return one shape everywhere"
            )
        if one.dtype.kind == "c" and like.dtype.kind != "c":
            raise InvalidInput(
                f"the function returned a complex {name}, and a real one elsewhere; return one kind"
            )
        columns[name][k] = found.values[name]
    for name, (dims, values, _) in template.coords.items():
        held = found.template.coords.get(name)
        if held is None or held[0] != dims or not np.array_equal(held[1], values):
            raise InvalidInput(
                f"the function returned another coordinate {name!r} than at another point; return it as a variable"
            )
