"""SDE ensembles and Fokker-Planck operators: one model, many readings, stated conventions."""

from solvers.convergence import estimate_order
from solvers.ensemble import simulate
from solvers.errors import (
    AccuracyWarning,
    ConvergenceFailure,
    ImpureFunction,
    InvalidInput,
    MissingConvention,
)
from solvers.evolution import evolve
from solvers.fokker_planck import FokkerPlanck
from solvers.given_noise import drive
from solvers.grid import Grid
from solvers.lyapunov import lyapunov_exponent, moment_lyapunov_exponent
from solvers.observables import (
    committor,
    effective_potential,
    escape_rate,
    mean_first_passage_time,
    stationary_density,
)
from solvers.sde import SDE, from_potential
from solvers.spectrum import eigenmodes
from solvers.transfer import TransferOperator

__all__ = [
    "SDE",
    "AccuracyWarning",
    "ConvergenceFailure",
    "FokkerPlanck",
    "Grid",
    "ImpureFunction",
    "InvalidInput",
    "MissingConvention",
    "TransferOperator",
    "committor",
    "drive",
    "effective_potential",
    "eigenmodes",
    "escape_rate",
    "estimate_order",
    "evolve",
    "from_potential",
    "lyapunov_exponent",
    "mean_first_passage_time",
    "moment_lyapunov_exponent",
    "simulate",
    "stationary_density",
]
