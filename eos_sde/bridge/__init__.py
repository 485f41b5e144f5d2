"""Real networks against the continuous theory: tasks, records, calibration, prediction, replay."""

from eos_sde.bridge.datasets import ImageSet, load_dataset
from eos_sde.bridge.tasks import Task, load_task, task_defaults, tasks

__all__ = ["ImageSet", "Task", "load_dataset", "load_task", "task_defaults", "tasks"]
