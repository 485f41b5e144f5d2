"""Streamed batches: the order of runs in memory, resumed to the same bits, and memory that does not grow."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from eos_sde.bridge.image_folder_tasks import open_images
from eos_sde.bridge.readers.labelled import pixels as decoded
from eos_sde.bridge.readers.random_cuts import cuts_of
from eos_sde.trials.batch_order import ordered_batches
from eos_sde.trials.image_stream import image_batches
from solvers.errors import InvalidInput


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty images whose red tells which they are; two more are held out."""
    root = tmp_path_factory.mktemp("stream")
    for name in "ab":
        (root / name).mkdir()
        for k in range(11):
            Image.new("RGB", (4, 4), (20 * k, 0, 0)).save(root / name / f"{k:02d}.png")
    return open_images(root)[0]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Nine images of noise, on which every cut is another; one more is held out."""
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    (root / "a").mkdir()
    for k in range(10):
        Image.fromarray(rng.integers(0, 256, (20 + k, 30, 3), dtype=np.uint8)).save(root / "a" / f"{k}.png")
    return open_images(root)[0]


def taken(stream, count):
    return [next(stream) for _ in range(count)]


def test_the_order_is_that_of_runs_in_memory(images):
    assert len(images) == 20
    found = taken(image_batches(images, batch_size=6, side=4, seed=5), 7)
    rows = ordered_batches(5, 0, 7, examples=20, batch_size=6)
    reds = np.array([20 * (k if k < 9 else 10) for k in range(10)] * 2)
    for (pixels, labels), expected in zip(found, rows, strict=True):
        assert pixels.shape == (6, 4, 4, 3)
        assert pixels[:, 0, 0, 0].tolist() == reds[expected].tolist()
        assert labels.tolist() == (expected // 10).tolist()


@pytest.mark.parametrize("workers", [1, 3])
def test_resumed_it_gives_the_same_bits(images, workers):
    whole = taken(image_batches(images, batch_size=6, side=3, seed=1), 9)
    rest = taken(image_batches(images, batch_size=6, side=3, seed=1, first=4, workers=workers), 5)
    for (one, labels), (other, others) in zip(whole[4:], rest, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(labels, others)


def test_augmented_batches_are_cut_anew_each_epoch(noise):
    """Four updates an epoch of nine images in batches of two; unaugmented is the default, and other bits."""
    given = {"batch_size": 2, "side": 6, "seed": 5}
    found = taken(image_batches(noise, augment="crop-flip", **given), 9)
    plain, default = (taken(image_batches(noise, **given, **how), 9) for how in ({"augment": "none"}, {}))
    for step, rows in enumerate(ordered_batches(5, 0, 9, examples=9, batch_size=2)):
        expected, labels = decoded(noise, rows, 6, cuts_of("crop-flip", seed=5, epoch=step // 4))
        assert np.array_equal(found[step][0], expected)
        assert np.array_equal(found[step][1], labels)
        assert np.array_equal(plain[step][0], decoded(noise, rows, 6)[0])
        assert np.array_equal(default[step][0], plain[step][0])
        others = decoded(noise, rows, 6, cuts_of("crop-flip", seed=5, epoch=step // 4 + 1))[0]
        for one, whole, other in zip(expected, plain[step][0], others, strict=True):
            assert not np.array_equal(one, whole)
            assert not np.array_equal(one, other)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("first", [3, 4, 6])
def test_resumed_augmentation_gives_the_same_bits(noise, workers, first):
    """From within an epoch and from its end, whatever the threads."""
    given = {"batch_size": 2, "side": 6, "seed": 1, "augment": "crop-flip"}
    whole = taken(image_batches(noise, **given), 11)
    rest = taken(image_batches(noise, first=first, workers=workers, **given), 11 - first)
    for (one, labels), (other, others) in zip(whole[first:], rest, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(labels, others)


def test_memory_holds_a_few_batches(images):
    """60 batches of 20 x 64 x 64 x 3 bytes pass, 15 MB; four are held at once, and what decoding takes."""
    stream = image_batches(images, batch_size=20, side=64, seed=1)
    next(stream)
    tracemalloc.start()
    for _ in range(60):
        next(stream)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    stream.close()
    assert peak < 10 * 20 * 64 * 64 * 3


def test_what_cannot_be_streamed_is_refused(images, tmp_path):
    for given, words in (
        ({"batch_size": 21}, "batch_size=21 must be at most the 20 images"),
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"first": -1}, "first=-1"),
        ({"workers": 0}, "workers=0"),
        ({"side": True}, "side=True"),
        ({"augment": "crop"}, "augment='crop' is not known: choose one of none, crop-flip"),
    ):
        with pytest.raises(InvalidInput, match=words):
            image_batches(images, **({"batch_size": 4, "side": 4, "seed": 0} | given))
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(2):
            stream = io.BytesIO()
            Image.new("RGB", (4, 4)).save(stream, "PNG")
            (tmp_path / name / f"{k}.png").write_bytes(
                stream.getvalue()[: 30 if (name, k) == ("b", 0) else None]
            )
    broken = image_batches(open_images(tmp_path)[0], batch_size=2, side=4, seed=0)
    with pytest.raises(InvalidInput, match=r"b/0.png is no whole JPEG or PNG"):
        next(broken)
