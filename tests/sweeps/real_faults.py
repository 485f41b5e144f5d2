"""Runs sweeps onto a really full disk and a really read-only one, in a mount namespace of its own; see the tests.

``unshare --user --map-root-user --mount python real_faults.py FOLDER STEP``: a tmpfs of every size that is too small,
in steps of so many KiB, each then made large enough for the same sweep to go on; a table exported to a full one; and a
file system that is mounted read-only. Prints what it saw.
"""

import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pytest

import eos_sde
from eos_sde.store import StoreFailure, export_netcdf
from tests.sweeps.slow_points import wave
from tests.sweeps.stores import same_files

AXES = {"x": np.linspace(0, 1, 40).tolist(), "seed": range(5)}
FULL = "the disk is full; free some space, then run the same again: finished points are kept"


def mounted(place: Path, *options: str) -> None:
    subprocess.run(["mount", *options, str(place)], check=True, capture_output=True)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def swept(store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eos_sde.sweep(wave, AXES, store=store)


def refused(store: Path, text: str) -> bool:
    """Whether a sweep into the store is refused, by one sentence that says this; False if there was room."""
    try:
        swept(store)
    except StoreFailure as error:
        told = str(error)
        assert told.startswith(f"store={store} cannot be "), told
        assert text in told, told
        assert "\n" not in told, told
        return True
    return False


def full_disk(folder: Path, whole: Path, step: int) -> None:
    """For every size that is too small: one sentence, readable or absent, and with more room the same bits."""
    place, seen, size = folder / "small", Counter(), 4
    place.mkdir()
    while True:
        mounted(place, "-t", "tmpfs", "-o", f"size={size}k", "tmpfs")
        if not refused(place / "s.zarr", FULL):
            break
        kept = 0
        if (place / "s.zarr").exists():
            table = eos_sde.open_sweep(place / "s.zarr", check=True)
            kept = int((table["status"] != 0).sum())
        journal = place / "s.zarr.journal"
        seen["nothing" if not (place / "s.zarr").exists() else "arrays" if kept else "empty"] += 1
        seen["with a journal"] += journal.exists() and journal.stat().st_size > 200
        again = refused(place / "s.zarr", FULL)  # the same, while the disk is still full
        assert again
        mounted(place, "-o", "remount,size=64m")
        swept(place / "s.zarr")
        assert same_files(whole, place / "s.zarr"), size
        assert names(place) == ["s.zarr"], names(place)
        subprocess.run(["umount", str(place)], check=True)
        size += step
    subprocess.run(["umount", str(place)], check=True)
    print(f"full: {dict(seen)}")  # noqa: T201


def read_only(folder: Path, whole: Path) -> None:
    """A new store, and one that is half done, where nothing can be written."""
    place = folder / "fixed"
    place.mkdir()
    mounted(place, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
    started = place / "half.zarr"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            eos_sde.sweep(wave, AXES, store=started, progress=stop_at_fifty)
    except KeyboardInterrupt:
        pass
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    mounted(place, "-o", "remount,ro")
    for store in (place / "new.zarr", place / "deeper" / "new.zarr", started):
        assert refused(store, "the file system is read-only; choose another place"), store
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    done = int((eos_sde.open_sweep(started, check=True)["status"] != 0).sum())
    mounted(place, "-o", "remount,rw")
    swept(started)
    assert same_files(whole, started)
    subprocess.run(["umount", str(place)], check=True)
    print(f"read-only: {done} points before")  # noqa: T201


def stop_at_fifty(done: int, *_: int) -> None:
    if done >= 50:
        raise KeyboardInterrupt


def full_for_export(folder: Path, whole: Path) -> None:
    place = folder / "export"
    place.mkdir()
    mounted(place, "-t", "tmpfs", "-o", "size=16k", "tmpfs")
    with pytest.raises(StoreFailure, match=r"^store=.*s.nc cannot be written: the disk is full") as refusal:
        export_netcdf(eos_sde.open_sweep(whole), place / "s.nc")
    print(f"export: {refusal.value}")  # noqa: T201
    assert names(place) == []
    subprocess.run(["umount", str(place)], check=True)


def main(folder: Path, step: int) -> None:
    swept(folder / "whole.zarr")
    full_for_export(folder, folder / "whole.zarr")
    full_disk(folder, folder / "whole.zarr", step)
    read_only(folder, folder / "whole.zarr")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
