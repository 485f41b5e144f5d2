"""Paths on disk: a Zarr store that is written part by part and gets its name only when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from solvers.errors import InvalidInput
from solvers.observers import about

if TYPE_CHECKING:
    from solvers.running import Run

_DIMS = ("path", "time", "component")
_CHUNK = 1 << 25
"""Bytes per chunk of the store, unless one time of a part is more."""


def checked_place(save_paths: Any) -> bool | Path:
    """Whether to keep paths, or where.

    Raises
    ------
    InvalidInput
        If it is neither a truth value nor the name of a Zarr store in a folder that exists.
    """
    if isinstance(save_paths, (bool, np.bool_)):
        return bool(save_paths)
    if not isinstance(save_paths, (str, Path)) or Path(save_paths).suffix != ".zarr":
        raise InvalidInput(f"save_paths={save_paths!r}; give True, False or a name that ends in .zarr")
    place = Path(save_paths).resolve()
    if not place.parent.is_dir():
        raise InvalidInput(
            f"save_paths={str(save_paths)!r}: there is no folder {str(place.parent)!r}; make it first"
        )
    return place


def refuse_store(save_paths: Any) -> None:
    """Refuse a store for the paths of a sweep.

    Raises
    ------
    InvalidInput
        If `save_paths` names one.
    """
    if isinstance(save_paths, (str, Path)):
        raise InvalidInput(
            f"save_paths={str(save_paths)!r} cannot be combined with sweep; call simulate for each point with its own"
        )


class PathStore:
    """The store of one run. Parts come one at a time, in order, from the thread that merges them.

    Until `finish` everything lies in a folder beside, named with ".part", so that what has the name asked for is
    complete.

    Parameters
    ----------
    run : Run
        With `done` as its checkpoint says.

    Raises
    ------
    InvalidInput
        If the store exists, or the paths that a checkpoint counts as done are not there.
    """

    def __init__(self, run: Run):
        self.place: Path = run.request.save_paths  # type: ignore[assignment]
        self._beside = self.place.with_name(self.place.name + ".part")
        self.complete = run.done == run.request.paths and self.place.exists() and not self._beside.exists()
        if self.complete:
            return
        if self.place.exists():
            raise InvalidInput(f"save_paths={str(self.place)!r} exists; give another name or remove it")
        shape = (run.request.paths, run.request.saves.size, run.request.sde.dimension)
        self._state = self._made(shape, run.paths_per_task()) if run.done == 0 else self._found(shape)

    def _made(self, shape: tuple[int, ...], paths: int) -> Any:
        import zarr

        if self._beside.exists():  # left by a run that was killed
            shutil.rmtree(self._beside)
        times = max(1, min(shape[1], _CHUNK // (8 * paths * shape[2])))
        group = zarr.create_group(store=self._beside, zarr_format=3)
        return group.create_array(
            "state",
            shape=shape,
            chunks=(min(paths, shape[0]), times, shape[2]),
            dtype="float64",
            fill_value=np.nan,
            compressors=None,  # noise does not compress
            dimension_names=_DIMS,
            attributes={**about("state")},
        )

    def _found(self, shape: tuple[int, ...]) -> Any:
        import zarr

        if not self._beside.exists():
            raise InvalidInput(
                f"save_paths={str(self.place)!r}: the paths that the checkpoint counts as done are not in "
                f"{str(self._beside)!r}; remove the checkpoint to begin anew"
            )
        state = zarr.open_group(self._beside, mode="r+")["state"]
        if state.shape != shape:  # type: ignore[union-attr]
            raise InvalidInput(f"{str(self._beside)!r} holds the paths of another run; remove it")
        return state

    def write(self, first: int, states: np.ndarray) -> None:
        """Store the paths (count, times, d) from `first`."""
        self._state[first : first + len(states)] = states

    def discard(self) -> None:
        """Remove what is not complete."""
        shutil.rmtree(self._beside, ignore_errors=True)

    def finish(self, result: xr.Dataset) -> xr.Dataset:
        """Store the rest of the result too, give the store its name, and return the result with `state` lazy."""
        if not self.complete:
            # Strings of fixed width have no place in the Zarr v3 specification, those of any width do.
            texts = {name: c.astype(object) for name, c in result.coords.items() if c.dtype.kind == "U"}
            result.assign_coords(texts).to_zarr(self._beside, mode="a", consolidated=False)
            self._beside.rename(self.place)
            self.complete = True
        stored = xr.open_dataset(self.place, engine="zarr", chunks=None, cache=False, consolidated=False)
        return result.assign(state=stored["state"].variable)


@contextmanager
def stored_paths(run: Run, *, resumable: bool) -> Iterator[PathStore | None]:
    """The store of a run, if it has one; removed when the run is broken off, unless it can go on later."""
    if not run.request.to_store:
        yield None
        return
    run.store = PathStore(run)
    try:
        yield run.store
    except BaseException:
        if not resumable:
            run.store.discard()
        raise
