"""The sharpness at which SGD comes to rest: the published small-noise law, and the reduced map behind it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from eos_sde.models.arguments import count, non_negative, positive
from eos_sde.models.maps import self_stabilization_map
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr


_PATHS, _SETTLED, _STEPS = 200, 1000, 6000  # runs of the reduced map: its gap to 1 or 2 %


def sharpness_plateau(
    calibration: xr.Dataset, *, eta: float, batch_size: int, method: str = "law", seed: int = 0
) -> Threshold:
    """Sharpness at which SGD comes to rest below 2/eta, by the published small-noise law or its reduced map.

    ``S = 2/eta - [1 - sqrt(1 - eta^2 beta sigma^2 / (2 alpha))] / eta``, where sigma^2 is the variance of the
    *batch gradient* along the top eigenvector (loss^2 per weight^2), so that the weight itself is kicked by
    eta sigma per step. It follows from the reduced map x+ = -(1 + eta y) x + eta sigma xi,
    y+ = y + eta (alpha - beta x^2/2) with y frozen at its mean; the map's fluctuations of x^2 add once to four
    times ``eta alpha`` to the gap (more the weaker the noise; `notebooks/01_models_of_the_edge.ipynb`), and where
    this is not small beside the gap the law is too high. ``method="map"`` is the mean of y over runs of that map.

    Parameters
    ----------
    calibration : xarray.Dataset
        Scalars ``alpha`` (progressive sharpening, -grad L . grad S), ``beta`` (|grad S|^2 across the top
        eigenvector) and ``per_example_variance`` (population variance over the examples of the gradient along
        the top eigenvector); ``attrs["examples"]`` is their number n. Optional ``*_stderr`` of each.
    eta : float
        Learning rate, > 0.
    batch_size : int
        B, without replacement: sigma^2 = per_example_variance (n - B) / (B (n - 1)).
    method : {"law", "map"}
        Closed form, or 200 runs of the map.
    seed : int
        Of the runs.

    Returns
    -------
    Threshold
        A sharpness; criterion "plateau"; stderr by the delta method from the ``*_stderr`` variables, taken
        as independent (0 when there are none); of the map by moving each by its error, with the error of the runs.

    Raises
    ------
    InvalidInput
        If something is missing or out of range, alpha is not positive (no progressive sharpening, so no
        plateau), or the noise is so large that the law has no solution; of the map also if its swings leave the model,
        as they do without noise.
    """
    if method not in ("law", "map"):
        raise InvalidInput(f"method={method!r} must be 'law' or 'map'")
    rate = positive("eta", eta)
    missing = [name for name in ("alpha", "beta", "per_example_variance") if name not in calibration]
    if missing:
        raise InvalidInput(f"calibration has no variable {missing[0]!r}; make it with bridge.calibrate")
    if "examples" not in calibration.attrs:
        raise InvalidInput(
            "calibration has no attribute 'examples'; store the number of training examples there"
        )
    n = count("calibration.attrs['examples']", calibration.attrs["examples"], least=2)
    batch = count("batch_size", batch_size, most=n)
    remedy = "the law needs progressive sharpening; where alpha <= 0 sharpness does not rise to a plateau"
    alpha = positive("alpha", calibration["alpha"], remedy)
    beta = positive("beta", calibration["beta"], "without feedback on the sharpness there is no plateau")
    spread = non_negative("per_example_variance", calibration["per_example_variance"])
    p = noise_fraction(n, batch)
    q = rate**2 * beta * p * spread / (2 * alpha)
    if q > 1:
        raise InvalidInput(
            f"eta^2 beta sigma^2/(2 alpha) = {q:.3g} exceeds 1 at batch_size={batch}: the noise is too large "
            "for the published law, which has no solution; use the stochastic central flow or a larger batch"
        )
    names = {"alpha": alpha, "beta": beta, "per_example_variance": spread}
    errors = {
        name: non_negative(f"{name}_stderr", calibration[f"{name}_stderr"]) / size
        for name, size in names.items()
        if f"{name}_stderr" in calibration and size > 0
    }
    if method == "map":
        return _of_map(rate, alpha, q, errors, seed)
    root = math.sqrt(1 - q)
    relative2 = sum(error**2 for error in errors.values())
    if relative2 == 0 or q == 0:
        stderr = 0.0
    else:
        stderr = math.inf if root == 0 else q / (2 * rate * root) * math.sqrt(relative2)
    return Threshold(
        (1 + root) / rate,
        stderr,
        "plateau",
        "refined small-noise law; error: calibration",
        "arXiv:2604.21016",
    )


def _of_map(rate: float, alpha: float, q: float, errors: dict[str, float], seed: int) -> Threshold:
    """Mean sharpness over the runs, with the errors of the runs and of the calibration."""

    def settled(alpha: float, q: float) -> tuple[float, float]:
        """Mean of eta y and its error, in units where 2 alpha/beta = 1 and eta = 1."""
        fast = rate**2 * alpha
        run = self_stabilization_map(fast, 2 * fast, 1.0, math.sqrt(q)).iterate(
            (1.0, 0.0), steps=_STEPS, paths=_PATHS, seed=seed, save_every=10
        )
        levels = run["state"].values[:, _SETTLED // 10 :, 1]
        if not np.all(np.isfinite(levels)):
            return math.nan, math.nan
        means = levels.mean(axis=1)
        return float(means.mean()), float(means.std(ddof=1) / math.sqrt(_PATHS))

    value, error = settled(alpha, q) if q > 0 else (math.nan, 0.0)
    if not math.isfinite(value):
        raise InvalidInput(
            f"the reduced map does not come to rest at eta^2 beta sigma^2/(2 alpha) = {q:.3g}, eta^2 alpha = "
            f"{rate**2 * alpha:.3g}: without noise it spirals out, and with much its swings leave the model; use the "
            "law or the stochastic central flow"
        )
    powers = {"alpha": (1, -1), "beta": (0, 1), "per_example_variance": (0, 1)}  # of alpha and of q
    variance = error**2
    for name, relative in errors.items():
        of_alpha, of_q = powers[name]
        less = max(1 - relative, 0.1)  # towards smaller noise there is always a solution
        if relative > 0:
            moved = settled(alpha * less**of_alpha, min(q * less**of_q, (1 + q) / 2))[0]
            variance += (moved - value) ** 2 if math.isfinite(moved) else math.inf
    return Threshold(
        (2 + value) / rate,
        math.sqrt(variance) / rate,
        "plateau",
        "runs of the reduced map; error: calibration and runs",
        "arXiv:2209.15594, eq. 3, with gradient noise",
    )
