"""Errors and warnings of the solvers: each message names the argument, its value and the remedy."""


class InvalidInput(ValueError):
    """An argument cannot be used; raised before any work is done."""


class MissingConvention(InvalidInput, TypeError):
    """The reading of the noise (Ito, Stratonovich, Klimontovich) was not stated.

    A `TypeError` too, as for any missing keyword argument of Python.
    """


class ImpureFunction(InvalidInput):
    """A model function reads state that can change behind the solver's back."""


class ConvergenceFailure(RuntimeError):
    """An iteration ended without reaching its tolerance; the message gives what was reached."""


class AccuracyWarning(UserWarning):
    """A result was computed, but a measured number says that it may be inaccurate; the message gives it."""


class PerformanceNotice(UserWarning):
    """The model runs several times slower than it could, and what to write instead."""
