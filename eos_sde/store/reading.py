"""Reading a sweep: lazily as a Dataset, with one sentence where it cannot be; and its export to NetCDF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from eos_sde.store.arrays import Arrays
from eos_sde.store.errors import StoreFailure, told
from eos_sde.store.layout import PENDING, STATUS, TEXTS
from eos_sde.store.origin import FORMAT, KIND
from eos_sde.store.sweep_store import attributes
from solvers.errors import InvalidInput
from solvers.whole_files import write_netcdf


def open_sweep(path: Path | str, *, check: bool = False) -> xr.Dataset:
    """Open a sweep lazily: arrays are read chunk by chunk where they are used.

    Parameters
    ----------
    path : path
        A store that `eos_sde.sweep` or ``eos-sde sweep`` has written or is writing; `xarray.open_zarr` reads it too.
    check : bool
        Read every chunk once, and refuse a store with a damaged one. Missing chunks are refused in any case.

    Returns
    -------
    Dataset
        Over the axes of the sweep, then over the dimensions of one result: the variables of the results (NaN where a
        point is missing), ``status`` (0 pending, 1 done, 2 failed), ``error`` and ``warning`` (texts, mostly empty).
        While a sweep is running, or after it was killed, the last seconds of finished points are still in its journal
        and count as pending here; the same sweep, run again, takes them over.

    Raises
    ------
    InvalidInput
        If there is no sweep, or one of another format.
    StoreFailure
        If arrays or chunks are missing or damaged.

    Examples
    --------
    >>> table = open_sweep("gap.zarr")  # doctest: +SKIP
    >>> table.gap.where(table.status == 1).sel(mu=0.1, method="nearest").plot()  # doctest: +SKIP
    """
    store = Path(path)
    if not store.exists():
        raise InvalidInput(f"store={store} does not exist; give the name of a sweep's store")
    attrs = attributes(store)
    if attrs.get("kind") != KIND:
        raise InvalidInput(f"store={store} holds no sweep; give the name of a sweep's store")
    if attrs.get("format") != FORMAT:
        raise InvalidInput(
            f"store={store} has format {attrs.get('format')}, and this version reads format {FORMAT}; open it with "
            "xarray.open_zarr"
        )
    if store.with_name(f"{store.name}.axes").exists():
        raise StoreFailure(
            f"store={store} was being lengthened when its sweep was killed; run that sweep again"
        )
    with told(store, "read"):
        try:
            _refuse_gaps(store, thoroughly=check)
            return xr.open_zarr(store, consolidated=True, chunks={})
        except (OSError, StoreFailure):
            raise
        except Exception as error:  # of broken metadata zarr and xarray raise whatever they stumble over
            raise StoreFailure(
                f"store={store} lacks some of its arrays, or their metadata are broken ({type(error).__name__}: "
                f"{error}); restore it, or sweep anew"
            ) from error


def written_by_sweep(store: Path) -> bool:
    """Whether a sweep wrote these chunks itself, all arrays of each; a copy by xarray leaves out those of empty texts.

    Parameters
    ----------
    store : path
        A Zarr store with the attributes of a sweep.

    Returns
    -------
    bool
    """
    chunks = store / STATUS / "c"
    return any(
        all((store / name / "c" / path.relative_to(chunks)).is_file() for name in TEXTS)
        for path in chunks.rglob("*")
        if path.is_file()
    )


def _refuse_gaps(store: Path, *, thoroughly: bool) -> None:
    arrays = Arrays(store, "r")
    layout = arrays.layout()
    for chunk in layout.chunk_numbers():
        gap = arrays.damaged(layout, chunk) if thoroughly else arrays.missing(layout, chunk)
        if gap is not None:
            place = "/".join(map(str, chunk))
            raise StoreFailure(
                f"store={store}: chunk {place} of {gap!r} is missing or damaged; run the sweep again, which computes "
                "its points anew"
            )


def export_netcdf(sweep: xr.Dataset, path: Path | str) -> None:
    """Write a sweep as NetCDF, whole or not at all; complex variables as two, ``_real`` and ``_imag``.

    Parameters
    ----------
    sweep : Dataset
        From `open_sweep` or `eos_sde.sweep`.
    path : path
        Its folder exists.

    Raises
    ------
    StoreFailure
        If it cannot be written.
    """
    path = Path(path)
    plain = {}
    for name, values in sweep.data_vars.items():
        if values.dtype.kind == "c":
            plain[f"{name}_real"], plain[f"{name}_imag"] = values.real, values.imag
        else:
            plain[name] = values.compute().astype(object) if values.dtype.kind == "T" else values
    coords = {
        name: values.compute().astype(object) if values.dtype.kind == "T" else values
        for name, values in sweep.coords.items()
    }
    whole = xr.Dataset(plain, coords=coords, attrs=sweep.attrs).drop_encoding()
    with told(path, "written"):
        write_netcdf(whole, path)


def pending_points(sweep: xr.Dataset) -> int:
    """How many points of a sweep are neither done nor failed."""
    return int((np.asarray(sweep["status"]) == PENDING).sum())
