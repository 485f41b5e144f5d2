"""What the second moments of the linear map say of a normal law: amplitude, flips, correlation."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm

from eos_sde.bridge.alternation import gaussian_flip_rate, sign_change_rate
from eos_sde.bridge.linear_fluctuation import SecondMoments

_TAIL = 0.02


def gaussian_statistics(
    moments: SecondMoments, eigenvalues: NDArray[np.float64], direction: int, eta: float, hysteresis: float
) -> dict[str, tuple[float, float]]:
    """The names of `STATISTICS` for a normal law with the covariance of the linear map.

    The next step has the covariance (I - eta H) Sigma with this one, whatever the noise, so that the correlation is
    1 - eta h along an eigenvector (but for the growth of Sigma within a window), half the change of x a variance
    of eta h Sigma/2, and the alternating process sign changes at the rate arccos(eta h - 1)/pi.

    Parameters
    ----------
    moments : SecondMoments
        Over the steps of the window, or stationary.
    eigenvalues : ndarray
        Shape (k,).
    direction : int
        Which of them.
    eta, hysteresis : float
        Learning rate; hysteresis of the phase in standard deviations.

    Returns
    -------
    dict
        Name to (value, 0): there is no sampling. Infinite variance and amplitude without a stationary state.
    """
    contraction = 1 - eta * float(eigenvalues[direction])
    variance = moments.covariance[:, direction, direction]
    if not np.all(np.isfinite(variance)):
        return {
            "variance": (math.inf, 0.0),
            "kurtosis": (math.nan, 0.0),
            "autocorrelation": (math.nan, 0.0),
            "amplitude": (math.inf, 0.0),
            "flip_rate": (math.nan, 0.0),
            "hysteresis_flip_rate": (math.nan, 0.0),
            "tail": (math.nan, 0.0),
        }
    steps = None if len(variance) == 1 else len(variance) - 1
    now, then = (variance, variance) if steps is None else (variance[:-1], variance[1:])
    correlation = np.clip(contraction * np.sqrt(now / then), -1.0, 1.0)
    change = np.maximum(now + then - 2 * contraction * now, 0.0) / 4
    pooled = float(np.sum(contraction * now) / np.sum(np.sqrt(now * then)))
    inside = float(np.clip(pooled, -1 + 1e-9, 1 - 1e-9))
    values = {
        "variance": float(variance.mean()),
        "kurtosis": 0.0,
        "autocorrelation": pooled,
        "amplitude": math.sqrt(2 / math.pi) * float(np.mean(np.sqrt(change))),
        "flip_rate": float(np.mean([sign_change_rate(-r) for r in correlation])),
        "hysteresis_flip_rate": gaussian_flip_rate(-inside, hysteresis, steps=steps),
        "tail": normal_hill(_TAIL),
    }
    return {name: (value, 0.0) for name, value in values.items()}


def normal_hill(tail: float) -> float:
    """What Hill's estimator reads on a normal law: 1/E[log(|x|/t) | |x| > t], t its quantile."""
    threshold = float(norm.isf(tail / 2))
    integral = quad(lambda x: 2 * norm.sf(x) / x, threshold, math.inf)[0]
    return tail / integral
