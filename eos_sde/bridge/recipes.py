"""What a recipe of a task is made of: its settings at either size, and how they become a network and data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eos_sde.bridge.losses import LOSSES
from eos_sde.bridge.networks import ACTIVATIONS, Network
from eos_sde.bridge.streamed_images import ImageStream
from solvers.errors import InvalidInput

SIZES = ("small", "large")
SQUARED_ERROR = ("half-squared-error",)


@dataclass(frozen=True)
class Problem:
    """A network and its data, before they become a `Task`.

    Attributes
    ----------
    network : Network
        The network.
    x, y, x_test, y_test : array
        Inputs and targets, first axis the examples.
    source, licence : str
        Of the data.
    stream : ImageStream or None
        Where batches come from, if not from x and y.
    """

    network: Network
    x: ArrayLike
    y: ArrayLike
    x_test: ArrayLike
    y_test: ArrayLike
    source: str
    licence: str
    stream: ImageStream | None = None


@dataclass(frozen=True)
class Recipe:
    """How a task is made.

    Attributes
    ----------
    build : callable
        Complete settings to `Problem`; refuses what the data or the network cannot be.
    small, large : mapping
        Settings at either size; what `load_task` accepts are the keys.
    losses : tuple of str
        That suit the targets.
    preview : callable or None
        For data that have to be given: settings to (network, what it would be trained on), without the data.
    needs : str
        What has to be given, for people; empty if nothing.
    later : tuple of str
        Settings that came when runs had been stored already: at their default they do not count among those that
        define a task, so that these runs are still found, and go on.
    """

    build: Callable[[Mapping[str, Any]], Problem]
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    losses: tuple[str, ...]
    preview: Callable[[Mapping[str, Any]], tuple[Network, str]] | None
    needs: str
    later: tuple[str, ...] = ()

    def settings(self, size: str) -> Mapping[str, Any]:
        """Settings of a size."""
        return self.small if size == "small" else self.large


def recipe(
    build: Callable[[Mapping[str, Any]], Problem],
    small: Mapping[str, Any],
    large: Mapping[str, Any],
    *,
    losses: tuple[str, ...] = tuple(LOSSES),
    preview: Callable[[Mapping[str, Any]], tuple[Network, str]] | None = None,
    needs: str = "",
    later: tuple[str, ...] = (),
) -> Recipe:
    """Recipe with the settings that all tasks have.

    Parameters
    ----------
    build : callable
        See `Recipe`.
    small, large : mapping
        Settings of the small task, and those that differ in the large one.
    losses : tuple of str
        That suit the targets; the first is the default.
    preview, needs, later
        See `Recipe`.

    Returns
    -------
    Recipe
        The recipe.
    """
    common = {"size": "small", "loss": losses[0], "seed": 0}
    whole = common | dict(small)
    return Recipe(
        build,
        MappingProxyType(whole),
        MappingProxyType(whole | dict(large) | {"size": "large"}),
        losses,
        preview,
        needs,
        later,
    )


def check_common(name: str, made_by: Recipe, chosen: Mapping[str, Any]) -> None:
    """Refuse values of the settings that all tasks have.

    Parameters
    ----------
    name : str
        Of the task.
    made_by : Recipe
        Its recipe.
    chosen : mapping
        Complete settings.

    Raises
    ------
    InvalidInput
        For an unknown loss, one that does not suit the targets, or a learning rate that is not positive.
    """
    loss, eta = chosen["loss"], chosen["eta"]
    if loss not in LOSSES:
        raise InvalidInput(f"loss={loss!r} is not known: choose one of {', '.join(LOSSES)}")
    if loss not in made_by.losses:
        raise InvalidInput(
            f"loss={loss!r} is for classes and {name} is a regression: choose {', '.join(made_by.losses)}"
        )
    if isinstance(eta, bool) or not isinstance(eta, int | float | np.number) or not 0 < eta < np.inf:
        raise InvalidInput(f"eta={eta!r} must be a positive learning rate")


def check_activation(chosen: Mapping[str, Any]) -> None:
    """Refuse an unknown nonlinearity.

    Parameters
    ----------
    chosen : mapping
        With the setting ``activation``.

    Raises
    ------
    InvalidInput
        If it is not one of `ACTIVATIONS`.
    """
    if chosen["activation"] not in ACTIVATIONS:
        raise InvalidInput(
            f"activation={chosen['activation']!r} is not known: choose one of {', '.join(ACTIVATIONS)}"
        )


def check_counts(chosen: Mapping[str, Any], *names: str, least: int = 1) -> None:
    """Refuse settings that are no whole numbers from a least one.

    Parameters
    ----------
    chosen : mapping
        Complete settings.
    *names : str
        Those that count something.
    least : int
        The least that is allowed.

    Raises
    ------
    InvalidInput
        Naming the first that is wrong.
    """
    words = {0: "an integer from 0", 1: "a positive integer"}.get(least, f"an integer of at least {least}")
    for name in names:
        value = chosen[name]
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInput(f"{name}={value!r} must be {words}")


def check_number(chosen: Mapping[str, Any], name: str, *, least: float = 0.0) -> float:
    """A finite setting of at least some value.

    Parameters
    ----------
    chosen : mapping
        Complete settings.
    name : str
        Which.
    least : float
        The least that is allowed.

    Returns
    -------
    float
        Its value.

    Raises
    ------
    InvalidInput
        If it is not finite or below.
    """
    value = chosen[name]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.number)
        or not least <= value < np.inf
    ):
        raise InvalidInput(f"{name}={value!r} must be a finite number of at least {least:g}")
    return float(value)


def given_path(name: str, chosen: Mapping[str, Any], needs: str) -> str | Path:
    """The setting ``path`` of a task whose data the user has.

    Parameters
    ----------
    name : str
        Of the task.
    chosen : mapping
        Complete settings.
    needs : str
        What has to be there, for people.

    Returns
    -------
    str or Path
        Where the data are said to be.

    Raises
    ------
    InvalidInput
        If it is not given, or is no path.
    """
    path = chosen["path"]
    if path is None:
        raise InvalidInput(f"{name} needs the setting path=... (--data of the commands): {needs}")
    if not isinstance(path, str | Path):
        raise InvalidInput(f"path={path!r} must be a path: {needs}")
    return path
