"""SDE ensembles and Fokker-Planck operators: one model, many readings, stated conventions."""

from solvers.errors import AccuracyWarning, ConvergenceFailure, ImpureFunction, InvalidInput, MissingConvention
from solvers.sde import SDE, from_potential

__all__ = [
    "SDE",
    "AccuracyWarning",
    "ConvergenceFailure",
    "ImpureFunction",
    "InvalidInput",
    "MissingConvention",
    "from_potential",
]
