"""The runaway monitor of `eos_sde.optimizers.runaway`, run on ``keras.ops``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from eos_sde.optimizers import runaway
from eos_sde.optimizers.keras.hessian import Flat

_NAMES = ("isfinite", "where", "minimum", "maximum", "log", "sqrt")
_OPS = SimpleNamespace(asarray=keras.ops.array, **{name: getattr(keras.ops, name) for name in _NAMES})


def start(flat: Flat) -> dict[str, Any]:
    """Return the monitor before the first update, entries by name."""
    return runaway.start(dtype=np.dtype(flat.dtype.name))._asdict()


def watch(
    monitor: dict[str, Any], sharpness: tf.Tensor, capped: tf.Tensor, edge: tf.Tensor
) -> dict[str, Any]:
    """Return the monitor after one more update.

    Parameters
    ----------
    monitor : dict of tensor
        From `start` or the last call.
    sharpness, capped, edge : tensor
        As for `eos_sde.optimizers.runaway.watch`.
    """
    old = runaway.RunawayMonitor(**monitor)
    return runaway.watch(old, sharpness, capped, edge=edge, xp=_OPS)._asdict()
