"""First passage inside a step: which stop conditions are levels, and when a Brownian bridge crosses them.

A stop condition that asks one component at a time whether it lies beyond fixed levels (``x > 1``,
``xp.abs(x) > a``, ``(x < a) | (z > b)``) is read as gaps: the open intervals between the stop sets. A path
inside a gap leaves it through one of its ends. Between two steps the path is, to leading order in dt, a
Brownian bridge, whose crossing probability and crossing time have closed forms.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit

from solvers import scalar, tangent
from solvers.compiling import Keyed
from solvers.errors import InvalidInput
from solvers.purity import plain_function, purity_key
from solvers.wiener import crossing_uniforms

if TYPE_CHECKING:
    from solvers.sde import SDE


CERTAIN = 18.5
"""Beyond this ratio of before * after to variance, exp(-2 ratio) is below the smallest uniform: no crossing."""


class StopRule(NamedTuple):
    """A stop condition, ready for the kernels.

    Attributes
    ----------
    function : callable
        As the user wrote it.
    condition : dispatcher
        ``condition(t, y, p)`` -> bool for the kernels; never true with gaps, which then decide alone, so that
        a new level compiles nothing.
    gaps : ndarray (g, 2)
        Open intervals that a path leaves by stopping; no rows when the condition is not a set of levels.
    components : ndarray of int (g,)
        The component each gap is about.
    """

    function: Callable[..., Any]
    condition: Any
    gaps: np.ndarray
    components: np.ndarray


@njit(error_model="numpy")
def crossing_fraction(before, after, variance, seed, path, step, side):
    """When within a step, as a fraction of it, a Brownian bridge first meets a level; 2 if it does not.

    Parameters
    ----------
    before, after : float
        Signed distance to the level at both ends, positive on the near side.
    variance : float
        sigma^2 dt.
    seed, path, step, side
        Keys of the random numbers.

    Notes
    -----
    The bridge crosses with probability exp(-2 before after / variance) when both distances are positive
    (Gobet 2000, Stoch. Proc. Appl. 87, 167). Given that it does, tau/(dt - tau) is inverse Gaussian with
    mean before/|after| and shape before^2/variance: substitute s = tau/(dt - tau) in the bridge, which turns
    it into a Brownian motion with drift. Sampled by Michael, Schucany and Haas 1976.
    """
    if not before > 0.0:
        return 0.0
    if after != after:
        return 2.0
    if not variance > 0.0:
        return before / (before - after) if after <= 0.0 else 2.0
    if after > 0.0 and before * after > CERTAIN * variance:
        return 2.0
    first, second = crossing_uniforms(seed, path, step, 2 * side)
    if after > 0.0 and first > math.exp(-2.0 * before * after / variance):
        return 2.0
    third, fourth = crossing_uniforms(seed, path, step, 2 * side + 1)
    normal = math.sqrt(-2.0 * math.log(third)) * math.cos(2.0 * math.pi * fourth)
    mean = before / max(abs(after), 1e-12 * before)
    w = mean * normal * normal * variance / (before * before)
    ratio = 1.0 / (1.0 + 0.5 * w + math.sqrt(w + 0.25 * w * w))
    time = mean * ratio if second * (1.0 + ratio) <= 1.0 else mean / ratio
    return time / (1.0 + time)


@njit(error_model="numpy")
def earliest_crossing(gaps, components, before, after, squares, dt, seed, path, step, stream):
    """Where a bridge first leaves one of the gaps that hold `before`: fraction of the step, level, component.

    The fraction is 2 if it stays inside. before, after and squares (sigma^2) are indexed by component; side 0
    or 1 of gap g draws at ``stream + 2 g + side``.
    """
    earliest, level, component = 2.0, 0.0, 0
    for g in range(components.size):
        c = components[g]
        low, high = gaps[g, 0], gaps[g, 1]
        if not low < before[c] < high:
            continue
        for side in range(2):
            bound = high if side else low
            if np.isinf(bound):
                continue
            sign = 1.0 if side else -1.0
            fraction = crossing_fraction(
                sign * (bound - before[c]), sign * (bound - after[c]), squares[c] * dt, seed, path, step,
                stream + 2 * g + side,
            )  # fmt: skip
            if fraction < earliest:
                earliest, level, component = fraction, bound, c
    return earliest, level, component


def stop_rule(stop: Callable[..., Any], sde: SDE, *, bridge: bool = True) -> StopRule:
    """Compile a stop condition and read its levels, unless a Brownian bridge would not fit the noise.

    Raises
    ------
    InvalidInput
        If it is no function of (t, y, p, xp) that returns a condition, or cannot be traced symbolically.
    """
    rule = region_rule(stop, sde, "stop")
    if not bridge:
        return rule._replace(gaps=np.empty((0, 2)), components=np.empty(0, dtype=np.int64))
    return rule._replace(condition=never) if rule.components.size else rule


def region_rule(region: Callable[..., Any], sde: SDE, name: str) -> StopRule:
    """As `stop_rule` for an argument of another name; the compiled condition holds in the region, levels or not.

    Raises
    ------
    InvalidInput
        If it is no function of (t, y, p, xp) that returns a condition, or cannot be traced symbolically.
    """
    function = plain_function(region, name)
    value = read_on_arrays(function, sde, name)
    if isinstance(value, (tuple, list)):
        raise InvalidInput(f"{name} must return one condition, got a tuple; combine with xp.logical_or or |")
    if np.asarray(value).dtype != bool:
        raise InvalidInput(
            f"{name} returns {np.asarray(value).dtype} and no condition; compare, as in y[0] > 1"
        )
    keyed = Keyed(purity_key(region, name), function)
    gaps, components = level_gaps(function, sde, name)
    return StopRule(function, _condition(keyed), gaps, components)


def read_on_arrays(function: Callable[..., Any], sde: SDE, name: str) -> Any:
    """What a function of (t, y, p, xp) returns for arrays of two states; refused if it cannot be read so.

    Raises
    ------
    InvalidInput
        If it does not take these arguments, branches on a component, or fails.
    """
    refuse_arity(function, 4, name, "(t, y, p, xp)")
    probes = tuple(np.array([0.6180339887, -1.4142135624]) + 0.1 * i for i in range(sde.dimension))
    try:
        with np.errstate(all="ignore"):
            return function(0.0, probes, sde.params, np)
    except ValueError as error:
        if "truth value of an array" not in str(error):
            raise
        raise InvalidInput(
            f"{name} branches on a component (or, and, not, if); join conditions with | and &, as in "
            "(y[0] < -1) | (y[0] > 1)"
        ) from error
    except (TypeError, AttributeError, IndexError) as error:
        raise InvalidInput(
            f"{name} failed on arrays: {error}; write it over the {sde.dimension} components of y and xp's functions"
        ) from error


def level_attributes(rule: StopRule, names: Sequence[str]) -> dict[str, Any]:
    """The levels of a stop condition as attributes that NetCDF and Zarr can hold; none if it is no set of levels.

    Returns
    -------
    dict
        ``levels``: array of the levels; ``level_components``: the component each is about, joined by ", ".
        A path that leaves through one of them ends with that component equal to it, bit for bit.
    """
    found = {
        (int(c), float(level))
        for c, gap in zip(rule.components, rule.gaps, strict=True)
        for level in gap
        if np.isfinite(level)
    }
    if not found:
        return {}
    ordered = sorted(found)
    return {
        "levels": np.array([level for _, level in ordered]),
        "level_components": ", ".join(names[c] for c, _ in ordered),
    }


def refuse_arity(function: Callable[..., Any], count: int, name: str, arguments: str) -> None:
    """Refuse a function that cannot be called with `count` positional arguments.

    Raises
    ------
    InvalidInput
        Naming the arguments it must take.
    """
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError as error:
        raise InvalidInput(
            f"{name} does not take {arguments}: {error}; write it as {name}{arguments}"
        ) from error
    except ValueError:  # a builtin without a signature: the call itself will tell
        return


def met_at_start(rule: StopRule, t0: float, start: np.ndarray, p: Any) -> np.ndarray:
    """Which of the starts (n, d) meet the condition or lie on one of its levels."""
    met = np.broadcast_to(np.asarray(rule.function(t0, tuple(start.T), p, np), dtype=bool), len(start)).copy()
    return met | on_levels(rule, start)


def on_levels(rule: StopRule, start: np.ndarray) -> np.ndarray:
    """Which of the starts (n, d) lie in no gap of a component that has gaps: beyond a level, or on one."""
    found = np.zeros(len(start), dtype=bool)
    for c in np.unique(rule.components):
        low, high = rule.gaps[rule.components == c].T
        value = start[:, c, None]
        found |= ~((low < value) & (value < high)).any(axis=1)
    return found


@njit
def never(_t, _y, _p):
    """A stop condition that never holds."""
    return False


@lru_cache(maxsize=256)
def _condition(keyed: Any) -> Any:
    function = njit(error_model="numpy")(keyed.function)

    @njit(error_model="numpy")
    def condition(t, y, p):
        return bool(function(t, y, p, scalar))

    return condition


def _sympy() -> Any:
    import sympy

    return sympy  # as Any: its annotations reject correct calls


def level_gaps(function: Callable[..., Any], sde: SDE, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The gaps (g, 2) between the levels of a condition and their components (g,); none if it has no levels.

    Raises
    ------
    InvalidInput
        If the condition cannot be traced symbolically or is constant.
    """
    return gaps_of(traced_condition(function, sde, name), sde, name)


def traced_condition(function: Callable[..., Any], sde: SDE, name: str) -> Any:
    """The condition as a SymPy expression of `condition_symbols`.

    Raises
    ------
    InvalidInput
        If it cannot be traced symbolically.
    """
    t, y = condition_symbols(sde)
    return _sympy().sympify(tangent.trace(function, (t, y, sde.params), name))


def condition_symbols(sde: SDE) -> tuple[Any, tuple[Any, ...]]:
    """Time and components, real, as conditions are traced."""
    sp = _sympy()
    return sp.Symbol("t", real=True), tuple(sp.Symbol(name, real=True) for name in sde.names)


def gaps_of(condition: Any, sde: SDE, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What `level_gaps` returns, for a traced condition.

    Raises
    ------
    InvalidInput
        If it is constant.
    """
    t, y = condition_symbols(sde)
    if condition.free_symbols.isdisjoint({t, *y}):
        raise InvalidInput(f"{name} is always {condition}; it must depend on the state or the time")
    sets = _stop_sets(condition, y)
    rows, components = [], []
    for c, symbol in enumerate(y):
        if sets is not None and symbol in sets:
            for interval in _pieces(sets[symbol].complement(_sympy().S.Reals)):
                rows.append((float(interval.start), float(interval.end)))
                components.append(c)
    return np.array(rows, dtype=float).reshape(-1, 2), np.array(components, dtype=np.int64)


def _stop_sets(condition: Any, y: tuple[Any, ...]) -> dict[Any, Any] | None:
    """For each component the set where it stops, if the condition is an "or" over single components."""
    sp = _sympy()

    if isinstance(condition, (sp.Or, sp.And)):
        parts = [_stop_sets(part, y) for part in condition.args]
        if any(part is None for part in parts):
            return None
        if isinstance(condition, sp.And) and len({s for part in parts for s in part}) != 1:  # type: ignore[union-attr]
            return None
        join = sp.Union if isinstance(condition, sp.Or) else sp.Intersection
        merged: dict[Any, Any] = {}
        for part in parts:
            for symbol, region in part.items():  # type: ignore[union-attr]
                merged[symbol] = join(merged[symbol], region) if symbol in merged else region
        return merged
    if not isinstance(condition, (sp.Gt, sp.Ge, sp.Lt, sp.Le)):
        return None
    beyond = condition.lhs - condition.rhs
    if isinstance(condition, (sp.Lt, sp.Le)):
        beyond = -beyond
    symbols = beyond.free_symbols
    if len(symbols) != 1 or not symbols <= set(y):
        return None
    (x,) = symbols
    region = _beyond_zero(sp.expand(beyond), x)
    return None if region is None else {x: region}


def _beyond_zero(expression: Any, x: Any) -> Any:
    """Where a + b x > 0, or a + b |c + e x| > 0; None for anything else."""
    sp = _sympy()

    def half_line(slope, offset):
        edge = -offset / slope
        return sp.Interval(edge, sp.oo) if slope > 0 else sp.Interval(-sp.oo, edge)

    absolutes = list(expression.atoms(sp.Abs))
    if not absolutes:
        if not expression.is_polynomial(x) or sp.degree(expression, x) != 1:
            return None
        return half_line(expression.coeff(x, 1), expression.coeff(x, 0))
    inner = sp.expand(absolutes[0].args[0])
    placeholder = sp.Dummy(real=True)
    outer = expression.xreplace({absolutes[0]: placeholder})
    if len(absolutes) > 1 or outer.has(x) or sp.degree(outer, placeholder) != 1:
        return None
    if not inner.is_polynomial(x) or sp.degree(inner, x) != 1:
        return None
    slope, offset = outer.coeff(placeholder, 1), outer.coeff(placeholder, 0)
    radius = -offset / slope
    centre, scale = -inner.coeff(x, 0) / inner.coeff(x, 1), abs(inner.coeff(x, 1))
    low, high = centre - radius / scale, centre + radius / scale
    if slope > 0:
        if radius <= 0:
            return None
        return sp.Union(sp.Interval(-sp.oo, low), sp.Interval(high, sp.oo))
    return sp.Interval(low, high) if radius > 0 else None


def _pieces(region: Any) -> list[Any]:
    import sympy as sp

    parts = region.args if isinstance(region, sp.Union) else (region,)
    return [part for part in parts if isinstance(part, sp.Interval)]
