"""Where rules end: estimates against the dense Hessian and by hand, the limit of descent, lost cells, words."""

import csv
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from eos_sde import implicit_bias_report, report
from eos_sde.bridge import campaign_runs, implicit_bias, implicit_bias_table, load_task, record
from eos_sde.bridge import endpoint as endpoints
from eos_sde.bridge.endpoint import QUANTITIES, at_their_mean, jackknifed, over_runs, quantities_at
from solvers.errors import InvalidInput

CHOICE = {
    "batch_sizes": (4, "all"), "rules": ("gd", "sgd"), "steps": 20, "replicas": 3, "warmup": 10, "window": 8,
    "probes": 16,
}  # fmt: skip
CLOCKS = ["forecast_seconds", "measured_seconds"]


@pytest.fixture(scope="module")
def tiny():
    """70 weights: the whole Hessian is at hand."""
    return load_task("digits-mlp", examples=40, hidden=(4,), pool=4)


@pytest.fixture(scope="module")
def hessian(tiny):
    """At the initial weights of seed 0."""
    return np.asarray(jax.jit(jax.hessian(tiny.loss))(tiny.init(0)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("ends")


@pytest.fixture(scope="module")
def table(tiny, store):
    return implicit_bias_table(tiny, **CHOICE, store=store)


def _deviation(hessian, probes):
    """Of Hutchinson's mean: the variance of one sample is twice the squares off the diagonal."""
    return np.sqrt(2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2)) / probes)


@pytest.mark.parametrize("taken_out", [1, 16])
def test_trace_against_the_dense_hessian(tiny, hessian, taken_out):
    """Unbiased whatever modes are taken out, and with the error that the rest of the spectrum has."""
    theta = tiny.init(0)
    values, vectors = np.linalg.eigh(hessian)
    keys = jax.random.split(jax.random.key(3), 16)
    trace, error = endpoints._trace(tiny, theta, vectors[:, -taken_out:], keys)
    rest = (vectors[:, :-taken_out] * values[:-taken_out]) @ vectors[:, :-taken_out].T
    deviation = _deviation(rest, 256)
    assert abs(float(trace) - np.trace(hessian)) < 4 * deviation  # false alarm 6e-5
    # an error from 240 degrees of freedom is itself known to 4.6 %, less well if tails are heavier: 4 of them and more
    assert float(error) == pytest.approx(deviation, rel=0.25)
    if taken_out == 16:  # it is worth it
        assert deviation < _deviation(hessian, 256) / 2


@pytest.mark.slow
def test_many_weights_against_the_dense_hessian(small_task, small_start, small_hessian):
    hessian = np.asarray(small_hessian(small_start))
    found = quantities_at(small_task, small_start, probes=256, seed=3)
    # an eigenvalue lies within its residual, 1e-3 of it at most, and to second order much nearer
    assert found["sharpness"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-4)
    assert found["trace"] == pytest.approx(
        np.trace(hessian), abs=4 * found["trace_stderr"]
    )  # false alarm 6e-5
    assert 0 < found["trace_stderr"] < _deviation(hessian, 256) / 2


def test_few_weights_have_their_exact_trace(tiny, hessian):
    found = quantities_at(tiny, tiny.init(0))
    assert found["trace"] == pytest.approx(np.trace(hessian), rel=1e-10)
    assert found["sharpness"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-10)
    assert found["trace_stderr"] == 0.0


def test_losses_and_accuracy_by_hand(tiny):
    """The network 4-4-10 written out, on the test examples themselves."""
    theta = 3 * tiny.init(2)
    found = quantities_at(tiny, theta)
    net = tiny.network.unravel(theta)
    layers = [(np.asarray(w), np.asarray(b)) for w, b in zip(net.weights, net.biases, strict=True)]
    for x, y, name in ((tiny.x, tiny.y, "loss"), (tiny.x_test, tiny.y_test, "test_loss")):
        outputs, targets = np.asarray(x), np.asarray(y)
        for i, (weight, bias) in enumerate(layers):
            outputs = outputs @ weight + bias
            outputs = np.tanh(outputs) if i < len(layers) - 1 else outputs
        by_hand = 0.5 * np.mean(np.sum((outputs - targets) ** 2, axis=1))
        assert found[name] == pytest.approx(by_hand, rel=1e-10)
    right = outputs.argmax(axis=1) == targets.argmax(axis=1)
    assert right.size == 297
    assert found["test_accuracy"] == pytest.approx(right.mean(), rel=1e-6)  # a mean in single precision
    assert found["test_loss"] != found["loss"]


def test_jackknife_takes_out_the_fluctuation_of_the_mean():
    """Of f = |w|^2 it gives |mean|^2 - s^2/R, which is unbiased, exactly."""
    runs = 5 + np.random.default_rng(0).standard_normal((6, 3))
    f = lambda w: float(w @ w)  # noqa: E731
    without = np.array([f(np.delete(runs, r, axis=0).mean(axis=0)) for r in range(6)])
    mean, spread = runs.mean(axis=0), runs.var(axis=0, ddof=1).sum()
    value, error = jackknifed(f(mean), without)
    assert value == pytest.approx(mean @ mean - spread / 6, rel=1e-12)
    # the linear part, 2 mean . (mean - truth), dominates: its error is known in closed form; the rest is of order
    # |deviation|/|mean| = 0.1
    assert error == pytest.approx(np.sqrt(4 * mean @ np.cov(runs.T) @ mean / 6), rel=0.3)


def test_runs_about_their_mean(tiny):
    """Opposite runs: their mean is the centre, where a single run is; at the runs the loss is higher."""
    start = np.asarray(tiny.init(0))
    kick = 0.05 * np.random.default_rng(1).standard_normal(start.size)
    runs = np.array([start + kick, start - kick, start])
    centre, at_mean = (
        quantities_at(tiny, start),
        at_their_mean(tiny, runs),
    )
    one = at_their_mean(tiny, start[None])
    assert {name: one[name] for name in QUANTITIES} == {name: centre[name] for name in QUANTITIES}
    assert one["loss_stderr"] == 0.0
    without = np.array([tiny.loss(np.delete(runs, r, axis=0).mean(axis=0)) for r in range(3)])
    assert at_mean["loss"] == pytest.approx(3 * centre["loss"] - 2 * without.mean(), rel=1e-12)
    assert at_mean["test_accuracy"] == quantities_at(tiny, runs.mean(axis=0))["test_accuracy"]
    each = np.array([tiny.loss(w) for w in runs])
    over = over_runs(tiny, runs)
    assert over["loss"] == pytest.approx(each.mean(), rel=1e-12)
    assert over["loss_stderr"] == pytest.approx(each.std(ddof=1) / np.sqrt(3), rel=1e-12)
    assert over["loss"] > at_mean["loss"]


@pytest.mark.slow
def test_six_runs_tell_what_many_do(tiny):
    """Groups of six of 96 runs, jackknifed, against the plain mean of all; a plain mean of six is too high."""
    start = campaign_runs.plain_checkpoint(tiny, 10, 0)
    weights = record(
        tiny, "sgd", steps=60, every=60, seed=5, batch_size=2, start=start, replicas=96, curvature=False
    )["final_params"].values
    many = tiny.loss(weights.mean(axis=0))
    groups = weights.reshape(16, 6, -1)
    told = [at_their_mean(tiny, group) for group in groups]
    values, errors = (np.array([one[name] for one in told]) for name in ("loss", "loss_stderr"))
    scatter = values.std(ddof=1)
    # 16 groups: t of 15 degrees of freedom beyond 4.9 once in 5000; what is left of the fluctuation in the mean of 96
    # is a sixteenth of that of six
    excess = np.mean([tiny.loss(group.mean(axis=0)) for group in groups]) - many
    assert abs(values.mean() - many) < 4.9 * scatter / 4 + excess / 15
    assert excess > 4.9 * np.std([tiny.loss(group.mean(axis=0)) for group in groups], ddof=1) / 4
    # a scatter from 16 groups has an error of 18 %: 4 of them and the bias of the jackknife, upwards
    assert scatter / 1.75 < np.sqrt(np.mean(errors**2)) < 2.5 * scatter


@pytest.mark.slow
def test_full_batches_below_the_edge_follow_the_gradient(tiny, table):
    """There is nothing to average: the flow is descent, to first order in its rate."""
    cell = table.sel(rule="gd", batch="all", seed=0)
    assert cell["status"].item() == "done"
    assert float(cell["distance"]) < 0.1 * float(cell["moved"])
    for name in ("sharpness", "trace", "loss", "test_loss"):
        # what is moved is a few per cent of each, and a tenth of that is allowed
        assert float(cell[f"{name}_ratio"]) == pytest.approx(1, abs=0.01)
        assert float(cell[f"measured_{name}_stderr"]) == 0.0
    start = campaign_runs.plain_checkpoint(tiny, 10, 0)
    run = record(tiny, "gd", steps=24, seed=0, start=start, curvature=False, average=8)
    there = quantities_at(tiny, run["mean_params"].values[0])
    last = quantities_at(tiny, run["final_params"].values[0])
    for name in QUANTITIES:
        assert float(cell[f"measured_{name}"]) == pytest.approx(there[name], rel=1e-6)
        assert float(cell[f"iterate_{name}"]) == pytest.approx(last[name], rel=1e-6)
        assert float(table[f"start_{name}"][0]) == pytest.approx(quantities_at(tiny, start)[name], rel=1e-12)
    assert float(cell["measured_loss"]) < float(table["start_loss"][0])


@pytest.mark.slow
def test_batches_scatter_about_the_forecast(table):
    cell = table.sel(rule="sgd", batch="4", seed=0)
    assert cell["status"].item() == "done"
    assert float(cell["examples"]) == 4
    # a perfect forecast would be as far as the sampling error, which exceeds 2.5 times itself once in 1e4 runs or less
    assert float(cell["distance"]) < 2.5 * float(cell["mean_stderr"])
    # 4 errors of three runs: two degrees of freedom, with the first order of the flow a generous false alarm of 5 %
    # would be 4.3 of them, so 1e-3 takes 31
    assert stats.t.sf(31.6, 2) < 1e-3
    assert abs(float(cell["predicted_loss"] - cell["measured_loss"])) < 31.6 * float(
        cell["measured_loss_stderr"]
    )
    assert float(cell["iterate_loss"]) > float(cell["measured_loss"])
    left = table["status"].values
    assert left[0, 0, 0] == left[1, 1, 0] == "left out"  # descent in batches, and descent a second time


@pytest.mark.slow
def test_descent_is_sgd_with_all_examples(tiny, table, store):
    alone = implicit_bias_table(tiny, **(CHOICE | {"rules": ("sgd",)}), store=store)
    for name in ("predicted_sharpness", "measured_trace", "iterate_test_accuracy"):
        assert float(alone[name].sel(rule="sgd", batch="all", seed=0)) == float(
            table[name].sel(rule="gd", batch="all", seed=0)
        )


@pytest.mark.slow
def test_a_lost_cell_comes_back_with_the_same_bits(tiny, table, store, monkeypatch):
    files = sorted(path.name for path in store.iterdir())
    assert files == ["digits-mlp_gd_batch-all_seed0.json", "digits-mlp_sgd_batch-4_seed0.json",
                     "digits-mlp_start_seed0.json"]  # fmt: skip
    (store / files[1]).unlink()
    solved, solve = [], implicit_bias._Grid._solve
    monkeypatch.setattr(
        implicit_bias._Grid, "_solve", lambda grid, cell: solved.append(cell) or solve(grid, cell)
    )
    again = implicit_bias_table(tiny, **CHOICE, store=store)
    assert [cell.rule for cell in solved] == ["sgd"]  # the others were not computed again
    assert again.drop_vars(CLOCKS).identical(table.drop_vars(CLOCKS))
    assert sorted(path.name for path in store.iterdir()) == files


@pytest.mark.slow
def test_cells_of_other_settings_are_refused(tiny, table, store):
    for other in ({"steps": 24}, {"start": np.zeros(tiny.size)}):
        with pytest.raises(InvalidInput, match="made with other settings"):
            implicit_bias_table(tiny, **(CHOICE | other), store=store)


@pytest.mark.slow
def test_a_failure_loses_no_cell_and_is_tried_again(tiny, table, store, monkeypatch):
    lost = store / "digits-mlp_gd_batch-all_seed0.json"
    lost.unlink()

    def fail(*args):
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(implicit_bias, "forecast", fail)
        failed = implicit_bias_table(tiny, **CHOICE, store=store)
    assert failed["reason"].sel(rule="gd", batch="all").values.tolist() == ["MemoryError: no room"]
    assert np.isnan(failed["sharpness_ratio"].sel(rule="gd", batch="all"))
    assert "failed: gd, all, 0: MemoryError" in implicit_bias_report.implicit_bias_in_words(failed)
    mended = implicit_bias_table(tiny, **CHOICE, store=store)
    assert mended.drop_vars(CLOCKS).identical(table.drop_vars(CLOCKS))


@pytest.mark.slow
def test_a_stopped_flow_does_not_apply(tiny, monkeypatch):
    """At 30 times its learning rate the weights are far beyond the edge: the flow says so."""
    monkeypatch.setattr(campaign_runs, "RULES", {"sgd": (30.0, {})})
    cell = implicit_bias_table(tiny, **(CHOICE | {"rules": ("sgd",), "batch_sizes": (4,)})).squeeze()
    assert cell["status"].item() == "does not apply"
    assert "the fluctuations outgrow the quadratic model" in cell["reason"].item()
    assert np.isnan(cell["predicted_loss"])


@pytest.mark.slow
def test_every_variable_has_units_and_a_name(table):
    for name in table.data_vars:
        assert {"units", "long_name"} <= set(table[name].attrs), name
    assert table.attrs["test_examples"] == 297
    assert table.attrs["steps"] == 20


@pytest.mark.slow
def test_words_table_json_and_figure(table):
    words = implicit_bias_report.implicit_bias_in_words(table)
    assert "2 of 2 forecasts of the trace are within 5 %." in words
    rows = json.loads(report.cells_as_json(table, dataset="x.nc"))["rows"]
    assert [row["status"] for row in rows] == ["left out", "done", "done", "left out"]
    assert rows[0]["trace_ratio"] is None
    assert rows[1]["predicted_trace"] == float(table["predicted_trace"][0, 1, 0])
    assert rows[1]["start_trace"] == float(table["start_trace"][0])
    assert implicit_bias_report.implicit_bias_as_table(table).row_count == 2
    figure = implicit_bias_report.implicit_bias_figure(table)
    drawn = {tuple(line.get_ydata()) for line in figure.axes[0].lines}
    assert any(np.array_equal(y, table["predicted_sharpness"][1, :, 0], equal_nan=True) for y in drawn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": ["adamw"]}, "rule='adamw' is not known"),
        ({"rules": []}, "one or more different values"),
        ({"batch_sizes": [40]}, "it must be from 1 to 39 for digits-mlp, or 'all'"),
        ({"batch_sizes": ["some"]}, "batch_sizes names 'some'"),
        ({"seeds": 0}, "one or more different values"),
        ({"seeds": [-1]}, "seed=-1 must be at least 0"),
        ({"replicas": 2}, "replicas=2 must be an integer of at least 3"),
        ({"steps": 22}, "window=8 must be even, and steps=22 one of half of it"),
        ({"window": 7}, "window=7 must be even"),
        ({"window": 40}, "window=40 must be at most steps=20"),
        ({"probes": 17}, "probes=17 must be a multiple of 16"),
        ({"start": [1.0, 2.0]}, "start must be 70 finite weights"),
        ({"steps": 1.5}, "steps=1.5 must be an integer"),
    ],
)
def test_bad_input_is_refused(tiny, tmp_path, settings, message):
    with pytest.raises(InvalidInput, match=message):
        implicit_bias_table(tiny, **(CHOICE | settings), store=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_no_task_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="is not a Task"):
        implicit_bias_table(3, **CHOICE, store=tmp_path)
    with pytest.raises(InvalidInput, match="task='resnet' is not known"):
        implicit_bias_table("resnet", **CHOICE, store=tmp_path)


def test_regressions_have_no_accuracy():
    task = load_task("deep-linear")
    loss, test_loss, accuracy = endpoints._losses(task, task.init(0))
    assert np.isnan(accuracy)
    assert 0 < test_loss != loss


@pytest.mark.slow
def test_the_table_that_is_kept(table):
    """Made with these columns, and the file that its page tells of."""
    data = Path(__file__).parents[2] / "data"
    kept = (data / "implicit_bias.csv").read_bytes()
    assert hashlib.sha256(kept).hexdigest() in (data / "README.md").read_text()
    rows = list(csv.DictReader(line for line in kept.decode().splitlines() if not line.startswith("#")))
    assert set(rows[0]) == {"task", *table.sizes, *table.data_vars} - {*CLOCKS, "caution"}
    assert {row["status"] for row in rows} == {"done"}
    assert len(rows) == 27
