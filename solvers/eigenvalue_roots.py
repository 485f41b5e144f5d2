"""The parameter at which an eigenvalue, or a ratio of two, takes a given value, with few eigen-solves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.perturbation import Build, Operator, built, checked_number, derivatives, vectors
from solvers.progress import reporting
from solvers.provenance import provenance
from solvers.spectrum import eigenmodes
from solvers.transfer import TransferOperator

_TINY = np.finfo(float).tiny


def eigenvalue_root(
    build: Build,
    bracket: Sequence[float],
    *,
    target: float,
    mode: int | tuple[int, int] = 1,
    tol: float = 1e-8,
    max_solves: int = 40,
    progress: bool | Callable[[float], Any] | None = None,
) -> xr.Dataset:
    """Where a decay rate, or the ratio of two, crosses a target: a spectral threshold.

    Parameters
    ----------
    build : callable
        ``build(value)`` returns a FokkerPlanck or TransferOperator; at one value always on the same grid.
    bracket : (float, float)
        Two values between which the target is crossed.
    target : float
        A decay rate in 1/time: minus the real part of the eigenvalue of a generator, or ``-log|mu| / step`` of a
        transfer operator (a negative number is read as the eigenvalue); with a pair of modes their ratio.
    mode : int or (int, int)
        Its place, slowest first: 1 is the gap between reflecting walls, 0 the escape rate with an absorbing
        one. A pair (i, j): the rate of mode i divided by that of mode j.
    tol : float
        Of the root, as a fraction of the bracket.
    max_solves : int
        Eigen-solves after which it gives up.
    progress : bool or callable
        True for a bar, or a function of the share of the bracket (in digits) that is settled.

    Returns
    -------
    Dataset
        ``root``, ``error`` (of the root, from the last correction), and of every eigen-solve, in order,
        ``value(solve)``, ``rate(solve)`` and ``rate_derivative(solve)``; ``rate`` is the ratio for a pair.

    Raises
    ------
    InvalidInput
        If an argument is unusable, or the target is not crossed between the ends: both rates are told.
    ConvergenceFailure
        After `max_solves`; or as for `eigenmodes`.

    Notes
    -----
    Newton steps on the logarithm of the rate (escape rates are exponential in parameters) with the derivative of
    perturbation theory, so that each eigen-solve gives two numbers; between two of them the inverse function is
    interpolated by a cubic. A step that leaves the bracket or does not halve the last one is replaced by bisection.
    The two ends cost two solves; a smooth rate takes two to four more.

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-p.k * y[0],), lambda t, y, p, xp: (1.0,), params={"k": 1.0}, convention="ito")
    >>> grid = Grid.uniform(x=(-6, 6, 600))
    >>> found = eigenvalue_root(lambda k: FokkerPlanck(ou.replace(k=k), grid), (0.5, 3.0), target=1.3)
    >>> round(float(found.root), 3)
    1.3
    """
    low, high = _checked_bracket(bracket)
    modes = _checked_mode(mode)
    target, tol = checked_number("target", target), checked_number("tol", tol)
    if target == 0 or (target < 0 and len(modes) == 2):
        raise InvalidInput(
            f"target={target:g} is never crossed; give a decay rate above 0 (or the eigenvalue, below 0), or a ratio"
        )
    if not 0 < tol < 1:
        raise InvalidInput(f"tol={tol:g}; give a fraction of the bracket between 0 and 1")
    if not (isinstance(max_solves, (int, np.integer)) and max_solves >= 3):
        raise InvalidInput(f"max_solves={max_solves!r}; give an integer of at least 3")
    search = _Search(build, modes, abs(target), high - low)
    with reporting(progress, "digits of the root") as report:
        root, error = _root(search, low, high, tol, int(max_solves), report)
    what, units = ("rate", "1/time") if len(modes) == 1 else ("ratio of rates", "1")
    seen = search.seen
    return xr.Dataset(
        {
            "root": ((), root, {"units": "1", "long_name": "value at which the target is met"}),
            "error": ((), error, {"units": "1", "long_name": "error of the root, root finding only"}),
            "value": (
                "solve",
                [p.value for p in seen],
                {"units": "1", "long_name": "value of the parameter"},
            ),
            "rate": ("solve", [p.rate for p in seen], {"units": units, "long_name": what}),
            "rate_derivative": (
                "solve",
                [p.rate * p.slope for p in seen],
                {"units": units, "long_name": f"derivative of the {what}"},
            ),
        },
        coords={"solve": ("solve", np.arange(len(seen)), {"units": "1", "long_name": "eigen-solve"})},
        attrs=provenance(convention=search.convention, eigen_solves=len(seen), target=target, tol=tol),
    )


@dataclass(frozen=True)
class _Point:
    """An eigen-solve: log(rate / target) and its derivative."""

    value: float
    rate: float
    excess: float
    slope: float

    def newton(self) -> float:
        """Where the tangent crosses the target."""
        return self.value - self.excess / self.slope if self.slope else math.nan


class _Search:
    """Eigen-solves at values of the parameter."""

    def __init__(self, build: Build, modes: tuple[int, ...], target: float, width: float):
        self._build, self._modes, self._target, self._width = build, modes, target, width
        self.seen: list[_Point] = []
        self.convention = ""

    def point(self, value: float) -> _Point:
        operator = built(self._build, value)
        self.convention = operator.sde.convention
        count = max(self._modes) + 1
        # with a pair of modes, or a generator whose rotation is faster than its decay, order needs a neighbour
        modes = eigenmodes(operator, min(count + 1, operator.grid.size))
        left, right = vectors(modes, operator)
        chosen = list(self._modes)
        values = modes["eigenvalue"].values[chosen]
        change = derivatives(self._build, value, self._width, left[:, chosen], right[:, chosen], operator)
        rates, logarithmic = _rates(operator, values, change)
        if not (rates > 0).all():
            raise InvalidInput(
                f"mode {chosen[int(np.argmin(rates))]} at {value:g} has the rate {rates.min():.3g}, which never meets "
                f"a positive target; between walls that conserve probability mode 0 is stationary: use mode=1"
            )
        rate, slope = float(rates[0]), float(logarithmic[0])
        if len(chosen) == 2:
            rate, slope = rate / float(rates[1]), slope - float(logarithmic[1])
        found = _Point(value, rate, math.log(rate / self._target), slope)
        self.seen.append(found)
        return found


def _rates(operator: Operator, values: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decay rates and the derivatives of their logarithms."""
    if isinstance(operator, TransferOperator):
        rates = -np.log(np.maximum(np.abs(values), _TINY)) / operator.step
        derivative = -np.real(change / values) / operator.step
    else:
        rates, derivative = -np.real(values), -np.real(change)
    # the zero of a conserving operator is not exactly 0 for a transfer operator
    rates = np.where(rates > 1e-14 * np.abs(rates).max(initial=1e-300), rates, 0.0)
    return rates, derivative / np.where(rates > 0, rates, 1.0)


def _root(
    search: _Search,
    low: float,
    high: float,
    tol: float,
    max_solves: int,
    report: Callable[[float], Any] | None,
) -> tuple[float, float]:
    width = high - low
    a, b = search.point(low), search.point(high)
    for end in (a, b):
        if end.excess == 0:
            return end.value, 0.0
    if (a.excess > 0) == (b.excess > 0):
        raise InvalidInput(
            f"target={search._target:g} is not crossed in bracket={(low, high)}: it is {a.rate:.6g} at {low:g} and "
            f"{b.rate:.6g} at {high:g}; widen or move the bracket, or change the target"
        )
    before, last = (b, a) if abs(a.excess) < abs(b.excess) else (a, b)
    moved = width
    while True:
        cubic, newton = _inverse_cubic(before, last), last.newton()
        # the cubic is the better of the two, so their difference bounds its error
        error = max(abs(cubic - newton), 4 * np.finfo(float).eps * abs(newton))
        if error <= tol * width and a.value <= cubic <= b.value:
            return cubic, error
        guesses = (cubic, newton, a.newton(), b.newton(), _inverse_cubic(a, b))
        step = next((g for g in guesses if a.value < g < b.value), 0.5 * (a.value + b.value))
        if abs(step - last.value) > 0.5 * moved and len(search.seen) > 3:
            step = 0.5 * (a.value + b.value)
        if len(search.seen) >= max_solves:
            raise ConvergenceFailure(
                f"{max_solves} eigen-solves left the root between {a.value:.9g} and {b.value:.9g}; use a larger tol, "
                "or a bracket around one smooth crossing"
            )
        moved, before, last = abs(step - last.value), last, search.point(step)
        if last.excess == 0:
            return last.value, 0.0
        a, b = (last, b) if (last.excess > 0) == (a.excess > 0) else (a, last)
        if report is not None:
            report(min(1.0, math.log(max(moved, tol * width) / width) / math.log(tol)))
        if b.value - a.value <= tol * width:
            return 0.5 * (a.value + b.value), 0.5 * (b.value - a.value)


def _inverse_cubic(a: _Point, b: _Point) -> float:
    """The value at excess 0 of the cubic through both points and slopes of value(excess)."""
    if not (a.slope * b.slope > 0):  # not monotonic: no inverse
        return math.nan
    span = b.excess - a.excess
    s = -a.excess / span
    return (
        (1 + 2 * s) * (1 - s) ** 2 * a.value
        + s**2 * (3 - 2 * s) * b.value
        + span * s * (1 - s) * ((1 - s) / a.slope - s / b.slope)
    )


def _checked_bracket(bracket: Any) -> tuple[float, float]:
    try:
        low, high = bracket
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"bracket={bracket!r} is not a pair; give (low, high)") from error
    low, high = checked_number("bracket[0]", low), checked_number("bracket[1]", high)
    if not low < high:
        raise InvalidInput(f"bracket={(low, high)} is not increasing; give low < high")
    return low, high


def _checked_mode(mode: Any) -> tuple[int, ...]:
    pair = mode if isinstance(mode, tuple) else (mode,)
    if not (
        1 <= len(pair) <= 2
        and all(isinstance(m, (int, np.integer)) and m >= 0 for m in pair)
        and len(set(pair)) == len(pair)
    ):
        raise InvalidInput(f"mode={mode!r}; give a number from 0, slowest first, or a pair of different ones")
    return tuple(int(m) for m in pair)
