"""Grids of cells: their axes checked, each finished cell kept in a file of its own, all gathered into arrays."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.task_library import Task
from solvers.errors import InvalidInput
from solvers.provenance import provenance
from solvers.whole_files import write_whole


def numbered(seeds: int | Sequence[int]) -> list[int]:
    """Which seeds: so many from 0, or those given."""
    return list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]


def check_axes(axes: Mapping[str, list], allowed: Mapping[str, Sequence[str]]) -> None:
    """Refuse axes that hold nothing, something twice, or what is not known.

    Parameters
    ----------
    axes : mapping
        Name to values; ``batch`` holds numbers or "all" as text, ``seed`` integers.
    allowed : mapping
        Names to what their values are chosen from.

    Raises
    ------
    InvalidInput
        Naming the first value that is wrong.
    """
    for name, values in axes.items():
        if not values or len(set(values)) < len(values):
            raise InvalidInput(f"{name}={values} must be one or more different values")
    for name, known in allowed.items():
        for value in axes[name]:
            if value not in known:
                raise InvalidInput(f"{name}={value!r} is not known: choose one of {', '.join(known)}")
    for batch in axes["batch"]:
        if batch != "all" and not batch.isdecimal():
            raise InvalidInput(f"batch_sizes names {batch!r}: give numbers of examples, or 'all'")
    if min(axes["seed"]) < 0:
        raise InvalidInput(f"seed={min(axes['seed'])} must be at least 0")


def check_counts(**least: tuple[Any, int]) -> None:
    """Refuse numbers that are no integers of at least some value.

    Parameters
    ----------
    **least : (value, least)
        By the name of the argument.

    Raises
    ------
    InvalidInput
        Naming the first.
    """
    for name, (value, lowest) in least.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < lowest:
            raise InvalidInput(f"{name}={value!r} must be an integer of at least {lowest}")


def batch_of(label: str, task: Task) -> int:
    """Examples in a batch.

    Parameters
    ----------
    label : str
        A number below the examples of the task, or "all".
    task : Task
        The training problem.

    Returns
    -------
    int
        B.

    Raises
    ------
    InvalidInput
        If there are not so many.
    """
    size = task.n if label == "all" else int(label)
    if label != "all" and not 1 <= size < task.n:
        raise InvalidInput(
            f"batch_sizes names {size}: it must be from 1 to {task.n - 1} for {task.name}, or 'all' of its examples"
        )
    return size


def plain(value: Any) -> Any:
    """Numbers for JSON, which has no NaN; all digits are kept."""
    if np.ndim(value):
        return [plain(one) for one in np.asarray(value)]
    return float(value) if np.isfinite(value) else None


def kept_cell(path: Path, settings: Mapping[str, Any], solve: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A finished cell, or a new one that is kept at once; one that failed is tried again.

    Parameters
    ----------
    path : path
        Of its JSON file, which is written whole or not at all.
    settings : mapping
        All that decides its numbers.
    solve : callable
        Returns the cell, with its ``status``.

    Returns
    -------
    dict
        The cell.

    Raises
    ------
    InvalidInput
        If the file is of other settings.
    """
    decided = json.loads(
        json.dumps(settings, default=lambda value: getattr(value, "tolist", value.__str__)())
    )  # as it comes back from a file
    if path.exists():
        known = json.loads(path.read_text())
        if known.get("settings") != decided:
            raise InvalidInput(f"{path} was made with other settings; choose another store")
        if known["status"] != "failed":
            return known
    found = solve() | {"settings": decided} | provenance()
    write_whole(path, f"{json.dumps(found, indent=1, allow_nan=False)}\n".encode())
    return found


def gathered(
    axes: Mapping[str, list], found: Mapping[tuple, dict], name: str, *more: int
) -> NDArray[np.float64]:
    """One number, or row of numbers, of every cell as an array over the axes; NaN where it does not exist."""
    values = [found[key][name] for key in product(*axes.values())]
    return np.array(values, dtype=float).reshape(*map(len, axes.values()), *more)


def words_of(axes: Mapping[str, list], found: Mapping[tuple, dict], name: str) -> NDArray[np.str_]:
    """One text of every cell as an array over the axes; empty where a cell does not have it."""
    values = np.array([found[key].get(name, "") for key in product(*axes.values())], dtype=object)
    return values.reshape(tuple(map(len, axes.values()))).astype(str)
