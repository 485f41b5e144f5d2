"""The observables of sweeps by name, what each takes, and their check against the axes before any work.

| name | of | variables |
|---|---|---|
| gap | a model on a grid | ``gap`` |
| spectrum | a model on a grid | ``gap``, ``eigenvalue_real(mode)``, ``eigenvalue_imag(mode)`` |
| moments | a model on a grid, at rest | ``mean``, ``variance`` (component), ``covariance`` |
| escape-rate | a model on a grid with an absorbing wall | ``rate`` |
| lyapunov | a model at a fixed point | ``value``, ``stderr`` |
| moment-lyapunov | a model at a fixed point | ``value``, ``stderr``, over p where it is a list |
| threshold | a model and a criterion | ``value``, ``stderr`` |
| ensemble | paths of a model | ``mean`` and so on (component, or also time or step), ``diverged`` |
| plateau | a task of the bridge | ``sharpness``, ``loss``, their ``_stderr`` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from eos_sde.models.registry import catalogue
from eos_sde.sweeps import ensembles, model_observables, task_observables
from solvers.errors import InvalidInput

if TYPE_CHECKING:
    from eos_sde.store.layout import Axis
    from eos_sde.sweeps.evaluation import Outcome
    from eos_sde.sweeps.request import Settings

Place = tuple[Any, ...]
"""Where a mistake is: ("axes", name), ("settings", name, ...), or the like."""


@dataclass(frozen=True)
class Observable:
    """One entry of the registry.

    Attributes
    ----------
    description : str
        One line.
    request : str
        Name of the class in `eos_sde.sweeps.request` that says what it takes.
    one : callable
        Of all parameters and settings of a point, by name.
    together : callable, optional
        Of a list of points, for less than one by one.
    follow : callable, optional
        The same along a line.
    """

    description: str
    request: str
    one: Callable[..., Any]
    together: Callable[[list[dict[str, Any]]], list[Outcome]] | None = None
    follow: Callable[[list[dict[str, Any]]], list[Outcome]] | None = None

    @property
    def settings(self) -> type[Settings]:
        """What it takes, as a pydantic model."""
        from eos_sde.sweeps import request

        return getattr(request, self.request)


@dataclass(frozen=True)
class Bound:
    """An observable with its settings checked; see `Job`."""

    one: Callable[..., Any]
    together: Callable[[list[dict[str, Any]]], list[Outcome]] | None
    line: str | None


OBSERVABLES: Mapping[str, Observable] = MappingProxyType(
    {
        "gap": Observable("slowest nonzero decay rate", "GridSettings", model_observables.gap),
        "spectrum": Observable(
            "slowest eigenvalues", "Spectrum", model_observables.spectrum, follow=model_observables.followed
        ),
        "moments": Observable("stationary mean and covariance", "GridSettings", model_observables.moments),
        "escape-rate": Observable("rate of leaving the grid", "Escape", model_observables.escape),
        "lyapunov": Observable("top Lyapunov exponent", "Exponent", model_observables.lyapunov),
        "moment-lyapunov": Observable(
            "moment Lyapunov exponent", "MomentExponent", model_observables.moment_lyapunov
        ),
        "threshold": Observable("where a criterion is met", "Crossing", model_observables.threshold),
        "ensemble": Observable(
            "statistics of simulated paths", "Ensemble", ensembles.ensemble, together=ensembles.ensembles
        ),
        "plateau": Observable("forecast of late sharpness and loss", "Plateau", task_observables.plateau),
    }
)


def bound_observable(name: str, axes: Sequence[Axis], settings: Mapping[str, Any]) -> Bound:
    """An observable that fits the axes and settings.

    Raises
    ------
    InvalidInput
        With everything that does not fit, in one sentence.
    """
    found = mistakes(name, axes, settings)
    if found:
        raise InvalidInput("; ".join(f"{'.'.join(map(str, place))}: {text}" for place, text in found))
    chosen = OBSERVABLES[name]
    line = settings.get("follow")
    return Bound(chosen.one, chosen.together if line is None else chosen.follow, line)


def mistakes(name: str, axes: Sequence[Axis], settings: Mapping[str, Any]) -> list[tuple[Place, str]]:
    """Everything that does not fit an observable, and where it is.

    Parameters
    ----------
    name : str
        Of the observable.
    axes : sequence of Axis
    settings : mapping

    Returns
    -------
    list of (place, text)
        Places begin with "observable", "axes" or "settings".
    """
    if name not in OBSERVABLES:
        return [(("observable",), f"{name!r} is not known: choose one of {', '.join(OBSERVABLES)}")]
    chosen = OBSERVABLES[name]
    columns = {key: column for axis in axes for key, column in axis.values.items()}
    first = {key: column[:1].tolist()[0] for key, column in columns.items()}
    everything = {**settings, **first}
    models = everything.get("model")
    wanted = [] if models is None else columns["model"].tolist() if "model" in columns else [models]
    parameters = {
        p for m in wanted if isinstance(m, str) and m in catalogue() for p in catalogue()[m].parameters
    }
    found = _unfit(chosen.settings, everything, parameters, columns)
    for key, column in columns.items():
        if key in parameters:
            if column.dtype.kind == "O":
                found.append((("axes", key), f"parameter {key!r} of the model is a number"))
        elif key in chosen.settings.model_fields:
            found += _odd_values(chosen.settings, everything, parameters, key, column.tolist())
    for key in sorted(set(settings) & parameters):
        if isinstance(settings[key], bool) or not isinstance(settings[key], int | float):
            found.append((("settings", key), f"{settings[key]!r} is no number"))
    found += _lacking(everything, wanted)
    found += _unfollowed(chosen, settings, axes)
    return list(dict.fromkeys(found))


def _unfit(
    request: type[Settings], everything: Mapping[str, Any], parameters: set[str], columns: Mapping
) -> list:
    """What pydantic says of the settings and of the first value of each axis."""
    from pydantic import ValidationError

    mine = {key: value for key, value in everything.items() if key not in parameters}
    found = [(_placed((key,), columns), text) for key, text in request.across(mine)]
    try:
        request.model_validate(mine)
    except ValidationError as error:
        unsure = "model" in request.model_fields and not parameters  # which parameters there are is not known
        listed = [one for one in error.errors() if not (unsure and one["type"] == "extra_forbidden")]
        found += [_told(one, columns, parameters, request) for one in listed]
    return found


def _placed(place: Place, columns: Mapping) -> Place:
    return ("axes", *place) if place and place[0] in columns else ("settings", *place)


def _told(one: Any, columns: Mapping, parameters: set[str], request: type[Settings]) -> tuple[Place, str]:
    place, name = tuple(one["loc"]), str(one["loc"][0]) if one["loc"] else ""
    if one["type"] == "extra_forbidden":
        known = ", ".join([*sorted(parameters), *request.model_fields])
        return _placed(place, columns), f"{name!r} is not known: choose among {known}"
    if one["type"] == "missing":
        return ("settings",), f"{name!r} is missing"
    if one["type"] == "value_error":
        return _placed(place, columns), f"{name}: {one['msg'].removeprefix('Value error, ')}"
    return _placed(place, columns), f"{name}={one['input']!r}: {one['msg'][0].lower()}{one['msg'][1:]}"


def _odd_values(request, everything, parameters, key, values) -> list:
    """Further values of an axis that sets a setting; the first of them that does not fit."""
    for value in values[1:]:
        told = _unfit(request, {**everything, key: value}, parameters, {key: values})
        found = [one for one in told if one[0][:2] == ("axes", key)]
        if found:
            return found
    return []


def _lacking(everything: Mapping[str, Any], models: Sequence[Any]) -> list[tuple[Place, str]]:
    """Parameters that a model needs and nobody gives, but for the one that a threshold is sought over."""
    found: list[tuple[Place, str]] = []
    over = everything.get("over")
    for name in models:
        if not isinstance(name, str) or name not in catalogue():
            continue
        model = catalogue()[name]
        lacking = [
            p for p in model.parameters if p not in everything and p not in model.defaults and p != over
        ]
        if lacking:
            found.append((("settings",), f"model {name!r} needs {', '.join(lacking)}: an axis, or a setting"))
        if over is not None and over not in model.parameters:
            found.append(
                (("settings", "over"), f"{over!r} is no parameter of {name!r}: {', '.join(model.parameters)}")
            )
        if over is not None and over in everything:
            found.append((("settings", "over"), f"{over!r} is sought, and cannot be given too"))
    return found


def _unfollowed(
    chosen: Observable, settings: Mapping[str, Any], axes: Sequence[Axis]
) -> list[tuple[Place, str]]:
    line = settings.get("follow")
    if line is None or chosen.follow is None:
        return []
    axis = next((axis for axis in axes if axis.dim == line), None)
    if axis is None or len(axis.values) > 1:
        return [(("settings", "follow"), f"{line!r} is no axis of one parameter")]
    values = axis.values[line].tolist()
    if isinstance(values[0], str) or not (sorted(values) == values or sorted(values, reverse=True) == values):
        return [(("axes", line), "values that are followed must rise, or fall")]
    return []
