"""CAEO for Keras 3 on TensorFlow: the optimizer, the cure of its runaway, and training steps that show them the loss.

Needs the extra ``tensorflow``; nothing else of the project imports it.
"""

try:
    import keras
    import tensorflow  # noqa: F401  (looked for here, so that one sentence can say what is missing)
except ImportError as error:
    raise ImportError(
        "eos_sde.optimizers.keras needs Keras 3 and TensorFlow: pip install 'eos-sde[tensorflow]'."
    ) from error

if int(keras.__version__.partition(".")[0]) < 3:
    raise ImportError(
        f"eos_sde.optimizers.keras needs Keras 3 and found {keras.__version__}: pip install 'keras>=3'."
    )
if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"eos_sde.optimizers.keras needs the TensorFlow backend of Keras and found {keras.backend.backend()!r}: "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported."
    )

from eos_sde.optimizers.keras.optimizer import CAEO
from eos_sde.optimizers.keras.self_stabilizing import SelfStabilizingCAEO
from eos_sde.optimizers.keras.training import CurvatureModel, CurvatureTraining

__all__ = ["CAEO", "CurvatureModel", "CurvatureTraining", "SelfStabilizingCAEO"]
