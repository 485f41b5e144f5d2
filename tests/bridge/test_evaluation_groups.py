"""Directions in groups against all at once, and the count of a network's values by hand."""

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import evaluation_groups
from eos_sde.bridge.evaluation_groups import in_groups, values_of_example


@pytest.mark.parametrize(("together", "part"), [(1, 1), (2, 2), (4, 3), (5, 3), (6, 6), (100, 6)])
def test_directions_in_groups(small_task, monkeypatch, together, part):
    """Of the largest divisor of six that memory is left for."""
    values = small_task.n * values_of_example(small_task)
    monkeypatch.setattr(evaluation_groups, "_TOGETHER", together * values)
    rows = jnp.arange(24.0, dtype=jnp.float32).reshape(6, 4)
    assert_allclose(in_groups(jnp.sin, rows, small_task), jnp.sin(rows), rtol=1e-6)
    program = str(jax.make_jaxpr(lambda rows: in_groups(jnp.sin, rows, small_task))(rows))
    assert f"f32[{part},4] = sin" in program


def test_values_of_an_example(small_task):
    """Of every layer the product, the sum with its biases, and of all but the last an activation."""
    hidden = small_task.settings["hidden"]
    assert values_of_example(small_task) == 3 * sum(hidden) + 2 * small_task.outputs
