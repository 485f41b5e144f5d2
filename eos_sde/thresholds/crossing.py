"""Thresholds of any model by root finding: where a stability criterion crosses its critical value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from eos_sde.models.arguments import finite, positive
from eos_sde.models.maps import NoisyMap
from eos_sde.thresholds.result import Threshold
from solvers import (
    SDE,
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TransferOperator,
    eigenmodes,
    escape_rate,
    lyapunov_exponent,
    moment_lyapunov_exponent,
)

MARGINAL_RATIO = 3.254225852436075
"""Ratio of the second decay rate to the first of dA = -C A^3 dt + s dW, for any C and s.

The quartic well lies exactly between one well and two. A harmonic well has ratio 2; far beyond the onset of
metastability the ratio grows like the inverse of the escape rate. (Sinc collocation of the equivalent
Schroedinger equation in 30 digits: 4.45370916321473 / 1.36859252097722.)
"""

_SIMULATION = ("method", "seed", "dt", "duration", "paths")
_REQUIRED = {"almost_sure": ("at",), "moment": ("at",), "gap": ("grid",), "escape": ("grid", "horizon")}
_OPTIONAL = {
    "almost_sure": _SIMULATION,
    "moment": ("p", *_SIMULATION),
    "gap": ("boundary", "level", "ratio"),
    "escape": ("boundary", "target"),
}


def locate(
    build: Callable[[float], SDE | NoisyMap],
    *,
    bracket: tuple[float, float],
    criterion: str,
    tolerance: float = 1e-6,
    **settings: Any,
) -> Threshold:
    """Value of a control parameter at which a model meets a stability criterion.

    Parameters
    ----------
    build : callable
        ``build(value)`` returns the model at that value: an SDE or, for "gap" and "escape", a
        `eos_sde.models.maps.NoisyMap`, whose transfer operator then replaces the Fokker-Planck one.
    bracket : (float, float)
        Two values between which the criterion changes sign.
    criterion : {"almost_sure", "moment", "gap", "escape"}
        "almost_sure": the top Lyapunov exponent at the fixed point is 0.
        "moment": the moment Lyapunov exponent Lambda(p) at the fixed point is 0.
        "gap": the spectral gap (slowest nonzero decay rate) equals `level`; or, without a level, the ratio of
        the second decay rate to the first equals `ratio`: the onset of metastability.
        "escape": the quasi-stationary escape rate times `horizon` is 1.
    tolerance : float
        Of the root, as a fraction of the bracket.
    **settings
        "almost_sure", "moment": ``at`` (fixed point: a number, d numbers, or ``at(value)``), ``p`` (2 if left
        out), and ``method``, ``seed``, ``dt``, ``duration``, ``paths`` as in `solvers.lyapunov_exponent`.
        "gap": ``grid`` (a Grid, or ``grid(value)``), ``boundary`` ("reflecting"), and ``level`` (per time) or
        ``ratio`` (`MARGINAL_RATIO`: that of a quartic well, exactly between one well and two).
        "escape": ``grid``, ``horizon`` (time), and ``target`` (predicate on coordinates) or ``boundary`` with
        an absorbing wall ("absorbing" if neither is given).

    Returns
    -------
    Threshold
        Its stderr adds in squares the root tolerance and, divided by the criterion's slope, the sampling
        error of a simulated exponent, or the discretisation error estimated from a grid of twice the spacing
        (a third of the difference, for second order).

    Raises
    ------
    InvalidInput
        If a setting is unknown, missing or out of range, or the criterion keeps its sign in the bracket.

    Examples
    --------
    >>> from eos_sde.models import flip_normal_form
    >>> from solvers import Grid
    >>> onset = locate(lambda mu: flip_normal_form(mu, 1.0, 0.1), bracket=(-0.1, 0.2), criterion="gap",
    ...                grid=Grid.uniform(A=(-0.8, 0.8, 200)))
    >>> abs(float(onset)) < 1e-3
    True
    """
    if not callable(build):
        raise InvalidInput(
            f"build={build!r} is not callable; give a function of the value that returns the model"
        )
    low, high = _checked_bracket(bracket)
    tolerance = positive("tolerance", tolerance, "give the wanted fraction of the bracket, such as 1e-6")
    _check_settings(criterion, settings)
    if criterion in {"almost_sure", "moment"}:
        crossing: _Crossing = _exponent_crossing(build, criterion, settings)
    else:
        crossing = _spectral_crossing(build, criterion, settings)
    seen: dict[float, float] = {}

    def excess(value: float) -> float:
        if value not in seen:
            seen[value] = crossing.excess(value, False)[0]
        return seen[value]

    ends = excess(low), excess(high)
    if not (ends[0] == 0 or ends[1] == 0 or (ends[0] < 0) != (ends[1] < 0)):
        raise InvalidInput(
            f"criterion {criterion!r} does not change sign in bracket={(low, high)}: {crossing.what} is "
            f"{ends[0]:.4g} at {low:g} and {ends[1]:.4g} at {high:g}; widen or move the bracket"
        )
    width = high - low
    root = float(brentq(excess, low, high, xtol=tolerance * width))  # pyright: ignore[reportArgumentType]
    error = tolerance * width
    uncertainty = crossing.excess(root, True)[1]
    if uncertainty > 0:
        step = 1e-2 * width
        left, right = max(low, root - step), min(high, root + step)
        slope = (excess(right) - excess(left)) / (right - left)
        error = math.hypot(error, uncertainty / abs(slope)) if slope != 0 else math.inf
    method = f"root of {crossing.what} in {len(seen)} evaluations; error: {crossing.error_of}"
    return Threshold(root, error, crossing.criterion, method, crossing.source)


@dataclass(frozen=True)
class _Crossing:
    """A function of the control parameter that is zero at the threshold.

    ``excess(value, careful)`` gives it and, if `careful`, its uncertainty (otherwise 0).
    """

    excess: Callable[[float, bool], tuple[float, float]]
    criterion: str
    what: str
    error_of: str
    source: str


def _exponent_crossing(
    build: Callable[[float], Any], criterion: str, settings: Mapping[str, Any]
) -> _Crossing:
    simulation = {name: settings[name] for name in _SIMULATION if name in settings}
    order = finite("p", settings.get("p", 2.0))
    if criterion == "moment" and order == 0:
        raise InvalidInput(
            "p=0.0 has Lambda(0) = 0 for every model; give another p, or criterion='almost_sure'"
        )

    def excess(value: float, careful: bool) -> tuple[float, float]:  # noqa: ARG001 - one cost either way
        sde = build(value)
        if not isinstance(sde, SDE):
            raise InvalidInput(f"build returned a {type(sde).__name__}; criterion {criterion!r} needs an SDE")
        at: Any = settings["at"](value) if callable(settings["at"]) else settings["at"]
        if criterion == "almost_sure":
            result = lyapunov_exponent(sde, at=at, **simulation)
            return float(result["value"]), float(result["stderr"])
        moment = moment_lyapunov_exponent(sde, [order], at=at, **simulation)
        return float(moment[0]), float(moment["stderr"][0])

    simulated = settings.get("method", "spectral") == "simulation"
    error_of = "sampling and root tolerance" if simulated else "root tolerance"
    if criterion == "almost_sure":
        return _Crossing(
            excess,
            "almost-sure",
            "the top Lyapunov exponent",
            error_of,
            "Arnold 1998, Random Dynamical Systems",
        )
    return _Crossing(
        excess, f"moment({order:g})", f"Lambda({order:g})", error_of,
        "Arnold 1984, SIAM J. Appl. Math. 44, 793",
    )  # fmt: skip


def _spectral_crossing(
    build: Callable[[float], Any], criterion: str, settings: Mapping[str, Any]
) -> _Crossing:
    grid, target = settings["grid"], settings.get("target")
    if not (isinstance(grid, Grid) or callable(grid)):
        raise InvalidInput(f"grid is a {type(grid).__name__}; give a Grid, or a function of the parameter")
    default = "absorbing" if criterion == "escape" and target is None else "reflecting"
    boundary = settings.get("boundary", default)
    if criterion == "escape":
        horizon = positive("horizon", settings["horizon"], "give the training time, in the model's time unit")
        what = "log(escape rate * horizon)"

        def measure(operator: Any) -> float:
            rate = float(escape_rate(operator, target=target)["rate"])
            return math.log(max(rate, np.finfo(float).tiny) * horizon)
    elif settings.get("level") is not None:
        if settings.get("ratio") is not None:
            raise InvalidInput("level and ratio are both given; give one of them")
        level = positive(
            "level", settings["level"], "give a decay rate; the gap of a model with noise is never 0"
        )
        what = f"log(gap / {level:g})"

        def measure(operator: Any) -> float:
            return math.log(max(float(eigenmodes(operator, k=2)["gap"]), np.finfo(float).tiny) / level)
    else:
        ratio = positive("ratio", MARGINAL_RATIO if settings.get("ratio") is None else settings["ratio"])
        if ratio <= 1:
            raise InvalidInput(
                f"ratio={ratio} is never crossed, since rates are in ascending order; give one above 1"
            )
        what = f"log(second decay rate / first) - log({ratio:.6g})"

        def measure(operator: Any) -> float:
            first, second = _decay_rates(operator)
            return math.log(max(second, np.finfo(float).tiny) / max(first, np.finfo(float).tiny)) - math.log(
                ratio
            )

    def excess(value: float, careful: bool) -> tuple[float, float]:
        model = build(value)
        cells: Any = grid(value) if callable(grid) else grid
        fine = measure(_operator(model, cells, boundary))
        if not careful:
            return fine, 0.0
        with warnings.catch_warnings():  # the coarse grid is coarse on purpose
            warnings.simplefilter("ignore", AccuracyWarning)
            coarse = measure(_operator(model, _coarsened(cells), boundary))
        return fine, abs(fine - coarse) / 3

    return _Crossing(excess, criterion, what, "discretisation and root tolerance", "")


def _operator(model: Any, grid: Grid, boundary: Any) -> FokkerPlanck | TransferOperator:
    if isinstance(model, NoisyMap):
        return TransferOperator(model.as_sde(), grid, step=model.dt, boundary=boundary)
    return FokkerPlanck(model, grid, boundary=boundary)


def _decay_rates(operator: FokkerPlanck | TransferOperator) -> tuple[float, float]:
    """The two slowest nonzero decay rates."""
    modes = eigenmodes(operator, k=4)
    values = np.asarray(modes["eigenvalue"])
    if isinstance(operator, TransferOperator):
        size = np.abs(values)
        rates = -np.log(np.maximum(size, np.finfo(float).tiny)) / operator.step
    else:
        rates = -np.real(values)
    gap = float(modes["gap"])
    first = int(np.argmin(np.abs(rates - gap)))
    return gap, float(rates[first + 1])


def _coarsened(grid: Grid) -> Grid:
    """A grid with half the cells along each axis, following its spacing."""
    edges = {}
    for name, fine in grid.edges.items():
        cells = max(2, (len(fine) - 1) // 2)
        edges[name] = np.interp(np.linspace(0, len(fine) - 1, cells + 1), np.arange(len(fine)), fine)
    return Grid(**edges)


def _checked_bracket(bracket: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = bracket
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"bracket={bracket!r} is not a pair; give (low, high)") from error
    low, high = finite("bracket[0]", low), finite("bracket[1]", high)
    if not low < high:
        raise InvalidInput(f"bracket={(low, high)} is not increasing; give low < high")
    return low, high


def _check_settings(criterion: str, settings: Mapping[str, Any]) -> None:
    if criterion not in _REQUIRED:
        raise InvalidInput(f"criterion={criterion!r} is unknown; choose {', '.join(map(repr, _REQUIRED))}")
    known = (*_REQUIRED[criterion], *_OPTIONAL[criterion])
    missing = [name for name in _REQUIRED[criterion] if name not in settings]
    if missing:
        raise InvalidInput(
            f"criterion {criterion!r} needs the setting {missing[0]!r}; its settings: {', '.join(known)}"
        )
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidInput(
            f"criterion {criterion!r} has no setting {unknown[0]!r}; its settings: {', '.join(known)}"
        )
