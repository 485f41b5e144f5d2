"""Sweeps: a function or an observable at every point of a product of parameters, resumable, on any Dask cluster."""

from eos_sde.sweeps.engine import FailedPoints, sweep
from eos_sde.sweeps.executors import NoWorkers
from eos_sde.sweeps.observables import OBSERVABLES
from eos_sde.sweeps.trial import PointFailed

__all__ = ["OBSERVABLES", "FailedPoints", "NoWorkers", "PointFailed", "sweep"]
