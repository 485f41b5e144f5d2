"""One run of multilevel Monte Carlo: where it starts, and the rules by which samples and levels are added."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from solvers import level_statistics as ls
from solvers.coupled_levels import Level, Workers
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.level_statistics import Bias

PILOT = 1024
"""Samples by which a coarsest level is judged."""
FINEST = 1 << 30
"""Steps of the finest grid ever used."""

_NEW_LEVEL = 256


class Run:
    """The levels of one run.

    Parameters
    ----------
    kernel : dispatcher
        From `solvers.coupled_levels.sampling`.
    workers : Workers
    error : float
        Root-mean-square error to reach.
    most : int
        Levels at most.
    refinement : int
    weak : float
        Stated order of the bias.
    max_cost : float or None
        Time steps at most.
    progress : callable or None
    fine_paths : int
        See `Level`.
    """

    def __init__(
        self,
        kernel: Any,
        workers: Workers,
        error: float,
        most: int,
        refinement: int,
        weak: float,
        max_cost: float | None,
        progress: Callable[[float], Any] | None,
        fine_paths: int = 1,
    ):
        self._kernel, self._workers, self._error = kernel, workers, error
        self._most, self.refinement, self.weak = most, refinement, weak
        self._max_cost, self._progress, self._fine_paths = max_cost, progress, fine_paths
        self.levels: list[Level] = []
        self.discarded = 0
        self._spent, self._planned, self._shown = 0, 1.0, 0.0

    def begin(self, steps: int, *, fixed: bool) -> None:
        """Find the coarsest level worth having, and sample the first three."""
        number = 0
        while True:
            single, pair = self._level(number, steps, False), self._level(number + 1, steps, True)
            for level in (single, pair):
                self._draw(level, PILOT)
            if fixed or not self._too_coarse(single, pair):
                break
            self.discarded += single.cost + pair.cost
            number, steps = number + 1, steps * self.refinement
            if steps > FINEST:
                raise ConvergenceFailure(
                    f"paths still diverge on {steps} steps; use a tamed or implicit scheme, or another start"
                )
        self.levels = [single, pair]
        self._extend()

    def _level(self, number: int, coarse_steps: int, coupled: bool) -> Level:
        fine = coarse_steps * (self.refinement if coupled else 1)
        return Level(self._kernel, number, fine, self.refinement, coupled, self._fine_paths)

    def _too_coarse(self, single: Level, pair: Level) -> bool:
        """Whether starting one level finer is cheaper, for equal variance of the sum."""
        if single.tally.failed or pair.tally.failed:
            return True
        with_it = math.sqrt(single.tally.variance * single.unit_cost)
        with_it += math.sqrt(pair.tally.variance * pair.unit_cost)
        return math.sqrt(pair.tally.fine_variance * pair.steps) < with_it

    def _extend(self) -> None:
        last = self.levels[-1]
        new = self._level(last.number + 1, last.steps, True)
        if new.steps > FINEST:
            raise ConvergenceFailure(f"the next level would have {new.steps} steps; ask for a larger error")
        self.levels.append(new)
        self._draw(new, _NEW_LEVEL)

    def _draw(self, level: Level, samples: int) -> None:
        self._workers.fill(level, samples, self._advance)

    def _advance(self, cost: int) -> None:
        self._spent += cost
        if self._progress is not None:
            # the plan may grow: never show less than before, nor the end before it is reached
            self._shown = max(self._shown, min(self._spent / max(self._planned, self._spent), 0.99))
            self._progress(self._shown)

    def finish(self) -> Bias:
        """Add samples and levels until sampling error and bias are within tolerance; the bias."""
        tolerance = math.sqrt(1 - ls.SHARE) * self._error
        while True:
            self._fill()
            bias = self.bias()
            if bias.bound <= tolerance:
                break
            if len(self.levels) >= self._most:
                raise ConvergenceFailure(
                    f"the bias is still about {bias.bound:.3g} on level {len(self.levels)} "
                    f"({self.levels[-1].steps} steps), above {tolerance:.3g}; raise levels={self._most} or error"
                )
            self._extend()
        if self._progress is not None:
            self._progress(1.0)
        return bias

    def _fill(self) -> None:
        while True:
            for level in self.levels:
                refuse_diverged(level)
            wanted = self._wanted()
            missing = [max(0, n - level.drawn) for n, level in zip(wanted, self.levels, strict=True)]
            if all(m <= 0.01 * level.drawn for m, level in zip(missing, self.levels, strict=True)):
                return
            units = np.array([level.unit_cost for level in self.levels], dtype=float)
            self._planned = self._spent + float(units @ missing)
            if self._max_cost is not None and self._planned > self._max_cost:
                possible = self._error * math.sqrt(self._planned / self._max_cost)
                raise InvalidInput(
                    f"error={self._error:g} needs about {self._planned:.2g} time steps, more than "
                    f"max_cost={self._max_cost:g}; an error of {possible:.2g} is about what that buys"
                )
            for level, samples in zip(self.levels, wanted, strict=True):
                self._draw(level, int(samples))

    def _wanted(self) -> np.ndarray:
        variances = ls.steadied_variances(self.variances(), self.used_beta(), self.refinement)
        units = np.array([level.unit_cost for level in self.levels], dtype=float)
        wanted = ls.optimal_samples(variances, units, ls.SHARE * self._error**2)
        # where few samples carry the variance (large kurtosis) take more, as long as that is not the main cost
        secure = 4 * np.array([level.tally.kurtosis for level in self.levels])
        affordable = float(units @ wanted) / len(units) / units
        return np.maximum(wanted, np.minimum(secure, affordable))

    def means(self) -> np.ndarray:
        """Of the levels' samples."""
        return np.array([level.tally.mean for level in self.levels])

    def variances(self) -> np.ndarray:
        """Of the levels' samples."""
        return np.array([level.tally.variance for level in self.levels])

    def stderrs(self) -> np.ndarray:
        """Of the levels' means."""
        return np.sqrt(self.variances() / [level.tally.samples for level in self.levels])

    def alpha(self) -> ls.Rate:
        """Of the means."""
        return ls.fitted_rate(self.means(), self.stderrs(), self.refinement)

    def beta(self) -> ls.Rate:
        """Of the variances."""
        spread = [math.sqrt(max(x.tally.kurtosis - 1, 0) / x.tally.samples) for x in self.levels]
        return ls.fitted_rate(self.variances(), self.variances() * spread, self.refinement)

    def used_beta(self) -> float:
        """The fitted beta within the range of all schemes, 1 where it cannot be fitted."""
        fitted = self.beta().value
        return 1.0 if math.isnan(fitted) else min(max(fitted, 0.5), 3.0)

    def bias(self) -> Bias:
        """Of the last level."""
        rate = ls.used_rate(self.alpha(), self.weak)
        variances = ls.steadied_variances(self.variances(), self.used_beta(), self.refinement)
        stderrs = np.sqrt(variances / [level.tally.samples for level in self.levels])
        return ls.remaining_bias(self.means(), stderrs, rate, self.refinement)


def refuse_diverged(level: Level) -> None:
    """Refuse to average over what is left when samples are not finite.

    Raises
    ------
    ConvergenceFailure
        With their number and the remedy.
    """
    failed = level.tally.failed
    if failed:
        raise ConvergenceFailure(
            f"{failed} of {level.drawn} samples with {level.steps} time steps are not finite; use a tamed or "
            "implicit scheme, a larger first_steps, or an observable that is finite"
        )
