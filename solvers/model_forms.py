"""What an engine asks of a model, whichever form it is written in: component form (SDE) or vector form (VectorSDE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numba import njit

from solvers import schemes
from solvers.errors import InvalidInput
from solvers.exit_times import StopRule, met_at_start, stop_rule
from solvers.kernels import advancing, advancing_until
from solvers.schemes import Draws, Scheme, structure
from solvers.sde import SDE
from solvers.sources import Packing
from solvers.vector_form import VectorSDE
from solvers.vector_request import (
    refuse_beyond_vector_form,
    vector_draws,
    vector_follower,
    vector_met_at_start,
    vector_pass,
    vector_scheme,
    vector_stop_rule,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ModelForm(Protocol):
    """A form of models; `form_of` finds the one of a model."""

    @property
    def probes(self) -> int | None:
        """How many of the starts may be asked for a Jacobian; all of them if None."""
        ...

    def scheme(self, name: str, sde: Any) -> tuple[Scheme, str | None]:
        """The scheme of that name, fit for the model; for "auto" also why it was chosen.

        Raises
        ------
        InvalidInput
            If it does not exist, or does not solve this model at its stated orders.
        """
        ...

    def refuse_beyond(self, sde: Any, histogram: Any, statistics: tuple[str, ...]) -> None:
        """Refuse what can be had for the other form only."""
        ...

    def draws(self, scheme: Scheme, sde: Any) -> Draws:
        """The random numbers of a step."""
        ...

    def noise_kind(self, sde: Any) -> str:
        """One of `structure.KINDS`, which the strong order depends on."""
        ...

    def flat_parameters(self, sde: Any) -> NDArray[np.float64]:
        """The parameters as the kernels take them."""
        ...

    def advance(self, scheme: Scheme, sde: Any, stop: StopRule | None, width: int, packing: Packing) -> Any:
        """The compiled pass that moves a block of that width by one step; `packing` is the source's."""
        ...

    def follow(self, scheme: Scheme, sde: Any) -> Callable[..., None]:
        """``follow(t0, dt, start, dw, states)``: paths one by one on given increments."""
        ...

    def stop_rule(self, stop: Callable[..., Any], sde: Any, *, bridge: bool) -> StopRule:
        """The stop condition, compiled, with its levels."""
        ...

    def met_at_start(self, rule: StopRule, sde: Any, t0: float, start: np.ndarray) -> np.ndarray:
        """Which of the starts (n, d) meet the condition or lie on one of its levels."""
        ...


class _ComponentForm:
    probes = None

    def scheme(self, name: str, sde: SDE) -> tuple[Scheme, str | None]:
        found, reason = schemes.choose(sde) if name == "auto" else (schemes.find(name), None)
        found.check(sde)
        return found, reason

    def refuse_beyond(self, sde: SDE, histogram: Any, statistics: tuple[str, ...]) -> None:
        pass  # component form has everything

    def draws(self, scheme: Scheme, sde: SDE) -> Draws:
        return schemes.stepper(scheme, sde).draws

    def noise_kind(self, sde: SDE) -> str:
        return structure.verdict(sde).kind

    def flat_parameters(self, sde: SDE) -> NDArray[np.float64]:
        return np.array(sde.params, dtype=float)

    def advance(self, scheme: Scheme, sde: SDE, stop: StopRule | None, width: int, packing: Packing) -> Any:
        model = (schemes.stepper(scheme, sde, width), type(sde.params), len(sde.params), width, packing)
        return advancing(*model) if stop is None else advancing_until(*model, stop.condition)

    def follow(self, scheme: Scheme, sde: SDE) -> Callable[..., None]:
        compiled = _following(schemes.stepper(scheme, sde))
        return lambda *arguments: compiled(sde.params, *arguments)

    def stop_rule(self, stop: Callable[..., Any], sde: SDE, *, bridge: bool) -> StopRule:
        return stop_rule(stop, sde, bridge=bridge)

    def met_at_start(self, rule: StopRule, sde: SDE, t0: float, start: np.ndarray) -> np.ndarray:
        return met_at_start(rule, t0, start, sde.params)


class _VectorForm:
    probes = 5  # a Jacobian by differences of many components is dear

    def scheme(self, name: str, sde: VectorSDE) -> tuple[Scheme, str | None]:
        found = vector_scheme(name, sde)
        sde.to(found[0].convention).compiled()
        return found

    def refuse_beyond(self, sde: VectorSDE, histogram: Any, statistics: tuple[str, ...]) -> None:
        refuse_beyond_vector_form(sde, histogram, statistics)

    def draws(self, scheme: Scheme, sde: VectorSDE) -> Draws:
        return vector_draws(scheme, sde)

    def noise_kind(self, sde: VectorSDE) -> str:
        return "additive" if sde.additive else "general"

    def flat_parameters(self, sde: VectorSDE) -> NDArray[np.float64]:
        return sde.flat_parameters

    def advance(
        self, scheme: Scheme, sde: VectorSDE, stop: StopRule | None, width: int, packing: Packing
    ) -> Any:
        return vector_pass(scheme, sde, stop, width, packing)

    def follow(self, scheme: Scheme, sde: VectorSDE) -> Callable[..., None]:
        compiled = vector_follower(scheme, sde)
        return lambda *arguments: compiled(sde.flat_parameters, *arguments)

    def stop_rule(self, stop: Callable[..., Any], sde: VectorSDE, *, bridge: bool) -> StopRule:
        return vector_stop_rule(stop, sde, bridge=bridge)

    def met_at_start(self, rule: StopRule, sde: VectorSDE, t0: float, start: np.ndarray) -> np.ndarray:
        return vector_met_at_start(rule, sde, t0, start)


_FORMS: Sequence[tuple[type, ModelForm]] = ((SDE, _ComponentForm()), (VectorSDE, _VectorForm()))


def form_of(sde: Any) -> ModelForm:
    """The form that a model is written in.

    Raises
    ------
    InvalidInput
        If it is no model.
    """
    for kind, form in _FORMS:
        if isinstance(sde, kind):
            return form
    raise InvalidInput(f"sde is a {type(sde).__name__}; pass a solvers.SDE or a solvers.VectorSDE")


@lru_cache(maxsize=256)
def _following(stepper: schemes.Stepper) -> Any:
    step, ops = stepper.step, stepper.ops
    load, load_noise, store = ops.load, ops.load_noise, ops.store

    @njit(error_model="numpy", nogil=True)
    def follow(p, t0, dt, start, dw, states):
        paths, kept = states.shape[0], states.shape[1]
        for i in range(paths):
            y = load(start[i], 0)
            if kept > 1:
                store(states[i, 0], 0, y)
            for k in range(dw.shape[1]):
                y = step(p, t0 + k * dt, dt, y, load_noise(dw[i, k], 0))
                if kept > 1:
                    store(states[i, k + 1], 0, y)
            if kept == 1:
                store(states[i, 0], 0, y)

    return follow
