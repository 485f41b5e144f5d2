"""Large models by their published sizes, and what training them over a mesh would take: compiled, never run."""

from eos_sde.large_models.catalogue import MODELS, LargeModel
from eos_sde.large_models.hardware import HARDWARE, Hardware
from eos_sde.large_models.plan import plan_training

__all__ = ["HARDWARE", "MODELS", "Hardware", "LargeModel", "plan_training"]
