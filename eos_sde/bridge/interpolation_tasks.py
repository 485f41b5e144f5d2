"""Small versions of the image tasks that their networks can fit exactly, for the stability of minima."""

from typing import Any

from eos_sde.bridge import image_tasks
from eos_sde.bridge.task_library import Task, load_task, tasks
from solvers.errors import InvalidInput


def interpolating() -> tuple[str, ...]:
    """Names of the tasks that `interpolation_task` takes: the classifiers of images that come with the project.

    Returns
    -------
    tuple of str
        Some of `tasks()`.
    """
    return tuple(image_tasks.RECIPES)


def interpolation_task(name: str, **settings: Any) -> Task:
    """Small version of a task that its network can fit exactly, for the stability of minima.

    100 examples, one output (+1 for even labels, -1 for odd), one hidden layer of 32 tanh units;
    Fashion images pooled to 7x7, so that measuring an onset takes seconds. With cross entropy, two classes (even,
    odd) with probabilities 0.95 and 0.05 (smoothing = 0.1): hard targets have no minimum at finite weights.

    Parameters
    ----------
    name : str
        One of `tasks()`.
    **settings
        As for `load_task`, over these.

    Returns
    -------
    Task
        The small task.

    Raises
    ------
    InvalidInput
        For a task that is no classifier of images that come with the project, or as `load_task`.
    """
    if name in tasks() and name not in interpolating():
        choices = ", ".join(interpolating())
        raise InvalidInput(f"{name} has no small version that is fitted exactly: choose one of {choices}")
    small: dict[str, Any] = {"examples": 100, "outputs": "scalar", "hidden": (32,)}
    if name == "fashion-mlp":
        small["pool"] = 4
    if settings.get("loss") == "cross-entropy":
        small |= {"outputs": "parity", "smoothing": 0.1}
    return load_task(name, **(small | settings))
