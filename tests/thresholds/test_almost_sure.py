"""Almost-sure thresholds against closed forms."""

import itertools
import math

import numpy as np
import pytest

from eos_sde import thresholds
from eos_sde.thresholds.batch_products import Sampling, drawn_batches
from eos_sde.thresholds.gram import GramOperator
from solvers import AccuracyWarning, InvalidInput


def test_gaussian_curvature_reference(reference):
    item = reference["sgd_gauss_s0.5"]
    threshold = thresholds.scalar_almost_sure(1.0, item["parameters"]["s"] ** 2)
    assert float(threshold) == pytest.approx(item["value"][0], rel=1e-10)
    assert float(thresholds.scalar_almost_sure(4.0, 4.0)) == pytest.approx(item["value"][0] / 4, rel=1e-10)
    assert thresholds.scalar_almost_sure(4.0, 0.0) == 0.5


@pytest.mark.parametrize("replacement", [False, True])
def test_two_examples_and_one_weight(replacement):
    # Curvatures 1 and 3, batch 1: log|1 - eta| + log|1 - 3 eta| = 0 first at eta = 4/3; mean-square at 0.8.
    jacobian = np.sqrt([[1.0], [3.0]])
    settings = {"batch_size": 1, "replacement": replacement}
    threshold = thresholds.sgd_almost_sure(jacobian, seed=2, steps=4000, **settings)
    assert abs(float(threshold) - 4 / 3) < 4 * threshold.stderr  # false-alarm rate 6e-5
    # Sampling error by hand: the logs +-log 3 at the root, over 0.8 * 4000 * 32 steps, over the slope 2.
    slope = 0.5 * (1 / (4 / 3 - 1) + 3 / (4 - 1))
    assert threshold.stderr == pytest.approx(math.log(3) / math.sqrt(3200 * 32) / slope, rel=0.4)
    assert float(thresholds.sgd_mean_square(jacobian, **settings)) == pytest.approx(0.8)
    assert threshold.stderr < 0.1 * (4 / 3 - 0.8)  # the mean-square threshold would be rejected


def test_steps_are_doubled_until_the_tolerance_holds():
    jacobian = np.sqrt([[1.0], [3.0]])
    loose, tight = (
        thresholds.sgd_almost_sure(jacobian, batch_size=1, replacement=True, seed=3, rtol=rtol)
        for rtol in (0.01, 0.002)
    )
    for threshold, rtol in ((loose, 0.01), (tight, 0.002)):
        assert 0 < threshold.stderr <= rtol * float(threshold)
        assert abs(float(threshold) - 4 / 3) < 4 * threshold.stderr  # false-alarm rate below 6e-5
    # The error falls with the root of the steps: log 3 / sqrt(3), over slope 2, needs 32000 copy-steps for 0.002.
    assert "2000 steps" in loose.method
    assert int(tight.method.split(" steps")[0].split()[-1]) >= 4000


def test_a_tolerance_out_of_reach_is_told():
    jacobian = np.sqrt([[1.0], [3.0]])
    with pytest.warns(AccuracyWarning, match="not to rtol=1e-05"):
        threshold = thresholds.sgd_almost_sure(jacobian, batch_size=1, seed=3, rtol=1e-5, max_steps=2000)
    assert threshold.stderr > 1e-5 * float(threshold)


def test_above_the_mean_square_threshold_and_reproducible():
    jacobian = np.random.default_rng(0).normal(size=(12, 2, 6))
    mean_square = thresholds.sgd_mean_square(jacobian, batch_size=2)
    threshold = thresholds.sgd_almost_sure(jacobian, batch_size=2, seed=0, steps=1000, copies=8)
    again = thresholds.sgd_almost_sure(jacobian, batch_size=2, seed=0, steps=1000, copies=8)
    assert float(threshold) > float(mean_square) + 4 * threshold.stderr
    assert (threshold.value, threshold.stderr) == (again.value, again.stderr)


def test_full_batch_is_the_deterministic_edge():
    jacobian = np.random.default_rng(0).normal(size=(5, 4))
    edge = thresholds.sgd_mean_square(jacobian, batch_size=5)
    assert float(thresholds.sgd_almost_sure(jacobian, batch_size=5, seed=0)) == pytest.approx(float(edge))


def test_batches_without_replacement_are_uniform_subsets():
    # 10 subsets of 3 out of 5, 20000 draws: chi-square with 9 degrees of freedom, 27.9 at false-alarm 1e-3.
    drawn = np.sort(
        drawn_batches(5, Sampling(3, False, 4), np.random.default_rng(4), (2, 10_000)).reshape(-1, 3), axis=1
    )
    tallies = [np.sum(np.all(drawn == subset, axis=1)) for subset in itertools.combinations(range(5), 3)]
    assert sum(tallies) == 20_000
    assert np.sum((np.array(tallies) - 2000) ** 2 / 2000) < 27.9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 9}, "batch_size=9"),
        ({"batch_size": 1, "seed": -1}, "seed=-1"),
        ({"batch_size": 1, "steps": 3}, "steps=3"),
        ({"batch_size": 1, "max_steps": 10}, "max_steps=10"),
        ({"batch_size": 1, "rtol": 0.0}, "rtol=0"),
        ({"batch_size": 1, "rtol": 2}, "rtol=2"),
        ({"batch_size": 1, "jacobian": [[1.0, 2.0], [3.0]]}, "no array of numbers"),
        ({"batch_size": 1, "copies": 1}, "copies=1"),
        ({"batch_size": 1, "copies": 10**12}, "lower copies"),
    ],
)
def test_refusals(settings, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        thresholds.sgd_almost_sure(**{"jacobian": np.eye(3), "seed": 0, **settings})


def test_a_gram_matrix_serves_as_the_factors_do():
    factors = np.random.default_rng(2).normal(size=(5, 2, 4))
    gram = GramOperator.of_factors(factors)
    settings = {"batch_size": 2, "seed": 1, "steps": 500}
    assert float(thresholds.sgd_mean_square(gram, batch_size=2)) == pytest.approx(
        thresholds.svag_mean_square(gram, batch_size=2, level=1).value, rel=1e-8
    )
    # other coordinates of the same products: the same copies from other starts; 6 standard errors
    found, same = (thresholds.sgd_almost_sure(given, **settings) for given in (gram, factors))
    assert abs(found.value - same.value) < 6 * np.hypot(found.stderr, same.stderr)


def test_scalar_refusals():
    with pytest.raises(InvalidInput, match="mean=0"):
        thresholds.scalar_almost_sure(0.0, 1.0)
    with pytest.raises(InvalidInput, match="variance=-1"):
        thresholds.scalar_almost_sure(1.0, -1.0)
