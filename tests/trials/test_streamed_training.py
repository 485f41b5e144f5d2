"""Training on images that stay on disk: the batches by hand, what is held out, and resumption to the same bits."""

import hashlib
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
from PIL import Image

from eos_sde.bridge.campaign_runs import Cell
from eos_sde.bridge.image_folder_tasks import open_images
from eos_sde.bridge.readers.labelled import pixels
from eos_sde.bridge.readers.random_cuts import cuts_of
from eos_sde.trials import Trial, split_task, train
from eos_sde.trials.batch_order import ordered_batches
from eos_sde.trials.image_stream import Drawn
from eos_sde.trials.run_log import RunLog
from eos_sde.trials.training import NOT_REPRODUCED
from eos_sde.trials.trial import epoch_length
from solvers.errors import InvalidInput
from tests.bridge.test_image_readers import records

SMALL = {
    "examples": 10,
    "test_examples": 4,
    "side": 8,
    "patch": 4,
    "width": 4,
    "blocks": 1,
    "heads": 1,
    "stream": True,
}


def colour(k):
    return (9 * k % 256, 40 * (k % 6), 255 - 7 * k)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two classes in ImageNet's layout: 2 x 15 training images, a colour each, and 2 x 3 to test on."""
    root = tmp_path_factory.mktemp("folders")
    for part, count in (("train", 15), ("val", 3)):
        for label, name in enumerate(("n01440764", "n01443537")):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (9, 8), colour(15 * label + k)).save(root / part / name / f"{name}_{k}.JPEG")
    return root


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Two classes, 2 x 10 images of noise for training, and 2 x 2: every cut of them is another."""
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 2)):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                shown = rng.integers(0, 256, (16, 20 + k, 3), dtype=np.uint8)
                Image.fromarray(shown).save(root / part / name / f"{k:02d}.png")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """As many in TFRecord files, labels from 1, in two shards."""
    root = tmp_path_factory.mktemp("shards")
    given = [(colour(k), k % 2) for k in range(30)]
    for number in range(2):
        (root / f"train-0000{number}-of-00002").write_bytes(records(given[15 * number : 15 * number + 15]))
    (root / "validation-00000-of-00001").write_bytes(records(given[:6]))
    return root


def streamed(path, rule="sgd", augment="none", **settings):
    of_task = (
        SMALL | {"augment": augment} | {"path": str(path)} | ({"classes": 2} if "shards" in str(path) else {})
    )
    given = {"steps": 12, "batch_size": 4, "every": 3, "seed": 2, "eta": 0.05}
    return Trial("imagefolder-vit", rule, **(given | settings), task_settings=of_task)


def test_batches_come_from_all_images_but_those_held_out(folders):
    """Of ten examples in memory two are held out: 28 of 30 images are drawn, 7 updates an epoch."""
    trial = streamed(folders)
    split, images = split_task(trial), open_images(folders)[0]
    stream = split.training.stream
    assert (split.training.n, split.validating.n, len(stream), epoch_length(trial)) == (8, 2, 28, 7)
    missing = np.setdiff1d(np.arange(30), stream.rows)
    held, _ = stream.prepared(*pixels(images, missing, 8))
    order = np.lexsort(np.asarray(held).T), np.lexsort(split.validating.x.T)
    np.testing.assert_allclose(
        np.asarray(held)[order[0]], split.validating.x[order[1]], rtol=1e-12, atol=1e-12
    )
    drawn = Drawn(split.training, seed=2, batch_size=4, first=0, every=7, workers=2)
    shown, labels = drawn.next()
    drawn.close()
    assert shown.shape == (7, 4, 8, 8, 3)
    seen = {tuple(image[0, 0]) for image in shown.reshape(28, 8, 8, 3)}
    expected = {tuple(images_row[0, 0]) for images_row in pixels(images, stream.rows, 8)[0]}
    assert seen == expected
    assert sorted(labels.ravel().tolist()) == sorted(stream.labels.tolist())


@pytest.mark.slow
def test_gradient_descent_on_a_stream_by_hand(folders):
    """Twelve updates, in another epoch from the eighth on, with the targets and the colours of the task."""
    trial = streamed(folders)
    run, task = train(trial, workers=3), split_task(trial).training
    images = open_images(folders)[0]
    gradient, theta = jax.jit(jax.grad(task.loss)), task.init(2)
    for batch in ordered_batches(2, 0, 12, examples=28, batch_size=4):
        shown, labels = pixels(images, task.stream.rows[batch], 8)
        x = ((shown / 255 - task.stream.mean) / task.stream.spread).reshape(4, -1)
        theta = theta - 0.05 * gradient(theta, x, np.eye(2)[labels])
    np.testing.assert_allclose(run["final_params"], theta, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(run["train_loss"][-1], task.loss(theta), rtol=1e-8)
    np.testing.assert_allclose(run["epoch"], run["step"] / 7)
    assert "batches are streamed from all 30" in run.attrs["description"]


@pytest.mark.slow
def test_a_stream_goes_on_to_the_same_bits_whatever_the_threads(folders, tmp_path):
    trial = streamed(folders)

    def stop(done):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trial, folder=tmp_path, checkpoint_every=6, progress=stop, workers=3)
    resumed = train(trial, folder=tmp_path, checkpoint_every=6, workers=1)
    xr.testing.assert_identical(resumed.drop_vars(NOT_REPRODUCED), train(trial).drop_vars(NOT_REPRODUCED))


def test_only_what_is_drawn_is_augmented(noise):
    """The examples in memory, the scale, validation and test are those of the unaugmented task, bit for bit."""
    plain, augmented = (split_task(streamed(noise, augment=how)) for how in ("none", "crop-flip"))
    for one, other in zip(
        (plain.training, plain.validating), (augmented.training, augmented.validating), strict=True
    ):
        for name in ("x", "y", "x_test", "y_test"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
        assert np.array_equal(one.stream.mean, other.stream.mean)
    assert "augment" not in plain.training.description
    assert "streamed from all 20, augmented by crop-flip" in augmented.training.description
    shown = []
    for split in (plain, augmented):
        drawn = Drawn(split.training, seed=2, batch_size=4, first=0, every=4, workers=1)
        shown.append(drawn.next())
        drawn.close()
    assert np.array_equal(shown[0][1], shown[1][1])
    assert not (shown[0][0] == shown[1][0]).all(axis=(2, 3, 4)).any()


def test_stored_runs_keep_their_name_and_augmented_ones_have_another(noise, tmp_path):
    """The digest is of the settings before there was augmentation: runs of that time are found, and go on.

    Cells of a campaign likewise, whose task tells all of its settings all the same.
    """

    def trial(**given):
        of_task = {"path": "images", "stream": True} | given
        return Trial("imagefolder-vit", "sgd", steps=4, eta=0.05, every=2, task_settings=of_task).settings

    for given in ({}, {"augment": "none"}):
        digest = hashlib.sha256(json.dumps(trial(**given), sort_keys=True).encode()).hexdigest()
        assert digest[:16] == "ef40a4482b96e831"
    augmented = trial(augment="crop-flip")
    assert augmented["task_settings"] == trial()["task_settings"] | {"augment": "crop-flip"}
    RunLog(tmp_path / "log.jsonl", trial()).keep_until(-1)
    with pytest.raises(InvalidInput, match="of a run with another task_settings"):
        RunLog(tmp_path / "log.jsonl", augmented)
    for how, told in (("none", None), ("crop-flip", "crop-flip")):
        task = split_task(streamed(noise, augment=how)).training
        assert task.settings["augment"] == how
        assert Cell(task, "sgd", 4, 0).settings["task"].get("augment") == told


@pytest.mark.slow
def test_augmented_training_by_hand_stopped_and_resumed(noise, tmp_path):
    """Twelve updates, four an epoch, stopped within the third; the losses told are of whole images."""
    trial = streamed(noise, augment="crop-flip")

    def stop(done):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trial, folder=tmp_path, checkpoint_every=6, progress=stop, workers=3)
    run, task = train(trial, folder=tmp_path, checkpoint_every=6, workers=1), split_task(trial).training
    xr.testing.assert_identical(run.drop_vars(NOT_REPRODUCED), train(trial).drop_vars(NOT_REPRODUCED))
    assert epoch_length(trial) == 4
    gradient, theta = jax.jit(jax.grad(task.loss)), task.init(2)
    for step, batch in enumerate(ordered_batches(2, 0, 12, examples=18, batch_size=4)):
        shown, labels = pixels(task.stream, batch, 8, cuts_of("crop-flip", seed=2, epoch=step // 4))
        x = ((shown / 255 - task.stream.mean) / task.stream.spread).reshape(4, -1)
        theta = theta - 0.05 * gradient(theta, x, np.eye(2)[labels])
    np.testing.assert_allclose(run["final_params"], theta, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(run["train_loss"][-1], task.loss(theta), rtol=1e-8)


def test_what_cannot_be_streamed_is_refused(folders):
    with pytest.raises(InvalidInput, match="batch_size=29 must be at most the 28 examples"):
        train(streamed(folders, batch_size=29))
    with pytest.raises(InvalidInput, match="workers=0 must be"):
        train(streamed(folders), workers=0)
    trial = streamed(folders)
    trial.task_settings["stream"] = "yes"
    with pytest.raises(InvalidInput, match="stream='yes' must be true or false"):
        trial.check()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folders", "shards"])
def test_a_stream_survives_being_killed(form, request, tmp_path):
    """Another process, killed with SIGKILL twice in different epochs, then left to end."""
    path = request.getfixturevalue(form)
    assert form in str(path)
    trial = streamed(path, "sgdm", steps=240)
    code = (
        "import pathlib, sys, jax\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n"
        "from eos_sde.trials import Trial, train\n"
        f"trial = Trial('imagefolder-vit', 'sgdm', steps=240, every=3, batch_size=4, seed=2, eta=0.05, "
        f"task_settings={dict(trial.task_settings)!r})\n"
        "train(trial, folder=pathlib.Path(sys.argv[1]), checkpoint_every=12)\n"
    )
    log, killed = tmp_path / "log.jsonl", 0
    for rows in (8, 40):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=os.environ)
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > rows):
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    run = xr.load_dataset(tmp_path / "run.nc", engine="h5netcdf")
    xr.testing.assert_identical(run.drop_vars(NOT_REPRODUCED), train(trial).drop_vars(NOT_REPRODUCED))
