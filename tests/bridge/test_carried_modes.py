"""How many modes a flow carries: few where they hold the excess loss, all that may be where they do not."""

import jax.numpy as jnp
import pytest

from eos_sde.bridge import load_task
from eos_sde.bridge.carried_modes import enough_modes, usual_modes
from eos_sde.bridge.spectrum import most_modes

GIVEN = {"p": 0.1, "horizon": 200, "seed": 0}


def test_numbers_that_the_weights_allow(small_task):
    assert most_modes(small_task.size) == 23
    assert most_modes(100) == 100
    assert usual_modes(small_task, None) == 16
    assert usual_modes(small_task, 3) == 3


@pytest.mark.slow
def test_few_modes_do_for_ten_outputs_and_all_for_a_long_step(small_task, small_start):
    """Ten outputs make about ten steep directions. A long step needs more, for what is outside is stepped."""
    theta = jnp.asarray(small_start)
    carried = [
        enough_modes(small_task, theta, eta=eta, stride=stride, **GIVEN).shape[1]
        for eta, stride in ((0.01, 1), (0.1, 1000))
    ]
    assert carried[0] < carried[1] == 23
    few = load_task("deep-linear", size="small")
    assert enough_modes(few, few.init(0), eta=0.01, stride=1, **GIVEN).shape[1] <= most_modes(few.size)
