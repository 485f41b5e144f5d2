"""CAEO, the curvature-adaptive edge-of-stability optimizer: its rule, its curvature estimators, optax form.

`rule`, `descent` (what is certain of its descent), `runaway` and `self_stabilizing_rule` do without JAX; the other
names import it when first used, and `keras` TensorFlow too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eos_sde.optimizers import curvature, descent, rule, runaway, self_stabilizing_rule
    from eos_sde.optimizers.certificate import descent_certificate
    from eos_sde.optimizers.self_stabilizing import SelfStabilizingState, self_stabilizing_caeo
    from eos_sde.optimizers.transformation import CaeoState, caeo, scale_by_caeo

__all__ = [
    "CaeoState",
    "SelfStabilizingState",
    "caeo",
    "curvature",
    "descent",
    "descent_certificate",
    "rule",
    "runaway",
    "scale_by_caeo",
    "self_stabilizing_caeo",
    "self_stabilizing_rule",
]
_MODULES = {"curvature", "descent", "keras", "rule", "runaway", "self_stabilizing_rule"}
_NAMES = {
    "CaeoState": "transformation",
    "SelfStabilizingState": "self_stabilizing",
    "caeo": "transformation",
    "descent_certificate": "certificate",
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
