"""A sweep checked before any work: what is done at a point, at which points, and what the store will say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eos_sde.store.layout import Axis
from eos_sde.store.origin import as_json, origin
from eos_sde.sweeps.evaluation import Job
from eos_sde.sweeps.functions import check_takes, digest, named
from eos_sde.sweeps.observables import bound_observable
from eos_sde.sweeps.points import checked_axes
from solvers.errors import InvalidInput


@dataclass(frozen=True)
class Plan:
    """A sweep that was checked and can begin.

    Attributes
    ----------
    job : Job
        What is done at a point.
    axes : tuple of Axis
    attrs : mapping
        Of the store.
    line : str, optional
        The axis along which points are computed one from the other, whole lines at a time.
    """

    job: Job
    axes: tuple[Axis, ...]
    attrs: Mapping[str, Any]
    line: str | None = None

    @property
    def points(self) -> int:
        """How many."""
        return int(np.prod([axis.size for axis in self.axes], dtype=float))


def planned(
    function: Callable[..., Any] | str,
    axes: Mapping[Any, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    command: str,
    spec: str | None = None,
) -> Plan:
    """Check a sweep before any work.

    Parameters
    ----------
    function, axes, settings
        As for `sweep`.
    command : str
        Kept in the store.
    spec : str, optional
        The specification it came from, kept in the store.

    Returns
    -------
    Plan

    Raises
    ------
    InvalidInput
        If an argument cannot be used.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise InvalidInput(f"settings={settings!r}; give a mapping of names to values")
    made, given, line = checked_axes(axes), dict(settings or {}), None
    names = [name for axis in made for name in axis.values]
    for name in names:
        if name in given:
            raise InvalidInput(f"{name!r} is an axis and a setting; give it once")
    try:
        plain = as_json(given)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"settings={given!r} are not numbers, texts, lists and mappings ({error})"
        ) from error
    if isinstance(function, str):
        bound = bound_observable(function, made, given)
        called, code, line = function, "", bound.line
        job = Job(bound.one, given, bound.together)
    elif callable(function):
        called, code = named(function), digest(function)
        check_takes(function, [*names, *given])
        job = Job(function, given)
    else:
        raise InvalidInput(f"function={function!r}; give a function, or the name of an observable")
    attrs = origin(
        function=called, code=code, settings=plain, line=line or "", command=command, spec=spec,
        dimensions=[[axis.dim, list(axis.values)] for axis in made],
    )  # fmt: skip
    return Plan(job, made, attrs, line)
