"""CAEO, the curvature-adaptive edge-of-stability optimizer: its rule, its curvature estimators, optax form; its rivals.

`rule`, `descent` (what is certain of its descent), `runaway` and `self_stabilizing_rule` do without JAX; the other
names import it when first used, and `keras` TensorFlow too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eos_sde.optimizers import curvature, descent, refresh, rule, runaway, self_stabilizing_rule
    from eos_sde.optimizers.adam import CaeoAdamState, caeo_adamw
    from eos_sde.optimizers.certificate import descent_certificate
    from eos_sde.optimizers.directional_step import CdatState, cdat
    from eos_sde.optimizers.loss_step import L4State, l4
    from eos_sde.optimizers.self_stabilizing import SelfStabilizingState, self_stabilizing_caeo
    from eos_sde.optimizers.sharpness_step import inverse_sharpness
    from eos_sde.optimizers.transformation import CaeoState, caeo, scale_by_caeo

__all__ = [
    "CaeoAdamState",
    "CaeoState",
    "CdatState",
    "L4State",
    "SelfStabilizingState",
    "caeo",
    "caeo_adamw",
    "cdat",
    "curvature",
    "descent",
    "descent_certificate",
    "inverse_sharpness",
    "l4",
    "refresh",
    "rule",
    "runaway",
    "scale_by_caeo",
    "self_stabilizing_caeo",
    "self_stabilizing_rule",
]
_MODULES = {"curvature", "descent", "keras", "refresh", "rule", "runaway", "self_stabilizing_rule"}
_NAMES = {
    "CaeoAdamState": "adam",
    "CaeoState": "transformation",
    "CdatState": "directional_step",
    "L4State": "loss_step",
    "SelfStabilizingState": "self_stabilizing",
    "caeo": "transformation",
    "caeo_adamw": "adam",
    "cdat": "directional_step",
    "descent_certificate": "certificate",
    "inverse_sharpness": "sharpness_step",
    "l4": "loss_step",
    "scale_by_caeo": "transformation",
    "self_stabilizing_caeo": "self_stabilizing",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
