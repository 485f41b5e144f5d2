"""SDE ensembles and Fokker-Planck operators: one model, many readings, stated conventions.

The names below are imported when first used, so that a command line or a completion starts quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solvers.axes import log_axis, stretched_axis, uniform_axis
    from solvers.bifurcation import p_bifurcation
    from solvers.convergence import estimate_order
    from solvers.correlations import power_spectrum, stationary_autocorrelation
    from solvers.currents import entropy_production, probability_current
    from solvers.density_shape import density_modes
    from solvers.eigenvalue_roots import eigenvalue_root
    from solvers.ensemble import simulate
    from solvers.errors import (
        AccuracyWarning,
        ConvergenceFailure,
        ImpureFunction,
        InvalidInput,
        MissingConvention,
        PerformanceNotice,
    )
    from solvers.evolution import evolve, evolve_backward
    from solvers.exit_statistics import exit_summary, survival
    from solvers.fokker_planck import FokkerPlanck
    from solvers.given_noise import drive
    from solvers.grid import Grid
    from solvers.grid_report import resolution
    from solvers.heavy_tails import AlphaStable, StudentT
    from solvers.kramers import eyring_kramers_rate, kramers_comparison
    from solvers.lyapunov import (
        linear_lyapunov_exponent,
        linear_moment_lyapunov_exponent,
        lyapunov_exponent,
        moment_lyapunov_exponent,
    )
    from solvers.map_noise import GaussianNoise, HistogramNoise, SampleNoise
    from solvers.matrix_product import apply_matrix
    from solvers.metastability import metastable_sets
    from solvers.mode_continuation import continuation
    from solvers.multilevel import expectation, plain_expectation
    from solvers.observables import (
        committor,
        effective_potential,
        escape_rate,
        mean_first_passage_time,
        stationary_density,
    )
    from solvers.perturbation import eigenvalue_derivative
    from solvers.reactions import reaction_rate
    from solvers.resampling import Resampled
    from solvers.sde import SDE, from_potential
    from solvers.spectrum import eigenmodes
    from solvers.splitting import rare_exit
    from solvers.stability_roots import stability_index, stability_threshold
    from solvers.tables import tabulated
    from solvers.time_dependence import TimeDependentFokkerPlanck
    from solvers.transfer import TransferOperator
    from solvers.vector_form import VectorSDE

_MODULES = {
    "axes": ("log_axis", "stretched_axis", "uniform_axis"),
    "bifurcation": ("p_bifurcation",),
    "mode_continuation": ("continuation",),
    "convergence": ("estimate_order",),
    "correlations": ("power_spectrum", "stationary_autocorrelation"),
    "currents": ("entropy_production", "probability_current"),
    "density_shape": ("density_modes",),
    "eigenvalue_roots": ("eigenvalue_root",),
    "ensemble": ("simulate",),
    "errors": (
        "AccuracyWarning",
        "ConvergenceFailure",
        "ImpureFunction",
        "InvalidInput",
        "MissingConvention",
        "PerformanceNotice",
    ),
    "evolution": ("evolve", "evolve_backward"),
    "exit_statistics": ("exit_summary", "survival"),
    "fokker_planck": ("FokkerPlanck",),
    "given_noise": ("drive",),
    "grid": ("Grid",),
    "grid_report": ("resolution",),
    "heavy_tails": ("AlphaStable", "StudentT"),
    "kramers": ("eyring_kramers_rate", "kramers_comparison"),
    "lyapunov": (
        "linear_lyapunov_exponent",
        "linear_moment_lyapunov_exponent",
        "lyapunov_exponent",
        "moment_lyapunov_exponent",
    ),
    "map_noise": ("GaussianNoise", "HistogramNoise", "SampleNoise"),
    "matrix_product": ("apply_matrix",),
    "metastability": ("metastable_sets",),
    "multilevel": ("expectation", "plain_expectation"),
    "observables": (
        "committor",
        "effective_potential",
        "escape_rate",
        "mean_first_passage_time",
        "stationary_density",
    ),
    "perturbation": ("eigenvalue_derivative",),
    "reactions": ("reaction_rate",),
    "resampling": ("Resampled",),
    "sde": ("SDE", "from_potential"),
    "spectrum": ("eigenmodes",),
    "splitting": ("rare_exit",),
    "stability_roots": ("stability_index", "stability_threshold"),
    "tables": ("tabulated",),
    "time_dependence": ("TimeDependentFokkerPlanck",),
    "transfer": ("TransferOperator",),
    "vector_form": ("VectorSDE",),
}  # fmt: skip
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SDE",
    "AccuracyWarning",
    "AlphaStable",
    "ConvergenceFailure",
    "FokkerPlanck",
    "GaussianNoise",
    "Grid",
    "HistogramNoise",
    "ImpureFunction",
    "InvalidInput",
    "MissingConvention",
    "PerformanceNotice",
    "Resampled",
    "SampleNoise",
    "StudentT",
    "TimeDependentFokkerPlanck",
    "TransferOperator",
    "VectorSDE",
    "apply_matrix",
    "committor",
    "continuation",
    "density_modes",
    "drive",
    "effective_potential",
    "eigenmodes",
    "eigenvalue_derivative",
    "eigenvalue_root",
    "entropy_production",
    "escape_rate",
    "estimate_order",
    "evolve",
    "evolve_backward",
    "exit_summary",
    "expectation",
    "eyring_kramers_rate",
    "from_potential",
    "kramers_comparison",
    "linear_lyapunov_exponent",
    "linear_moment_lyapunov_exponent",
    "log_axis",
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
    "resolution",
    "simulate",
    "stability_index",
    "stability_threshold",
    "stationary_autocorrelation",
    "stationary_density",
    "stretched_axis",
    "survival",
    "tabulated",
    "uniform_axis",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'solvers' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"solvers.{_WHERE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
