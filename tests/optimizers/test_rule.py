"""The learning-rate rule: its values in NumPy, plain numbers and JAX, and what it refuses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eos_sde.optimizers import rule
from solvers.errors import InvalidInput

SHARPNESS = [-50.0, -1e-300, 0.0, 1e-300, 1.0, 3.8, 4.0, 1e3, 1e300, np.inf]


@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("delta", [0.5, 0.1, 0.0, -0.05, 1.999])
def test_plain_numpy_and_jax_agree_with_the_formula(sharpness, delta):
    expected = min(0.5, (2 - delta) / sharpness) if sharpness * 0.5 > 2 - delta else 0.5
    plain = rule.learning_rate(0.5, sharpness, delta)
    array = rule.learning_rate(0.5, np.full((2, 1), sharpness), delta)
    jax_value = jax.jit(lambda s: rule.learning_rate(0.5, s, delta, xp=jnp))(sharpness)
    assert isinstance(plain, float)
    assert plain == expected  # the base rate itself where it is stable, not a rounded copy
    assert array.shape == (2, 1)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_allclose(jax_value, expected, rtol=1e-15)


@given(
    base=st.floats(1e-6, 1e3),
    sharpness=st.floats(-1e6, 1e6),
    delta=st.floats(-1.0, 1.99),
    error=st.floats(0.0, 1e3),
)
def test_rate_is_never_above_base_or_edge_and_falls_with_the_error(base, sharpness, delta, error):
    rate = rule.learning_rate(base, sharpness, delta)
    careful = rule.learning_rate(base, sharpness, delta, error_bound=error)
    assert 0 < careful <= rate <= base
    assert rate * sharpness <= (2 - delta) * (1 + 1e-15)
    if sharpness <= 0:
        assert rate == base


def test_nan_sharpness_is_not_trained_through():
    assert np.isnan(rule.learning_rate(0.5, np.nan, 0.1))
    assert jnp.isnan(rule.learning_rate(0.5, jnp.nan, 0.1, xp=jnp))


def test_single_precision_stays_single():
    assert rule.learning_rate(np.float32(0.5), np.float32(8.0), 0.1).dtype == np.float32
    assert rule.learning_rate(jnp.float32(0.5), jnp.float32(8.0), 0.1, xp=jnp).dtype == jnp.float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delta": 2.0}, "delta must be a finite number below 2, got 2.0"),
        ({"delta": 3}, "got 3.0"),
        ({"delta": float("nan")}, "got nan"),
        ({"delta": float("-inf")}, "got -inf"),
        ({"delta": "a"}, "delta must be a single number, got 'a'"),
        ({"delta": np.ones(2)}, "delta must be a single number"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": -1}, "got -1.0"),
        ({"learning_rate": float("inf")}, "got inf"),
        ({"learning_rate": [0.1, 0.2]}, "learning_rate must be a single number"),
    ],
)
def test_refuses_with_one_sentence(settings, words):
    with pytest.raises(InvalidInput) as caught:
        rule.validate(**settings)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_accepts_the_edge_beyond_it_and_schedules():
    rule.validate(learning_rate=0.1, delta=0.0)
    rule.validate(learning_rate=lambda count: -1.0, delta=-0.05)


def test_the_rule_does_not_import_jax():
    script = (
        "import sys; import eos_sde.optimizers; from eos_sde.optimizers import rule; "
        "rule.learning_rate(0.1, 2.0, 0.1); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
