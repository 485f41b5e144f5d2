"""What speaks against a forecast, from saved points made by hand and from flows."""

import jax.numpy as jnp
import pytest

from eos_sde.bridge import central_flow, stochastic_central_flow
from eos_sde.bridge.flow_validity import cautions, swing_after_overshoot

SOUND = {
    "loss": 0.8, "mean_loss": 1.0, "radius": 0.7, "critical_modes": 0, "unresolved_loss": 0.05,
    "effective_sharpness": 0.9, "resting_growth": float("nan"),
    "iterate_sharpness": 2.0, "iterate_sharpness_stderr": 0.1,
}  # fmt: skip


def of(*changes, rule="sgd", full_batch=False, stopped=""):
    return cautions([SOUND | change for change in changes], rule=rule, full_batch=full_batch, stopped=stopped)


def test_nothing_speaks_against_a_small_resolved_stable_fluctuation():
    assert of({}, {}) == ""
    assert of({}, full_batch=True) == ""


@pytest.mark.parametrize(
    ("change", "settings", "told"),
    [
        (
            {"loss": 0.6},
            {},
            "makes up 40 % of the mean loss, so that what the second order leaves out may be 16 %",
        ),
        ({"radius": 1.02}, {}, "mean-square unstable at 1 of 2 saved points"),
        (
            {"unresolved_loss": 0.12},
            {"rule": "adam"},
            "60 % of the excess loss comes from outside the carried modes, where",
        ),
        (
            {"iterate_sharpness": 8.0, "iterate_sharpness_stderr": 6.0},
            {},
            "the sharpness of iterates is uncertain by more than a quarter at 1 of 2 saved points",
        ),
        ({"critical_modes": 2}, {"full_batch": True, "rule": "rmsprop"}, "swings about its edge"),
        (
            {"critical_modes": 1, "resting_growth": 0.05},
            {"full_batch": True, "rule": "nesterov"},
            "does not rest at its edge as the flow does: a disturbance of the oscillation grows e-fold in 20 steps",
        ),
        ({"critical_modes": 1}, {"full_batch": True, "rule": "adam"}, "Adam bursts"),
        ({}, {"stopped": "step 40: the fluctuations outgrow"}, "ended early, at step 40"),
    ],
)
def test_each_reason(change, settings, told):
    assert told in of({}, change, **settings)


def test_descent_at_the_edge_is_known():
    assert of({}, {"critical_modes": 2}, full_batch=True) == ""
    rising = [{"critical_modes": 1, "effective_sharpness": level} for level in (0.98, 1.04, 1.08)]
    held = {"critical_modes": 1, "effective_sharpness": 1.0}
    assert of(*rising, full_batch=True) == ""  # still before the burst, which the flow knows how to reach
    assert of(*rising[:2], held, full_batch=True) == ""
    assert "overshoots it by 8 %" in of(*rising, held, full_batch=True)
    assert swing_after_overshoot([0.98, 1.04, 1.08, 1.0]) == pytest.approx(0.08)


def test_momentum_may_rest_at_its_edge():
    assert of({}, {"critical_modes": 1, "resting_growth": -0.01}, full_batch=True, rule="sgdm") == ""


def test_no_point_at_all():
    assert of(stopped="step 0: beyond the edge") == "the flow ended early, at step 0: beyond the edge"


@pytest.mark.slow
def test_flows_carry_their_caution(small_task, small_start):
    given = {"eta": 0.05, "steps": 10, "modes": 6, "save_every": 10}
    calm = stochastic_central_flow(small_task, small_start, batch_size=32, **given)
    assert calm.attrs["caution"] == ""
    assert central_flow(small_task, jnp.asarray(small_start), **given).attrs["caution"] == ""
    wild = stochastic_central_flow(small_task, small_start, batch_size=1, **(given | {"eta": 0.6}))
    assert "mean-square unstable" in wild.attrs["caution"] or "ended early" in wild.attrs["caution"]
