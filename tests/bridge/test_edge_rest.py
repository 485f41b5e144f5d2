"""The rest at the edge: its growth in closed form for descent, and from runs of the self-stabilization map."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge.edge_rest import resting_growth
from eos_sde.training.linear_rules import linear_rule


@pytest.mark.parametrize("drive", [1e-3, 0.1])
def test_descent_spirals_out(drive):
    """Damian, Nichani and Lee's map: modulus sqrt(1 + 2 alpha eta^2) about its 2-cycle, with drive 2 alpha eta^2."""
    assert_allclose(resting_growth(linear_rule("gd"), drive, 0.0), 0.5 * np.log1p(drive), rtol=1e-9)


def leaving(rule, drive, pull, steps):
    """|y| of the map with x^2 and y x, from a disturbance of 1e-7 of its 2-cycle, at unit |T|."""
    b, gain, edge = rule.momentum, rule.gain, float(rule.edge(1.0))
    size = drive**0.5
    x, y, u = size * (1 + 1e-7), 0.0, 0.0
    # the velocity that repeats itself with the other sign
    v = -gain * edge * size / (1 + b)
    seen = []
    for _ in range(steps):
        slope, force = (edge + y) * x, pull * y + (x * x - drive) / 2
        v, u = b * v + gain * slope, b * u + gain * force
        x -= gain * slope + b * v if rule.nesterov else v
        y -= gain * force + b * u if rule.nesterov else u
        seen.append(abs(y))
    return np.array(seen)


@pytest.mark.parametrize("name", ["sgdm", "nesterov"])
@pytest.mark.parametrize(
    ("b", "drive", "pull"), [(0.9, 2e-5, 0.0), (0.9, 2e-5, 5e-3), (0.9, 1e-3, 0.0), (0.5, 1e-2, 0.02)]
)
def test_growth_is_that_of_runs(name, b, drive, pull):
    """Largest |y| in the fourth and the eighth part of a run in which a disturbance changes by a factor of e^8.

    Every part holds a half period, so a peak; the last peaks of two parts are the distance of the parts away from each
    other but for one half period, an eighth of the run: 1 of the 4 e-folds between at most, so 25 %. The map's x^2 and
    y x add the largest |y|, below 1e-4. Negative control: half the drive is off by more.
    """
    rule = linear_rule(name, momentum=b)
    predicted = resting_growth(rule, drive, pull)
    steps = int(8 / abs(predicted))
    seen = leaving(rule, drive, pull, steps)
    assert seen.max() < 1e-4
    fourth, eighth = (seen[steps * i // 8 : steps * (i + 1) // 8].max() for i in (3, 7))
    measured = np.log(eighth / fourth) / (steps / 2)
    assert_allclose(measured, predicted, rtol=0.25)
    if predicted > 0:
        assert abs(resting_growth(rule, drive / 2, pull) / measured - 1) > 0.25


def test_a_strong_pull_brings_it_to_rest():
    """Heavy ball, to first order in the drive: it rests where pull (1 - b)^2 > 2 b drive."""
    rule, drive = linear_rule("sgdm", momentum=0.9), 1e-6
    limit = 2 * 0.9 * drive / 0.01
    assert resting_growth(rule, drive, 0.9 * limit) > 0 > resting_growth(rule, drive, 1.2 * limit)
    assert resting_growth(linear_rule("gd"), drive, 0.1 * limit) < 0
