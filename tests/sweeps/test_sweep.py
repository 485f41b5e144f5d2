"""sweep(): every point once, what functions may return, longer axes, failures, and the bits of interrupted runs."""

import getpass
import itertools
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import eos_sde
from eos_sde.sweeps import FailedPoints, PointFailed
from solvers.errors import InvalidInput
from tests.sweeps.stores import AXES, Counted, counting, same_files

pytestmark = pytest.mark.filterwarnings("ignore::eos_sde.sweeps.FailedPoints")


def product(x, y):
    return x * y


def test_every_point_of_a_product_with_a_zip_and_seeds(tmp_path):
    def add(x, name, weight, seed):
        return {"sum": x + 10 * weight + 100 * seed, "letters": len(name)}

    axes = {"x": [0.5, 1.5, 2.5], ("name", "weight"): [("a", 1.0), ("bcd", 2.0)], "seed": range(2)}
    table = eos_sde.sweep(add, axes, store=tmp_path / "s.zarr")
    assert table["sum"].dims == ("x", "name_weight", "seed")
    assert table["sum"].chunks is not None  # lazy
    for at in itertools.product(range(3), range(2), range(2)):
        x, (name, weight), seed = (values[k] for values, k in zip(axes.values(), at, strict=True))
        assert table["sum"].values[at] == x + 10 * weight + 100 * seed
        assert table["letters"].values[at] == len(name)
    assert table["name"].values.tolist() == ["a", "bcd"]
    assert table["weight"].dims == ("name_weight",)
    assert table["seed"].dtype == np.int64
    assert (table.status == 1).all()
    xr.testing.assert_identical(
        xr.open_zarr(tmp_path / "s.zarr").load(), table.load()
    )  # and warns of nothing
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_attributes_tell_what_made_it_and_nothing_of_the_machine(tmp_path):
    table = eos_sde.sweep(product, {"x": [1.0], "y": [2.0]}, store=tmp_path / "s.zarr")
    assert table.attrs["function"].endswith("test_sweep:product")
    assert table.attrs["creator"] == f"eos-sde {eos_sde.__version__}"
    text = json.dumps(table.attrs)
    for private in (socket.gethostname(), str(tmp_path), str(Path.home()), f"/{getpass.getuser()}/"):
        assert private not in text


@pytest.mark.parametrize(
    ("give", "dims"),
    [
        (lambda x: x, ("x",)),
        (lambda x: 1j * x, ("x",)),
        (lambda x: xr.DataArray([x, 2 * x], dims="k", coords={"k": [5, 7]}), ("x", "k")),
        (lambda x: xr.DataArray(np.full((2, 3), x), dims=("a", "b"), attrs={"units": "m"}), ("x", "a", "b")),
    ],
)
def test_what_a_function_may_return(give, dims, tmp_path):
    table = eos_sde.sweep(give, {"x": [1.0, 2.0]}, store=tmp_path / "s.zarr")
    assert table["value"].dims == dims
    np.testing.assert_array_equal(table["value"].values, np.stack([np.asarray(give(x)) for x in (1.0, 2.0)]))
    assert table["value"].attrs == getattr(give(1.0), "attrs", {})
    if "k" in dims:
        assert table["k"].values.tolist() == [5, 7]


@pytest.mark.parametrize(
    ("give", "text"),
    [
        (lambda x: "a" if x else 0.0, "of type str"),
        (lambda x: [1.0, 2.0] if x else 0.0, "return a DataArray"),
        (lambda x: 1j if x else 0.0, "complex value"),
        (lambda x: {"other": 1.0} if x else {"value": 0.0}, "the same variables everywhere"),
        (lambda x: xr.DataArray(np.zeros(2 + x), dims="k"), "return one shape everywhere"),
        (lambda x: xr.DataArray([0.0], dims="k", coords={"k": [x]}), "another coordinate 'k'"),
        (lambda x: 2**53 + 1 if x else 0, "beyond 2^53"),
        (lambda x: {} if x else 0.0, "returned nothing"),
    ],
)
def test_a_result_unlike_the_first_fails_alone(give, text, tmp_path):
    def guarded(x):
        return give(int(x == 1))

    table = eos_sde.sweep(guarded, {"x": [0, 1, 2]}, store=tmp_path / "s.zarr")
    assert text in str(table["error"].values[1])
    assert table["status"].values.tolist() == [1, 2, 1]
    assert np.isnan(table["value"].values[1]).all()
    assert not np.isnan(table["value"].values[2]).any()


def test_failures_are_kept_as_text_and_tried_again(tmp_path):
    first = Counted()
    with pytest.warns(FailedPoints, match="1 of 12 points failed"):
        table = eos_sde.sweep(counting(first), AXES, store=tmp_path / "s.zarr")
    assert str(table["error"].sel(x=2.0, seed=1).values) == "ValueError: no wave here"
    assert int((table.status == 2).sum()) == 1
    again = Counted()
    eos_sde.sweep(counting(again), AXES, store=tmp_path / "s.zarr")
    assert again.points == [(2.0, 1)]
    with pytest.raises(PointFailed, match=r"x=2.0, seed=1 failed: ValueError: no wave here"):
        eos_sde.sweep(counting(again), AXES, store=tmp_path / "s.zarr", fail_fast=True)


def test_addresses_in_memory_are_not_kept(tmp_path):
    def failing(x):
        if x:
            raise ValueError(f"{object()} is odd")
        return x

    table = eos_sde.sweep(failing, {"x": [0, 1]}, store=tmp_path / "s.zarr")
    assert str(table["error"].values[1]) == "ValueError: <object object at 0x...> is odd"


def test_warnings_are_kept_at_their_points(tmp_path):
    import warnings

    def warning(x):
        for _ in range(2):
            warnings.warn(f"x is {x}", RuntimeWarning, stacklevel=1)
        return x

    table = eos_sde.sweep(
        warning, {"x": [0, 1]}, store=tmp_path / "s.zarr"
    )  # none of them reaches the caller
    assert table["warning"].values.tolist() == ["RuntimeWarning: x is 0", "RuntimeWarning: x is 1"]


def test_nothing_is_stored_where_no_point_gives_a_result(tmp_path):
    def failing(x):
        raise OSError(f"nothing at {x}")

    with pytest.raises(PointFailed, match=r"no point gives a result \(2 were tried\): OSError: nothing at 1"):
        eos_sde.sweep(failing, {"x": [1, 2]}, store=tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls", [1, 2, 5, 8, 12])
def test_interrupted_and_resumed_has_the_bits_of_uninterrupted(calls, tmp_path):
    eos_sde.sweep(counting(Counted()), AXES, store=tmp_path / "whole.zarr")
    stopped = Counted(calls, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        eos_sde.sweep(counting(stopped), AXES, store=tmp_path / "s.zarr")
    resumed = Counted()
    eos_sde.sweep(counting(resumed), AXES, store=tmp_path / "s.zarr")
    assert same_files(tmp_path / "whole.zarr", tmp_path / "s.zarr")
    assert len(resumed.points) < 12 or calls <= 2  # finished points were not computed again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "whole.zarr"]


def test_new_values_of_an_axis_are_all_that_is_computed(tmp_path):
    def wave(x, seed):
        counted(x, seed)
        return {"height": x + seed}

    counted = Counted()
    eos_sde.sweep(wave, AXES, store=tmp_path / "s.zarr")
    counted.points.clear()
    longer = {"x": [0.5, 0.75, 1.0, 2.0, 3.0], "seed": range(4)}
    table = eos_sde.sweep(wave, longer, store=tmp_path / "s.zarr")
    known = set(itertools.product(AXES["x"], AXES["seed"]))
    assert set(counted.points) == set(itertools.product(*longer.values())) - known
    assert len(counted.points) == 8
    whole = eos_sde.sweep(wave, longer, store=tmp_path / "whole.zarr")
    xr.testing.assert_identical(table.sel(x=longer["x"]).load(), whole.load())
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "s.zarr").load(), table.load())


def test_large_results_are_cut_into_chunks_that_match_the_points(tmp_path):
    def large(a, b):
        return xr.DataArray(np.full(200_000, a + b), dims="k")

    table = eos_sde.sweep(
        large, {"a": [0.0, 1.0], "b": [float(k) for k in range(7)]}, store=tmp_path / "s.zarr"
    )
    assert table["value"].chunks == ((1, 1), (5, 2), (200_000,))  # 8 MiB hold five points of 1.6 MB
    assert table["value"].isel(k=3).values.tolist() == [[a + b for b in range(7)] for a in range(2)]


def make_power(exponent):
    return lambda x: x**exponent


@pytest.mark.parametrize(
    ("function", "axes", "settings", "text"),
    [
        (make_power(2), {"x": [1.0, 3.0]}, None, r"has x=2.0, which the axes here lack"),
        (make_power(3), {"x": [1.0, 2.0]}, None, "code is .* there and .* here"),
        (lambda x, k: x * k, {"x": [1.0, 2.0]}, {"k": 1}, 'settings is {} there and {"k":1} here'),
        (lambda x, y: x * y, {"x": [1.0, 2.0], "y": [1]}, None, "dimensions is"),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_difference(function, axes, settings, text, tmp_path):
    eos_sde.sweep(make_power(2), {"x": [1.0, 2.0]}, store=tmp_path / "s.zarr")
    before = eos_sde.open_sweep(tmp_path / "s.zarr").load()
    with pytest.raises(InvalidInput, match=text):
        eos_sde.sweep(function, axes, settings=settings, store=tmp_path / "s.zarr")
    xr.testing.assert_identical(eos_sde.open_sweep(tmp_path / "s.zarr").load(), before)
    table = eos_sde.sweep(function, axes, settings=settings, store=tmp_path / "s.zarr", resume=False)
    assert (table.status == 1).all()


def test_a_store_of_other_versions_is_refused(tmp_path):
    eos_sde.sweep(product, {"x": [1.0], "y": [2.0]}, store=tmp_path / "s.zarr")
    group = tmp_path / "s.zarr" / "zarr.json"
    group.write_text(group.read_text().replace("numpy ", "numpy 0."))
    with pytest.raises(InvalidInput, match=r"versions is .*numpy 0\..* there and .* here"):
        eos_sde.sweep(product, {"x": [1.0], "y": [2.0]}, store=tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("function", "axes", "more", "text"),
    [
        (product, {}, {}, "axes={}"),
        (product, {"x": []}, {}, "axis 'x' has no values"),
        (product, {"x": [1.0, 1]}, {}, "has 1.0 twice"),
        (product, {"x": [float("nan")]}, {}, "not finite"),
        (product, {"x": [1, "a"]}, {}, "has the value 'a'"),
        (product, {"x": 3}, {}, "give a list of values"),
        (product, {"x y": [3]}, {}, "axes name 'x y'"),
        (product, {"status": [3]}, {}, "rename it"),
        (product, {("x", "y"): [(1, 2, 3)]}, {}, "give 2 values in each"),
        (product, {("x", "y"): [(1, 2)], "x": [1]}, {}, "axes name 'x' twice"),
        (product, {"x": [1], "z": [1]}, {}, "and no 'z'"),
        (product, {"x": [1]}, {}, "needs 'y'"),
        (product, {"x": [1]}, {"settings": {"x": 1, "y": 2}}, "an axis and a setting"),
        (product, {"x": [1]}, {"settings": {"y": object()}}, "are not numbers"),
        ("gaps", {"x": [1]}, {}, "'gaps' is not known: choose one of gap"),
        (3, {"x": [1]}, {}, "give a function"),
        (lambda value: value, {"value": [1]}, {}, "also a variable"),
        (product, {"x": [1], "y": [1]}, {"store": "s.nc"}, r"must end in \.zarr"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(function, axes, more, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=text):
        eos_sde.sweep(function, axes, **{"store": "s.zarr", **more})
    assert list(tmp_path.iterdir()) == []


def test_something_else_at_the_stores_place_is_left_alone(tmp_path):
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "precious").write_text("1")
    for resume in (True, False):
        with pytest.raises(InvalidInput, match="exists and holds no sweep"):
            eos_sde.sweep(product, {"x": [1], "y": [1]}, store=tmp_path / "s.zarr", resume=resume)
    assert (tmp_path / "s.zarr" / "precious").read_text() == "1"
