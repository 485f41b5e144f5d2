"""Paths in a Zarr store: the same as in memory, complete or absent, continued from a checkpoint."""

import numpy as np
import pytest
import xarray as xr

from solvers import InvalidInput, simulate
from tests import problems

OU = problems.ornstein_uhlenbeck()
LINEAR = problems.correlated_linear()


def test_paths_in_a_store_are_those_in_memory(tmp_path):
    arguments = {"t1": 0.3, "dt": 0.01, "paths": 2600, "seed": 5}
    kept = simulate(LINEAR.sde, [0.3, 0.1], save_paths=True, **arguments)
    for threads, chunk in ((1, 1024), (2, 2048)):
        place = tmp_path / f"paths{threads}.zarr"
        result = simulate(LINEAR.sde, [0.3, 0.1], save_paths=place, threads=threads, chunk=chunk, **arguments)
        assert not result["state"].variable._in_memory
        assert result["state"].attrs == kept["state"].attrs
        assert list(tmp_path.glob("*.part")) == []
        xr.testing.assert_identical(result.load(), kept)
        with xr.open_zarr(place, consolidated=False) as again:
            np.testing.assert_array_equal(again["state"], kept["state"])
            np.testing.assert_array_equal(again["variance"], kept["variance"])
            assert list(again["component"].values) == ["x", "z"]
            assert again.attrs["seed"] == 5


def test_a_broken_run_leaves_no_store(tmp_path):
    arguments = {"t1": 0.1, "dt": 0.01, "paths": 2600, "seed": 5, "chunk": 1024, "threads": 1}

    def interrupt(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(OU.sde, 2.0, save_paths=tmp_path / "a.zarr", progress=interrupt, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_store_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    from solvers import checkpoint

    monkeypatch.setattr(checkpoint, "_INTERVAL", 0.0)
    place, file = tmp_path / "a.zarr", tmp_path / "run.npz"
    arguments = {"t1": 0.1, "dt": 0.01, "paths": 2600, "seed": 5}
    kept = simulate(OU.sde, 2.0, save_paths=True, **arguments)

    def run(**more):
        return simulate(OU.sde, 2.0, save_paths=place, checkpoint=file, threads=1, **arguments, **more)

    def interrupt(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(chunk=1024, progress=interrupt)
    assert not place.exists()
    assert place.with_name("a.zarr.part").exists()
    for _ in range(2):  # the second time nothing is left to do
        np.testing.assert_array_equal(run(chunk=2048)["state"], kept["state"])
    assert not place.with_name("a.zarr.part").exists()
    place.rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(InvalidInput, match="remove the checkpoint"):
        run()


def test_a_store_is_never_overwritten(tmp_path):
    place = tmp_path / "a.zarr"
    place.mkdir()
    with pytest.raises(InvalidInput, match="exists; give another name"):
        simulate(OU.sde, 2.0, t1=0.1, dt=0.01, paths=10, seed=1, save_paths=place)
    assert list(place.iterdir()) == []


def test_a_store_takes_no_memory_for_its_paths(tmp_path, monkeypatch):
    from solvers import memory

    monkeypatch.setattr(memory, "available", lambda: 2 * 10**8)
    arguments = {"t1": 1.0, "dt": 0.01, "paths": 10**6, "seed": 0, "statistics": (), "threads": 1}
    with pytest.raises(InvalidInput, match=r"needs 0.825 GB, .* or save_paths='paths.zarr' to keep them"):
        simulate(OU.sde, 0.0, save_paths=True, **arguments)
    monkeypatch.setattr("solvers.running.Run.work", lambda *_: pytest.fail("began"))
    with pytest.raises(pytest.fail.Exception, match="began"):  # not refused
        simulate(OU.sde, 0.0, save_paths=tmp_path / "a.zarr", **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_paths": "paths.nc"}, "ends in .zarr"),
        ({"save_paths": 3}, "save_paths=3"),
        ({"save_paths": "nowhere/paths.zarr"}, "no folder"),
        ({"save_paths": "paths.zarr", "sweep": {"k": [1.0]}}, "cannot be combined with sweep"),
    ],
)
def test_bad_places_are_refused(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        simulate(OU.sde, 1.0, t1=1.0, dt=0.1, paths=5, seed=0, **changes)
    assert list(tmp_path.iterdir()) == []
