"""Stores of sweeps: Zarr v3 arrays behind a journal, one writer, no finished point lost; `open_sweep` reads them."""

from eos_sde.store.errors import StoreFailure
from eos_sde.store.reading import export_netcdf, open_sweep
from eos_sde.store.sweep_store import DamagedChunk

__all__ = ["DamagedChunk", "StoreFailure", "export_netcdf", "open_sweep"]
