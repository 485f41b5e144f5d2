"""Results as files: NetCDF or Zarr by the ending, written whole or not at all, read back whichever it is."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.store.errors import StoreFailure
from eos_sde.store.origin import KIND
from eos_sde.store.reading import open_sweep, written_by_sweep
from solvers.errors import InvalidInput
from solvers.whole_files import write_netcdf, write_zarr

ENDINGS = (".nc", ".zarr")
PICTURES = (".png", ".svg", ".pdf")


def check_file(option: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before any work; make nothing yet."""
    if path is None:
        return
    if path.suffix not in endings:
        raise InvalidInput(f"{option} {path} must end in {' or '.join(endings)}")
    folder = path.absolute().parent
    there = next(above for above in (folder, *folder.parents) if above.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InvalidInput(
            f"{option} {path} cannot be written ({there} is no writable folder); choose another"
        )
    if path.is_dir() and not (path.suffix == ".zarr" and _is_ours(path)):
        raise InvalidInput(f"{option} {path} exists and is no result of this program; choose another name")
    if path.is_file() and path.suffix == ".zarr":
        raise InvalidInput(f"{option} {path} exists and is a file; choose another name")


def _is_ours(store: Path) -> bool:
    group = store / "zarr.json"
    if not group.is_file():
        return False
    return str(json.loads(group.read_text()).get("attributes", {}).get("creator", "")).startswith("eos-sde")


def write_result(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as NetCDF or Zarr v3, by the ending; it gets its name when it is whole.

    Raises
    ------
    OSError
        If it cannot be written, with its ``filename``.
    """
    from solvers.provenance import with_commit

    write = write_netcdf if path.suffix == ".nc" else write_zarr
    write(with_commit(dataset), path)


def read_result(path: Path) -> xr.Dataset:
    """A dataset from a NetCDF file or a Zarr store, in memory.

    Raises
    ------
    InvalidInput
        If there is none, or the file holds something else.
    StoreFailure
        If it is a sweep with a chunk that is missing or damaged.
    """
    if not path.exists():
        raise InvalidInput(
            f"{path} does not exist; give a NetCDF file or a Zarr store that a command has written"
        )
    try:
        with _opened(path) as dataset:
            return _with_plain_text(dataset.load())
    except (InvalidInput, StoreFailure):
        raise
    except Exception as error:  # of broken bytes every decoder raises what it likes
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"{path} holds no dataset that can be read ({first}); give NetCDF or Zarr"
        ) from error


def _opened(path: Path) -> xr.Dataset:
    if path.is_file():
        return xr.open_dataset(path, engine="h5netcdf")
    dataset = xr.open_dataset(path, engine="zarr", consolidated=False)
    if dataset.attrs.get("kind") == KIND and written_by_sweep(path):
        dataset.close()
        return open_sweep(path, check=True)  # xarray would fill the gap of a lost chunk in silence
    return dataset


def _with_plain_text(dataset: xr.Dataset) -> xr.Dataset:
    """Texts as NumPy's own type: Zarr gives them as objects."""

    def plain(name: Any) -> Any:
        array = dataset[name]
        texts = np.array([str(text) for text in array.values.ravel()], dtype=np.str_).reshape(array.shape)
        return (array.dims, texts, array.attrs)

    texts = [name for name in dataset.variables if dataset[name].dtype.kind in "OT"]
    return dataset.assign_coords({name: plain(name) for name in texts if name in dataset.coords}).assign(
        {name: plain(name) for name in texts if name not in dataset.coords}
    )
