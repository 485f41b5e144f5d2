"""Stability inside training code: the largest stable learning rate, and a monitor for any optax loop."""

from eos_sde.training.rate_limit import max_stable_lr

__all__ = ["max_stable_lr"]
