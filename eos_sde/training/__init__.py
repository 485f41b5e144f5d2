"""Stability inside training code: the largest stable learning rate, and a monitor for any optax loop."""

from eos_sde.training.linear_rules import RULES
from eos_sde.training.monitor import MonitorState, StabilityMonitor
from eos_sde.training.rate_limit import max_stable_lr
from eos_sde.training.readings import Reading
from eos_sde.training.transformation import MonitoredState, monitored

__all__ = [
    "RULES",
    "MonitorState",
    "MonitoredState",
    "Reading",
    "StabilityMonitor",
    "max_stable_lr",
    "monitored",
]
