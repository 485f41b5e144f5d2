"""What `simulate` and `drive` need to know of a model in vector form: its schemes, stop conditions and passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numba.core.errors import NumbaError

from solvers import schemes
from solvers.compiling import Keyed
from solvers.errors import InvalidInput
from solvers.exit_times import StopRule, gaps_of, never, on_levels, refuse_arity, traced_condition
from solvers.purity import plain_function, purity_key
from solvers.schemes import Draws, Scheme
from solvers.sources import Packing
from solvers.vector_form import VectorSDE
from solvers.vector_kernels import vector_advancing, vector_advancing_until, vector_following
from solvers.vector_parameters import frozen, shapes_of, unpacking
from solvers.vector_reading import first_reason

SOLVED = ("euler-maruyama", "weak-euler", "heun")
_MOST_AXES = 3


def vector_scheme(name: str, sde: VectorSDE) -> tuple[Scheme, str | None]:
    """The scheme of that name for a model in vector form, and for "auto" why.

    Raises
    ------
    InvalidInput
        For a scheme that has no vector form.
    """
    if name == "auto":
        chosen = "heun" if sde.convention == "stratonovich" and not sde.additive else "euler-maruyama"
        how = (
            "additive noise is the same in every convention"
            if sde.additive
            else f"it reads noise as {sde.convention}"
        )
        return schemes.find(chosen), f"scheme='auto' chose {chosen!r}: {how}, and it needs no derivatives"
    found = schemes.find(name)
    if found.name not in SOLVED:
        raise InvalidInput(
            f"scheme={name!r} is for models in component form; a VectorSDE takes {', '.join(SOLVED)} or 'auto'"
        )
    return found, None


def vector_draws(scheme: Scheme, sde: VectorSDE) -> Draws:
    """What a step draws."""
    return scheme.draws(sde.noise_dimension, "general")


def vector_pass(scheme: Scheme, sde: VectorSDE, stop: StopRule | None, width: int, packing: Packing) -> Any:
    """The compiled pass that moves a block by one step."""
    heun = scheme.name == "heun"
    if stop is None:
        return vector_advancing(heun, sde.compiled(), width, packing)
    return vector_advancing_until(heun, sde.compiled(), width, packing, stop.condition)


def vector_follower(scheme: Scheme, sde: VectorSDE) -> Any:
    """``follow(parameters, t0, dt, start, dw, states)``: single paths on given increments."""
    return vector_following(scheme.name == "heun", sde.to(scheme.convention).compiled())


def refuse_beyond_vector_form(sde: VectorSDE, histogram: Any, statistics: tuple[str, ...]) -> None:
    """Refuse what `simulate` can do for models in component form only.

    Raises
    ------
    InvalidInput
        With the remedy.
    """
    if histogram is not None and sde.dimension > _MOST_AXES:
        raise InvalidInput(
            f"histogram needs a grid over all {sde.dimension} components, at most {_MOST_AXES}; take statistics, "
            "quantiles or save_paths"
        )
    bridged = sorted({"maximum", "minimum"} & set(statistics))
    if bridged:
        raise InvalidInput(
            f"statistics {', '.join(bridged)} use a Brownian bridge, which the vector form does not have; take "
            "step_maximum or step_minimum"
        )


def vector_stop_rule(stop: Callable[..., Any], sde: VectorSDE, *, bridge: bool) -> StopRule:
    """Compile a stop condition ``stop(t, y, p)`` over the array y (d,) and read its levels, if it has any.

    Without levels, as in ``np.max(np.abs(y)) > 1`` or where conditions are joined by `or`, exits are found at the
    ends of steps.

    Raises
    ------
    InvalidInput
        If it is no function of (t, y, p) that returns one condition, or cannot be compiled.
    """
    function = plain_function(stop, "stop")
    refuse_arity(function, 3, "stop", "(t, y, p)")
    key = purity_key(stop, "stop")
    probe = np.linspace(-1.0, 1.0, sde.dimension)
    probe.flags.writeable = False
    try:
        with np.errstate(all="ignore"):
            value = function(0.0, probe, sde.params)
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise InvalidInput(
            f"stop failed: {error}; write it as stop(t, y, p) over the array y of {sde.dimension} numbers"
        ) from error
    if np.ndim(value) != 0 or not isinstance(value, (bool, np.bool_)):
        raise InvalidInput(f"stop returns {value!r} and no single condition; compare, as in y[0] > 1")
    condition = _condition(Keyed(key, function))
    rule = StopRule(function, condition, np.empty((0, 2)), np.empty(0, dtype=np.int64))
    try:
        vector_met_at_start(rule, sde, 0.0, probe[None])
    except NumbaError as error:
        raise InvalidInput(
            f"stop cannot be compiled by Numba: {first_reason(error)}; write it with simpler operations"
        ) from error
    if not bridge:
        return rule

    def over_components(t, y, p, xp):  # noqa: ARG001 - the signature of the component form
        return function(t, np.array(y, dtype=object), p)

    try:
        traced = traced_condition(over_components, sde, "stop")  # type: ignore[arg-type]
    except InvalidInput:  # array functions cannot be read symbolically: the condition itself decides
        return rule
    gaps, components = gaps_of(traced, sde, "stop")  # type: ignore[arg-type]
    return rule._replace(condition=never, gaps=gaps, components=components) if components.size else rule


def vector_met_at_start(rule: StopRule, sde: VectorSDE, t0: float, start: np.ndarray) -> np.ndarray:
    """Which of the starts (n, d) meet the condition or lie on one of its levels."""
    met = np.zeros(len(start), dtype=bool)
    _rows(
        _condition(Keyed(purity_key(rule.function, "stop"), rule.function)),
        type(sde.params),
        shapes_of(sde.params),
    )(t0, np.ascontiguousarray(start), sde.flat_parameters, met)
    return met | on_levels(rule, start)


@lru_cache(maxsize=256)
def _condition(keyed: Keyed) -> Any:
    return njit(error_model="numpy")(keyed.function)


@lru_cache(maxsize=256)
def _rows(condition: Any, kind: Any, shapes: Any) -> Any:
    unpack = unpacking(kind, shapes)

    @njit(error_model="numpy")
    def rows(t, start, parameters, met):
        p = unpack(parameters)
        for k in range(start.shape[0]):
            met[k] = bool(condition(t, frozen(start, k * start.shape[1], (start.shape[1],)), p))

    return rows
