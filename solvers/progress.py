"""Progress of long work: a bar on the terminal, or the caller's own function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from solvers.errors import InvalidInput


@contextmanager
def reporting(
    progress: bool | Callable[[float], Any] | None, unit: str
) -> Iterator[Callable[[float], Any] | None]:
    """What to call with the finished fraction; a bar (shown on terminals only) closes with the block.

    Parameters
    ----------
    progress : bool, callable or None
        True for a bar, a callable to be called, nothing for neither.
    unit : str
        What is counted, shown beside the bar.

    Raises
    ------
    InvalidInput
        For anything else.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(unit, total=1.0)
            yield lambda fraction: bar.update(task, completed=fraction)
    elif callable(progress):
        yield progress
    else:
        raise InvalidInput(
            f"progress={progress!r}; give True for a bar, or a function of the finished fraction"
        )
