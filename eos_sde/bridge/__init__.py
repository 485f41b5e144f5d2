"""The bridge: real networks on real data, calibrated, predicted, trained, and compared with theory."""

from eos_sde.bridge.calibrate import calibrate
from eos_sde.bridge.central_flow import stochastic_central_flow
from eos_sde.bridge.predict import predict
from eos_sde.bridge.record import record
from eos_sde.bridge.replay import replay
from eos_sde.bridge.tasks import Task, load_task, tasks

__all__ = [
    "Task",
    "calibrate",
    "load_task",
    "predict",
    "record",
    "replay",
    "stochastic_central_flow",
    "tasks",
]
