"""Files that are written whole or not at all, and name themselves where the disk is full or read-only."""

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xarray as xr

_MEANING = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission is denied; make it writable, or choose another place",
    errno.EPERM: "permission is denied; make it writable, or choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of its path is no folder; choose another place",
    errno.EISDIR: "it is a folder; choose another name",
}
_IN_MEMORY = 1 << 30  # bytes of a dataset up to which its file is made in memory first
_SPARE = 1 << 20


def meaning(error: OSError) -> str:
    """What an error of the file system means, and what to do."""
    return _MEANING.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Let errors of the file system carry the name of the file: a full disk does not tell which it was.

    Raises
    ------
    OSError
        The same, with its ``filename``.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes the path where the block succeeds, and goes where it does not.

    Parameters
    ----------
    path : path
        Of the file or folder; its folder is made if needed. A folder of that name is replaced.

    Yields
    ------
    path
        In the same folder.

    Raises
    ------
    OSError
        If it cannot be written, with the ``filename`` that was wanted.
    """
    partial = path.with_name(f"{path.name}.part{os.getpid()}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if path.is_dir() and partial.is_dir():
                shutil.rmtree(path)
            partial.replace(path)
        except BaseException:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
            raise


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, on the disk when this returns.

    Parameters
    ----------
    path : path
        Of the file.
    content : bytes
        All of it.

    Raises
    ------
    OSError
        If it cannot be written, with its ``filename``.
    """
    with beside(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_netcdf(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as NetCDF, whole or not at all.

    HDF5 that finds a disk full cannot close its file, and takes the process with it. So its bytes are made in
    memory first; of a dataset above 1 GiB the disk is asked for room instead.

    Parameters
    ----------
    dataset : Dataset
        What is written.
    path : path
        Of the file.

    Raises
    ------
    OSError
        If it cannot be written, with its ``filename``.
    """
    if dataset.nbytes <= _IN_MEMORY:
        image = io.BytesIO()
        dataset.to_netcdf(image, engine="h5netcdf")
        write_whole(path, image.getbuffer())
        return
    with beside(path) as partial:
        if shutil.disk_usage(path.parent).free < 1.02 * dataset.nbytes + _SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        dataset.to_netcdf(partial, engine="h5netcdf")
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def write_zarr(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as a Zarr v3 store, whole or not at all, in place of one that was there.

    Parameters
    ----------
    dataset : Dataset
        What is written; texts become objects, which Zarr holds in any length.
    path : path
        Of the store.

    Raises
    ------
    OSError
        If it cannot be written, with its ``filename``.
    """
    texts = {
        name: dataset[name].astype(object) for name in dataset.variables if dataset[name].dtype.kind == "U"
    }
    coords = {name: values for name, values in texts.items() if name in dataset.coords}
    plain = dataset.assign({name: values for name, values in texts.items() if name not in coords})
    with beside(path) as partial:
        plain.assign_coords(coords).to_zarr(partial, mode="w", zarr_format=3, consolidated=False)
