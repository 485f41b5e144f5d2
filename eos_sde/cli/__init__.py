"""The command line, `eos-sde`; each module here holds some of its commands."""

import sys
import warnings
from collections.abc import Callable

import typer
from typer.exceptions import TyperException

from eos_sde.cli import experiments, listings, sweep_commands
from solvers.errors import ConvergenceFailure, InvalidInput

app = typer.Typer(
    name="eos-sde",
    help="The edge of stability of stochastic training: continuous theory held against real networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (experiments, listings, sweep_commands):
    app.add_typer(commands.app)
_INTERRUPTED = 130
_INTERRUPTION = "interrupted; what was finished is kept where the output goes"


def _say(message: str) -> None:
    if message:
        sys.stderr.write(f"eos-sde: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Instead of the process's own.

    Returns
    -------
    int
        Exit status: 0; 1 if an iteration failed or 2 for bad input, with one sentence on standard error; 130 when
        interrupted.
    """
    show: Callable[..., None] = lambda message, *args, **kwargs: _say(str(message))  # noqa: ARG005, E731
    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            result = app(arguments, standalone_mode=False)
        except typer.Exit as leaving:
            if leaving.exit_code == _INTERRUPTED:  # typer's reading of Ctrl-C
                _say(_INTERRUPTION)
            return leaving.exit_code
        except InvalidInput as error:
            _say(str(error))
            return 2
        except ConvergenceFailure as error:
            _say(str(error))
            return 1
        except (KeyboardInterrupt, typer.Abort):
            _say(_INTERRUPTION)
            return _INTERRUPTED
        except TyperException as error:  # bad options and values, in typer's own words
            _say(error.format_message())
            return 2
    if result == _INTERRUPTED:
        _say(_INTERRUPTION)
    return result if isinstance(result, int) else 0
