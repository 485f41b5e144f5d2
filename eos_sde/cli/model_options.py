"""Options of the commands that take a model or a task: names completed, texts read, each refused in one sentence."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from eos_sde.cli.completions import beginning
from eos_sde.models.registry import Model, catalogue
from solvers import Grid
from solvers.errors import InvalidInput


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Names of models for the shell, with their equations."""
    return [(name, m.description) for name, m in catalogue().items() if name.startswith(incomplete)]


def complete_criterion(incomplete: str) -> list[tuple[str, str]]:
    """Names of criteria for the shell, with what they mean."""
    from eos_sde.thresholds.catalogue_thresholds import CRITERIA

    return [(name, text) for name, text in CRITERIA.items() if name.startswith(incomplete.replace("-", "_"))]


def complete_task(incomplete: str) -> list[str]:
    """Names of tasks for the shell."""
    from eos_sde import bridge

    return beginning(bridge.tasks(), incomplete)


def takes_data(task: str) -> bool:
    """Whether the data of a task are the user's."""
    from eos_sde import bridge

    return "path" in bridge.task_defaults(task)


def with_data(task: str, settings: dict[str, Any], data: Path | None) -> dict[str, Any]:
    """Settings of a task with the path that --data gives.

    Raises
    ------
    InvalidInput
        If the task takes none, or the settings have one already.
    """
    from eos_sde import bridge

    if data is None:
        return settings
    if not takes_data(task):
        takers = ", ".join(filter(takes_data, bridge.tasks()))
        raise InvalidInput(
            f"data={data} is for the tasks whose data you have ({takers}), not for {task}: leave it out"
        )
    if "path" in settings:
        raise InvalidInput(
            f"data={data} and the setting path={settings['path']} say the same twice: give one"
        )
    return {**settings, "path": str(data)}


def complete_scheme(incomplete: str) -> list[str]:
    """Names of schemes for the shell."""
    from solvers.schemes import SCHEMES

    return beginning(("auto", *SCHEMES), incomplete)


DATA = Annotated[
    Path | None,
    typer.Option("--data", help="Files or folder of a task whose data you have; see `eos-sde tasks NAME`."),
]
MODEL = Annotated[
    str,
    typer.Argument(help="A model; see `eos-sde models`.", autocompletion=complete_model, show_default=False),
]
PARAM = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the model; one option for each."),
]
GRID = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="NAME=LO:HI:CELLS",
        help="An axis of the grid; one for each component. (default: chosen from the model)",
    ),
]
BOUNDARY = Annotated[
    list[str] | None,
    typer.Option(
        "--boundary",
        metavar="NAME=LO:HI",
        help="Walls of an axis: reflecting, absorbing or periodic; one word for both.",
    ),
]
SEED = Annotated[int, typer.Option(help="Of everything random, at least 0.")]


class Span(NamedTuple):
    """A parameter and the values that it takes."""

    name: str
    low: float
    high: float
    number: int

    def values(self) -> list[float]:
        """The values, equally spaced, both ends included."""
        width = (self.high - self.low) / max(self.number - 1, 1)
        return [self.low + k * width for k in range(self.number)]


def chosen_model(name: str) -> Model:
    """The model of that name."""
    if name not in catalogue():
        raise InvalidInput(f"model {name!r} is not known; choose one of {', '.join(catalogue())}")
    return catalogue()[name]


def named_numbers(option: str, given: Iterable[str] | None) -> dict[str, float]:
    """NAME=VALUE texts as a dict of finite numbers."""
    numbers: dict[str, float] = {}
    for text in given or ():
        name, value = _split(option, text, "NAME=VALUE")
        if name in numbers:
            raise InvalidInput(f"{option} {text}: {name} is given twice; give it once")
        numbers[name] = _number(option, text, value)
    return numbers


def span(option: str, text: str, *, counted: bool) -> Span:
    """NAME=LO:HI, or NAME=LO:HI:COUNT."""
    form = "NAME=LO:HI:COUNT" if counted else "NAME=LO:HI"
    name, rest = _split(option, text, form)
    parts = rest.split(":")
    if len(parts) != (3 if counted else 2):
        raise InvalidInput(f"{option} {text}: write {form}")
    low, high = (_number(option, text, part) for part in parts[:2])
    if not low < high:
        raise InvalidInput(f"{option} {text}: {low:g} is not below {high:g}; give the smaller end first")
    return Span(name, low, high, _count(option, text, parts[2]) if counted else 2)


def given_grid(given: Iterable[str] | None, names: tuple[str, ...]) -> Grid | None:
    """NAME=LO:HI:CELLS for every component as a grid, in the order of the components; None without any."""
    axes: dict[str, tuple[float, float, int]] = {}
    for text in given or ():
        axis = span("--grid", text, counted=True)
        if axis.name not in names:
            raise InvalidInput(f"--grid {text}: the components are {', '.join(names)}")
        if axis.name in axes:
            raise InvalidInput(f"--grid {text}: {axis.name} is given twice; give it once")
        axes[axis.name] = (axis.low, axis.high, axis.number)
    missing = [name for name in names if name not in axes]
    if not axes:
        return None
    if missing:
        raise InvalidInput(
            f"--grid: the axis {missing[0]} is missing; give {missing[0]}=LO:HI:CELLS too, or no axis"
        )
    return Grid.uniform(**{name: axes[name] for name in names})


def given_boundary(given: Iterable[str] | None, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """NAME=LO:HI walls as `solvers.FokkerPlanck` takes them; axes that are not named reflect."""
    walls: dict[str, tuple[str, str]] = {}
    for name in names:
        walls[name] = ("reflecting", "reflecting")
    for text in given or ():
        name, rest = _split("--boundary", text, "NAME=LO:HI")
        kinds = rest.split(":")
        if name not in names:
            raise InvalidInput(f"--boundary {text}: the components are {', '.join(names)}")
        if len(kinds) > 2 or any(kind not in {"reflecting", "absorbing", "periodic"} for kind in kinds):
            raise InvalidInput(
                f"--boundary {text}: write {name}=WALL or {name}=LOW:HIGH, each reflecting, absorbing or periodic"
            )
        walls[name] = (kinds[0], kinds[-1])
    return walls


def start_of(model: Model, given: Iterable[str] | None) -> dict[str, float]:
    """A start: the model's own, but for the components that are given."""
    changed = named_numbers("--start", given)
    unknown = sorted(set(changed) - set(model.components))
    if unknown:
        raise InvalidInput(f"--start {unknown[0]}: the components are {', '.join(model.components)}")
    return {**model.start, **changed}


def _split(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    if not equals or not name.strip() or not rest.strip():
        raise InvalidInput(f"{option} {text}: write {form}")
    return name.strip(), rest.strip()


def _number(option: str, text: str, value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(f"{option} {text}: {value!r} is not a finite number")
    return number


def _count(option: str, text: str, value: str) -> int:
    if not value.strip().isdecimal() or not 2 <= int(value) <= 10**7:
        raise InvalidInput(f"{option} {text}: {value!r} is no whole number of at least 2")
    return int(value)
