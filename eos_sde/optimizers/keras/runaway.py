"""The runaway monitor of `eos_sde.optimizers.runaway`, run on ``keras.ops``."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from eos_sde.optimizers import runaway
from eos_sde.optimizers.keras.hessian import Flat
from eos_sde.optimizers.keras.namespace import OPS


def start(flat: Flat) -> dict[str, Any]:
    """Return the monitor before the first update, entries by name."""
    return runaway.start(dtype=np.dtype(flat.dtype.name))._asdict()


def watch(
    monitor: dict[str, Any], sharpness: tf.Tensor, capped: tf.Tensor, edge: tf.Tensor | None
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
    return runaway.watch(old, sharpness, capped, edge=edge, xp=OPS)._asdict()
