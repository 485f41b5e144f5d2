"""A run by hand, its order of data, its costs, and its resumption to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import xarray as xr

from eos_sde.bridge import load_task
from eos_sde.trials import Trial, split_task, train
from eos_sde.trials.batch_order import ordered_batches
from eos_sde.trials.programs import _COMPILED
from eos_sde.trials.run_log import RunLog
from eos_sde.trials.scores import classifier_scores
from eos_sde.trials.training import NOT_REPRODUCED
from solvers.errors import InvalidInput

TEXT = {"examples": 20, "test_examples": 5, "context": 6, "width": 8, "blocks": 1}


def same(one, two):
    """All bits but those of clocks."""
    xr.testing.assert_identical(one.drop_vars(NOT_REPRODUCED), two.drop_vars(NOT_REPRODUCED))


def test_each_epoch_is_an_order_of_its_own_whatever_the_grouping():
    whole = ordered_batches(4, 0, 15, examples=42, batch_size=8)
    pieces = [ordered_batches(4, first, 3, examples=42, batch_size=8) for first in range(0, 15, 3)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    epochs = whole.reshape(3, 40)
    assert all(len(set(epoch)) == 40 for epoch in epochs)  # two examples are left over, others each time
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not np.array_equal(whole, ordered_batches(5, 0, 15, examples=42, batch_size=8))


def test_the_parts_share_no_example_and_no_seed_changes_them(tiny):
    split, other = split_task(tiny()), split_task(tiny(seed=9, split_seed=1))
    rows = np.concatenate([split.training.x, split.validating.x])
    assert (split.training.n, split.validating.n) == (40, 10)
    assert len(np.unique(rows, axis=0)) == 50
    assert split_task(tiny(seed=8)).training is split.training
    assert not np.array_equal(other.training.x, split.training.x)


@pytest.mark.slow
def test_of_a_text_the_last_windows_are_held_out():
    trial = Trial("shakespeare-transformer", "sgd", steps=2, task_settings=TEXT)
    whole, split = load_task("shakespeare-transformer", **TEXT), split_task(trial)
    np.testing.assert_array_equal(split.training.x, whole.x[:16])
    np.testing.assert_array_equal(split.validating.x, whole.x[16:])


@pytest.fixture(scope="module")
def straight(request):
    """Uninterrupted runs, made once."""
    made = {}

    def run(trial):
        key = json.dumps(trial.settings)
        if key not in made:
            made[key] = train(trial)
        return made[key]

    return run


def test_heavy_ball_by_hand(tiny, straight):
    """The weights of twelve updates, the rows, the test scores, from the loss alone."""
    trial = tiny("sgdm", eta=0.1)
    run, split = straight(trial), split_task(trial)
    task, batches = split.training, ordered_batches(3, 0, 12, examples=40, batch_size=8)
    gradient = jax.jit(jax.value_and_grad(task.loss))
    theta, velocity, losses = task.init(3), 0.0, []
    for batch in batches:
        loss, slope = gradient(theta, task.x[batch], task.y[batch])
        velocity = 0.9 * velocity + slope
        theta = theta - 0.1 * velocity
        losses.append(float(loss))
    np.testing.assert_allclose(run["final_params"], theta, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run["train_loss"][-1], task.loss(theta), rtol=1e-9)
    np.testing.assert_allclose(run["validation_loss"][-1], split.validating.loss(theta), rtol=1e-9)
    np.testing.assert_allclose(run["batch_loss"][1:], np.reshape(losses, (6, 2)).mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(
        run["batch_loss_variance"][1:], np.reshape(losses, (6, 2)).var(axis=1), rtol=1e-6
    )
    np.testing.assert_array_equal(run["gradient_equivalents"], run["step"])
    np.testing.assert_allclose(run["epoch"], run["step"] / 5)
    np.testing.assert_allclose(run["learning_rate"][1:], 0.1)
    logs = jax.nn.log_softmax(task.apply(theta, task.x_test))
    scores = classifier_scores(logs, np.argmax(task.y_test, axis=1))
    np.testing.assert_allclose(run["test_nll"], scores.nll, rtol=1e-9)
    np.testing.assert_allclose(run["test_ece"], scores.ece, rtol=1e-9)


def test_resumed_equals_uninterrupted_to_the_bit(tiny, straight, tmp_path):
    """Stopped after eight of twelve updates, with a row beyond the checkpoint and half a row behind it."""
    trial = tiny("caeo", eta=2.0, curvature_every=2)

    def stop(done):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trial, folder=tmp_path, checkpoint_every=4, progress=stop)
    log = tmp_path / "log.jsonl"
    assert [row["step"] for row in RunLog(log, trial.settings).rows()] == [0, 2, 4, 6, 8, 10]
    with log.open("a") as file:
        file.write('{"step": 12, "train_l')
    seen = []
    resumed = train(trial, folder=tmp_path, checkpoint_every=4, progress=seen.append)
    assert seen == [8, 10, 12]
    same(resumed, straight(trial))
    same(train(trial, folder=tmp_path, progress=seen.append), resumed)  # finished: read, and nothing is run
    assert seen == [8, 10, 12]
    with pytest.raises(InvalidInput, match="another eta"):
        train(tiny("caeo", eta=1.0, curvature_every=2), folder=tmp_path)


@pytest.mark.slow
def test_the_sharpness_is_the_top_eigenvalue(tiny, straight):
    """A Ritz value lies below it, and some eigenvalue within the residual: here the top one, by the tolerance."""
    run, task = straight(tiny("sgdm", eta=0.1)), split_task(tiny()).training
    top = np.linalg.eigvalsh(jax.hessian(task.loss)(run["final_params"].values))[-1]
    assert abs(run["final_sharpness"] - top) <= run["sharpness_residual"][-1] + 1e-9 * top


@pytest.mark.slow
def test_neither_another_knob_nor_another_seed_before_changes_a_bit(tiny, straight):
    trial = tiny("sgdm", eta=0.1)
    known = straight(trial)
    _COMPILED.clear()
    train(tiny("sgdm", eta=0.3, seed=5))
    assert len(_COMPILED) == 1
    same(train(trial), known)
    assert len(_COMPILED) == 1


def test_curvature_is_counted(tiny, straight):
    """CDAT: a linearization and a product an update, three gradients; CAEO at the first update at least."""
    run = straight(tiny("cdat", options={"sigma": 0.5}))
    np.testing.assert_array_equal(run["products"], run["step"])
    np.testing.assert_array_equal(run["gradient_equivalents"], 4 * run["step"])
    assert run.attrs["curvature_of"] == "the batch of each update"
    run = straight(tiny("caeo", eta=2.0, curvature_every=2))
    assert run["products"][1] >= 3
    assert run["slopes"][1] >= 1
    price = run["linearizations"] + 2 * run["products"] + 5 * run["slopes"]
    np.testing.assert_array_equal(run["gradient_equivalents"], run["step"] + price)


def test_a_lost_run_ends_where_it_is_seen(tiny):
    run = train(tiny("sgdm", eta=1e6))
    assert bool(run["diverged"])
    assert run["step"][-1] < 12
    for name in ("test_loss", "test_accuracy", "final_sharpness"):
        assert np.isnan(run[name])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "sgdd"}, "rule='sgdd' is not known"),
        ({"steps": 13}, "every=2 must divide steps=13"),
        ({"batch_size": 41}, "batch_size=41 must be at most the 40 examples"),
        ({"validation": 0.001}, "leaves a part empty"),
        ({"validation": 1.0}, "validation=1.0 must lie between"),
        ({"rule": "l4", "schedule": "warmup-cosine"}, "makes its own"),
        ({"schedule": "linear"}, "schedule='linear' is not known"),
        ({"rule": "sgd", "schedule": "warmup-cosine", "steps": 2}, "too short"),
        ({"rule": "sgd", "probe": 8}, "probe=8 is for rules that measure curvature"),
        ({"rule": "caeo", "delta": 2.0}, "delta"),
        ({"seed": -1}, "seed=-1"),
        ({"eta": 0.0}, "eta=0.0"),
    ],
)
def test_what_cannot_be_run_is_refused(tiny, settings, words):
    with pytest.raises(InvalidInput, match=words):
        train(tiny(**settings))


def test_checkpoints_need_a_folder_and_a_multiple(tiny, tmp_path):
    with pytest.raises(InvalidInput, match="needs a folder"):
        train(tiny(), checkpoint_every=4)
    with pytest.raises(InvalidInput, match="checkpoint_every=3 must be a positive multiple of every=2"):
        train(tiny(), folder=tmp_path, checkpoint_every=3)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sgdm", "adamw", "caeo", "caeo-ss", "l4", "cdat", "inverse-sharpness"])
def test_killed_at_any_time_it_goes_on_to_the_same_bits(tiny, tmp_path, rule):
    """Another process, killed with SIGKILL three times at different ages of its log, then left to end."""
    trial = tiny(rule, steps=400, every=2, eta=None)
    code = (
        "import pathlib, sys, jax\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n"
        "from eos_sde.trials import Trial, train\n"
        f"trial = Trial({trial.task!r}, {rule!r}, steps=400, every=2, batch_size=8, seed=3, "
        f"task_settings={dict(trial.task_settings)!r})\n"
        "train(trial, folder=pathlib.Path(sys.argv[1]), checkpoint_every=10)\n"
    )
    log = tmp_path / "log.jsonl"
    for rows in (5, 40, 90):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=os.environ)
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > rows):
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    same(xr.load_dataset(tmp_path / "run.nc", engine="h5netcdf"), train(trial))
