"""The exponential of a generator times a vector by adaptive implicit steps, with solutions inside a step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import gammaln

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.exponentials import SMALLEST, Side
from solvers.resolvents import Resolvents

# (1 - G z)^-1 and its powers; L-stable for 5 stages at order 4 and for 4 stages at order 3 when
# 0.248 <= G <= 0.573 (Hairer and Wanner 1996, table IV.6.4)
GAMMA = 0.25


def _powers(stages: int) -> np.ndarray:
    """Row j: coefficients of z^j in (1 - G z)^-k, k = 1 ... stages."""
    powers = np.empty((stages, stages))
    powers[0] = 1.0
    for j in range(1, stages):
        powers[j] = powers[j - 1] * (np.arange(1, stages + 1) + j - 1) / j * GAMMA
    return powers


def stage_weights(stages: int, share: float = 1.0) -> np.ndarray:
    """Coefficients c with sum_k c_k (1 - G z)^-k = e^(share z) + O(z^stages), k = 1 ... stages."""
    j = np.arange(stages)
    return np.linalg.solve(_powers(stages), share**j / np.exp(gammaln(j + 1.0)))


_FOURTH, _THIRD = stage_weights(5), np.append(stage_weights(4), 0.0)
_THIRD_ERROR = abs(float(_powers(5)[4] @ _THIRD) - 1 / 24)


class ImplicitSteps:
    """Adaptive L-stable steps of order 4 with one real pole, and solutions of the same order inside a step.

    A step combines u_k = (1 - G s L)^-k x, k = 1 ... 5, G = 1/4: five backward Euler steps, each positive and
    mass-conserving. The combination is the L-stable approximation of order 4 of the exponential with that one
    real pole (Norsett; Hairer and Wanner 1996, sec. IV.6), u_1 ... u_4 give one of order 3, and their
    difference in the side's norm is the error estimate that sets the step (by powers of two, so that
    factorisations recur). Other coefficients give e^(share s L) from the same stages, so output times do not
    shorten steps unless that difference is larger there.
    No method of order above 1 is positive for all steps (Bolley and Crouzeix 1978): what leaves the bounds,
    less than the error since the exact solution does not, is cut off.

    Parameters
    ----------
    chain : Chain
    side : Side
    allowed : float
        Largest local error per step, in the side's norm.
    """

    def __init__(self, chain: Chain, side: Side, allowed: float):
        self._side, self._allowed = side, allowed
        self._resolvents = Resolvents(chain, side.transposed)
        self._chain, self._steps = chain, 0

    def __call__(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Rows: the solution at increasing positive times."""
        result, done, now = np.empty((len(times), len(x))), 0, 0.0
        step = self._first_step(x, float(times[-1]))
        self._resolvents.aim(self._allowed / max(self._side.norm(x), 1e-300))
        while done < len(times):
            stages = self._stages(x, step)
            error = self._side.norm((_FOURTH - _THIRD) @ stages)
            inside = times[done:][times[done:] <= now + step * (1 + 1e-12)]
            rows, worst = self._inside(stages, np.minimum((inside - now) / step, 1.0))
            if max(error, worst) > self._allowed:
                step *= 0.5
                if step < SMALLEST * times[-1]:
                    raise ConvergenceFailure(
                        f"the step fell to {step:.2g} with error {error:.2g}; use a larger tol"
                    )
                continue
            for row in rows:
                result[done] = self._side.finish(row, x)
                done += 1
            x, now = self._side.finish(_FOURTH @ stages, x, shown=False), now + step
            self._steps += 1
            # order 3 is estimated: one doubling multiplies the error of a smooth solution by 2^4
            gain = math.log2(0.5 * self._allowed / max(error, 1e-300)) / 4
            step *= 2.0 ** max(0, min(math.floor(gain), 8))
        return result

    def told(self) -> dict[str, Any]:
        """Attributes: what it took."""
        return self._resolvents.told() | {"steps": self._steps}

    def _first_step(self, x: np.ndarray, longest: float) -> float:
        """From the error's leading term, C s^4 L^4 x."""
        generator = self._chain.generator.T if self._side.transposed else self._chain.generator
        power = x
        for _ in range(4):
            power = generator @ power
        size = _THIRD_ERROR * self._side.norm(power)
        step = (self._allowed / size) ** 0.25 if size > 0 else longest
        return longest * 2.0 ** min(0, math.floor(math.log2(step / longest)))

    def _stages(self, x: np.ndarray, step: float) -> np.ndarray:
        solve = self._resolvents(GAMMA * step)
        stages = np.empty((5, len(x)))
        for k in range(5):
            x = stages[k] = solve(x)
        return stages

    def _inside(self, stages: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, float]:
        """Solutions at shares of the step, and the largest of their error estimates."""
        fourth = np.array([stage_weights(5, share) for share in shares]).reshape(-1, 5)
        third = np.zeros_like(fourth)
        for row, share in enumerate(shares):
            third[row, :4] = stage_weights(4, share)
        errors = [self._side.norm(row) for row in (fourth - third) @ stages]
        return fourth @ stages, max(errors, default=0.0)
