"""Where a function of a parameter crosses a level: the bracket, its refusals, and searches with and without slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import toms748

from solvers.errors import ConvergenceFailure, InvalidInput

# An excess below this share of its own error counts as 0: a search in sampling noise finds nothing more.
_WITHIN_ERROR = 0.1
# Values nearer to the root than this share of the bracket give a slope of rounding.
_APART = 1e-4


@dataclass(frozen=True)
class Point:
    """A function of a parameter at one value.

    Attributes
    ----------
    value : float
        The parameter.
    excess : float
        What is zero at the root.
    shown : float
        What a message tells: the quantity itself, in its own units.
    slope : float
        d excess/d value; nan where it is unknown: then that to the nearest other point takes its place.
    error : float
        Of the excess, from sampling or truncation.
    slope_error : float
        Of the slope, relative.
    """

    value: float
    excess: float
    shown: float
    slope: float = math.nan
    error: float = 0.0
    slope_error: float = 0.0

    def newton(self) -> float:
        """Where the tangent crosses zero."""
        return self.value - self.excess / self.slope if self.slope else math.nan


@dataclass(frozen=True)
class Root:
    """A root, the error that the search leaves, the slope there, and all points in the order of their evaluation."""

    value: float
    error: float
    slope: float
    points: list[Point] = field(repr=False)


@dataclass(frozen=True)
class Quantity:
    """What crosses which level, for messages."""

    what: str
    level: float


Evaluate = Callable[[float], Point]


def checked_bracket(bracket: Any) -> tuple[float, float]:
    """The bracket as two floats.

    Raises
    ------
    InvalidInput
        If it is no pair of finite numbers in increasing order.
    """
    try:
        low, high = (float(end) for end in bracket)
    except (TypeError, ValueError) as error:
        raise _unusable(bracket) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise _unusable((low, high))
    return low, high


def _unusable(bracket: Any) -> InvalidInput:
    return InvalidInput(f"bracket={bracket!r}; give a pair of finite numbers (low, high) with low < high")


def root_by_slopes(
    evaluate: Evaluate,
    bracket: tuple[float, float],
    quantity: Quantity,
    *,
    tol: float,
    most: int = 40,
    report: Callable[[float], Any] | None = None,
) -> Root:
    """The root of a smooth function whose slope is known: safeguarded steps of third order and more.

    Between two points the inverse function is interpolated by the cubic through both values and slopes. A step that
    leaves the bracket, or does not halve the last one, is replaced by bisection.

    Parameters
    ----------
    evaluate : callable
    bracket : (float, float)
        Checked.
    quantity : Quantity
    tol : float
        Of the root, as a fraction of the bracket.
    most : int
        Evaluations after which it gives up.
    report : callable, optional
        Told the share of the bracket, in digits, that is settled.

    Raises
    ------
    InvalidInput
        If the function has one sign at both ends; both values are told.
    ConvergenceFailure
        After `most` evaluations.
    """
    low, high = bracket
    width, seen = high - low, []

    def at(value: float) -> Point:
        point = evaluate(value)
        if math.isnan(point.slope) and seen:
            other = min(seen, key=lambda p: abs(p.value - value))
            # it knows no more than the points: their distance from the root tells its error
            point = replace(
                point, slope=(point.excess - other.excess) / (value - other.value), slope_error=1.0
            )
        seen.append(point)
        return point

    a, b = at(low), at(high)
    for end in (a, b):
        if end.excess == 0:
            return Root(end.value, 0.0, end.slope, seen)
    _refuse_uncrossed(a, b, quantity)
    before, last = (b, a) if abs(a.excess) < abs(b.excess) else (a, b)
    moved = width
    while True:
        cubic, newton = _inverse_cubic(before, last), last.newton()
        # the cubic is the better of the two, so their difference bounds its error
        rounding = 4 * np.finfo(float).eps * abs(newton)
        error = max(abs(cubic - newton), last.slope_error * abs(cubic - last.value), rounding)
        if error <= tol * width and a.value <= cubic <= b.value:
            return Root(cubic, error, last.slope, seen)
        guesses = (cubic, newton, a.newton(), b.newton(), _inverse_cubic(a, b))
        step = next((g for g in guesses if a.value < g < b.value), 0.5 * (a.value + b.value))
        if abs(step - last.value) > 0.5 * moved and len(seen) > 3:
            step = 0.5 * (a.value + b.value)
        if len(seen) >= most:
            raise ConvergenceFailure(
                f"{most} evaluations left the root between {a.value:.9g} and {b.value:.9g}; use a larger tolerance, "
                "or a bracket around one smooth crossing"
            )
        moved, before, last = abs(step - last.value), last, at(step)
        if last.excess == 0:
            return Root(last.value, 0.0, last.slope, seen)
        a, b = (last, b) if (last.excess > 0) == (a.excess > 0) else (a, last)
        if report is not None:
            report(min(1.0, math.log(max(moved, tol * width) / width) / math.log(tol)))
        if b.value - a.value <= tol * width:
            return Root(0.5 * (a.value + b.value), 0.5 * (b.value - a.value), last.slope, seen)


def root_by_values(
    evaluate: Evaluate, bracket: tuple[float, float], quantity: Quantity, *, tol: float
) -> Root:
    """The root of a function without slopes, by Alefeld, Potra and Shi's algorithm 748 (SciPy's).

    An excess within a tenth of its own error ends the search, and is added to the error of the root; so is the error
    of the excess itself, divided by the slope between the points nearest the root.

    Parameters
    ----------
    evaluate : callable
    bracket : (float, float)
        Checked.
    quantity : Quantity
    tol : float
        Of the root, as a fraction of the bracket.

    Raises
    ------
    InvalidInput
        If the function has one sign at both ends; both values are told.
    """
    low, high = bracket
    width, seen = high - low, {}

    def at(value: float) -> Point:
        if value not in seen:
            seen[value] = evaluate(value)
        return seen[value]

    def excess(value: float) -> float:
        point = at(value)
        return 0.0 if abs(point.excess) <= _WITHIN_ERROR * point.error else point.excess

    zeros = [end for end in bracket if excess(end) == 0]
    if zeros:
        root = zeros[0]
    else:
        _refuse_uncrossed(at(low), at(high), quantity)
        found: Any = toms748(excess, low, high, xtol=tol * width, rtol=4 * np.finfo(float).eps)
        root = float(found)
    point, slope = at(root), _secant(list(seen.values()), root, width)
    left = tol * width
    if abs(point.excess) + point.error > 0:
        doubt = math.hypot(point.error, point.excess if excess(root) == 0 else 0.0)
        left = math.hypot(left, doubt / abs(slope)) if slope else math.inf
    return Root(root, left, slope, list(seen.values()))


def _refuse_uncrossed(a: Point, b: Point, quantity: Quantity) -> None:
    if math.isnan(a.excess) or math.isnan(b.excess) or (a.excess > 0) == (b.excess > 0):
        raise InvalidInput(
            f"{quantity.what} does not cross {quantity.level:g} in bracket={(a.value, b.value)}: it is {a.shown:.6g} "
            f"at {a.value:g} and {b.shown:.6g} at {b.value:g}; widen or move the bracket"
        )


def _secant(points: list[Point], root: float, width: float) -> float:
    """The slope to the nearest point that is not within rounding of the root."""
    here = next(p for p in points if p.value == root)
    others = [p for p in points if abs(p.value - root) > _APART * width]
    nearest = min(others, key=lambda p: abs(p.value - root))
    return (nearest.excess - here.excess) / (nearest.value - root)


def _inverse_cubic(a: Point, b: Point) -> float:
    """The value at excess 0 of the cubic through both points and slopes of value(excess)."""
    span = b.excess - a.excess
    if not (a.slope * b.slope > 0 and span != 0):  # not monotonic: no inverse
        return math.nan
    s = -a.excess / span
    return (
        (1 + 2 * s) * (1 - s) ** 2 * a.value
        + s**2 * (3 - 2 * s) * b.value
        + span * s * (1 - s) * ((1 - s) / a.slope - s / b.slope)
    )
