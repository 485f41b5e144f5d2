"""Stochastic stability thresholds: closed forms, exact mean-square thresholds, and root finding on models.

`max_stable_lr` and `StabilityMonitor` differentiate the user's own network: they live in `eos_sde.training`, above
this package, and import JAX when first asked for here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eos_sde.thresholds.almost_sure import scalar_almost_sure, sgd_almost_sure
from eos_sde.thresholds.automatic_grids import automatic_grid
from eos_sde.thresholds.batch_gradients import batch_sharpness, gradient_noise_interaction
from eos_sde.thresholds.caeo_regimes import CaeoStability, caeo_stability, caeo_stability_map
from eos_sde.thresholds.closed_forms import (
    adam,
    gaussian_least_squares,
    gaussian_regression_1d,
    gradient_descent,
    momentum_sgd_scalar,
    pitchfork_d_bifurcation,
    pitchfork_moment,
    pitchfork_p_bifurcation,
)
from eos_sde.thresholds.crossing import locate
from eos_sde.thresholds.escape import catapult, flip_barrier, flip_escape, flip_escape_rate, line_escape
from eos_sde.thresholds.gram import GramBasis, GramOperator
from eos_sde.thresholds.mean_square import mean_square_growth, sgd_mean_square
from eos_sde.thresholds.mean_square_bounds import sgd_necessary_bounds, sgd_sufficient_bound
from eos_sde.thresholds.mean_square_factored import BracketedThreshold
from eos_sde.thresholds.model_spectra import model_spectrum
from eos_sde.thresholds.moment_growth import sgd_moment_exponents
from eos_sde.thresholds.noise_kernel import noise_kernel_norm, stochastic_edge
from eos_sde.thresholds.plateau_law import sharpness_plateau
from eos_sde.thresholds.power_law import power_law_escape, power_law_escape_rate, power_law_exponent
from eos_sde.thresholds.random_recurrence import (
    TailExponent,
    hill_exponent,
    kesten_exponent,
    recurrence_moments,
)
from eos_sde.thresholds.result import Threshold
from eos_sde.thresholds.sde_validity import sde_validity, svag_mean_square
from eos_sde.thresholds.sgd_tail import sgd_tail_exponent
from eos_sde.thresholds.spectral_crossing import MARGINAL_RATIO
from eos_sde.thresholds.spectrum_curves import spectrum_curve
from eos_sde.thresholds.threshold_curves import threshold_curve

if TYPE_CHECKING:
    from eos_sde.training import StabilityMonitor, max_stable_lr

_IN_TRAINING = ("StabilityMonitor", "max_stable_lr")

__all__ = [
    "MARGINAL_RATIO",
    "BracketedThreshold",
    "CaeoStability",
    "GramBasis",
    "GramOperator",
    "StabilityMonitor",
    "TailExponent",
    "Threshold",
    "adam",
    "automatic_grid",
    "batch_sharpness",
    "caeo_stability",
    "caeo_stability_map",
    "catapult",
    "flip_barrier",
    "flip_escape",
    "flip_escape_rate",
    "gaussian_least_squares",
    "gaussian_regression_1d",
    "gradient_descent",
    "gradient_noise_interaction",
    "hill_exponent",
    "kesten_exponent",
    "line_escape",
    "locate",
    "max_stable_lr",
    "mean_square_growth",
    "model_spectrum",
    "momentum_sgd_scalar",
    "noise_kernel_norm",
    "pitchfork_d_bifurcation",
    "pitchfork_moment",
    "pitchfork_p_bifurcation",
    "power_law_escape",
    "power_law_escape_rate",
    "power_law_exponent",
    "recurrence_moments",
    "scalar_almost_sure",
    "sde_validity",
    "sgd_almost_sure",
    "sgd_mean_square",
    "sgd_moment_exponents",
    "sgd_necessary_bounds",
    "sgd_sufficient_bound",
    "sgd_tail_exponent",
    "sharpness_plateau",
    "spectrum_curve",
    "stochastic_edge",
    "svag_mean_square",
    "threshold_curve",
]


def __getattr__(name: str) -> Any:
    if name in _IN_TRAINING:
        return getattr(import_module("eos_sde.training"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
