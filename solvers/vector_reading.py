"""Reading the functions of a model in vector form: at probes in Python, compiled, and the two compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit
from numba.core.errors import NumbaError

from solvers.compiling import Keyed
from solvers.errors import InvalidInput
from solvers.reading import refuse_negative_constant
from solvers.schemes import FLAGS
from solvers.vector_parameters import Shapes, frozen, unpacking, window

if TYPE_CHECKING:
    from solvers.vector_form import VectorSDE

_PROBES = 3
_CLOSE = 1e-9
"""Relative gap allowed between two readings: compiled sums may be taken in another order."""


class VectorModel(NamedTuple):
    """The compiled functions and everything else that code over them depends on, but no value of a parameter."""

    d: int
    m: int
    noise: str
    additive: bool
    block: bool
    kind: Any
    shapes: Shapes
    drift: Any
    diffusion: Any


@lru_cache(maxsize=512)
def vector_dispatcher(keyed: Keyed) -> Any:
    """A Numba dispatcher of a model function as it is."""
    return njit(fastmath=FLAGS, error_model="numpy")(keyed.function)


def _points(d: int) -> np.ndarray:
    """Fixed states (probes, d): one positive, one of both signs, one small."""
    spread = (np.arange(1, d + 1) * 0.6180339887498949) % 1.0
    return np.stack([0.2 + spread, 3.0 * spread[::-1] - 1.5, 0.1 * (spread - 0.5)])


def _sizes(sde: VectorSDE, role: str) -> tuple[int, ...]:
    """The shape of `out` for one path."""
    d = sde.dimension
    return (d, sde.noise_dimension) if role == "diffusion" and sde.noise == "general" else (d,)


def probed(sde: VectorSDE) -> None:
    """Call the functions in plain Python at a few states, and refuse what cannot be a model.

    Raises
    ------
    InvalidInput
        With the function, the entry and the remedy.
    """
    for role, function in (("drift", sde.drift), ("diffusion", sde.diffusion)):
        values = np.stack([_alone(sde, role, function, y) for y in _points(sde.dimension)])
        missing = np.isnan(values).all(axis=0)
        if missing.any():
            again = np.stack([_alone(sde, role, function, y, fill=0.0) for y in _points(sde.dimension)])
            entry = tuple(int(k) for k in np.argwhere(missing)[0])
            if np.isfinite(again[:, *entry]).any():
                raise InvalidInput(
                    f"{role} does not set out{list(entry)}; write every entry, or begin with out[:] = 0.0 (out holds "
                    "anything when it is called)"
                )
        finite = np.isfinite(values).any(axis=0)
        if not finite.all():
            entry = tuple(int(k) for k in np.argwhere(~finite)[0])
            raise InvalidInput(
                f"{role} is {values[0][entry]} in out{list(entry)} at every probe, such as y of {sde.dimension} "
                "numbers between 0.2 and 1.2; check the formula and the parameters"
            )
        if role == "diffusion" and sde.noise == "diagonal":
            for name, column in zip(sde.names, values.T, strict=True):
                refuse_negative_constant(name, column)
        if sde.block:
            _refuse_mixed_columns(sde, role, function, values)


def _alone(sde: VectorSDE, role: str, function: Any, y: np.ndarray, fill: float = np.nan) -> np.ndarray:
    """What a function writes for one state, in the shape of one path."""
    shape = _sizes(sde, role)
    if not sde.block:
        return _called(sde, role, function, y, shape, fill)
    return _called(sde, role, function, y[:, None], (*shape, 1), fill)[..., 0]


def _called(sde, role, function, y, shape, fill) -> np.ndarray:
    y, out = np.array(y, dtype=float), np.full(shape, fill)
    y.flags.writeable = False
    try:
        with np.errstate(all="ignore"):
            result = function(0.0, y, sde.params, out)
    except IndexError as error:
        raise InvalidInput(
            f"{role} reads or writes beyond an array: {error}; y has shape {y.shape}, out {out.shape}"
        ) from error
    except ValueError as error:
        if "read-only" in str(error):
            raise InvalidInput(f"{role} writes into y or into a parameter; write into out only") from error
        raise InvalidInput(
            f"{role} failed: {error}; y has shape {y.shape}, out {out.shape}, parameters are {sde.params}"
        ) from error
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise InvalidInput(
            f"{role} failed: {error}; write it as {role}(t, y, p, out) over arrays y {y.shape} and out {out.shape}; "
            f"parameters are {sde.params}"
        ) from error
    if result is not None:
        raise InvalidInput(f"{role} returns {type(result).__name__}; write into out and return nothing")
    return out


def _refuse_mixed_columns(sde: VectorSDE, role: str, function: Any, alone: np.ndarray) -> None:
    """Refuse a block function that does not treat each column as it would alone."""
    y = np.ascontiguousarray(_points(sde.dimension).T)
    together = _called(sde, role, function, y, (*_sizes(sde, role), _PROBES), np.nan)
    if not _agree(np.moveaxis(together, -1, 0), alone):
        raise InvalidInput(
            f"{role} with block=True gives a path another value when other columns stand beside it; treat each "
            "column of y by itself"
        )


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    scale = np.abs(other)[np.isfinite(other)].max(initial=0.0)
    return np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE * scale, equal_nan=True)


def compile_and_compare(sde: VectorSDE, model: VectorModel) -> None:
    """Compile the functions, once, and hold them against plain Python at the probes.

    Raises
    ------
    InvalidInput
        If Numba cannot compile one, or finds other values.
    """
    points = _points(model.d)
    for role, function in (("drift", sde.drift), ("diffusion", sde.diffusion)):
        found = _sampled(role, model, sde.flat_parameters, 0.0, points)
        with np.errstate(all="ignore"):
            expected = np.stack([_alone(sde, role, function, y).ravel() for y in points])
        if not _agree(found, expected):
            raise InvalidInput(
                f"{role} gives other numbers when compiled by Numba than in plain Python; write it with simpler "
                "operations"
            )


def drift_at(sde: VectorSDE, t: float, y: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """The drift on d broadcastable arrays, compiled."""
    if not isinstance(y, (tuple, list, np.ndarray)) or len(y) != sde.dimension:
        raise InvalidInput(f"y={y!r} must hold {sde.dimension} components, each a number or an array")
    values = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in y))
    points = np.stack([v.ravel() for v in values], axis=1)
    found = _sampled("drift", sde.model(), sde.flat_parameters, float(t), points)
    return tuple(column.reshape(values[0].shape).copy() for column in found.T)


def _sampled(
    role: str, model: VectorModel, parameters: np.ndarray, t: float, points: np.ndarray
) -> np.ndarray:
    """A function at the points (n, d); (n, numbers of out)."""
    size = model.d * (model.m if role == "diffusion" and model.noise == "general" else 1)
    out = np.full((len(points), size), np.nan)
    try:
        _sampler(role, model)(t, np.ascontiguousarray(points), parameters, out)
    except NumbaError as error:
        if "Cannot modify readonly" in str(error):
            raise InvalidInput(f"{role} writes into y or into a parameter; write into out only") from error
        raise InvalidInput(
            f"{role} cannot be compiled by Numba: {first_reason(error)}; use numbers, loops, float64 arrays and the "
            "functions of NumPy that Numba knows"
        ) from error
    return out


def first_reason(error: NumbaError) -> str:
    """The first line of Numba's report that says something, with the line of the model that it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [
        line for line in lines if not line.startswith(("Failed in", "No implementation", ">>>", "During"))
    ]
    place = next((line.rstrip(":") for line in lines if line.startswith("File ")), "")
    return f"{told[0].rstrip('.')} ({place})" if told else lines[0]


@lru_cache(maxsize=256)
def _sampler(role: str, model: VectorModel) -> Any:
    read, unpack = calling(role, model, 1), unpacking(model.kind, model.shapes)

    @njit(error_model="numpy")
    def sample(t, points, parameters, out):
        p = unpack(parameters)
        for k in range(points.shape[0]):
            read(t, points[k], p, out[k])

    return sample


@lru_cache(maxsize=512)
def calling(role: str, model: VectorModel, n: int) -> Any:
    """``read(t, y, p, out)`` on flat arrays of n columns (one if the model takes single paths)."""
    function = model.drift if role == "drift" else model.diffusion
    own = (model.d, model.m) if role == "diffusion" and model.noise == "general" else (model.d,)
    columns = (n,) if model.block else ()
    shape, shape_out = (model.d, *columns), (*own, *columns)

    @njit(fastmath=FLAGS, error_model="numpy")
    def read(t, y, p, out):
        function(t, frozen(y, 0, shape), p, window(out, 0, shape_out))

    return read
