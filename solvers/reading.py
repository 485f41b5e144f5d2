"""Reading a model: its functions on arrays, its names and its parameters, each checked with a sentence."""

from __future__ import annotations

import keyword
import math
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from solvers import namespaces
from solvers.errors import InvalidInput

RESERVED = {"t", "time", "path", "component", "component2", "mode"}
PROBES = np.array([0.6180339887, 1.4142135624, -0.5772156649])

Components = tuple[Any, ...]


def read_model(
    role: str, function: Callable[..., Any], t: float, y: Components, p: Any, xp: Any = namespaces.array
) -> Any:
    """What a model function returns on arrays (or over another namespace), its failures in a sentence."""
    try:
        return function(t, y, p, xp)
    except ValueError as error:
        if "truth value of an array" in str(error):
            raise InvalidInput(
                f"{role} branches on a component (if, and, or, max, min); write xp.where(condition, a, b) so "
                "that arrays, symbols and tracers can be read too"
            ) from error
        raise
    except (AttributeError, IndexError) as error:
        raise InvalidInput(f"{role} failed on arrays: {error}; parameters are {p}") from error
    except TypeError as error:
        raise InvalidInput(
            f"{role} failed on arrays: {error}; write it as {role}(t, y, p, xp) over the tuple y, with the "
            "functions of xp"
        ) from error


def as_components(role: str, value: Any, d: int) -> tuple[Any, ...]:
    """The returned value as a tuple of d components."""
    if not isinstance(value, (tuple, list)):
        raise InvalidInput(
            f"{role} must return a tuple of {d} components, got {type(value).__name__}; "
            "write (value,) for one component"
        )
    if len(value) != d:
        raise InvalidInput(
            f"{role} returns a tuple of length {len(value)}, but names gives {d}; make them agree"
        )
    return tuple(value)


def as_arrays(y: Components, d: int) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """The state as d float arrays, and their broadcast shape."""
    if not isinstance(y, (tuple, list, np.ndarray)) or len(y) != d:
        raise InvalidInput(f"y={y!r} must be a tuple of {d} components, each a number or an array")
    values = tuple(np.asarray(v, dtype=float) for v in y)
    return values, np.broadcast_shapes(*(v.shape for v in values))


def check_numbers(role: str, name: str, value: Any) -> np.ndarray:
    """What a component returned at the probes; a constant must be finite."""
    shape = PROBES.shape
    if isinstance(value, (str, bytes)) or np.iscomplexobj(value):
        raise InvalidInput(f"{role} of component {name!r} is {value!r}; return a real number")
    try:
        values = np.broadcast_to(np.asarray(value, dtype=float), shape)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{role} of component {name!r} is {value!r}; return one real number made from numbers and components"
        ) from error
    if np.ndim(value) == 0 and not math.isfinite(values[0]):
        raise InvalidInput(f"{role} of component {name!r} is the constant {values[0]}; give a finite number")
    return values


def refuse_negative_constant(name: str, values: np.ndarray) -> None:
    """Refuse constant noise below zero; a sign that depends on the state is a model's own affair."""
    if np.all(values == values[0]) and values[0] < 0:
        raise InvalidInput(
            f"diffusion of component {name!r} is the negative constant {values[0]:g}; "
            "give a standard deviation >= 0"
        )


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Component names as a tuple of distinct identifiers that no result uses as a dimension."""
    if isinstance(names, str):
        names = (names,)
    if not isinstance(names, Sequence):
        raise InvalidInput(f"names={names!r} must be a tuple of component names, such as ('x',)")
    names = tuple(names)
    if not names or len(set(names)) != len(names):
        raise InvalidInput(f"names={names!r} must be distinct and at least one")
    for name in names:
        if (
            not isinstance(name, str)
            or not name.isidentifier()
            or keyword.iskeyword(name)
            or name in RESERVED
        ):
            raise InvalidInput(
                f"names contains {name!r}; a component needs a Python identifier other than "
                f"{sorted(RESERVED)}"
            )
    return names


@cache
def _params_type(fields: tuple[str, ...]) -> Any:
    # One type per set of names: Numba specialises on the type, so it must not be made anew each time.
    return namedtuple("Params", fields)


def named_params(
    params: Mapping[str, Any], checked: Callable[[str, Any], Any], kind: Callable[..., Any]
) -> Any:
    """A mapping as a named tuple ``kind(names)`` of ``checked(name, value)``; () for an empty one.

    Raises
    ------
    InvalidInput
        For a name that cannot be read as p.name.
    """
    if not params:
        return ()
    for name in params:
        usable = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        if not usable or name.startswith("_"):
            raise InvalidInput(
                f"params contains the name {name!r}, which cannot be read as p.name; choose a Python identifier "
                "without a leading underscore"
            )
    return kind(tuple(params))(*(checked(name, value) for name, value in params.items()))


def as_params(params: Any) -> Any:
    """Parameters as a (named) tuple of finite floats; () for none."""
    if params is None:
        return ()
    if isinstance(params, Mapping):
        return named_params(params, _number, _params_type)
    if isinstance(params, (tuple, list)):
        fields = getattr(params, "_fields", None)
        values = [_number(fields[i] if fields else f"[{i}]", v) for i, v in enumerate(params)]
        return params._replace(**dict(zip(fields, values, strict=True))) if fields else tuple(values)  # type: ignore[union-attr]
    raise InvalidInput(
        f"params is a {type(params).__name__}; pass a NamedTuple, a mapping or a tuple of numbers"
    )


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"parameter {name!r} is {value!r}; give one real number") from error
    if not math.isfinite(number):
        raise InvalidInput(f"parameter {name!r} is {number}; give a finite number")
    return number
