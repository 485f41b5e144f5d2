"""The monitor of the runaway: the law of the reduced model, false alarms, and what it must not take for one."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.optimizers import reduced_model, runaway
from solvers.errors import InvalidInput

W = runaway.WINDOW


def alarms(sharpness, capped, edge=None):
    """Return the alarm after each update, (steps, ...)."""
    monitor, seen = runaway.start(), []
    for value, binds in zip(sharpness, capped, strict=True):
        monitor = runaway.watch(monitor, value, binds, edge=edge)
        seen.append(monitor.runaway)
    return np.array(seen)


@pytest.mark.parametrize("quarter", [100, 300, 1000])
def test_sees_the_law_one_window_after_the_mark(quarter):
    """The law rises by a quarter after `quarter` updates.

    The mean lags by at most W, and its first value that counts (after W log 2 = 22 updates, their mean) is the law
    at half of them: by 11 updates at the first slope of the log, which is 1.56 times that at the mark. The condition
    on the scatter is met within 1.1 W of a steady rise. In all less than 2 W + 18.
    """
    t = np.arange(quarter + 400)
    sharpness = 40.0 * np.sqrt(1 + (1.25**2 - 1) * t / quarter)
    seen = alarms(sharpness, np.ones(t.size, bool))
    first = int(np.argmax(seen))
    assert quarter <= first <= quarter + 2 * W + 18
    assert seen[first:].all()
    assert not alarms(sharpness[::-1], np.ones(t.size, bool)).any()  # a start beyond the edge that comes down


def test_a_start_far_beyond_the_edge_needs_a_smaller_rise():
    """The law from five times the edge, level first: a rise by 5 % counts there, and not below 1.25 times the edge.

    It rises by 5 % after `rise` updates, by (1.05^2 - 1) of its square; the lag is at most that of the other test. A
    quarter would take (1.25^2 - 1)/(1.05^2 - 1) = 5.5 times as long.
    """
    rise = 400
    t = np.arange(rise + 400)
    climb = 10.0 * np.sqrt(1 + (1.05**2 - 1) * t / rise)
    sharpness = np.concatenate([np.full(100, 10.0), climb])
    binds = np.ones(sharpness.size, bool)
    seen = alarms(sharpness, binds, edge=2.0)
    assert 100 + rise <= int(np.argmax(seen)) <= 100 + rise + 2 * W + 18
    assert seen[-1]
    assert not alarms(sharpness, binds).any()
    assert not alarms(sharpness, binds, edge=9.0).any()
    assert not alarms(sharpness[::-1], binds, edge=2.0).any()  # while it comes down
    # where the cap seldom binds, being beyond the edge is no runaway
    assert not alarms(sharpness, np.arange(sharpness.size) % 5 < 2, edge=2.0).any()


def test_is_silent_where_the_cap_binds_rarely():
    """A rise by half with the cap binding at two of five updates, as noise would make it."""
    t = np.arange(2000)
    assert not alarms(4 * np.exp(t / 4000), t % 5 < 2).any()
    assert alarms(4 * np.exp(t / 4000), t % 5 < 4).any()


def test_false_alarms_at_constant_sharpness():
    """Log-normal scatter by 0.4: the docstring's one in a thousand for 1e5 updates; here 40 runs of 5000.

    The chance of a single false alarm among them is below 0.2 %. The negative control rises by 60 % meanwhile.
    """
    rng = np.random.default_rng(5)
    noise = np.exp(0.4 * rng.standard_normal((5000, 40)))
    always = np.ones(noise.shape, bool)
    assert not alarms(10 * noise, always).any()
    assert not alarms(10 * noise, always, edge=2.0).any()
    assert alarms(10 * noise * np.linspace(1, 1.6, 5000)[:, None], always).any(axis=0).all()


def test_a_scatter_delays_but_a_failed_measurement_changes_nothing():
    monitor = runaway.start()
    for step in range(100):
        monitor = runaway.watch(monitor, 5.0 + step, True)
    for bad in (math.nan, math.inf, -3.0, 0.0):
        assert runaway.watch(monitor, bad, True) == monitor


def test_jax_agrees_and_scans():
    rng = np.random.default_rng(1)
    sharpness = 10 * np.exp(0.01 * np.arange(200) + 0.1 * rng.standard_normal(200))
    capped = rng.random(200) < 0.8

    @jax.jit
    def scanned(sharpness, capped):
        def step(monitor, given):
            monitor = runaway.watch(monitor, *given, edge=jnp.asarray(5.0), xp=jnp)
            return monitor, monitor.rise

        return jax.lax.scan(step, runaway.start(xp=jnp), (sharpness, capped))

    final, rises = scanned(sharpness, capped)
    monitor, expected = runaway.start(), []
    for value, binds in zip(sharpness, capped, strict=True):
        monitor = runaway.watch(monitor, value, binds, edge=5.0)
        expected.append(monitor.rise)
    np.testing.assert_allclose(rises, expected, rtol=0, atol=1e-12)
    assert bool(final.runaway) == bool(monitor.runaway)


@pytest.mark.parametrize("start", [2.2, 10.0])
def test_reduced_model_runs_away_as_the_law_says(start):
    """The closed form of the law against the map; the error is that of a sum for an integral, alpha rate/S a step."""
    path = reduced_model.reduced_path("caeo", start=start, steps=3000)
    law = np.sqrt(start**2 + 2 * 1.9 * 0.02 * np.arange(3000))
    np.testing.assert_allclose(path["sharpness"], law, rtol=2e-3)
    by = 1.25 if start < 1.25 * 2 else 1.05  # the edge is at 2
    mark = (by**2 - 1) * start**2 / (2 * 1.9 * 0.02)
    first = int(np.argmax(path["runaway"]))
    assert mark <= first <= mark + 2 * W + 18


@pytest.mark.parametrize("landscape", reduced_model.LANDSCAPES)
@pytest.mark.parametrize("excess", [1.1, 5.0])
def test_cure_in_the_reduced_model(landscape, excess):
    """The proposal ends far above the edge of 2; the cure within a fifth of it, and is never lost.

    Above 2.4 the sharpness would have had to rise from the edge, or be unable to come down to it, in spite of the
    oscillation. Noise makes it rest lower: no more than by half for the noise here.
    """
    settings = {"start": 2 * excess, "steps": 3000, **reduced_model.LANDSCAPES[landscape]}
    proposal = reduced_model.reduced_path("caeo", **settings)
    cured = reduced_model.reduced_path("self-stabilizing", **settings)
    assert proposal["sharpness"][-500:].mean() > 4
    assert proposal["runaway"][-1] or landscape == "slow sharpening"
    assert not cured["lost"]
    assert 1 < cured["sharpness"][-500:].mean() < 2.4
    assert not cured["runaway"][-500:].any()


def test_constant_rate_and_fixed_excess_are_lost_far_beyond_the_edge():
    """The negative control of the cure: what the growth of the oscillation is regulated for."""
    for rule in ("gd", "beyond edge"):
        assert reduced_model.reduced_path(rule, start=10.0, steps=3000, noise=1e-4)["lost"]


def test_reduced_model_refuses():
    with pytest.raises(InvalidInput, match="rule='sgd'"):
        reduced_model.reduced_path("sgd", start=3.0, steps=1)
    with pytest.raises(InvalidInput, match=r"start=-1\.0"):
        reduced_model.reduced_path("gd", start=-1.0, steps=1)


def test_docstring_examples():
    assert doctest.testmod(runaway).failed == 0
