"""Outcomes of CAEO in every region of its map: made-up runs, and a small network at the corners."""

import numpy as np
import pytest

from eos_sde.bridge.caeo_regions import OUTCOMES, _outcomes, diverged, measure_caeo_regimes
from solvers import InvalidInput

STEPS = 100


def label(sharpness, rate, loss, *, eta=1.0, level=3.0):
    given = (np.broadcast_to(np.asarray(v, float), (1, STEPS)) for v in (sharpness, rate, loss))
    return OUTCOMES[_outcomes(*given, eta=eta, level=level, first=1.0)[0][0]]


def test_outcomes_of_made_up_runs():
    late = np.where(np.arange(STEPS) < 60, 1.0, 0.5)  # capped from step 60 on
    assert label(2.0, 1.0, 1.0) == "uncapped"
    assert label(4.0, late, 1.0) == "runaway"
    assert label(2.0, late, 1.0) == "held"
    assert label(4.0, late[::-1], 1.0) == "held"  # capped early only
    assert label(4.0, late, np.where(np.arange(STEPS) == 50, np.nan, 1.0)) == "diverged"
    assert label(2.0, 1.0, 11.0) == "diverged"
    assert label(2.0, 1.0, 9.0) == "uncapped"
    # a loss that was high for a while, as in a catapult, is no divergence
    assert not diverged(np.ones((1, STEPS)), np.where(np.arange(STEPS) < 80, 1e3, 1.0)[None], 1.0)[0]


@pytest.mark.slow
def test_corners_of_a_network(small_task, small_start):
    """Far below the cap CAEO is SGD; at a cap of eight times 1/sharpness and a base rate beyond it diverges."""
    found = measure_caeo_regimes(
        small_task,
        small_start,
        eta_base=[1e-3, 100.0],
        batch_size=8,
        deltas=[-6.0, 0.1],
        steps=40,
        replicas=2,
    )
    names = np.array(OUTCOMES)[found["outcome"].values]
    assert (names[0] == "uncapped").all()
    assert (names[1, 0] == "diverged").all()
    assert (found["capped"].values[0] == 0).all()
    assert (found["share"].sum("outcome_name") == 1).all()
    assert found["sgd_diverged"].values.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deltas": [2.0]}, r"deltas=\[2.0\] must be margins below 2"),
        ({"deltas": []}, "must be margins below 2, at least one"),
        ({"eta_base": [0.0]}, r"eta_base=\[0.0\] must be positive learning rates"),
        ({"steps": 10}, "steps=10"),
        ({"batch_size": 64}, "batch_size=64 must be at most the 63 examples"),
    ],
)
def test_bad_input_is_refused(small_task, small_start, changes, words):
    given = {"eta_base": [0.05], "batch_size": 8, "steps": 30, "deltas": [0.5], **changes}
    with pytest.raises(InvalidInput, match=words):
        measure_caeo_regimes(small_task, small_start, **given)
