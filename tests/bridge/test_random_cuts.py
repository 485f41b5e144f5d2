"""Random resized crops and flips: their law against closed forms, their centre, and their pixels against Pillow's."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from eos_sde.bridge.batches import stream
from eos_sde.bridge.image_folder_tasks import open_images
from eos_sde.bridge.readers.decoding import patch
from eos_sde.bridge.readers.labelled import pixels
from eos_sde.bridge.readers.random_cuts import Cut, cuts_of, random_cut
from solvers.errors import InvalidInput

MANY, SIDE = 20_000, 10**6
FALSE_ALARM = 1e-6
"""Of each statement on chance below; there are eight."""
FAR = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * MANY))
"""Farther than this, 0.019, an empirical distribution is from the true one with that probability at most
(Dvoretzky, Kiefer, Wolfowitz, Massart). Rounding to pixels moves it by 1e-5: images are a million wide."""
DEVIATIONS = 4.9
"""Of a normal variable, exceeded on either side with probability 1e-6; counts of hundreds are near enough."""
LEAST, LOG = 0.08, math.log(4 / 3)


def farthest(values, distribution):
    """Kolmogorov's distance to a distribution function."""
    at, steps = distribution(np.sort(values)), np.arange(len(values) + 1) / len(values)
    return max(np.max(steps[1:] - at), np.max(at - steps[:-1]))


def area_of_fitting(a):
    """Distribution of the area: |log aspect| is at most log(1/a) with probability min(1, log(1/a) / log(4/3))."""

    def up_to(a):
        beyond = np.maximum(a, 0.75)
        return np.minimum(a, 0.75) - LEAST + ((beyond - beyond * np.log(beyond)) - 0.75 * (1 + LOG)) / LOG

    return up_to(a) / up_to(np.float64(1.0))


def aspect_of_fitting(x):
    """Distribution of the logarithm of the aspect: its density is as exp(-|x|) - 0.08, the areas that fit."""

    def up_to(x):  # for x < 0
        return np.exp(x) - np.exp(-LOG) - LEAST * (x + LOG)

    below, whole = up_to(-np.abs(x)), 2 * up_to(np.float64(0.0))
    return np.where(x < 0, below, whole - below) / whole


def uniform(x):
    return np.clip(x, 0.0, 1.0)


@pytest.fixture(scope="module")
def cuts():
    """Of a square image, over places of the images of an epoch."""
    choose = cuts_of("crop-flip", seed=7, epoch=3)
    return [choose(place, SIDE, SIDE) for place in range(MANY)]


def test_areas_and_aspects_are_uniform_where_they_fit(cuts):
    """Ten tries all fail with probability (1 - 0.858)^10 = 3e-9, so the centre is not seen."""
    size = np.array([(cut.width, cut.height) for cut in cuts], float)
    area, aspect = size.prod(axis=1) / SIDE**2, np.log(size[:, 0] / size[:, 1])
    assert size.max() <= SIDE
    assert farthest(area, area_of_fitting) < FAR
    assert farthest(aspect, aspect_of_fitting) < FAR
    small = area[area < 0.75]
    assert farthest((small - LEAST) / (0.75 - LEAST), uniform) < FAR * math.sqrt(MANY / len(small))
    # the wrong conventions: sides cut off where they do not fit, the aspect itself uniform
    assert farthest(area, lambda a: (a - LEAST) / (1 - LEAST)) > FAR
    grid = np.linspace(-LOG, LOG, 10_001)
    density = np.exp(grid) * (np.exp(-np.abs(grid)) - LEAST)
    assert farthest(aspect, lambda x: np.interp(x, grid, np.cumsum(density) / density.sum())) > FAR


def test_places_are_uniform_and_half_are_flipped(cuts):
    for first, length in (("left", "width"), ("upper", "height")):
        starts, lengths = (np.array([getattr(cut, name) for cut in cuts]) for name in (first, length))
        assert starts.min() >= 0
        assert (starts + lengths).max() <= SIDE
        assert farthest((starts + 0.5) / (SIDE - lengths + 1), uniform) < FAR
    flipped = sum(cut.flipped for cut in cuts)
    assert abs(flipped - MANY / 2) < DEVIATIONS * math.sqrt(MANY) / 2


def test_images_out_of_range_take_the_centre_after_ten_tries():
    """Three times as wide as high, an area a fits where a <= aspect / 3: a try in 0.28, so 0.037 take the centre."""
    fits = ((4 / 3 - 3 / 4) / 3 / (2 * LOG) - LEAST) / (1 - LEAST)
    choose, centre = cuts_of("crop-flip", seed=1, epoch=0), (5 * SIDE // 6, 0, 4 * SIDE // 3, SIDE)
    found = [choose(place, 3 * SIDE, SIDE) for place in range(MANY)]
    share = np.mean([(cut.left, cut.upper, cut.width, cut.height) == centre for cut in found])

    def deviations(tries):
        expected = (1 - fits) ** tries
        return abs(share - expected) / math.sqrt(expected * (1 - expected) / MANY)

    assert deviations(10) < DEVIATIONS
    assert min(deviations(9), deviations(11)) > DEVIATIONS


def test_the_centre_is_as_much_as_has_an_aspect_in_range():
    words = stream(0)
    assert random_cut(words, SIDE, 1000).box == ((SIDE - 1333) // 2, 0, (SIDE - 1333) // 2 + 1333, 1000)
    assert random_cut(words, 1000, SIDE).box == (0, (SIDE - 1333) // 2, 1000, (SIDE - 1333) // 2 + 1333)
    ones = SimpleNamespace(random_raw=lambda: 2**64 - 1)  # all of the area, aspect 4/3: never fits
    assert random_cut(ones, 50, 50) == Cut(0, 0, 50, 50, False)
    assert random_cut(ones, 50, 60) == Cut(0, 0, 50, 60, False)
    for size in ((1, 1), (2, 1), (1, 9)):
        for _ in range(30):
            left, upper, right, lower = random_cut(words, *size).box
            assert 0 <= left < right <= size[0]
            assert 0 <= upper < lower <= size[1]


def test_a_cut_is_a_function_of_seed_epoch_and_place():
    given = [(seed, epoch, place) for seed in (1, 2) for epoch in (0, 1, 2) for place in (0, 1, 5)]
    found = {key: cuts_of("crop-flip", seed=key[0], epoch=key[1])(key[2], 500, 375) for key in given}
    assert len(set(found.values())) == len(given)
    for seed, epoch, place in reversed(given):
        assert cuts_of("crop-flip", seed=seed, epoch=epoch)(place, 500, 375) == found[seed, epoch, place]
    assert cuts_of("none", seed=1, epoch=0) is None
    with pytest.raises(InvalidInput, match="augment='flip' is not known: choose one of none, crop-flip"):
        cuts_of("flip", seed=1, epoch=0)


def test_nothing_beside_the_cut_is_looked_at():
    """Half blue, half green within red, which no filter brings in; flipped, the halves change places."""
    image, content = Image.new("RGB", (40, 30), (255, 0, 0)), io.BytesIO()
    image.paste((0, 0, 255), (10, 5, 18, 25))
    image.paste((0, 255, 0), (18, 5, 26, 25))
    image.save(content, "PNG")
    for side in (4, 64):
        shown = patch(content.getvalue(), side, "here", lambda *_: Cut(10, 5, 16, 20, False))
        assert shown[..., 0].max() == 0
        assert shown[0, 0].tolist() == [0, 0, 255]
        assert shown[0, -1].tolist() == [0, 255, 0]
        turned = patch(content.getvalue(), side, "here", lambda *_: Cut(10, 5, 16, 20, True))
        assert np.array_equal(turned, shown[:, ::-1])


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pixels_are_those_of_pillow(form, tmp_path):
    rng, sizes = np.random.default_rng(0), ((40, 30), (30, 47), (9, 64))
    (tmp_path / "a").mkdir()
    for k, (width, height) in enumerate((*sizes, (5, 5))):  # of one class the last is held out
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "a" / f"{k}.{form.lower()}", form)
    images, choose = open_images(tmp_path)[0], cuts_of("crop-flip", seed=4, epoch=2)
    rows = np.array([2, 0, 1, 0])
    shown, labels = pixels(images, rows, 12, choose)
    assert labels.tolist() == [0] * 4
    whole, _ = pixels(images, rows, 12)
    for row, one, plain in zip(rows, shown, whole, strict=True):
        cut = choose(int(row), *sizes[row])
        with Image.open(tmp_path / "a" / f"{row}.{form.lower()}") as image:
            part = image.crop(cut.box).resize((12, 12), Image.Resampling.BILINEAR)
            assert np.array_equal(one, ImageOps.mirror(part) if cut.flipped else part)
            assert np.array_equal(plain, ImageOps.fit(image, (12, 12), Image.Resampling.BILINEAR))
        assert not np.array_equal(one, plain)
