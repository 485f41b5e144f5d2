"""Models of training at the edge of stability; every builder returns a `solvers` SDE.

| model | sees the edge eta * curvature = 2? | time unit |
|---|---|---|
| `gradient_flow` (SME-1) | no | eta per step |
| `sme2` | no; it moves away from it | eta per step |
| `matched_linear` | yes, exactly, on a quadratic | eta per step |
| `flip_normal_form` | yes, and what lies beyond | one step |
| `self_stabilization` | yes, with the sharpness as a variable | one step |
| `maps` | they are the rules themselves | |
"""

from eos_sde.models import landscapes, maps
from eos_sde.models.matched import matched_linear
from eos_sde.models.normal_forms import (
    flip_coefficients,
    flip_normal_form,
    flip_rate_kramers,
    self_stabilization,
    self_stabilization_invariant,
    two_cycle_amplitude,
)
from eos_sde.models.registry import Model, catalogue
from eos_sde.models.sme import gradient_flow, sme2

__all__ = [
    "Model",
    "catalogue",
    "flip_coefficients",
    "flip_normal_form",
    "flip_rate_kramers",
    "gradient_flow",
    "landscapes",
    "maps",
    "matched_linear",
    "self_stabilization",
    "self_stabilization_invariant",
    "sme2",
    "two_cycle_amplitude",
]
