"""The application of all commands, and the exit status and sentence of what goes wrong in one."""

import shlex
import sys
import warnings
from typing import Any

import typer
from typer.exceptions import TyperException

from eos_sde.cli import (
    data_commands,
    experiments,
    listings,
    model_commands,
    picture_commands,
    planning_commands,
    sweep_commands,
    training_commands,
)
from eos_sde.cli.terminal import command_line
from eos_sde.store.errors import StoreFailure
from solvers.errors import ConvergenceFailure, InvalidInput

app = typer.Typer(
    name="eos-sde",
    help="The edge of stability of stochastic training: continuous theory held against real networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (
    experiments,
    training_commands,
    planning_commands,
    sweep_commands,
    model_commands,
    picture_commands,
    listings,
    data_commands,
):
    app.add_typer(commands.app)
_INTERRUPTED = 130  # typer's reading of Ctrl-C


def _say(message: str) -> None:
    if message:
        sys.stderr.write(f"eos-sde: {message}\n")


def run(arguments: list[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : list of str, optional
        Instead of the process's own.

    Returns
    -------
    int
        Exit status: 0; 1 if an iteration or a file failed or 2 for bad input, with one sentence on standard error.

    Raises
    ------
    KeyboardInterrupt
        When interrupted.
    """
    said = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG001
        if str(message) not in said:  # once, from however many places
            said.add(str(message))
            _say(str(message))

    given = sys.argv[1:] if arguments is None else arguments
    command_line.set(shlex.join(["eos-sde", *given]))
    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            result = app(arguments, standalone_mode=False, prog_name="eos-sde")
        except typer.Exit as leaving:
            result = leaving.exit_code
        except InvalidInput as error:
            _say(str(error))
            return 2
        except (ConvergenceFailure, StoreFailure) as error:
            _say(str(error))
            return 1
        except typer.Abort as stopped:
            raise KeyboardInterrupt from stopped
        except OSError as error:  # a full disk, a folder that went away
            from solvers.whole_files import meaning

            _say(f"{error.filename or 'a file'} cannot be read or written: {meaning(error)}")
            return 1
        except TyperException as error:  # bad options and values, in typer's own words
            _say(error.format_message())
            return 2
    if result == _INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0
