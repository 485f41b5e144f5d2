"""Thresholds of the models of the catalogue: which criteria they have, and what is known of them in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eos_sde.models.registry import Model
from eos_sde.thresholds.almost_sure import scalar_almost_sure
from eos_sde.thresholds.closed_forms import (
    gradient_descent,
    momentum_sgd_scalar,
    pitchfork_d_bifurcation,
    pitchfork_moment,
    pitchfork_p_bifurcation,
)
from eos_sde.thresholds.result import Threshold
from eos_sde.thresholds.spectral_crossing import MARGINAL_RATIO
from solvers.errors import InvalidInput

CRITERIA = {
    "almost_sure": "the top Lyapunov exponent at the fixed point is 0",
    "moment": "the moment Lyapunov exponent Lambda(p) at the fixed point is 0; p = 2 is mean-square",
    "gap": "the ratio of the two slowest decay rates is that of a quartic well, or the gap is a given level",
    "escape": "the escape rate times the horizon is 1",
    "density_shape": "the stationary density changes its number of modes",
}
GROWTH = ("almost_sure", "moment")
_LINES = ("gradient-flow", "sme2", "line-map")


def refuse_unavailable(
    model: Model, criterion: str, over: str, parameters: Mapping[str, float], *, level: float | None = None
) -> None:
    """Refuse a criterion that a model of the catalogue does not have, before any work.

    Parameters
    ----------
    model : Model
    criterion : str
        One of `CRITERIA`.
    over : str
        Parameter of the model that is varied.
    parameters : mapping
        The others, complete.
    level : float, optional
        Of criterion "gap".

    Raises
    ------
    InvalidInput
        In one sentence.
    """
    if criterion not in CRITERIA:
        raise InvalidInput(f"criterion={criterion!r} is unknown; choose one of {', '.join(CRITERIA)}")
    if over not in model.parameters:
        raise InvalidInput(
            f"model {model.name!r} has no parameter {over!r} to vary; it has {', '.join(model.parameters)}"
        )
    if criterion in GROWTH:
        if model.fixed_point is None:
            raise InvalidInput(f"criterion {criterion!r} is not available for {model.name}: {model.remark}")
        if over not in model.growth:
            reason = model.remark or f"its growth rate at the fixed point does not depend on {over}"
            raise InvalidInput(
                f"criterion {criterion!r} has no threshold in {over} for {model.name}: {reason}; vary "
                f"{' or '.join(model.growth)}"
            )
        return
    if not model.kicks:
        raise InvalidInput(f"criterion {criterion!r} is not available for {model.name}: it has no noise")
    if over not in model.kicks and not any(parameters[name] for name in model.kicks):
        raise InvalidInput(
            f"criterion {criterion!r} needs noise: give {' or '.join(model.kicks)} of {model.name} above 0"
        )
    if criterion == "gap" and level is None and _is_linear(model, over, parameters):
        raise InvalidInput(
            f"criterion 'gap' needs a level for {model.name} here: of a linear model the second decay rate is twice "
            "the first at every value, so that no ratio is crossed"
        )


def _is_linear(model: Model, over: str, parameters: Mapping[str, float]) -> bool:
    bends = ("third", "fourth") if model.name in _LINES else ("spread",)
    return (model.linear or model.name in _LINES) and not any(
        name == over or parameters.get(name) for name in bends
    )


def closed_form(
    model: Model,
    criterion: str,
    over: str,
    parameters: Mapping[str, float],
    bracket: tuple[float, float],
    **settings: Any,
) -> Threshold | None:
    """The threshold in closed form, where there is one inside the bracket.

    Parameters
    ----------
    model, criterion, over, parameters
        As for `refuse_unavailable`.
    bracket : (float, float)
        Values between which `locate` looks.
    **settings
        Those of `locate` that say what is looked for: p, level, ratio.

    Returns
    -------
    Threshold or None
        The same threshold by a formula, exact but for the stated error. None where none is known.

    Examples
    --------
    >>> from eos_sde.models import catalogue
    >>> float(closed_form(catalogue()["matched-linear"], "almost_sure", "eta",
    ...                   {"curvature": 4.0, "noise": 0.0}, (0.3, 0.9)))
    0.5
    """
    order = float(settings.get("p", 2.0))
    if model.name == "flip-normal-form":
        known = _flip(criterion, over, parameters, order, settings)
    elif criterion in GROWTH and model.fixed_point is not None:
        spread = parameters.get("spread", 0.0)
        if spread or over == "spread":
            known = _recurrence(criterion, over, parameters, order)
        else:
            known = _edge(model, criterion, over, parameters, bracket)
    else:
        known = None
    low, high = sorted(bracket)
    return known if known is not None and low <= known.value <= high else None


def _edge(
    model: Model, criterion: str, over: str, parameters: Mapping[str, float], bracket: tuple[float, float]
) -> Threshold | None:
    """Of a fixed point without noise, where all criteria agree."""
    if over == "eta":
        return gradient_descent(parameters["curvature"]) if parameters["curvature"] > 0 else None
    if over != "curvature":
        return None
    low, high = sorted(bracket)
    if low <= 0 <= high:
        return Threshold(0.0, 0.0, criterion, "where the minimum turns into a maximum", "")
    if "eta" not in model.growth:
        return None
    return Threshold(2.0 / parameters["eta"], 0.0, criterion, "2/eta", gradient_descent(1.0).source)


def _recurrence(criterion: str, over: str, parameters: Mapping[str, float], order: float) -> Threshold | None:
    """Of x+ = (1 - eta h_k) x with normal h_k."""
    h, c, eta = (parameters.get(name, math.nan) for name in ("curvature", "spread", "eta"))
    if over == "eta" and h > 0:
        if criterion == "almost_sure":
            return scalar_almost_sure(h, c**2)
        return momentum_sgd_scalar(h, c**2) if order == 2 else None
    if criterion == "moment" and order == 2 and over == "spread" and 0 < eta * h < 2:
        value = math.sqrt(h * (2 / eta - h))
        return Threshold(value, 0.0, "mean-square", "sqrt(h (2/eta - h))", "second-moment recursion")
    return None


def _flip(
    criterion: str, over: str, parameters: Mapping[str, float], order: float, settings: Mapping[str, Any]
) -> Threshold | None:
    """Of the flip normal form: a pitchfork in mu with additive and multiplicative noise."""
    if over != "mu":
        return None
    m = parameters["m"]
    if criterion == "almost_sure":
        return pitchfork_d_bifurcation(m, convention="ito")
    if criterion == "moment":
        return pitchfork_moment(m, p=order, convention="ito")
    if parameters["C"] <= 0:
        return None
    if criterion == "density_shape":
        return pitchfork_p_bifurcation(m, convention="ito")
    ratio = settings.get("ratio")
    if criterion == "gap" and m == 0 and settings.get("level") is None and ratio in {None, MARGINAL_RATIO}:
        return Threshold(0.0, 0.0, "gap", "mu = 0: the quartic well, between one well and two", "")
    return None
