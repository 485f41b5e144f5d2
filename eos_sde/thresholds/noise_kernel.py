"""The noise kernel norm of high-dimensional SGD, and the learning rate at which it reaches one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq

from eos_sde.models.arguments import count, positive
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput

_SOURCE = "Agarwala and Pennington 2024, arXiv:2404.19261 (stochastic edge of stability, K = 1)"


def noise_kernel_norm(
    spectrum: Sequence[float] | np.ndarray, eta: float, *, examples: int, batch_size: int
) -> float:
    """How much of the loss that SGD removes its own noise puts back: ``K = (1/B - 1/n) sum_j eta l_j/(2 - eta l_j)``.

    Parameters
    ----------
    spectrum : sequence of float
        Eigenvalues l_j >= 0 of the Gauss-Newton Hessian of the mean loss (or of the tangent kernel over n), all of
        them: small ones count through their sum.
    eta : float
        Learning rate, below 2 / max(l).
    examples, batch_size : int
        n and B, batches drawn without replacement.

    Returns
    -------
    float
        Below 1 on the stable side of the stochastic edge; infinite from 2 / max(l) on.

    Raises
    ------
    InvalidInput
        If the spectrum is empty, negative, not finite or all zero, eta not positive, or the batch out of range.
    """
    values, noise = _checked(spectrum, examples, batch_size)
    return _norm(values * positive("eta", eta), noise)


def stochastic_edge(spectrum: Sequence[float] | np.ndarray, *, examples: int, batch_size: int) -> Threshold:
    """Learning rate at which the noise kernel norm is 1: the high-dimensional mean-square threshold.

    It needs the spectrum only. It is exact in the limit of many examples whose gradients share no direction more
    than by chance; where some share large ones it lies above the exact threshold, `sgd_mean_square` (Gaussian rows
    with covariance ~ 1/j in 300 dimensions: by 6 to 11 %).

    Parameters
    ----------
    spectrum, examples, batch_size
        As for `noise_kernel_norm`.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "mean-square (high-dimensional)". At most 2 / max(l), which it is
        for the full batch.

    Raises
    ------
    InvalidInput
        As for `noise_kernel_norm`.
    """
    values, noise = _checked(spectrum, examples, batch_size)
    top = float(values.max())
    criterion = "mean-square (high-dimensional)"
    if noise == 0:
        return Threshold(2 / top, 0.0, criterion, "2/lambda_max, a batch is the whole set; exact", _SOURCE)
    unit = values / top

    # K rises from 0 to infinity at u = 2: by the largest term alone it exceeds 1 before 2/(1 + noise).
    def excess(u: float) -> float:
        return _norm(u * unit, noise) - 1.0

    root = float(brentq(excess, 0.0, 2.0 / (1.0 + 0.5 * noise), xtol=1e-15))  # pyright: ignore[reportArgumentType]
    return Threshold(
        root / top, 1e-14 * root / top, criterion, "root of K(eta) = 1; error: root tolerance", _SOURCE
    )


def _norm(scaled: np.ndarray, noise: float) -> float:
    return float(noise * np.sum(scaled / (2.0 - scaled))) if scaled.max() < 2.0 else np.inf


def _checked(
    spectrum: Sequence[float] | np.ndarray, examples: int, batch_size: int
) -> tuple[np.ndarray, float]:
    """The positive eigenvalues and 1/B - 1/n."""
    values = np.asarray(spectrum, dtype=float)
    usable = values.ndim == 1 and values.size > 0 and np.all(np.isfinite(values))
    if not (usable and np.all(values >= 0) and np.any(values > 0)):
        raise InvalidInput(f"spectrum={spectrum!r} is not usable; give finite eigenvalues >= 0, one above 0")
    n = count("examples", examples)
    noise_fraction(n, batch_size, replacement=False)
    return values[values > 0], 1.0 / batch_size - 1.0 / n
