"""CAEO, the curvature-adaptive edge-of-stability optimizer: its rule, its curvature estimators, optax form.

`rule` needs NumPy only; the other names import JAX when first used, and `keras` TensorFlow too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eos_sde.optimizers import curvature, refresh, rule
    from eos_sde.optimizers.adam import CaeoAdamState, caeo_adamw
    from eos_sde.optimizers.transformation import CaeoState, caeo, scale_by_caeo

__all__ = [
    "CaeoAdamState",
    "CaeoState",
    "caeo",
    "caeo_adamw",
    "curvature",
    "refresh",
    "rule",
    "scale_by_caeo",
]


def __getattr__(name: str) -> Any:
    if name in {"curvature", "keras", "refresh", "rule"}:
        return importlib.import_module(f"{__name__}.{name}")
    if name in {"CaeoState", "caeo", "scale_by_caeo"}:
        return getattr(importlib.import_module(f"{__name__}.transformation"), name)
    if name in {"CaeoAdamState", "caeo_adamw"}:
        return getattr(importlib.import_module(f"{__name__}.adam"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
