"""Where a stochastic differential equation stands for SGD near a minimum, by its second moments: SVAG and its limit.

SVAG of level l (Li, Malladi and Arora 2021, arXiv:2102.12470) takes steps of eta/l along the gradients of two batches,
weighted by (1 + sqrt(2 l - 1))/2 and (1 - sqrt(2 l - 1))/2: the same mean, l times the variance. It is SGD at l = 1
(only one batch is left) and the SDE dw = -H w dt + sqrt(eta) noise dW as l grows, per time eta/l. Of the second moments
near a minimum with curvatures H_i it makes

    Q_l(eta) = 1 - (eta/l) 2 C + (eta/l)^2 (H x H + l p V),    C X = (H X + X H)/2,

with V X = mean_i H_i X H_i - H X H, and p the variance of a batch mean over that of one example. All questions here
are for the eta at which 2 C = eta (H x H / l + p V) has a solution: those of level l are stable below it; the SDE
has l = infinity.
"""

from __future__ import annotations

import math
from typing import Any

from eos_sde.models.arguments import finite, positive
from eos_sde.thresholds.curvature_factors import factors_and_noise
from eos_sde.thresholds.result import Threshold
from eos_sde.thresholds.symmetric_maps import second_moment_edge
from solvers.errors import InvalidInput

_SOURCE = "Li, Malladi and Arora 2021, arXiv:2102.12470 (SVAG)"


def svag_mean_square(
    jacobian: Any, *, batch_size: int, level: float, weights: Any = None, replacement: bool = False
) -> Threshold:
    """Largest learning rate at which SVAG of a level is mean-square stable at an interpolating minimum; exact.

    Where an SDE is a fair model of SGD these thresholds hardly change with the level; with the noise small against
    the curvature they run away, and the SDE is stable where SGD is not.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`, arrays only.
    level : float
        l >= 1; 1 is SGD, ``inf`` the SDE.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "mean-square". ``inf`` for the SDE of full batches.

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`, or if level is below 1.
    """
    if level != math.inf and not finite("level", level) >= 1:
        raise InvalidInput(f"level={level} is below 1; give 1 for SGD, more for SVAG, inf for the SDE")
    factors, p = factors_and_noise(jacobian, weights, batch_size, replacement)
    share = 1.0 / level
    if p == 0 and share == 0:
        return Threshold(math.inf, 0.0, "mean-square", "no noise: the gradient flow is stable", _SOURCE)
    return second_moment_edge(factors, p, mean=share, criterion="mean-square", source=_SOURCE)


def sde_validity(
    jacobian: Any, *, batch_size: int, tolerance: float = 0.1, weights: Any = None, replacement: bool = False
) -> Threshold:
    """Learning rate up to which the SDE of SGD has the stationary second moments of SGD, to a relative tolerance.

    With extra gradient noise of covariance S the second moments settle at (2 C - eta (H x H + p V))^-1 eta p S for
    SGD and at the same without H x H for the SDE. Up to this learning rate, and not beyond, the SDE's are at
    least 1 - tolerance of SGD's for every S, in the sense of <S, moments of the SDE> >= (1 - tolerance) <S, moments
    of SGD>.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`, arrays only; p = 0 (full batches) is allowed.
    tolerance : float
        In (0, 1).

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "sde-validity". At most 2 tolerance / lambda_max.

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`, or if tolerance is not inside (0, 1).
    """
    if not positive("tolerance", tolerance) < 1:
        raise InvalidInput(f"tolerance={tolerance} is not below 1; give the relative error that is allowed")
    factors, p = factors_and_noise(jacobian, weights, batch_size, replacement)
    # A_sde^-1 >= (1 - tolerance) A_sgd^-1 is A_sgd >= (1 - tolerance) A_sde; A_sgd is A_sde - eta H x H, so this is
    # eta H x H / tolerance <= A_sde = 2 C - eta p V.
    return second_moment_edge(factors, p, mean=1.0 / tolerance, criterion="sde-validity", source=_SOURCE)
