"""Real networks against the continuous theory: tasks, records, calibration, prediction, replay."""

from eos_sde.bridge.datasets import ImageSet, load_dataset
from eos_sde.bridge.minimum import Minimum, find_minimum
from eos_sde.bridge.onset import measure_onset
from eos_sde.bridge.record import record
from eos_sde.bridge.rules import make_rule
from eos_sde.bridge.tasks import Task, interpolation_task, load_task, task_defaults, tasks

__all__ = [
    "ImageSet",
    "Minimum",
    "Task",
    "find_minimum",
    "interpolation_task",
    "load_dataset",
    "load_task",
    "make_rule",
    "measure_onset",
    "record",
    "task_defaults",
    "tasks",
]
