"""CAEO's boundary on networks: counts and intervals, runs against the recorder, the forecast from a flow."""

import jax
import numpy as np
import pytest
from scipy.stats import binom, norm

from eos_sde import bridge
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.caeo_boundary import boundary_from_counts, measure_caeo_boundary, wilson
from eos_sde.bridge.caeo_forecast import Plateau, _wells, batch_excess
from solvers import InvalidInput


def test_wilson_solves_its_equation():
    """At the ends the normal score of the share is the quantile itself."""
    low, high = wilson([1, 3, 7], 8)
    for p in (low, high):
        score = (np.array([1, 3, 7]) / 8 - p) / np.sqrt(p * (1 - p) / 8)
        np.testing.assert_allclose(np.abs(score), norm.ppf(0.975), rtol=1e-12)
    assert wilson([0], 4)[0][0] == 0
    assert wilson([4], 4)[1][0] == 1


@pytest.mark.slow
def test_boundary_covers_the_truth():
    """95 % intervals from 4 runs at 6 margins. At a coverage of 0.93 fewer cover with P = 1e-3."""
    deltas = 0.2 * np.array([0.5, 0.7, 0.9, 1.15, 1.5, 2.0])
    shares = norm.cdf((np.log(deltas) - np.log(0.2)) / 0.15)
    rng = np.random.default_rng(1)
    covered, off = [], []
    for _ in range(200):
        counts = rng.binomial(4, shares)
        onset, low, high = boundary_from_counts(deltas, counts, 4)
        covered.append(low <= 0.2 <= high)
        off.append(np.log(float(onset) / 0.2))
    assert np.sum(covered) >= binom.ppf(1e-3, 200, 0.93)
    assert abs(np.mean(off)) < 0.05


def test_boundary_of_clean_counts_lies_between():
    onset, low, high = boundary_from_counts([0.1, 0.2, 0.4, 0.8], [0, 0, 4, 4], 4)
    assert 0.2 < float(onset) < 0.4
    # at a margin itself half would run away, and four of four have the likelihood 2^-4: outside, by 2.8 > 1.92
    assert 0.2 < low < 0.21
    assert 0.39 < high < 0.4
    assert onset.stderr == pytest.approx((high - low) / 4)
    with pytest.raises(InvalidInput, match="none of the runs ran away"):
        boundary_from_counts([0.1, 0.2], [0, 0], 4)
    with pytest.raises(InvalidInput, match="all of the runs ran away"):
        boundary_from_counts([0.1, 0.2], [4, 4], 4)


@pytest.mark.slow
def test_runs_are_those_of_the_recorder(small_task, small_start):
    """The same batches, rule and start; the sharpness of the last update against the recorder's Lanczos.

    Both estimates are of order 4 or more and warm: their errors are below 1e-3 of the sharpness.
    """
    shared = {"eta": 0.05, "batch_size": 8, "steps": 30, "seed": 5}
    found = measure_caeo_boundary(small_task, small_start, deltas=[0.5, 1.9], replicas=2, order=6, **shared)
    assert found["capped"].values[1].tolist() == [1.0, 1.0]  # 1.9: the rate is 0.1/sharpness
    recorded = bridge.record(
        small_task, "sgd", start=small_start, replicas=2, every=1, batches_measured=1, **shared
    )["sharpness"].values[:, 20:30]
    assert float(found["plateau"]) == pytest.approx(recorded.mean(), rel=1e-3)
    assert float(found["plateau_deviation"]) == pytest.approx(recorded.std(ddof=1), rel=0.02)
    capped = bridge.record(
        small_task, "caeo", delta=1.9, start=small_start, replicas=2, every=1, batches_measured=1, **shared
    )["sharpness"].values[:, 27:30]
    np.testing.assert_allclose(found["late_sharpness"].values[1], capped.mean(axis=1), rtol=1e-3)
    assert found["runs_away"].values.tolist() == [
        int(np.sum((c > 0.9) & (late > found["plateau"].item() + 5 * found["plateau_deviation"].item())))
        for c, late in zip(found["capped"].values, found["late_sharpness"].values, strict=True)
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deltas": [0.0]}, "must be margins between 0 and 2"),
        ({"steps": 10}, "steps=10"),
        ({"batch_size": 64}, "batch_size=64 must be at most the 63 examples"),
    ],
)
def test_bad_input_is_refused(small_task, small_start, changes, words):
    given = {"eta": 0.05, "batch_size": 8, "steps": 30, "deltas": [0.5], **changes}
    with pytest.raises(InvalidInput, match=words):
        measure_caeo_boundary(small_task, small_start, **given)


@pytest.mark.slow
def test_batch_excess_is_that_of_dense_hessians(small_task, small_start):
    found = batch_excess(small_task, small_start, batch_size=8, batches=3, seed=2)
    hessian = jax.jit(jax.hessian(small_task.loss))
    x, y = np.asarray(small_task.x), np.asarray(small_task.y)
    rows = draw_batches(stream(2, 1, 0), 3, examples=63, batch_size=8)
    tops = [float(np.linalg.eigvalsh(np.asarray(hessian(small_start, x[r], y[r])))[-1]) for r in rows]
    full = float(np.linalg.eigvalsh(np.asarray(hessian(small_start, x, y)))[-1])
    assert float(found["mean"]) == pytest.approx(np.mean(tops), rel=1e-4)
    assert float(found["excess"]) == pytest.approx(np.mean(tops) / full - 1, abs=1e-3)
    assert float(found["deviation"]) == pytest.approx(np.std(tops, ddof=1), rel=1e-2)


def test_wells_between_flows_follow_the_batch_noise():
    """Two flows whose q is exactly proportional to (n - B)/(B (n - 1)): so is what lies between them."""
    n, eta, scale = 500, 0.2, 3.0
    fraction = {size: (n - size) / (size * (n - 1)) for size in (8, 16, 64)}

    def plateau(size, gap_stderr=1e-3):
        gap = 1 - np.sqrt(1 - scale * fraction[size])
        return Plateau(gap, gap_stderr, 0.1, 0.02, 0.9, 0.1)

    noise, speed, sources = _wells([plateau(8), plateau(64)], (8, 64), (8, 16, 64), n, eta)
    np.testing.assert_allclose(noise, [scale * p for p in fraction.values()], rtol=1e-9)
    assert speed == pytest.approx(eta**2 * 0.1)
    # d(g (2 - g)) = 2 (1 - g) dg
    assert sources[0][0].noise == pytest.approx(2 * np.sqrt(1 - noise[0]) * 1e-3 / noise[0], rel=1e-6)
    unresolved = Plateau(0.01, 0.02, 0.1, 0.02, 0.03, 0.01)
    assert unresolved.used == (0.03, 0.01)
    assert plateau(8).resolved


@pytest.mark.slow
def test_forecast_of_a_network():
    """A network at its edge: the gap is the flow's, which the sharpness of SGD shows; the map has a boundary there."""
    task = bridge.load_task("digits-mlp", examples=200, hidden=(16,), pool=2)
    theta = bridge.checkpoint(task, eta=0.2, steps=150, seed=2)
    found = bridge.forecast_caeo_stability(task, theta, batch_size=[8], delta=[0.01, 1.0], steps=150, eta=0.2)
    run = bridge.record(task, "sgd", eta=0.2, batch_size=8, steps=150, seed=3, start=theta, replicas=4, every=5,
                        batches_measured=1)  # fmt: skip
    gap = 2 - 0.2 * run["sharpness"].sel(step=slice(100, None)).values.mean(axis=1)
    assert float(found["gap"][0]) == pytest.approx(
        gap.mean(), abs=3 * np.hypot(float(found["gap_stderr"][0]), gap.std())
    )
    if bool(found["resolved"][0]):
        assert float(found["delta_c"][0, 0]) == pytest.approx(min(float(found["gap"][0]), 1.0), rel=1e-6)
    assert found["regime"].sizes == {"delta": 2, "batch_size": 1, "eta_base": 1}
    with pytest.raises(InvalidInput, match="multiple of 15"):
        bridge.forecast_caeo_stability(task, theta, batch_size=[8], delta=[0.1], steps=100, eta=0.2)
