"""The command line: lists, JSON, one sentence for bad input, silence in a pipe."""

import errno
import json
import os
import warnings

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from eos_sde import bridge, cli, large_models, models
from eos_sde.bridge import implicit_bias, onset_grid
from eos_sde.bridge.campaign_cells import NUMBERS
from eos_sde.cli import experiments
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.provenance import git_commit
from solvers.whole_files import write_whole


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["replay", "--task", "nope"], "task='nope' is not known: choose one of fashion-mlp, digits-mlp"),
        (["replay", "--task", "digits-mlp", "--rule", "adam"], "rule='adam'"),
        (
            ["replay", "--task", "digits-mlp", "--delta", "2"],
            "delta must be a finite number below 2, got 2.0",
        ),
        (["replay", "--task", "digits-mlp", "--delta", "nan"], "below 2, got nan"),
        (["replay", "--task", "digits-mlp", "--batch", "0"], "batch_size=0"),
        (["replay", "--task", "digits-mlp", "--batch", "400"], "batch_size=400 is too large"),
        (["replay", "--task", "digits-mlp", "--steps", "10"], "steps=10"),
        (["replay", "--task", "digits-mlp", "--seed", "-1"], "seed=-1"),
        (["replay", "--task", "digits-mlp", "--eta", "0"], "eta=0.0"),
        (["replay", "--steps", "many"], "--steps"),
        (["replay", "--bogus"], "No such option: --bogus"),
        (["replay", "--task"], "--task"),
        (["replay", "--out", "a-file"], "a-file"),
        (["onsets", "--network", "resnet"], "network='resnet' is not known"),
        (["onsets", "--batch", "65"], "batch_size=65 must lie between 1 and 64"),
        (["onsets", "--seeds", "0"], "seeds=0 must be at least 1"),
        (["onsets", "--seed", "-1"], "seed=-1 must be at least 0"),
        (["campaign", "--task", "resnet"], "task='resnet' is not known"),
        (["campaign", "--rule", "adamw"], "rule='adamw' is not known"),
        (["campaign", "--batch", "400"], "it must be from 1 to 399 for digits-mlp"),
        (["campaign", "--seeds", "0"], "seeds=0 must be at least 1"),
        (["campaign", "--steps", "15"], "save_every=10 must be even, and steps=15"),
        (["campaign", "--out", "campaign.nc"], "must end in .zarr"),
        (["campaign", "--out", "a-file/c.zarr"], "a-file"),
        (["implicit-bias", "--task", "resnet"], "task='resnet' is not known"),
        (["implicit-bias", "--rule", "adamw"], "rule='adamw' is not known"),
        (["implicit-bias", "--batch", "1000"], "it must be from 1 to 999 for digits-mlp"),
        (["implicit-bias", "--seeds", "0"], "seeds=0 must be at least 1"),
        (["implicit-bias", "--seed", "-1"], "seed=-1 must be at least 0"),
        (["implicit-bias", "--steps", "60"], "window=50 must be even, and steps=60 one of half of it"),
        (["implicit-bias", "--out", "a-file"], "a-file"),
        (
            ["train", "--task", "digits-mlp", "--data", "x"],
            "(cifar-resnet, chars74k-cnn, imagefolder-vit, pubmed-bert)",
        ),
        (["train", "--task", "pubmed-bert", "--data", "x", "--set", "path=y"], "say the same twice"),
        (
            ["train", "--task", "pubmed-bert"],
            "pubmed-bert needs the setting path=... (--data of the commands)",
        ),
        (["compare", "--task", "chars74k-cnn", "--data", "none.json"], "none.json does not exist"),
        (["campaign", "--data", "x"], "data=x is for one task"),
        (["check-images", "none"], "none is no folder"),
        (["tasks", "extra"], "extra"),
        (["bogus"], "bogus"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, part, capsys, tmp_path):
    (tmp_path / "a-file").write_text("")
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("eos-sde: ")
    assert part in err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]  # refused before anything is written


def test_help(capsys):
    assert cli.main(["--help"]) == 0
    assert cli.main(["replay", "--help"]) == 0
    out, err = capsys.readouterr()
    for word in ("replay", "tasks", "models", "--delta", "--json"):
        assert word in out
    assert err == ""


@pytest.mark.parametrize(
    ("command", "names"), [("tasks", bridge.tasks()), ("models", tuple(models.catalogue()))]
)
def test_lists(command, names, capsys):
    assert cli.main([command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines) == names
    assert cli.main([command, "--json"]) == 0
    out, err = capsys.readouterr()
    described = json.loads(out)
    assert tuple(described) == names
    assert all(described.values())
    assert err == ""


def test_tasks_of_the_user_s_data_show_where_it_is_given(capsys):
    assert cli.main(["tasks", "chars74k-cnn"]) == 0
    told = capsys.readouterr().out
    assert "path" in told
    assert told.splitlines()[-1].strip().startswith("eos-sde train --task chars74k-cnn --data PATH")


def test_images_are_checked(tmp_path, capsys):
    """Two classes, black and white, with one file cut short: it is named, and the status is 1."""
    for name, level in (("a", 0), ("b", 255)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(3):
            Image.new("L", (5, 4), level).save(tmp_path / "set" / name / f"{k}.png")
    assert cli.main(["check-images", "set"]) == 0
    training, testing = capsys.readouterr().out.splitlines()
    assert training == (
        "set, training images: 4 whole images of 2 classes (2 to 2 of each), 0 broken; "
        "mean 0.500 0.500 0.500, spread 0.500 0.500 0.500"
    )
    assert testing.startswith("set, test images: 2 whole")
    broken = tmp_path / "set" / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert cli.main(["check-images", "set"]) == 1
    assert f"  {broken} is no whole JPEG or PNG image" in capsys.readouterr().out
    assert cli.main(["check-images", "set", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["training"]["counts"] == [2, 1]
    assert document["training"]["mean"] == pytest.approx([1 / 3] * 3)
    assert len(document["training"]["broken"]) == 1


def _stub(*args, progress, keep, **settings):
    """A replay of one experiment, made up in no time; warns as the solvers do."""
    words = {"units": "time", "experiment": "minimum", "verdict": "agrees", "model": "2/sharpness"}
    numbers = {"predicted": 0.1, "predicted_stderr": 0.0, "measured": 0.11, "measured_stderr": 0.01}
    batch = ("onset_batch", np.array([0.5, 0.9]))
    dataset = xr.Dataset(
        {name: ("quantity", [value]) for name, value in (numbers | words).items()}
        | dict.fromkeys(("minimum_predicted", "minimum_measured", "minimum_measured_stderr"), batch),
        coords={"quantity": ["onset"], "onset_batch": [1, 4]},
        attrs={"description": "made up", "arguments": repr((args, settings))},
    )
    progress("minimum", 0.0)
    warnings.warn("a number to look at", AccuracyWarning, stacklevel=1)
    progress("minimum", 1.0)
    keep(dataset)
    return dataset


def test_replay_writes_and_prints(monkeypatch, capsys, tmp_path):
    """In a pipe: the table alone on standard output, warnings as a line, no bar on standard error."""
    monkeypatch.setattr(bridge, "replay", _stub)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["replay", "--task", "digits-mlp", "--out", "a/b", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    assert "0.110(10)" in out
    assert "a/b/replay.nc" in out
    assert err == "eos-sde: a number to look at\n"
    folder = tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == ["replay.nc", "replay.png"]
    assert (folder / "replay.png").stat().st_size > 10_000
    with xr.open_dataset(folder / "replay.nc", engine="h5netcdf") as dataset:
        arguments = dataset.attrs["arguments"]
    assert "'digits-mlp', 'caeo'" in arguments
    assert "'seed': 7" in arguments
    assert "'deltas': (0.1, 0.5)" in arguments


def test_replay_in_json(monkeypatch, capsys):
    monkeypatch.setattr(bridge, "replay", _stub)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(["replay", "--json", "--delta", "0.3", "--delta", "-0.1"]) == 0
    out, err = capsys.readouterr()
    parsed = json.loads(out)
    assert parsed["rows"][0]["measured"] == 0.11
    assert parsed["files"] == {"dataset": "replay/replay.nc", "figure": "replay/replay.png"}
    assert "(0.3, -0.1)" in parsed["arguments"]
    assert err == ""


def _raising(error):
    def replay(*args, **settings):
        raise error

    return replay


def test_late_refusals(monkeypatch, capsys):
    message = "eta=9 makes the network diverge; lower eta"
    monkeypatch.setattr(bridge, "replay", _raising(InvalidInput(message)))
    assert cli.main(["replay"]) == 2
    assert capsys.readouterr() == ("", f"eos-sde: {message}\n")


def test_interruption_has_its_status(monkeypatch, capsys):
    monkeypatch.setattr(bridge, "replay", _raising(KeyboardInterrupt()))
    assert cli.main(["replay"]) == 130
    assert capsys.readouterr().out == ""


def test_interruption_says_what_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(bridge, "replay", _raising(KeyboardInterrupt()))
    assert cli.main(["replay"]) == 130
    assert capsys.readouterr().err.startswith("eos-sde: interrupted; ")


def _onsets(folder, **settings):
    """A table of onsets made up in no time: one cell off, one not measured."""
    sizes = {name: list(settings[key]) for name, key in (("network", "networks"), ("loss", "losses"))}
    sizes |= {
        "criterion": ["mean-square"],
        "batch_size": list(settings["batch_sizes"]),
        "seed": list(settings["seeds"]),
    }
    shape = tuple(map(len, sizes.values()))
    numbers = dict.fromkeys(("predicted", "measured", "sharpness"), 1.0) | {"predicted_stderr": 0.0}
    table = xr.Dataset(
        {key: (tuple(sizes), np.full(shape, value)) for key, value in numbers.items()}, coords=sizes
    ).assign(measured_stderr=lambda t: 0.01 * t["measured"], reason=(tuple(sizes), np.full(shape, "")))
    table["measured"][0, 0, 0, 0, 0] = 0.8
    table["measured"][0, 1, 0, 0, 0] = np.nan
    table["reason"] = table["reason"].where(np.isfinite(table["measured"]), "no minimum was found")
    settings["progress"]("onsets", 1.0)
    return onset_grid._compared(table).assign_attrs(margin=0.03)


def test_onsets_writes_and_prints(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bridge, "onset_table", _onsets)
    choice = ["onsets", "--quick", "--seeds", "2", "--seed", "3", "--network", "digits-gelu", "--out", "a"]
    assert cli.main(choice) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "batch 16" in out
    assert "| digits-gelu | half squared error | mean-square |" in out  # Markdown
    assert "Of 12 cells, 10 are within 3 %, 0 more only within" in out
    assert "off: digits-gelu, half-squared-error, mean-square, 1, 3: 0.800(10)" in out
    assert "not measured: digits-gelu, cross-entropy, mean-square, 1, 3: no minimum was found" in out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["onsets.nc", "onsets.png"]
    assert (tmp_path / "a" / "onsets.png").stat().st_size > 10_000
    assert cli.main([*choice, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 12
    assert [rows[0][name] for name in ("measured", "verdict", "loss")] == [0.8, "off", "half-squared-error"]
    assert rows[6]["measured"] is None


def _campaign(store, **settings):
    """A table of two cells made up in no time: one off, one whose flow stopped."""
    dims = ("task", "rule", "batch", "seed")
    coords = {
        "task": list(settings["tasks"]),
        "rule": ["sgd"],
        "batch": ["4", "all"],
        "seed": list(settings["seeds"]),
    }
    shape = tuple(map(len, coords.values()))
    names = [
        f"{kind}_{name}" for kind in ("forecast", "measured") for name in ("sharpness", "loss", "variance")
    ]
    paths = {name: ((*dims, "step"), np.ones((*shape, 3))) for name in names}
    paths |= {f"measured_{name}_stderr": ((*dims, "step"), np.full((*shape, 3), 0.1)) for name in (
        "sharpness", "loss", "variance")}  # fmt: skip
    ones = dict.fromkeys(
        (*NUMBERS, "sharpness_ratio", "loss_ratio", "variance_ratio"), (dims, np.ones(shape))
    )
    words = {
        name: (dims, np.full(shape, word, object)) for name, word in (("status", "done"), ("reason", ""))
    }
    table = xr.Dataset(paths | ones | words, coords=coords | {"step": [0, 10, 20]}).copy(deep=True)
    table["loss_ratio"][0, 0, 0, 0] = 1.2
    table["sharpness_ratio"][0, 0, 1, 0] = np.nan
    table["status"][0, 0, 1, 0], table["reason"][0, 0, 1, 0] = "does not apply", "step 0: a catapult"
    settings["progress"]("campaign", 1.0)
    return table.assign_attrs(
        steps=20,
        sharpness_margin=0.05,
        loss_margin=0.1,
        arguments=repr((store.name, settings["batch_sizes"])),
    )


def test_campaign_writes_and_prints(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bridge, "run_campaign", _campaign)
    choice = ["campaign", "--quick", "--task", "digits-mlp", "--seed", "3", "--out", "a.zarr"]
    assert cli.main(choice) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "| digits-mlp | sgd  | 4     | 1.000" in out  # Markdown
    assert "off: digits-mlp, sgd, 4, 3: sharpness +0.0 %, loss +20.0 %" in out
    assert "does not apply: digits-mlp, sgd, all, 3: step 0: a catapult" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-all.png", "a-digits-mlp-sgd.png"]
    assert cli.main([*choice, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["arguments"] == "('a.zarr', ('4', '16', 'all'))"
    assert [row["sharpness_ratio"] for row in document["rows"]] == [1.0, None]
    assert document["files"]["all"] == "a-all.png"


def _implicit_bias(task, **settings):
    """A table of two cells made up in no time: one off, one whose flow stopped."""
    dims = ("rule", "batch", "seed")
    coords = {"rule": ["sgd"], "batch": ["4", "all"], "seed": list(settings["seeds"])}
    quantities = ("sharpness", "trace", "loss", "test_loss", "test_accuracy")
    names = [*implicit_bias.NUMBERS, *(f"{name}_ratio" for name in quantities)]
    words = {name: (dims, np.full((1, 2, 1), "", object)) for name in ("status", "reason", "caution")}
    table = xr.Dataset({name: (dims, np.ones((1, 2, 1))) for name in names} | words, coords).copy(deep=True)
    table = table.assign({f"start_{name}": ("seed", [1.0]) for name in quantities})
    table["trace_ratio"][0, 0, 0], table["trace_ratio"][0, 1, 0] = 1.2, np.nan
    table["status"][0, :, 0], table["reason"][0, 1, 0] = ["done", "does not apply"], "step 0: a catapult"
    settings["progress"]("implicit bias", 1.0)
    arguments = repr((task.n, settings["steps"], settings["rules"], settings["store"].name))
    return table.assign_attrs(margin=0.05, steps=60, description="made up", arguments=arguments)


def test_implicit_bias_writes_and_prints(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bridge, "implicit_bias_table", _implicit_bias)
    choice = ["implicit-bias", "--quick", "--seed", "3", "--out", "ends"]
    assert cli.main(choice) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "| sgd  | 4     | 1" in out  # Markdown
    assert "off: sgd, 4, 3: trace +20.0 %" in out
    assert "does not apply: sgd, all, 3: step 0: a catapult" in out
    assert sorted(path.name for path in (tmp_path / "ends").iterdir()) == [
        "implicit-bias.nc",
        "implicit-bias.png",
    ]
    assert cli.main([*choice, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["arguments"] == "(100, 60, ('gd', 'sgd'), 'cells')"
    assert [row["trace_ratio"] for row in document["rows"]] == [1.2, None]
    assert document["files"]["figure"] == "ends/implicit-bias.png"


def test_a_campaign_on_the_user_s_images(tmp_path, capsys):
    """The task with its path; after the usual ones where none is named."""
    added = experiments._networks(None, {"digits-mlp": {}}, tmp_path, None)
    assert added == {"digits-mlp": {}, "cifar-resnet": {"path": str(tmp_path)}}
    assert experiments._networks(["deep-linear"], {}, tmp_path, None) == {"deep-linear": {}}
    assert experiments._networks(["pubmed-bert"], {}, None, tmp_path) == {
        "pubmed-bert": {"path": str(tmp_path)}
    }
    missing = tmp_path / "cifar.npz"
    settings = ["--task", "cifar-resnet", "--cifar", str(missing), "--out", str(tmp_path / "c.zarr")]
    assert cli.main(["campaign", *settings]) == 2
    assert f"path={missing} does not exist" in capsys.readouterr().err


def test_a_plan_has_a_place_before_it_compiles_and_says_where_it_comes_from(monkeypatch, capsys, tmp_path):
    plan = xr.Dataset({"days": 3.0}, attrs={"description": "made up"})
    monkeypatch.setattr(large_models, "plan_training", lambda *_, **__: pytest.fail("compiled"))
    (tmp_path / "taken.nc").mkdir()
    for out in ("plan.txt", "taken.nc"):
        assert cli.main(["plan", "vit-h-14", "--out", out]) == 2
        assert capsys.readouterr().err.startswith(f"eos-sde: --out {out} ")
    monkeypatch.setattr(large_models, "plan_training", lambda *_, **__: plan)
    monkeypatch.setattr(large_models.report, "plan_as_json", lambda _: "{}")
    assert cli.main(["plan", "vit-h-14", "--out", "deeper/plan.nc", "--json"]) == 0
    attrs = xr.load_dataset(tmp_path / "deeper" / "plan.nc", engine="h5netcdf").attrs
    assert attrs["command"] == "eos-sde plan vit-h-14 --out deeper/plan.nc --json"
    assert attrs.get("git_commit") == git_commit()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (
            "simulate line-map --param eta=0.1 --param noise=0.1 --param curvature=1 --t1 2 --paths 10 --out FILE",
            "full/s.nc",
        ),
        (
            "simulate line-map --param eta=0.1 --param noise=0.1 --param curvature=1 --t1 2 --paths 10 --figure FILE",
            "full/s.pdf",
        ),
        ("plot made.nc --out FILE", "full/p.svg"),
        ("report made.nc --out FILE", "full/r.html"),
        ("train --steps 2 --every 1 --batch 8 --rule sgd --out full", "full/log.jsonl"),
        ("campaign --quick --task digits-mlp --seeds 1 --out FILE", "full/c.zarr"),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_no_part(words, asked, monkeypatch, capsys, tmp_path):
    """Here a disk that is full when what was written is to be on it; on a real one in tests/sweeps/test_real_faults."""

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    xr.Dataset({"height": ("x", [1.0, 2.0])}, coords={"x": [0.0, 1.0]}).to_netcdf(
        "made.nc", engine="h5netcdf"
    )
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(bridge, "run_campaign", lambda store, **_: write_whole(store, b""))
    assert cli.main(words.replace("FILE", asked).split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"eos-sde: {asked} cannot be read or written: the disk is full; free some space\n"
    assert [path.name for path in (tmp_path / "full").iterdir() if path.is_file()] == []
