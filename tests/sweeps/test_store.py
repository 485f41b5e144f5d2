"""Stores under attack: torn journals, damaged chunks, full disks, two writers, and deaths between any two steps."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import eos_sde
from eos_sde.store import DamagedChunk, StoreFailure, export_netcdf
from eos_sde.store.journal import Journal
from eos_sde.store.layout import Batch, Template, Variable
from eos_sde.store.sweep_store import Place
from solvers.errors import InvalidInput
from tests.sweeps.stores import AXES, Counted, counting, same_files

pytestmark = pytest.mark.filterwarnings("ignore::eos_sde.sweeps.FailedPoints")
TEMPLATE = Template(
    {"v": Variable(("k",), (3,), np.dtype("f8"), {}), "z": Variable((), (), np.dtype("c16"), {})}
)


@pytest.fixture
def whole(tmp_path):
    eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "whole.zarr")
    return tmp_path / "whole.zarr"


def batch(number, count):
    rng = np.random.default_rng([number, count])
    columns = {"v": rng.normal(size=(count, 3)), "z": rng.normal(size=count) + 1j}
    texts = [f"é {number}" if k % 2 else "" for k in range(count)]
    return Batch(np.arange(count) + 10 * number, np.ones(count, np.uint8), texts, [""] * count, columns)


def assert_same(one, other):
    for name in ("points", "status"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.errors, one.warnings) == (other.errors, other.warnings)
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name], other.columns[name])


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_a_journal_cut_anywhere_gives_back_its_whole_records_and_goes_on(tmp_path_factory, sizes, data):
    path = tmp_path_factory.mktemp("journal") / "j"
    written, ends = [batch(n, size) for n, size in enumerate(sizes)], []
    journal = Journal(path, "a" * 64, TEMPLATE)
    for one in written:
        journal.append(one)
        ends.append(path.stat().st_size)
    journal.close()
    cut = data.draw(st.integers(0, ends[-1]))
    content = path.read_bytes()[:cut]
    if cut and data.draw(st.booleans()):  # the disk may also have kept the length and lost the bytes
        content = content[:-1] + bytes([content[-1] ^ 1])
        cut -= 1
    path.write_bytes(content)
    if (
        content[: len(b"eos-sde journal 1\n") + 65]
        != (b"eos-sde journal 1\n" + b"a" * 64 + b"\n")[: len(content)]
    ):
        with pytest.raises(InvalidInput, match="not the journal"):
            Journal(path, "a" * 64, TEMPLATE)
        return
    journal = Journal(path, "a" * 64, TEMPLATE)
    found = list(journal.replay())
    assert len(found) == sum(end <= cut for end in ends)
    for one, other in zip(found, written, strict=False):
        assert_same(one, other)
    journal.append(written[-1])
    assert len(list(journal.replay())) == len(found) + 1
    journal.close()


def test_the_journal_of_another_store_is_refused(tmp_path):
    Journal(tmp_path / "j", "a" * 64, TEMPLATE).close()
    with pytest.raises(InvalidInput, match="not the journal of this sweep"):
        Journal(tmp_path / "j", "b" * 64, TEMPLATE)


def test_two_writers_exclude_each_other(tmp_path):
    place = Place(tmp_path / "s.zarr")
    with pytest.raises(StoreFailure, match="being written by another process"):
        eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "s.zarr")
    place.release()
    eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "s.zarr")


@pytest.mark.parametrize("array", ["height", "phase", "status", "error", "warning"])
@pytest.mark.parametrize("harm", ["truncate", "empty", "flip", "remove"])
def test_a_damaged_chunk_is_told_and_computed_again(array, harm, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / array / "c" / "0" / "0"
    content = chunk.read_bytes()
    if harm == "remove":
        chunk.unlink()
    else:
        flipped = (
            content[: len(content) // 2]
            + bytes([content[len(content) // 2] ^ 4])
            + content[len(content) // 2 + 1 :]
        )
        chunk.write_bytes({"truncate": content[:-3], "empty": b"", "flip": flipped}[harm])
    if (array, harm) == ("status", "remove"):  # then nothing is marked as done
        assert not eos_sde.open_sweep(tmp_path / "s.zarr")["status"].any()
        eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "s.zarr")
    else:
        with pytest.raises(StoreFailure, match=f"chunk 0/0 of '{array}' is missing or damaged"):
            eos_sde.open_sweep(tmp_path / "s.zarr", check=True)
        with pytest.warns(DamagedChunk, match=f"chunk 0/0 of '{array}'"):
            eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "s.zarr")
    assert same_files(whole, tmp_path / "s.zarr")


@pytest.mark.parametrize("room", [0, 60, 300, 500])
def test_a_full_disk_is_one_sentence_and_what_was_finished_is_kept(room, whole, tmp_path, monkeypatch):
    left, write = [room], os.write

    def little(file, content):
        if left[0] < len(content):
            taken = write(file, bytes(content)[: left[0]])
            left[0] -= taken
            if taken:
                return taken
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(content)
        return write(file, content)

    monkeypatch.setattr(os, "write", little)
    with pytest.raises(
        StoreFailure, match="the disk is full; free some space, then run the same again: finished"
    ):
        eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "s.zarr")
    monkeypatch.setattr(os, "write", write)
    again = Counted()
    eos_sde.sweep(counting(again), AXES, store=tmp_path / "s.zarr")
    assert same_files(whole, tmp_path / "s.zarr")
    if room >= 300:
        assert len(again.points) < 12


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def denied(*_args, **_more):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(StoreFailure, match="permission is denied"):
        eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "folder" / "s.zarr")


def test_open_sweep_refuses_what_is_no_sweep(tmp_path, whole):
    with pytest.raises(InvalidInput, match="does not exist"):
        eos_sde.open_sweep(tmp_path / "nothing.zarr")
    xr.Dataset({"a": 1}).to_zarr(tmp_path / "other.zarr", consolidated=False, zarr_format=3)
    with pytest.raises(InvalidInput, match="holds no sweep"):
        eos_sde.open_sweep(tmp_path / "other.zarr")
    group = whole / "zarr.json"
    group.write_text(group.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(InvalidInput, match="has format 9, and this version reads format 1"):
        eos_sde.open_sweep(whole)


def test_export_splits_complex_variables(tmp_path, whole):
    table = eos_sde.open_sweep(whole)
    export_netcdf(table, tmp_path / "s.nc")
    with xr.open_dataset(tmp_path / "s.nc", engine="h5netcdf") as found:
        np.testing.assert_array_equal(found.phase_real + 1j * found.phase_imag, table.phase)
        np.testing.assert_array_equal(found.height, table.height)
        assert str(found.error.sel(x=2.0, seed=1).values) == "ValueError: no wave here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.nc", "whole.zarr"]


@pytest.mark.slow
def test_death_between_any_two_steps_loses_nothing(tmp_path):
    """A child dies, without any clean-up, before every 11th step on the file system in turn; another goes on."""
    script = Path(__file__).with_name("every_step.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "11"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    deaths, _torn = map(int, done.stdout.split())
    assert deaths > 20  # of some 290 steps of a new sweep that then becomes longer
