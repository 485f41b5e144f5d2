"""SDE ensembles and Fokker-Planck operators: one model, many readings, stated conventions."""

from solvers.bifurcation import p_bifurcation
from solvers.convergence import estimate_order
from solvers.correlations import power_spectrum, stationary_autocorrelation
from solvers.currents import entropy_production, probability_current
from solvers.density_shape import density_modes
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
from solvers.heavy_tails import AlphaStable, StudentT
from solvers.kramers import eyring_kramers_rate, kramers_comparison
from solvers.lyapunov import (
    linear_lyapunov_exponent,
    linear_moment_lyapunov_exponent,
    lyapunov_exponent,
    moment_lyapunov_exponent,
)
from solvers.metastability import metastable_sets
from solvers.multilevel import expectation, plain_expectation
from solvers.observables import (
    committor,
    effective_potential,
    escape_rate,
    mean_first_passage_time,
    stationary_density,
)
from solvers.reactions import reaction_rate
from solvers.resampling import Resampled
from solvers.sde import SDE, from_potential
from solvers.spectrum import eigenmodes
from solvers.splitting import rare_exit
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
    "density_modes",
    "drive",
    "effective_potential",
    "eigenmodes",
    "entropy_production",
    "escape_rate",
    "estimate_order",
    "evolve",
    "exit_summary",
    "expectation",
    "eyring_kramers_rate",
    "from_potential",
    "kramers_comparison",
    "linear_lyapunov_exponent",
    "linear_moment_lyapunov_exponent",
    "lyapunov_exponent",
    "mean_first_passage_time",
    "metastable_sets",
    "moment_lyapunov_exponent",
    "p_bifurcation",
    "plain_expectation",
    "power_spectrum",
    "probability_current",
    "rare_exit",
    "reaction_rate",
    "simulate",
    "stationary_autocorrelation",
    "stationary_density",
    "survival",
]
