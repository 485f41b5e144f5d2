"""Thresholds of Lyapunov and moment Lyapunov exponents at a fixed point of an SDE or a noisy map."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from eos_sde.models.arguments import count, finite, positive
from eos_sde.models.maps import NoisyMap
from eos_sde.thresholds.map_exponents import MapProduct
from eos_sde.thresholds.result import Threshold
from solvers import SDE, InvalidInput, lyapunov_exponent, moment_lyapunov_exponent, stability_threshold
from solvers.root_search import Point, Quantity, root_by_values

# An exponent and its error, of a model at a fixed point.
Rate = Callable[[Any, Any], tuple[float, float]]
_RUN = ("seed", "dt", "duration", "paths")
_SOURCES = {
    "almost_sure": "Arnold 1998, Random Dynamical Systems",
    "moment": "Arnold 1984, SIAM J. Appl. Math. 44, 793",
}


def exponent_threshold(
    build: Callable[[float], Any],
    bracket: tuple[float, float],
    criterion: str,
    tolerance: float,
    settings: Mapping[str, Any],
) -> Threshold:
    """Where an exponent is zero; arguments as checked by `locate`.

    Raises
    ------
    InvalidInput
        If a setting is out of range, or the exponent keeps its sign.
    """
    order = _order(criterion, settings)
    what = f"Lambda({order:g})" if order else "the top Lyapunov exponent"
    name = f"moment({order:g})" if order else "almost-sure"
    method = settings.get("method", "spectral")
    model = build(bracket[0])
    if not isinstance(model, (SDE, NoisyMap)):
        raise InvalidInput(
            f"build returned a {type(model).__name__}; criterion {criterion!r} needs an SDE or a NoisyMap"
        )
    if isinstance(model, SDE) and method == "spectral":
        found = stability_threshold(build, bracket, at=settings["at"], p=order, tolerance=tolerance)
        value, error, number = float(found["value"]), float(found["error"]), int(found.attrs["evaluations"])
        how, solved = "search and truncation", "eigen-solves"
    else:
        rate, how, solved = (_map_rate if isinstance(model, NoisyMap) else _simulated_rate)(order, settings)

        def point(value: float) -> Point:
            found, stderr = rate(build(value), _place(settings["at"], value))
            return Point(value, found / (order or 1.0), found, error=stderr / abs(order or 1.0))

        root = root_by_values(point, bracket, Quantity(what, 0.0), tol=tolerance)
        value, error, number = root.value, root.error, len(root.points)
    text = f"root of {what} in {number} {solved}; error: {how}"
    return Threshold(value, error, name, text, _SOURCES[criterion], number)


def _order(criterion: str, settings: Mapping[str, Any]) -> float:
    """p, and 0 for the Lyapunov exponent."""
    if criterion == "almost_sure":
        return 0.0
    order = finite("p", settings.get("p", 2.0))
    if order == 0:
        raise InvalidInput(
            "p=0.0 has Lambda(0) = 0 for every model; give another p, or criterion='almost_sure'"
        )
    return order


def _place(at: Any, value: float) -> Any:
    return at(value) if callable(at) else at


def _simulated_rate(order: float, settings: Mapping[str, Any]) -> tuple[Rate, str, str]:
    """Exponents of an SDE by simulation, with the same noise for every parameter."""
    run = {name: settings[name] for name in ("method", *_RUN) if name in settings}

    def rate(model: Any, at: Any) -> tuple[float, float]:
        if order == 0:
            found = lyapunov_exponent(model, at=at, **run)
            return float(found["value"]), math.hypot(float(found["stderr"]), float(found["bias"]))
        moment = moment_lyapunov_exponent(model, [order], at=at, **run)
        return float(moment[0]), math.hypot(float(moment["stderr"][0]), float(moment["bias"][0]))

    return rate, "sampling, bias of the steps or clones, and search", "simulations"


def _map_rate(order: float, settings: Mapping[str, Any]) -> tuple[Rate, str, str]:
    """Exponents of a map: closed forms, or for the Lyapunov exponent simulation."""
    if "dt" in settings:
        raise InvalidInput(f"dt={settings['dt']!r}: a map has its own step; leave dt out")
    method = settings.get("method", "spectral")
    if method not in {"spectral", "simulation"}:
        raise InvalidInput(f"method={method!r} is unknown; choose 'spectral' or 'simulation'")
    if method == "simulation" and order:
        raise InvalidInput("method='simulation' of a map is for criterion 'almost_sure'; leave method out")

    def closed(model: Any, at: Any) -> tuple[float, float]:
        product = MapProduct(model, at)
        found = product.moment(order) if order else product.exponent()
        return found, 1e-12 * max(abs(found), 1.0 / product.dt)

    if method == "spectral":
        return closed, "search and rounding", "closed forms"
    seed = count("seed", settings.get("seed"), least=0)
    copies = count("paths", settings.get("paths", 64), least=20)
    duration = positive("duration", settings.get("duration", 2000.0))

    def simulated(model: Any, at: Any) -> tuple[float, float]:
        product = MapProduct(model, at)
        return product.simulated_exponent(seed, max(10, round(duration / product.dt)), copies)

    return simulated, "sampling and search", "simulations"
