"""The campaign: lost cells come back bit for bit, stopped flows and failures are told, measurements as defined."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from eos_sde import campaign_plots, report
from eos_sde.bridge import campaign_cells, campaign_runs, run_campaign
from eos_sde.bridge.campaign_runs import Plan
from solvers.errors import InvalidInput

ROOT = Path(__file__).parents[2]
TINY = {"digits-mlp": {"examples": 40, "hidden": (4,), "pool": 4}}
CHOICE = {
    "tasks": TINY, "batch_sizes": (4,), "rules": ("gd", "sgd"), "seeds": 1, "steps": 12, "replicas": 3,
    "warmup": 10, "save_every": 4,
}  # fmt: skip
CLOCKS = ["forecast_seconds", "measured_seconds"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("campaign") / "tiny.zarr"


@pytest.fixture(scope="module")
def table(store):
    return run_campaign(store, **CHOICE)


@pytest.mark.slow
def test_forecast_and_runs_begin_at_one_checkpoint(table):
    assert table["status"].values.ravel().tolist() == ["left out", "done"]
    assert list(table["examples"].values.ravel()) == [4, 4]
    cell = table.sel(rule="sgd").squeeze()
    first, last = cell.isel(step=0), cell.isel(step=-1)
    # a checkpoint is one point: no fluctuation yet, and both see the same weights
    assert float(first["forecast_loss"]) == pytest.approx(float(first["measured_loss"]), rel=1e-10)
    assert float(first["forecast_sharpness"]) == pytest.approx(float(first["measured_sharpness"]), rel=1e-3)
    assert float(first["forecast_variance"]) == float(first["measured_variance"]) == 0.0
    assert float(last["forecast_variance"]) > 0
    assert float(last["measured_variance"]) > 0
    # a perfect forecast would be as far as the sampling error, which exceeds 2.5 times itself once in 1e4 runs or less
    assert float(cell["distance"]) < 2.5 * float(cell["mean_stderr"])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["gd", "sgdm", "caeo", "adam"])
def test_full_batches_below_the_edge(tmp_path, rule):
    """There is nothing to average: the flow is the rule, to first order in its rate, from the rule's own memory."""
    table = run_campaign(tmp_path / "a.zarr", **(CHOICE | {"rules": (rule,), "batch_sizes": ("all",)}))
    cell = table.squeeze()
    assert (cell["status"].item(), cell["reason"].item(), cell["caution"].item()) == ("done", "", "")
    assert float(cell["distance"]) < 0.1 * float(cell["moved"])
    assert np.allclose(cell["forecast_loss"], cell["measured_loss"], rtol=0.02)


def test_batches_that_a_task_has_not_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(
        campaign_cells, "solve", lambda cell, plan: campaign_cells.left_out(plan, "asked for")
    )
    tasks = TINY | {"chebyshev": {"width": 4, "examples": 6}}
    given = {"tasks": tasks, "rules": ("sgd",), "batch_sizes": (4, 8)}
    table = run_campaign(tmp_path / "a.zarr", **(CHOICE | given)).squeeze()
    assert table["reason"].values.tolist() == [
        ["asked for", "asked for"],
        ["asked for", "chebyshev has 6 examples"],
    ]
    assert np.all(table["status"] == "left out")
    assert len(list(tmp_path.glob("a.cells/*.json"))) == 3


@pytest.mark.slow
def test_the_store_holds_the_table(store, table):
    with xr.open_zarr(store, consolidated=False) as kept:
        assert json.loads((store / "zarr.json").read_text())["zarr_format"] == 3
        assert set(kept.data_vars) == set(table.data_vars)
        assert kept["status"].values.tolist() == table["status"].values.tolist()
        assert np.array_equal(kept["forecast_loss"], table["forecast_loss"], equal_nan=True)
        assert kept.attrs == table.attrs


@pytest.mark.slow
def test_a_lost_cell_comes_back_with_the_same_bits(store, table, monkeypatch):
    lost = store.with_suffix(".cells") / "digits-mlp_sgd_batch-4_seed0.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    solved = []
    solve = campaign_cells.solve
    monkeypatch.setattr(campaign_cells, "solve", lambda cell, plan: solved.append(cell) or solve(cell, plan))
    again = run_campaign(store, **CHOICE)
    after = json.loads(lost.read_text())
    assert len(solved) == 1  # the other cell was not computed again
    assert {k: v for k, v in after.items() if k not in CLOCKS} == {
        k: v for k, v in before.items() if k not in CLOCKS
    }
    assert again.drop_vars(CLOCKS).identical(table.drop_vars(CLOCKS))
    assert {path.suffix for path in lost.parent.iterdir()} == {".json"}


@pytest.mark.slow
def test_cells_of_other_settings_are_refused(store, table):
    with pytest.raises(InvalidInput, match="made with other settings"):
        run_campaign(store, **(CHOICE | {"steps": 16}))


@pytest.mark.slow
def test_a_failure_loses_no_cell_and_is_tried_again(tmp_path, monkeypatch):
    def fail(cell, plan):
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(campaign_cells, "reach_checkpoint", fail)
        table = run_campaign(tmp_path / "a.zarr", **CHOICE)
    assert table["status"].values.ravel().tolist() == ["left out", "failed"]
    assert table["reason"].values.ravel()[1] == "MemoryError: no room"
    assert np.all(np.isnan(table["sharpness_ratio"]))
    mended = run_campaign(tmp_path / "a.zarr", **CHOICE)
    assert mended["status"].values.ravel().tolist() == ["left out", "done"]


@pytest.mark.slow
def test_a_stopped_flow_does_not_apply(tmp_path, monkeypatch):
    """At 30 times its learning rate the weights are far beyond the edge: neither flow nor runs stay."""
    monkeypatch.setattr(campaign_runs, "RULES", {"sgd": (30.0, {})})
    table = run_campaign(tmp_path / "a.zarr", **(CHOICE | {"rules": ("sgd",)}))
    cell = table.squeeze()
    assert cell["status"].item() == "does not apply"
    assert "the fluctuations outgrow the quadratic model" in cell["reason"].item()
    assert "the flow ended early" in cell["caution"].item()
    assert np.isnan(cell["sharpness_ratio"])
    assert "does not apply: digits-mlp, sgd, 4, 0: step " in report.campaign_in_words(table)


def test_words_say_how_often_the_cautions_were_right():
    axes = ("task", "rule", "batch", "seed")
    seeds = [0, 1, 2, 3, 4]
    columns = {
        "sharpness_ratio": [1.0, 1.2, 1.0, 0.9, np.nan],
        "loss_ratio": [1.0, 1.0, 1.05, 1.0, np.nan],
        "status": ["done"] * 4 + ["failed"],
        "reason": [""] * 4 + ["no room"],
        "caution": ["", "it is large", "it is large", "", ""],
    }
    table = xr.Dataset(
        {name: (axes, np.array(values).reshape(1, 1, 1, 5)) for name, values in columns.items()},
        coords={"task": ["digits-mlp"], "rule": ["sgd"], "batch": ["4"], "seed": seeds},
        attrs={"sharpness_margin": 0.05, "loss_margin": 0.10},
    )
    assert report.campaign_in_words(table).splitlines() == [
        "2 of 4 forecasts of sharpness are within 5 %.",
        "4 of 4 forecasts of mean loss are within 10 %.",
        "Against 2 of them the flow itself gave a caution: 1 of these are off, and 1 of the 2 others.",
        "off: digits-mlp, sgd, 4, 1: sharpness +20.0 %, loss +0.0 % (it said: it is large)",
        "off: digits-mlp, sgd, 4, 3: sharpness -10.0 %, loss +0.0 %",
        "failed: digits-mlp, sgd, 4, 4: no room",
    ]
    older = report.campaign_in_words(table.drop_vars("caution"))
    assert "caution" not in older
    assert "off: digits-mlp, sgd, 4, 1: sharpness +20.0 %, loss +0.0 %" in older


def test_variance_between_runs_and_its_error():
    """White noise of variance 4 in 64 runs of 200 steps: 4 within four of its errors (false alarms 1e-4)."""
    x = 2 * np.random.default_rng(1).standard_normal((64, 200)) + np.linspace(0, 9, 200)
    value, error = campaign_runs.jackknifed_variance(x, [slice(0, 200), slice(300, 310)])
    assert abs(value[0] - 4) < 4 * error[0]
    # 64 * 200 independent squares: sqrt(2/12800) = 1.25 %, known to within 1/sqrt(2 * 63) of it
    assert error[0] == pytest.approx(4 * np.sqrt(2 / (63 * 200)), rel=0.4)
    assert np.isnan(value[1])


def test_averages_cancel_an_alternation():
    plan = Plan(steps=40, replicas=3, warmup=2, save_every=10)
    k = np.arange(46)
    swing = (-1.0) ** k
    run = xr.Dataset(
        {
            "loss": (("replica", "step"), (2 + swing)[None]),
            "sharpness": (("replica", "step"), (5 + k - 3 * swing)[None]),
            "projection": (
                ("replica", "iteration", "direction"),
                (0.1 * k[:-1] + 0.3 * swing[:-1])[None, :, None],
            ),
        },
        coords={"step": k},
    )
    series = campaign_runs._averaged(run, plan)
    assert np.allclose(series["measured_loss"][1:], 2)
    assert np.allclose(series["measured_sharpness"][1:], 5 + plan.axis[1:])
    assert np.allclose(series["measured_variance"][1:], 0.09)


@pytest.mark.slow
def test_words_json_and_figures(table):
    words = report.campaign_in_words(table)
    assert "of 1 forecasts of sharpness are within 5 %" in words
    rows = json.loads(report.cells_as_json(table, store="x.zarr"))["rows"]
    assert [row["rule"] for row in rows] == ["gd", "sgd"]
    assert rows[0]["distance"] is None
    assert rows[1]["distance"] == float(table["distance"][0, 1, 0, 0])
    figures = campaign_plots.campaign_figures(table)
    assert list(figures) == ["all", "digits-mlp-sgd"]
    lines = figures["digits-mlp-sgd"].axes[0].lines
    assert np.array_equal(lines[0].get_ydata(), 0.2 * table["forecast_sharpness"][0, 1, 0, 0])


def test_a_figure_has_a_column_for_each_batch_size_that_was_run():
    """In the campaign that is kept, 20 examples have no batch of 64, and gradient descent takes all."""
    kept = xr.load_dataset(ROOT / "notebooks" / "campaign.nc", engine="h5netcdf")
    for rule, batches in (("sgd", ["4", "16", "all"]), ("gd", ["all"])):
        figure = campaign_plots.campaign_task_figure(kept, "chebyshev", rule=rule)
        assert [axis.get_title(loc="left") for axis in figure.axes[: len(batches)]] == [
            f"batch {b}" for b in batches
        ]
        assert len(figure.axes) == 3 * len(batches)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 0", "seed 1", "seed 2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["resnet"]}, "task='resnet' is not known"),
        ({"rules": ["adamw"]}, "rule='adamw' is not known"),
        ({"batch_sizes": [40]}, "it must be from 1 to 39 for digits-mlp, or 'all'"),
        ({"batch_sizes": ["some"]}, "batch_sizes names 'some'"),
        ({"batch_sizes": []}, "one or more different values"),
        ({"seeds": 0}, "one or more different values"),
        ({"seeds": [-1]}, "seed=-1 must be at least 0"),
        ({"replicas": 2}, "replicas=2 must be an integer of at least 3"),
        ({"steps": 13}, "save_every=4 must be even, and steps=13"),
        ({"steps": 1.5}, "steps=1.5 must be an integer"),
    ],
)
def test_bad_input_is_refused(tmp_path, settings, message):
    with pytest.raises(InvalidInput, match=message):
        run_campaign(tmp_path / "new.zarr", **(CHOICE | settings))
    assert not list(tmp_path.iterdir())


def test_stores_that_are_none_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"must end in \.zarr"):
        run_campaign(tmp_path / "new.nc", **CHOICE)
    (tmp_path / "papers.zarr").mkdir()
    with pytest.raises(InvalidInput, match="holds no campaign"):
        run_campaign(tmp_path / "papers.zarr", **CHOICE)
    xr.Dataset({"other": ("x", [1.0])}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(InvalidInput, match="holds no campaign"):
        run_campaign(tmp_path / "other.zarr", **CHOICE)
