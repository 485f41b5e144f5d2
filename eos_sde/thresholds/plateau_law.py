"""The published small-noise law of the sharpness at which SGD comes to rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eos_sde.models.arguments import count, non_negative, positive
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr


def sharpness_plateau(calibration: xr.Dataset, *, eta: float, batch_size: int) -> Threshold:
    """Sharpness at which SGD comes to rest below 2/eta, by the published small-noise law.

    ``S = 2/eta - [1 - sqrt(1 - eta^2 beta sigma^2 / (2 alpha))] / eta``, where sigma^2 is the variance of the
    *batch gradient* along the top eigenvector (loss^2 per weight^2), so that the weight itself is kicked by
    eta sigma per step. It follows from the reduced map x+ = -(1 + eta y) x + eta sigma xi,
    y+ = y + eta (alpha - beta x^2/2) with y frozen at its mean; the map's fluctuations of x^2 add once to four
    times ``eta alpha`` to the gap (more the weaker the noise; `notebooks/01_models_of_the_edge.ipynb`), and where
    this is not small beside the gap the law is too high.

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

    Returns
    -------
    Threshold
        A sharpness; criterion "plateau"; stderr by the delta method from the ``*_stderr`` variables, taken
        as independent (0 when there are none).

    Raises
    ------
    InvalidInput
        If something is missing or out of range, alpha is not positive (no progressive sharpening, so no
        plateau), or the noise is so large that the law has no solution.
    """
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
    root = math.sqrt(1 - q)
    relative2 = sum(
        (non_negative(f"{name}_stderr", calibration[f"{name}_stderr"]) / size) ** 2
        for name, size in (("alpha", alpha), ("beta", beta), ("per_example_variance", spread))
        if f"{name}_stderr" in calibration and size > 0
    )
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
