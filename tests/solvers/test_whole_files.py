"""Files of results are whole or absent, whatever the disk says, and the error carries the name that was wanted."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from solvers import whole_files

TABLE = xr.Dataset({"a": ("x", np.arange(3.0))}, coords={"x": ["one", "two", "three"]}, attrs={"units": "1"})
KINDS = {
    "bytes": lambda path: whole_files.write_whole(path, b"content"),
    "nc": lambda path: whole_files.write_netcdf(TABLE, path),
    "zarr": lambda path: whole_files.write_zarr(TABLE, path),
}


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # no file name, as from write(2) and fsync(2)


def half_written(_, place, **__):
    Path(place).mkdir()
    (Path(place) / "zarr.json").write_text("{}")
    full()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there(kind, before, tmp_path, monkeypatch):
    path = tmp_path / "deeper" / f"result.{kind}"
    if before:
        KINDS[kind](path)
    kept = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(xr.Dataset, "to_zarr", half_written)
    with pytest.raises(OSError, match="No space left") as refusal:
        KINDS[kind](path)
    assert (refusal.value.errno, refusal.value.filename) == (errno.ENOSPC, str(path))
    assert {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()} == kept
    assert not [one for one in tmp_path.rglob("*") if ".part" in one.name]


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_datasets_come_back(kind, tmp_path):
    path = tmp_path / f"result.{kind}"
    for _ in range(2):  # the second in place of the first
        KINDS[kind](path)
    engine, settings = ("h5netcdf", {}) if kind == "nc" else ("zarr", {"consolidated": False})
    with xr.open_dataset(path, engine=engine, **settings) as found:
        np.testing.assert_array_equal(found.a, TABLE.a)
        assert [str(text) for text in found.x.values] == ["one", "two", "three"]
        assert found.attrs == TABLE.attrs


def test_a_large_dataset_asks_for_room_first(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_files, "_IN_MEMORY", 0)
    KINDS["nc"](tmp_path / "large.nc")
    assert xr.load_dataset(tmp_path / "large.nc", engine="h5netcdf").identical(TABLE)
    monkeypatch.setattr(whole_files.shutil, "disk_usage", lambda _: _Usage())
    with pytest.raises(OSError, match="No space left"):
        KINDS["nc"](tmp_path / "larger.nc")
    assert [one.name for one in tmp_path.iterdir()] == ["large.nc"]


class _Usage:
    free = 1 << 20


def test_meanings_are_sentences():
    assert whole_files.meaning(OSError(errno.EDQUOT, "x")) == "the disk quota is used up; free some space"
    assert whole_files.meaning(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert whole_files.meaning(OSError("plain")) == "plain"
