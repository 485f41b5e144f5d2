"""The specification of a sweep in TOML: read, and checked whole, so that every mistake is told with its line.

.. code-block:: toml

    observable = "gap"                 # or: function = "my_module:my_function"

    [settings]                         # the same at every point: of the observable, and of its model
    model = "flip-normal-form"
    C = 1.0
    grid = { A = [-0.8, 0.8, 200] }

    [axes]                             # a product; the last varies fastest
    mu = { from = -0.05, to = 0.1, count = 31 }
    s = [0.05, 0.1, 0.2]

    [[zip]]                            # these go together, along one more axis
    eta = [0.1, 0.2]
    batch_size = [8, 16]

An axis is a list, ``{ from, to, count, spacing = "linear" or "log" }``, or ``{ first, count }`` for whole numbers
such as seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eos_sde.store.layout import Axis
from eos_sde.sweeps.functions import check_takes, imported
from eos_sde.sweeps.observables import mistakes
from eos_sde.sweeps.plan import Plan, planned
from eos_sde.sweeps.points import checked_axes
from eos_sde.sweeps.request import Number
from eos_sde.sweeps.spec_lines import Located, located
from solvers.errors import InvalidInput


class BadSpec(InvalidInput):
    """A specification has mistakes; the message has a line for each."""


class Range(BaseModel):
    """Values from one number to another."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start: Number = Field(alias="from")
    to: Number
    count: Annotated[int, Field(strict=True, ge=2, le=10_000_000)]
    spacing: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _sound(self) -> Range:
        if self.start == self.to:
            raise ValueError("from and to are equal; give a list of one value instead")
        if self.spacing == "log" and not (self.start > 0 and self.to > 0):
            raise ValueError("spacing = 'log' needs positive ends")
        return self

    def values(self) -> NDArray[np.float64]:
        """The values, of which there may be millions."""
        make = np.geomspace if self.spacing == "log" else np.linspace
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused with the axis
            return make(self.start, self.to, self.count)


class Counted(BaseModel):
    """Whole numbers one after the other, such as seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    first: Annotated[int, Field(strict=True, ge=-(2**62), le=2**62)] = 0
    count: Annotated[int, Field(strict=True, ge=1, le=10_000_000)]

    def values(self) -> range:
        """The values."""
        return range(self.first, self.first + self.count)


class Document(BaseModel):
    """The keys of a specification."""

    model_config = ConfigDict(extra="forbid")
    observable: str | None = None
    function: str | None = None
    axes: dict[str, Any] = {}
    zip: list[dict[str, list[Any]]] = []
    settings: dict[str, Any] = {}


def read_spec(path: Path, *, seed: int | None = None) -> Plan:
    """The plan that a file specifies.

    Parameters
    ----------
    path : Path
        A TOML file; see the top of `eos_sde.sweeps.spec`.
    seed : int, optional
        In place of the file's setting ``seed``, or of the first value of its axis ``seed``, the others following.

    Returns
    -------
    Plan

    Raises
    ------
    BadSpec
        With every mistake and its line.
    InvalidInput
        If there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no text in UTF-8; give a TOML file") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{path} cannot be read ({why}); give a TOML file") from error
    return parsed_spec(text, name=path.name, seed=seed)


def parsed_spec(text: str, *, name: str = "spec", seed: int | None = None) -> Plan:
    """The plan that a text specifies.

    Parameters
    ----------
    text : str
        TOML.
    name : str
        Of the file, for messages and for the store.
    seed : int, optional
        As for `read_spec`.

    Returns
    -------
    Plan

    Raises
    ------
    BadSpec
        With every mistake and its line.
    """
    where = located(text.replace("\r\n", "\n"))
    found = list(where.broken)
    document = _document(where, found)
    axes = _axes(document, where, found)
    if seed is not None:
        _reseed(document, axes, seed, where, found)
    function = _fitted(document, axes, where, found)
    if found:
        raise BadSpec(_listed(name, found))
    try:
        return planned(
            function or document.observable or "", axes, settings=document.settings,
            command=f"eos-sde sweep {name}", spec=text if seed is None else f"{text}\n# --seed {seed}\n",
        )  # fmt: skip
    except InvalidInput as error:
        raise BadSpec(_listed(name, [(1, str(error))])) from error


def _listed(name: str, found: list[tuple[int, str]]) -> str:
    unique = sorted(dict.fromkeys(found))
    if len(unique) == 1:
        return f"{name}, line {unique[0][0]}: {unique[0][1]}"
    return f"{name} has {len(unique)} mistakes:\n" + "\n".join(
        f"  line {line}: {text}" for line, text in unique
    )


def _document(where: Located, found: list[tuple[int, str]]) -> Document:
    """The keys that are sound; what is wrong with the others is added to `found`."""
    data = dict(where.data)
    while True:
        try:
            document = Document.model_validate(data)
            break
        except ValidationError as error:
            for one in error.errors():
                found.append((where.line(one["loc"]), _said(one)))
            data = {key: data[key] for key in data if key not in {one["loc"][0] for one in error.errors()}}
    if where.broken:  # what seems missing may be in what could not be read
        return document
    if (where.data.get("observable") is None) == (where.data.get("function") is None):
        found.append((where.line(("function",)), "give an observable or a function, and not both"))
    if not where.data.get("axes") and not where.data.get("zip"):
        found.append((where.line(("axes",)), "there are no axes; give [axes] with one or more"))
    return document


def _axes(document: Document, where: Located, found: list[tuple[int, str]]) -> dict[Any, Any]:
    """The axes that are sound, with their values; what is wrong with the others is added to `found`."""
    axes: dict[Any, Any] = {}
    for name, values in document.axes.items():
        expanded = _expanded(name, values, where, found)
        if expanded is not None:
            axes[name] = expanded
    for k, table in enumerate(document.zip):
        if len({len(column) for column in table.values()}) > 1:
            found.append((where.line(("zip", k)), "lists that go together must be equally long"))
        elif table:
            axes[tuple(table)] = list(zip(*table.values(), strict=True))
    for key in list(axes):
        try:
            checked_axes({key: axes[key]})
        except InvalidInput as error:
            number = next((k for k, table in enumerate(document.zip) if tuple(table) == key), 0)
            found.append((where.line(("axes", key) if isinstance(key, str) else ("zip", number)), str(error)))
            del axes[key]
    return axes


def _said(one: Any, known: str = ", ".join(Document.model_fields)) -> str:
    place = ".".join(str(part) for part in one["loc"])
    if one["type"] == "extra_forbidden":
        return f"{place!r} is not known: choose among {known}"
    if one["type"] == "missing":
        return f"{place!r} is missing"
    text = one["msg"].removeprefix("Value error, ")
    return f"{place}: {text[0].lower()}{text[1:]}" if place else text


def _expanded(
    name: str, values: Any, where: Located, found: list[tuple[int, str]]
) -> list | NDArray[np.float64] | range | None:
    place = ("axes", name)
    if isinstance(values, list):
        return values
    if not isinstance(values, dict):
        found.append(
            (where.line(place), f"axis {name!r} is {values!r}; give a list, or {{ from, to, count }}")
        )
        return None
    kind = Counted if not {"from", "to"} & set(values) else Range
    try:
        return kind.model_validate(values).values()
    except ValidationError as error:
        known = "from, to, count, spacing" if kind is Range else "first, count"
        for one in error.errors():
            found.append((where.line((*place, *one["loc"])), f"axis {name!r}: {_said(one, known)}"))
        return None


def _reseed(
    document: Document, axes: dict[Any, Any], seed: int, where: Located, found: list[tuple[int, str]]
) -> None:
    if "seed" in axes:
        if not all(isinstance(value, int) for value in axes["seed"]):
            return  # told already, or by the function that takes it
        axes["seed"] = [seed + value - axes["seed"][0] for value in axes["seed"]]
    elif any(isinstance(key, tuple) and "seed" in key for key in axes):
        found.append(
            (where.line(("zip",)), "--seed cannot replace seeds that go together with something else")
        )
    else:
        document.settings["seed"] = seed


def _fitted(document: Document, axes: dict[Any, Any], where: Located, found: list[tuple[int, str]]) -> Any:
    """Check what the observable or the function takes; the function, if it is one."""
    made: tuple[Axis, ...] = ()
    if axes:
        try:
            made = checked_axes(axes)
        except InvalidInput as error:
            found.append((where.line(("axes",)), str(error)))
            return None
    names = [name for axis in made for name in axis.values]
    for name in sorted({*names} & {*document.settings}):
        found.append((where.line(("settings", name)), f"{name!r} is an axis and a setting; give it once"))
    sound = len(axes) == len(document.axes) + len(document.zip)
    if document.observable is not None:
        for place, text in mistakes(document.observable, made, document.settings):
            if (sound and not where.broken) or place[:1] != ("settings",) or len(place) > 1:
                found.append((where.line(_in_file(place, document)), text))
        return None
    if document.function is None:
        return None
    try:
        function = imported(document.function)
        if sound:
            check_takes(function, [*names, *document.settings])
    except InvalidInput as error:
        found.append((where.line(("function",)), str(error)))
        return None
    return function


def _in_file(place: tuple, document: Document) -> tuple:
    """The place of an axis that is part of a zip."""
    if place[0] == "axes" and place[1] not in document.axes:
        number = next((k for k, table in enumerate(document.zip) if place[1] in table), 0)
        return ("zip", number, *place[1:])
    return place
