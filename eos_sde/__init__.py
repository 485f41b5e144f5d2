"""The edge of stability of stochastic training: models, thresholds, the CAEO optimizer, and the bridge.

Subpackages and the names below are imported when first used: `import eos_sde` is quick and does not import JAX.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eos_sde import bridge, models, sweeps, thresholds, training, trials
    from eos_sde.optimizers import caeo, curvature, scale_by_caeo
    from eos_sde.store import open_sweep
    from eos_sde.sweeps import sweep

__version__ = version("eos-sde")

_WHERE = {
    "bridge": "eos_sde.bridge",
    "jax_terms": "eos_sde.jax_terms",
    "models": "eos_sde.models",
    "optimizers": "eos_sde.optimizers",
    "plots": "eos_sde.plots",
    "report": "eos_sde.report",
    "store": "eos_sde.store",
    "sweeps": "eos_sde.sweeps",
    "thresholds": "eos_sde.thresholds",
    "training": "eos_sde.training",
    "trials": "eos_sde.trials",
}
_NAMES = {
    "caeo": "eos_sde.optimizers",
    "curvature": "eos_sde.optimizers",
    "open_sweep": "eos_sde.store",
    "scale_by_caeo": "eos_sde.optimizers",
    "sweep": "eos_sde.sweeps",
}

__all__ = [
    "bridge",
    "caeo",
    "curvature",
    "models",
    "open_sweep",
    "scale_by_caeo",
    "sweep",
    "sweeps",
    "thresholds",
    "training",
    "trials",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return import_module(_WHERE[name])
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'eos_sde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_NAMES})
