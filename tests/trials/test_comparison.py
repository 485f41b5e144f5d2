"""A comparison: tuned by what it says, resumed to the same bits, its numbers those of the runs, its words true."""

import json

import numpy as np
import pytest
import xarray as xr

from eos_sde import cli, trial_report, trials
from eos_sde.trials import CONTENDERS, Target, compare, holm, paired_ratio
from eos_sde.trials.comparison import SLACK, _best
from eos_sde.trials.judgement import METRICS
from solvers.errors import InvalidInput
from solvers.provenance import git_commit
from tests.trials.conftest import TINY

CLOCKED = [name for name in METRICS if "seconds" in name or name == "energy_joules"]
SMALL = {
    "rules": ("sgdm", "sgd"),
    "seeds": 3,
    "tuning_seeds": 2,
    "points": 3,
    "ratio": 4.0,
    "steps": 20,
    "rows": 10,
    "batch_size": 8,
}


def small(store, **settings):
    return compare("digits-mlp", store=store, task_settings=TINY, **(SMALL | settings))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def found(store):
    return small(store)


def test_the_best_of_a_grid():
    nan = np.nan
    assert _best(np.array([3.0, 1.0, 2.0]), np.array([5.0, 9.0, nan]), for_steps=False) == 1
    assert _best(np.array([3.0, 1.0, 2.0]), np.array([5.0, 9.0, nan]), for_steps=True) == 0
    assert _best(np.array([nan, 1.0, 2.0]), np.array([nan, nan, nan]), for_steps=True) == 1
    assert _best(np.array([nan, nan]), np.array([nan, nan]), for_steps=False) == 0


def test_knobs_are_chosen_and_the_target_is_set_by_the_tuning_runs(found, store):
    tuned = []
    for path in store.glob("runs/*/run.nc"):
        run = xr.load_dataset(path, engine="h5netcdf")
        if int(run.attrs["seed"]) in (0, 1):
            end = float(run["validation_loss"][-2:].mean())  # a fifth of eleven rows
            tuned.append((run.attrs["rule"], json.loads(run.attrs["settings"])["eta"], end))
    assert found.attrs["target"] == SLACK * found["tuning_loss"].sel(rule="sgdm").min()
    for i, rule in enumerate(found["rule"].values):
        grid = CONTENDERS[rule].centre * 0.2 * np.array([0.25, 1.0, 4.0])
        np.testing.assert_allclose(found["tuning_knob"][i], grid)
        for point, knob in enumerate(grid):
            losses = [loss for name, eta, loss in tuned if name == rule and np.isclose(eta, knob)]
            assert len(losses) == 2
            np.testing.assert_allclose(found["tuning_loss"][i, point], np.mean(losses))
        best = int(np.nanargmin(found["tuning_loss"].values[i]))
        assert found["knob"][i] == found["tuning_knob"][i, best]
        assert found["at_edge"][i] == (best in (0, 2))
    assert set(found["seed"].values) == {2, 3, 4}
    assert found.attrs["seed"] == 0


def test_intervals_and_tests_are_those_of_the_numbers(found):
    values = found["final_train_loss"].values
    expected = paired_ratio(values[1], values[0])
    versus = [
        float(found[f"final_train_loss_{part}"][1]) for part in ("versus", "versus_low", "versus_high", "p")
    ]
    np.testing.assert_allclose(versus, expected)
    np.testing.assert_allclose(found["final_train_loss_p_holm"][1], holm([expected.p])[0])
    assert np.isnan(found["final_train_loss_p_holm"][0])  # the reference is not tested against itself
    np.testing.assert_allclose(found["final_train_loss_mean"], values.mean(axis=1))
    paths = found["train_loss_path"].values
    np.testing.assert_allclose(found["loss_variance"], paths.var(axis=1, ddof=1).mean(axis=1))
    np.testing.assert_array_equal(values, paths[:, :, -1])


@pytest.mark.slow
def test_a_missed_target_leaves_no_ratio(store, found):
    """A target between what the runs reach: counts say how many, and no mean is taken over the lucky ones."""
    best = np.sort(found["best_validation_loss"].values[1])
    target = Target("loss", float(best[0] + best[1]) / 2)
    missed = small(store, target=target)  # of the runs that are there
    assert missed["reached_runs"].sel(rule="sgd") == 1
    assert np.isnan(missed["steps_to_target_versus"].sel(rule="sgd"))
    assert np.isfinite(missed["steps_to_target"].sel(rule="sgd")).sum() == 1
    assert "sgd: 2 of 3 did not reach the target" in trial_report.comparison_in_words(missed)


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_to_the_same_bits(tmp_path, found):
    def stop(name, fraction):
        if name == "judging" and fraction > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, progress=stop)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/run.nc")}
    assert len(before) == 2 * 6 + 2
    again = small(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    clocked = [name for name in found.data_vars if any(str(name).startswith(one) for one in CLOCKED)]
    xr.testing.assert_identical(again.drop_vars(clocked), found.drop_vars(clocked))


@pytest.mark.slow
def test_what_the_commands_write_and_print(tmp_path, capsys, monkeypatch, store, found):
    """A table that is Markdown, what it says in words, the figure, JSON; the work itself is not done again."""
    run = xr.load_dataset(next(store.glob("runs/sgdm-*/run.nc")), engine="h5netcdf")
    monkeypatch.setattr(trials, "compare", lambda *args, **settings: found)
    monkeypatch.setattr(trials, "train", lambda *args, **settings: run)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare"]) == 0
    out = capsys.readouterr().out
    assert "| sgdm | eta = " in " ".join(out.split())
    assert "Tuned alike: each rule: 3 values of one knob, each on 2 seeds for 20 updates" in out
    assert (tmp_path / "compare" / "compare.png").stat().st_size > 10_000
    written = xr.load_dataset(tmp_path / "compare" / "compare.nc", engine="h5netcdf")
    assert written.attrs.pop("git_commit", None) == git_commit()  # None where this is no checkout
    xr.testing.assert_identical(written, found)
    assert cli.main(["compare", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["final_train_loss"] == found["final_train_loss"].values.tolist()
    assert cli.main(["train", "--rule", "sgdm"]) == 0
    out, err = capsys.readouterr()
    assert "energy: " in out
    assert err == ""
    assert cli.main(["train", "--rule", "sgdm", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["last"]["train_loss"] == float(run["train_loss"][-1])


@pytest.mark.slow
def test_compare_by_the_command(tmp_path, capsys, found):
    """The runs are those of the fixture's settings; from Python or the command line the numbers are the same."""
    arguments = [
        "compare", "--rule", "sgdm", "--rule", "sgd", "--seeds", "3", "--tuning-seeds", "2",
        "--points", "3", "--ratio", "4", "--epochs", "4",
        "--rows", "10", "--batch", "8", "--out", str(tmp_path), "--set", "loss=cross-entropy", "--set", "examples=50",
        "--set", "test_examples=40", "--set", "hidden=4,", "--set", "pool=2",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "| sgdm | eta = " in " ".join(out.split())
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    kept = xr.load_dataset(tmp_path / "compare.nc", engine="h5netcdf")
    np.testing.assert_array_equal(kept["test_nll"], found["test_nll"])
    assert cli.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["final_train_loss"] == found["final_train_loss"].values.tolist()
    assert told["rule"] == ["sgdm", "sgd"]


@pytest.mark.slow
def test_train_by_the_command(tmp_path, capsys):
    arguments = [
        "train", "--rule", "sgdm", "--steps", "20", "--every", "2", "--batch", "8", "--out", str(tmp_path / "run"),
        *(part for key, value in TINY.items() for part in ("--set", f"{key}={value}".replace("(4,)", "4"))),
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "energy: " in out
    assert (tmp_path / "run" / "checkpoints" / "20").is_dir()
    assert cli.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["last"]["step"] == 20
    assert 0 <= told["test_accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--rule", "best"], "rule='best' is not known"),
        (["train", "--steps", "10", "--epochs", "2"], "epochs=2 and steps=10"),
        (["train", "--set", "loss"], "set='loss' must be name=value"),
        (["train", "--set", "hiden=3"], "hiden=3 is not a setting of digits-mlp"),
        (["train", "--rule", "l4", "--option", "alpha=-1"], "alpha=-1"),
        (["train", "--steps", "15"], "every=10 must divide steps=15"),
        (["train", "--seed", "-1"], "seed=-1"),
        (["compare", "--rule", "sgd"], "must be two or more"),
        (["compare", "--rule", "sgd", "--rule", "caeo"], "reference='sgdm' must be one of the rules"),
        (["compare", "--rule", "gd"], "rule='gd' is not known here"),
        (["compare", "--points", "4"], "points=4 must be odd"),
        (["compare", "--seeds", "2"], "seeds=2"),
        (["compare", "--tune-for", "luck"], "tune_for='luck'"),
        (["compare", "--target-loss", "0.1", "--target-accuracy", "0.9"], "one too many"),
        (["compare", "--target-perplexity", "2"], "is for loss='cross-entropy'"),
        (["compare", "--batch", "900"], "batch_size=900 must be at most the 800 examples"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_contenders_are_refused_before_any_run(tmp_path):
    for settings, words in (
        ({"rules": ("sgdm", "sgdm")}, "different"),
        ({"steps": 21}, "rows=10 must divide steps=21"),
        ({"target": Target("accuracy", 0.9), "rules": ("sgdm", "nope")}, "nope"),
    ):
        with pytest.raises(InvalidInput, match=words):
            small(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []
