"""The points of a sweep: a product of axes, some of which set several parameters at once, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.store.layout import RESERVED, Axis
from solvers.errors import InvalidInput

_MOST_POINTS = 2**53


def checked_axes(axes: Mapping[Any, Any]) -> tuple[Axis, ...]:
    """The axes of a sweep.

    Parameters
    ----------
    axes : mapping
        A parameter's name to its values (different finite numbers, or different texts); a tuple of names to rows of
        values, which go together along one dimension named by all of them, joined by "_".

    Returns
    -------
    tuple of Axis
        In the order given; the last varies fastest.

    Raises
    ------
    InvalidInput
        Naming the first that cannot be used.
    """
    if not isinstance(axes, Mapping) or not axes:
        raise InvalidInput(f"axes={axes!r}; give a mapping such as {{'mu': [0.1, 0.2], 'seed': range(4)}}")
    made = tuple(_axis(names, values) for names, values in axes.items())
    taken: set[str] = set()
    for axis in made:
        for name in {axis.dim, *axis.values}:
            if name in taken:
                raise InvalidInput(f"axes name {name!r} twice; rename one")
            if name in RESERVED:
                raise InvalidInput(f"axes name {name!r}, which the result needs for itself; rename it")
            taken.add(name)
    if math.prod(axis.size for axis in made) > _MOST_POINTS:
        raise InvalidInput(f"axes have {math.prod(axis.size for axis in made):.3g} points; give fewer values")
    return made


def _axis(names: Any, values: Any) -> Axis:
    if isinstance(names, tuple):
        return _zipped(names, values)
    _check_name(names)
    return Axis(names, {names: _column(names, values)})


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidInput(f"axes name {name!r}; give names such as 'mu', or tuples of such")


def _zipped(names: tuple, values: Any) -> Axis:
    for name in names:
        _check_name(name)
    if len(names) < 2:
        raise InvalidInput(f"axes zip {names!r}; give two names or more, or the name alone")
    rows = _listed(names, values)
    for row in rows:
        if not isinstance(row, Sequence | np.ndarray) or isinstance(row, str) or len(row) != len(names):
            raise InvalidInput(
                f"axes zip {', '.join(names)}, but a row is {row!r}; give {len(names)} values in each"
            )
    columns = {name: _column(name, [row[k] for row in rows], repeats=True) for k, name in enumerate(names)}
    axis = Axis("_".join(names), columns)
    _refuse_repeats(axis.dim, axis.rows())
    return axis


def _listed(name: Any, values: Any) -> list:
    if isinstance(values, str | bytes | Mapping):
        raise InvalidInput(f"axis {name!r} is {values!r}; give a list of values")
    try:
        listed = list(values)
    except TypeError as error:
        raise InvalidInput(f"axis {name!r} is {values!r}; give a list of values") from error
    if not listed:
        raise InvalidInput(f"axis {name!r} has no values; give one or more")
    return listed


def _column(name: str, values: Any, *, repeats: bool = False) -> NDArray:
    """Values as int64, float64 or texts."""
    if isinstance(values, np.ndarray | range) and len(values) and np.asarray(values).dtype.kind in "if":
        column = np.array(values, dtype=np.int64 if np.asarray(values).dtype.kind == "i" else np.float64)
        if (
            column.ndim == 1
            and np.isfinite(column).all()
            and (repeats or np.unique(column).size == column.size)
        ):
            return column  # of millions, without an object for each; what is wrong is told below
    listed = _listed(name, values)
    if all(isinstance(value, str) for value in listed):
        column = np.array(listed, dtype=object)
    elif all(isinstance(value, bool | np.bool_) for value in listed):
        column = np.array(listed, dtype=bool)
    elif all(_is_number(value) for value in listed):
        column = _numbers(name, listed)
    else:
        odd = next((v for v in listed if not _is_number(v)), listed[0])
        raise InvalidInput(f"axis {name!r} has the value {odd!r}; give numbers, or texts, and not both")
    if not repeats:
        _refuse_repeats(name, column.tolist())
    return column


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _numbers(name: str, listed: list) -> NDArray:
    whole = all(isinstance(value, int | np.integer) for value in listed)
    try:
        column = np.array(
            [int(v) if whole else float(v) for v in listed], dtype=np.int64 if whole else np.float64
        )
    except OverflowError as error:
        raise InvalidInput(f"axis {name!r} has a value beyond 64 bits; give smaller ones") from error
    if not np.isfinite(column).all():
        raise InvalidInput(f"axis {name!r} has a value that is not finite; give finite numbers")
    return column


def _refuse_repeats(name: str, values: list) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise InvalidInput(f"axis {name!r} has {value!r} twice; give different values")
        seen.add(value)
