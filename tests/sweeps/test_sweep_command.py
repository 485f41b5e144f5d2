"""The command sweep: one sentence for bad input, JSON, NetCDF, a dry run that writes nothing, and no tracebacks."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eos_sde
from eos_sde import cli
from eos_sde.store import StoreFailure
from eos_sde.sweeps.engine import sweep
from solvers.errors import InvalidInput
from tests.sweeps.stores import AXES, Counted, counting

SPEC = """
observable = "lyapunov"
[settings]
model = "flip-normal-form"
C = 1.0
s = 0.0
at = 0.0
[axes]
mu = [-0.1, 0.0, 0.1]
"""
WAVE = """
function = "tests.sweeps.slow_points:wave"
[axes]
x = [0.0, 0.95]
seed = [2, 3]
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mu.toml").write_text(SPEC)
    (tmp_path / "wave.toml").write_text(WAVE)
    (tmp_path / "bad.toml").write_text(SPEC.replace("at = 0.0", "").replace("C = 1.0", "c = 1.0"))


def test_a_sweep_its_resumption_and_its_json(tmp_path, capsys):
    assert cli.main(["sweep", "mu.toml", "--out", "mu.zarr"]) == 0
    out, err = capsys.readouterr()
    assert out == "3 points (mu 3), 0 failed: stderr, value\nstore: mu.zarr\n"
    assert err == ""
    np.testing.assert_allclose(eos_sde.open_sweep("mu.zarr").value, [-0.1, 0.0, 0.1], atol=1e-15)
    assert eos_sde.open_sweep("mu.zarr").attrs["command"] == "eos-sde sweep mu.toml"
    assert eos_sde.open_sweep("mu.zarr").attrs["spec"] == SPEC
    assert cli.main(["sweep", "mu.toml", "--out", "mu.zarr", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "store": "mu.zarr",
        "points": 3,
        "failed": 0,
        "axes": {"mu": 3},
        "variables": ["stderr", "value"],
    }


def test_netcdf_by_the_ending(tmp_path, capsys):
    assert cli.main(["sweep", "mu.toml", "--out", "mu.nc"]) == 0
    with xr.open_dataset("mu.nc", engine="h5netcdf") as found:
        np.testing.assert_allclose(found.value, [-0.1, 0.0, 0.1], atol=1e-15)
    assert "store: mu.nc" in capsys.readouterr().out


def test_failed_points_are_told_by_the_exit_status(capsys):
    assert cli.main(["sweep", "wave.toml", "--out", "wave.zarr"]) == 1
    out, err = capsys.readouterr()
    assert "4 points (x 2 x seed 2), 1 failed" in out
    assert err.startswith("eos-sde: 1 of 4 points failed; the variable error says why")
    assert err.count("\n") == 1
    assert cli.main(["sweep", "wave.toml", "--out", "wave.zarr", "--fail-fast"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "eos-sde: the point x=0.95, seed=3 failed: ValueError: no wave at x=0.95\n")


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["sweep", "mu.toml", "--out", "mu.zarr", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["points"] == told["pending"] == 3
    assert told["result_bytes"] == 3 * 2 * 8
    assert told["seconds"] == pytest.approx(3 * told["seconds_per_point"])
    assert cli.main(["sweep", "mu.toml", "--out", "mu.zarr", "--dry-run", "--workers", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("points:  3, of which 3 are not done\ntime:    ")
    assert "s with 3 workers\n" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["mu.toml"], "--out"),
        (["nothing.toml", "--out", "a.zarr"], "nothing.toml cannot be read (No such file"),
        (["mu.toml", "--out", "a.csv"], "out=a.csv must end in .zarr or .nc"),
        (["mu.toml", "--out", "wave.toml/a.zarr"], "cannot be written"),
        (["mu.toml", "--out", "a.zarr", "--workers", "0"], "workers=0 must be from 1"),
        (["mu.toml", "--out", "a.zarr", "--workers", "2", "--scheduler", "tcp://h:1"], "exclude each other"),
        (["mu.toml", "--out", "a.zarr", "--seed", "-1"], "seed=-1 must be at least 0"),
        (["mu.toml", "--out", "a.zarr", "--scheduler", "nonsense://x"], "is no address such as tcp://"),
        (
            ["bad.toml", "--out", "a.zarr"],
            "bad.toml has 3 mistakes:\n  line 3: 'at' is missing\n",
        ),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(arguments, part, capsys, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("eos-sde: ")
    assert part in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_store_of_another_specification_is_refused(capsys, tmp_path):
    assert cli.main(["sweep", "mu.toml", "--out", "a.zarr"]) == 0
    (tmp_path / "mu.toml").write_text(SPEC.replace("C = 1.0", "C = 2.0"))
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        assert cli.main(["sweep", "mu.toml", "--out", "a.zarr", *more]) == 2
        assert 'settings is {"C":1.0' in capsys.readouterr().err
    assert cli.main(["sweep", "mu.toml", "--out", "a.zarr", "--no-resume"]) == 0


WORDS = """mu.toml bad.toml nothing.toml . --out a.zarr a.nc b/c.zarr --workers -1 --scheduler x :// --no-resume
--dry-run --json --fail-fast --seed 3 1e9 --bogus é --help"""
ARGUMENTS = st.lists(st.sampled_from(["", "\x00", *WORDS.split()]), max_size=7)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=ARGUMENTS)
def test_no_arguments_bring_the_command_down(arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["sweep", *arguments])
    assert status in {0, 1, 2}
    assert (status == 0) == (err.getvalue() == "")
    assert "Traceback" not in err.getvalue()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    place = tmp_path_factory.mktemp("pristine") / "s.zarr"
    with pytest.warns(UserWarning, match="1 of 12 points failed"):
        sweep(counting(Counted()), AXES, store=place)
    return place


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_harm_to_a_store_brings_its_opener_down(pristine, tmp_path_factory, data):
    """Whatever is done to a file: one sentence, or a table."""
    store = tmp_path_factory.mktemp("harmed") / "s.zarr"
    shutil.copytree(pristine, store)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    for _ in range(data.draw(st.integers(1, 2))):
        victim = data.draw(st.sampled_from(files))
        content = victim.read_bytes() if victim.exists() else b""
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        match data.draw(st.sampled_from(["remove", "cut", "flip", "empty", "replace"])):
            case "remove":
                victim.unlink(missing_ok=True)
            case "cut":
                victim.write_bytes(content[:at])
            case "flip":
                flipped = bytes(byte ^ data.draw(st.integers(1, 255)) for byte in content[at : at + 1])
                victim.write_bytes(content[:at] + flipped + content[at + 1 :])
            case "empty":
                victim.write_bytes(b"")
            case "replace":
                victim.write_bytes(
                    data.draw(st.sampled_from([b"{}", b"[]", b"null", b'{"attributes": []}', b"\xff"]))
                )
    try:
        table = eos_sde.open_sweep(store, check=True)
        assert set(table.dims) <= {"x", "seed"}
    except (InvalidInput, StoreFailure) as refusal:
        assert "s.zarr" in str(refusal)  # noqa: PT017 - a harmless harm raises nothing
