"""The boundary of CAEO by its flow: how a crossing is found, which margins are looked at, and a network's runs."""

import math

import numpy as np
import pytest

from eos_sde import bridge
from eos_sde.bridge.caeo_boundary import boundary_from_counts, measure_caeo_boundary
from eos_sde.bridge.caeo_horizon import Reading, _ladder, crossing, forecast_caeo_boundary
from solvers import InvalidInput


def test_crossing_of_a_straight_line_is_exact():
    """Scores linear in log(margin): a monotone cubic reproduces a line, to half a step of its 2001 points."""
    margins = 0.1 * 1.35 ** np.arange(6)
    scores = 3.0 * np.log(margins / 0.2)
    step = np.log(margins[-1] / margins[0]) / 2000
    for level in (-1.5, 0.0, 1.0):
        assert np.log(crossing(margins, scores, level) / 0.2) == pytest.approx(level / 3.0, abs=step)


def test_crossing_outside_the_margins():
    margins = np.array([0.1, 0.2, 0.4])
    assert crossing(margins, np.array([1.0, 2.0, 3.0]), 0.0) == 0.0
    assert crossing(margins, np.array([-3.0, -2.0, -1.0]), 0.0) == math.inf
    # where the flow itself broke down the run is lost for sure
    assert 0.2 < crossing(margins, np.array([-3.0, -2.0, math.inf]), 0.0) < 0.4
    # a margin so large that all slows down does not undo the runaway at a smaller one
    assert crossing(margins, np.array([-1.0, 1.0, -1.0]), 0.0) == pytest.approx(
        crossing(margins, np.array([-1.0, 1.0, 1.0]), 0.0)
    )


@pytest.mark.parametrize("truth", [0.03, 0.2, 1.1])
@pytest.mark.parametrize("gap", [0.0, 0.1, 0.9])
def test_ladder_brackets_the_interval(truth, gap):
    """Wherever it starts, its ends are beyond the 95 % interval, unless the margins or the flows end."""
    visited = []

    def read(delta):
        visited.append(delta)
        return Reading(6.0 * math.log(delta / truth), 0.0, 1.0, np.zeros(1))

    found = _ladder(read, lambda reading: reading.sharpness, gap)
    assert sorted(visited) == sorted(found)  # none twice
    assert len(found) <= 9
    scores = [found[margin].sharpness for margin in sorted(found)]
    beyond = (scores[0] < -1.96, scores[-1] > 1.96)
    assert all(beyond) or len(found) == 9 or min(found) < 0.0136 or max(found) > 1.4
    assert min(found) >= 0.01
    assert max(found) <= 1.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 100}, "steps=100"),
        ({"steps": 152}, "steps=152 must be a multiple of 5"),
        ({"batch_size": 63}, "batch_size=63 fewer than the 63 examples"),
        ({"start": np.zeros(3)}, "start must be 118 finite weights"),
    ],
)
def test_bad_input_is_refused(small_task, small_start, changes, words):
    given = {"start": small_start, "batch_size": 8, "steps": 150, **changes}
    with pytest.raises(InvalidInput, match=words):
        forecast_caeo_boundary(small_task, **given)


@pytest.mark.slow
def test_forecast_of_a_network_against_its_runs():
    """Digits, batch 8: the boundary of eight runs a margin lies in the forecast's interval, widened by its own.

    Developed on this network: the test holds what was seen, it is no judgement. The negative control is half the
    horizon, in which the sharpness has no time to climb as far: the boundary must lie higher.
    """
    task = bridge.load_task("digits-mlp", examples=300, hidden=(32,), pool=2)
    theta = bridge.checkpoint(task, eta=0.3, steps=150, seed=12, batch_size=32)
    given = {"eta": 0.3, "batch_size": 8}
    found = forecast_caeo_boundary(task, theta, steps=450, **given)
    margins = [0.3, 0.4, 0.5, 0.65]
    runs = measure_caeo_boundary(task, theta, deltas=margins, steps=450, replicas=8, seed=10012, **given)
    _, low, high = boundary_from_counts(margins, runs["runs_away"].values, 8)
    assert float(found["boundary_low"]) < high
    assert float(found["boundary_high"]) > low
    shorter = forecast_caeo_boundary(task, theta, steps=225, **given)
    assert float(shorter["boundary"]) > float(found["boundary"])
