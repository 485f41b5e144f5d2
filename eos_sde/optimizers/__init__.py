"""CAEO, the curvature-adaptive edge-of-stability optimizer: its rule, its curvature estimators, optax form.

`rule` and `descent` (what is certain of its descent) do without JAX; the other names import JAX when first
used, and `keras` TensorFlow too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eos_sde.optimizers import curvature, descent, rule
    from eos_sde.optimizers.certificate import descent_certificate
    from eos_sde.optimizers.transformation import CaeoState, caeo, scale_by_caeo

__all__ = ["CaeoState", "caeo", "curvature", "descent", "descent_certificate", "rule", "scale_by_caeo"]


def __getattr__(name: str) -> Any:
    if name in {"curvature", "descent", "keras", "rule"}:
        return importlib.import_module(f"{__name__}.{name}")
    if name in {"CaeoState", "caeo", "scale_by_caeo"}:
        return getattr(importlib.import_module(f"{__name__}.transformation"), name)
    if name == "descent_certificate":
        return importlib.import_module(f"{__name__}.certificate").descent_certificate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
