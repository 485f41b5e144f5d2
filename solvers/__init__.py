"""SDE ensembles and Fokker-Planck operators: one model, many readings, stated conventions."""

from solvers.axes import log_axis, stretched_axis, uniform_axis
from solvers.convergence import estimate_order
from solvers.ensemble import simulate
from solvers.errors import (
    AccuracyWarning,
    ConvergenceFailure,
    ImpureFunction,
    InvalidInput,
    MissingConvention,
    PerformanceNotice,
)
from solvers.evolution import evolve
from solvers.exit_statistics import exit_summary, survival
from solvers.fokker_planck import FokkerPlanck
from solvers.given_noise import drive
from solvers.grid import Grid
from solvers.grid_report import resolution
from solvers.heavy_tails import AlphaStable, StudentT
from solvers.lyapunov import (
    linear_lyapunov_exponent,
    linear_moment_lyapunov_exponent,
    lyapunov_exponent,
    moment_lyapunov_exponent,
)
from solvers.multilevel import expectation, plain_expectation
from solvers.observables import (
    committor,
    effective_potential,
    escape_rate,
    mean_first_passage_time,
    stationary_density,
)
from solvers.resampling import Resampled
from solvers.sde import SDE, from_potential
from solvers.spectrum import eigenmodes
from solvers.splitting import rare_exit
from solvers.tables import tabulated
from solvers.transfer import TransferOperator
from solvers.vector_form import VectorSDE

__all__ = [
    "SDE",
    "AccuracyWarning",
    "AlphaStable",
    "ConvergenceFailure",
    "FokkerPlanck",
    "Grid",
    "ImpureFunction",
    "InvalidInput",
    "MissingConvention",
    "PerformanceNotice",
    "Resampled",
    "StudentT",
    "TransferOperator",
    "VectorSDE",
    "committor",
    "drive",
    "effective_potential",
    "eigenmodes",
    "escape_rate",
    "estimate_order",
    "evolve",
    "exit_summary",
    "expectation",
    "from_potential",
    "linear_lyapunov_exponent",
    "linear_moment_lyapunov_exponent",
    "log_axis",
    "lyapunov_exponent",
    "mean_first_passage_time",
    "moment_lyapunov_exponent",
    "plain_expectation",
    "rare_exit",
    "resolution",
    "simulate",
    "stationary_density",
    "stretched_axis",
    "survival",
    "tabulated",
    "uniform_axis",
]
