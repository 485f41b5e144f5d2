"""What the commands share: their own line, the JSON option, a progress bar, folders checked."""

import os
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from solvers.errors import InvalidInput

command_line: ContextVar[str] = ContextVar("command_line", default="eos-sde")
"""What is being run, for the record of results."""
JSON = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before any work; make nothing yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InvalidInput(f"out={folder} cannot be written ({there} is no writable folder); choose another")


@contextmanager
def progress_bars():
    """A bar on a terminal's standard error, nothing in a pipe."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<13}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        bars: dict[str, Any] = {}

        def advance(name: str, fraction: float) -> None:
            if name not in bars:
                for earlier in bars.values():
                    bar.update(earlier, completed=1.0)
                bars[name] = bar.add_task(name, total=1.0)
            bar.update(bars[name], completed=fraction)

        yield advance
        for one in bars.values():
            bar.update(one, completed=1.0)
