"""CAEO, the curvature-adaptive edge-of-stability optimizer: its rule, its curvature estimators, optax form.

`rule`, `runaway` and `self_stabilizing_rule` need NumPy only; the other names import JAX when first used, and
`keras` TensorFlow too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eos_sde.optimizers import curvature, rule, runaway, self_stabilizing_rule
    from eos_sde.optimizers.self_stabilizing import SelfStabilizingState, self_stabilizing_caeo
    from eos_sde.optimizers.transformation import CaeoState, caeo, scale_by_caeo

__all__ = [
    "CaeoState",
    "SelfStabilizingState",
    "caeo",
    "curvature",
    "rule",
    "runaway",
    "scale_by_caeo",
    "self_stabilizing_caeo",
    "self_stabilizing_rule",
]


def __getattr__(name: str) -> Any:
    if name in {"curvature", "keras", "rule", "runaway", "self_stabilizing_rule"}:
        return importlib.import_module(f"{__name__}.{name}")
    if name in {"CaeoState", "caeo", "scale_by_caeo"}:
        return getattr(importlib.import_module(f"{__name__}.transformation"), name)
    if name in {"SelfStabilizingState", "self_stabilizing_caeo"}:
        return getattr(importlib.import_module(f"{__name__}.self_stabilizing"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
