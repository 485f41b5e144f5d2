"""Decay rates, and ratios of two, of operators along a parameter: each eigen-solve yields the slope as well."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from solvers.errors import InvalidInput
from solvers.perturbation import rounded_derivatives
from solvers.regions import Region
from solvers.root_search import Point
from solvers.spectral_problem import Build, Operator, Problem, built, problem_of
from solvers.starts import Neighbours
from solvers.transfer import TransferOperator

Mode = int | tuple[int, int] | str
_NAMED = {"gap": (0,), "gap-ratio": (1, 0)}
_TINY = np.finfo(float).tiny
# A slope with more than this share of rounding is none.
_LOST = 1e-3


def checked_mode(mode: Any) -> Mode:
    """The mode or the pair of modes.

    Raises
    ------
    InvalidInput
        If it is neither, nor a name.
    """
    if isinstance(mode, str) and mode in _NAMED:
        return mode
    pair = mode if isinstance(mode, tuple) else (mode,)
    if not (
        1 <= len(pair) <= 2
        and all(isinstance(m, (int, np.integer)) and m >= 0 for m in pair)
        and len(set(pair)) == len(pair)
    ):
        raise InvalidInput(
            f"mode={mode!r}; give a number from 0, slowest first, a pair of different ones, 'gap' or 'gap-ratio'"
        )
    return (int(pair[0]), int(pair[1])) if len(pair) == 2 else int(pair[0])


def checked_region(absorbed: Any) -> Region | None:
    """The region, a function of coordinates.

    Raises
    ------
    InvalidInput
        If it is something else.
    """
    if absorbed is not None and not callable(absorbed):
        raise InvalidInput(f"absorbed={absorbed!r}; give a predicate on coordinates such as lambda x: x > 1")
    return absorbed


class RateSearch:
    """Eigen-solves at values of a parameter.

    Parameters
    ----------
    around : callable
        ``around(value)`` is the function that builds operators near a value, on one grid.
    mode : Mode
        Checked.
    target : float
        What the rate, or the ratio of two, is compared with.
    scale : float
        Of changes of the parameter.
    absorbed : callable or None
    """

    def __init__(
        self,
        around: Callable[[float], Build],
        mode: Mode,
        target: float,
        scale: float,
        absorbed: Region | None,
    ):
        self._around, self._mode, self._target = around, mode, target
        self._scale, self._absorbed = scale, absorbed
        self._neighbours = Neighbours()
        self.convention = ""

    def point(self, value: float) -> Point:
        """log(rate / target) and its derivative, by one eigen-solve."""
        build = self._around(value)
        operator = built(build, value)
        self.convention = operator.sde.convention
        problem = problem_of(operator, self._absorbed)
        chosen = _chosen(self._mode, problem)
        modes = problem.modes(_wanted(chosen, problem), start=self._neighbours.start(value, problem.size))
        self._neighbours.add(value, modes.near())
        left, right = modes.left[:, chosen], modes.right[:, chosen]
        change, rounding = rounded_derivatives(
            build, value, self._scale, left, right, operator, self._absorbed
        )
        lost = rounding / np.maximum(np.abs(change), _TINY)
        change = np.where(lost > _LOST, np.nan, change)
        rates = _rates(operator, modes.values[chosen])
        _refuse_stationary(rates, np.array(chosen) < modes.zeros, chosen, value)
        slopes = _slopes(operator, modes.values[chosen], change, rates)
        rate, slope = rates[0], slopes[0]
        if len(chosen) == 2:
            rate, slope = rate / rates[1], slope - slopes[1]
        return Point(
            value, math.log(rate / self._target), float(rate), float(slope), slope_error=float(lost.max())
        )


def decay_rate(operator: Operator, mode: Mode, absorbed: Region | None = None) -> float:
    """The decay rate of a mode, or the ratio of two.

    Raises
    ------
    InvalidInput
        If a mode is stationary.
    """
    problem = problem_of(operator, absorbed)
    chosen = _chosen(mode, problem)
    modes = problem.modes(_wanted(chosen, problem))
    rates = _rates(operator, modes.values[chosen])
    _refuse_stationary(rates, np.array(chosen) < modes.zeros, chosen, math.nan)
    return float(rates[0] / rates[1]) if len(chosen) == 2 else float(rates[0])


def _chosen(mode: Mode, problem: Problem) -> list[int]:
    if isinstance(mode, str):
        return [problem.zeros + m for m in _NAMED[mode]]
    return list(mode) if isinstance(mode, tuple) else [mode]


def _wanted(chosen: list[int], problem: Problem) -> int:
    if chosen == [0]:  # Perron and Frobenius: real, and the slowest
        return 1
    # with a pair of modes, or a generator whose rotation is faster than its decay, order needs a neighbour
    return min(max(chosen) + 2, problem.size)


def _rates(operator: Operator, values: np.ndarray) -> np.ndarray:
    if isinstance(operator, TransferOperator):
        return -np.log(np.maximum(np.abs(values), _TINY)) / operator.step
    return -np.real(values)


def _slopes(operator: Operator, values: np.ndarray, change: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Derivatives of the logarithms of the rates."""
    if isinstance(operator, TransferOperator):
        return -np.real(change / values) / operator.step / rates
    return -np.real(change) / rates


def _refuse_stationary(rates: np.ndarray, stationary: np.ndarray, chosen: list[int], value: float) -> None:
    fault = stationary | ~(rates > 0)
    if fault.any():
        at = "" if math.isnan(value) else f" at {value:g}"
        raise InvalidInput(
            f"mode {chosen[int(np.argmax(fault))]}{at} has the rate {float(rates[fault][0]):.3g}, which never meets a "
            "positive target; between walls that conserve probability mode 0 is stationary: use mode=1"
        )
