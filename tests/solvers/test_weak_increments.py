"""Two-point and three-point increments: their definition, their windows, their moments."""

import numpy as np
import pytest

from solvers import weak_increments, wiener
from solvers.errors import InvalidInput
from solvers.schemes import Draws

SOURCES = [weak_increments.two_point, weak_increments.three_point]


def test_numbers_are_what_the_module_says():
    """Bit by bit from the generator, in plain Python integers."""
    two = weak_increments.two_point(7, 3, 130, 2, dt=4.0)
    three = weak_increments.three_point(7, 3, 10, 2, dt=4.0)
    for path in range(3):
        for c in range(2):
            key = np.uint64(7), np.uint64(path)
            for step in range(130):
                word, _ = wiener.threefry2x64(np.uint64(step // 64), np.uint64((2 << 32) | c), *key)
                assert two[path, step, c] == (2.0 if int(word) >> (step % 64) & 1 else -2.0)
            for step in range(10):
                words = wiener.threefry2x64(np.uint64(step // 4), np.uint64((2 << 32) | (1 << 31) | c), *key)
                piece = int(words[step % 4 // 2]) >> (32 * (step % 2)) & 0xFFFFFFFF
                sign = (piece >= 2**32 - 715827883) - (piece < 715827883)
                assert three[path, step, c] == sign * 2.0 * np.sqrt(3.0)


@pytest.mark.parametrize("source", SOURCES)
def test_a_window_has_the_numbers_of_the_whole(source):
    whole = source(3, 20, 150, 2)
    window = source(3, 5, 70, 2, first_path=11, first_step=61)
    np.testing.assert_array_equal(window, whole[11:16, 61:131])


@pytest.mark.parametrize("source", SOURCES)
def test_moments_and_independence(source):
    """Means of n independent terms of variance v: |mean| < 5 sqrt(v/n), false alarm 6e-7 each."""
    z = source(11, 4000, 256)[:, :, 0]
    fourth = 1.0 if source is weak_increments.two_point else 3.0
    for sample, variance in (
        (z, 1.0),
        (z**2 - 1, fourth - 1),
        (z[:, 1:] * z[:, :-1], 1.0),
        (z[:, 64:] * z[:, :-64], 1.0),
        (z[1:] * z[:-1], 1.0),
    ):
        assert abs(sample.mean()) <= 5 * np.sqrt(variance / sample.size) + 1e-15
    assert set(np.unique(np.round(z, 12))) <= {-1.0, 1.0, 0.0, round(3**0.5, 12), -round(3**0.5, 12)}


def test_all_kinds_in_the_order_of_the_draws():
    dw = weak_increments.drawn(Draws(2, 1, 3), 5, 4, 6, 0.25, first_path=8)
    assert dw.shape == (4, 6, 6)
    np.testing.assert_array_equal(dw[..., :2], wiener.increments(5, 4, 6, 2, 0.25, first_path=8))
    np.testing.assert_array_equal(dw[..., 2:3], weak_increments.three_point(5, 4, 6, 1, 0.25, first_path=8))
    np.testing.assert_array_equal(dw[..., 3:], weak_increments.two_point(5, 4, 6, 3, 0.25, first_path=8))


@pytest.mark.parametrize("bad", [{"paths": 0}, {"steps": 0}, {"components": 0}, {"dt": 0.0}, {"seed": -1}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        weak_increments.two_point(**{"seed": 0, "paths": 1, "steps": 1, **bad})
