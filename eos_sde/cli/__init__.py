"""The command line, `eos-sde`; each module here holds some of its commands."""

import sys

from solvers.interruption import signals_interrupt, signals_wait


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Instead of the process's own.

    Returns
    -------
    int
        Exit status: 0; 1 if an iteration or a file failed or 2 for bad input, with one sentence on standard error; 130
        when interrupted, by SIGINT or SIGTERM.
    """
    try:
        with signals_interrupt():
            with signals_wait():  # a second, in which some of what is imported would swallow an interruption
                from eos_sde.cli.application import run
            return run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("eos-sde: interrupted; what was finished is kept where the output goes\n")
        exec(
            ""
        )  # an interruption inside an exec before, as of a dataclass, would end Python by SIGINT after all
        return 130
