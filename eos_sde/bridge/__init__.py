"""The bridge: real networks on real data, calibrated, predicted, trained, and compared with theory."""

from eos_sde.bridge.applicability import Applicable, applicable_criterion
from eos_sde.bridge.caeo_boundary import measure_caeo_boundary
from eos_sde.bridge.caeo_forecast import forecast_caeo_stability
from eos_sde.bridge.caeo_horizon import forecast_caeo_boundary
from eos_sde.bridge.caeo_regions import measure_caeo_regimes
from eos_sde.bridge.calibration import calibrate
from eos_sde.bridge.campaign import run_campaign
from eos_sde.bridge.capped_flow import caeo_flow
from eos_sde.bridge.datasets import load_dataset
from eos_sde.bridge.escape import measure_escape
from eos_sde.bridge.escape_prediction import EscapePrediction, predict_escape
from eos_sde.bridge.fluctuation_forecast import forecast_fluctuations
from eos_sde.bridge.fluctuation_measurement import measure_fluctuations
from eos_sde.bridge.full_batch_flow import central_flow
from eos_sde.bridge.gram import curvature_gram
from eos_sde.bridge.implicit_bias import implicit_bias_table
from eos_sde.bridge.interpolation_tasks import interpolation_task
from eos_sde.bridge.main_job import checkpoint, replay
from eos_sde.bridge.minimum import Minimum, find_minimum
from eos_sde.bridge.onset import measure_onset
from eos_sde.bridge.onset_grid import onset_table, summarise_onsets
from eos_sde.bridge.plateau_forecast import forecast_plateau
from eos_sde.bridge.prediction import predict
from eos_sde.bridge.recorder import record
from eos_sde.bridge.rules import make_rule
from eos_sde.bridge.stochastic_flow import stochastic_central_flow
from eos_sde.bridge.task_library import (
    Task,
    describe_task,
    load_task,
    task_defaults,
    tasks,
)

__all__ = [
    "Applicable",
    "EscapePrediction",
    "Minimum",
    "Task",
    "applicable_criterion",
    "caeo_flow",
    "calibrate",
    "central_flow",
    "checkpoint",
    "curvature_gram",
    "describe_task",
    "find_minimum",
    "forecast_caeo_boundary",
    "forecast_caeo_stability",
    "forecast_fluctuations",
    "forecast_plateau",
    "implicit_bias_table",
    "interpolation_task",
    "load_dataset",
    "load_task",
    "make_rule",
    "measure_caeo_boundary",
    "measure_caeo_regimes",
    "measure_escape",
    "measure_fluctuations",
    "measure_onset",
    "onset_table",
    "predict",
    "predict_escape",
    "record",
    "replay",
    "run_campaign",
    "stochastic_central_flow",
    "summarise_onsets",
    "task_defaults",
    "tasks",
]
