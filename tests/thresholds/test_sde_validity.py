"""SVAG and the SDE of SGD near a minimum: closed forms, all pairs of batches, dense second moments."""

import itertools
import math

import numpy as np
import pytest

from eos_sde import thresholds
from solvers import InvalidInput


def _random(n=5, c=1, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, c, d))


def _hessians(jacobian):
    return np.einsum("nca,ncb->nab", jacobian, jacobian)


def _maps(jacobian, batch_size):
    """2 C, H x H and p V as matrices, by Kronecker products and the list of all batches."""
    each = _hessians(jacobian)
    h, one = each.mean(axis=0), np.eye(each.shape[1])
    batches = [each[list(b)].mean(axis=0) for b in itertools.combinations(range(len(each)), batch_size)]
    square = np.mean([np.kron(b, b) for b in batches], axis=0)
    return np.kron(h, one) + np.kron(one, h), np.kron(h, h), square - np.kron(h, h)


@pytest.mark.parametrize("level", [1.0, 2.0, 8.0, math.inf])
def test_one_weight(level):
    # Curvatures 1 and 3, batches of 1: h = 2, p v = 1; eta = 2 h / (h^2 / l + p v).
    threshold = thresholds.svag_mean_square(np.sqrt([[1.0], [3.0]]), batch_size=1, level=level)
    assert float(threshold) == pytest.approx(4 / (4 / level + 1), rel=1e-12)


@pytest.mark.parametrize("level", [1, 2, 5])
def test_the_second_moments_of_svag_over_all_pairs_of_batches_are_marginal(level):
    jacobian = _random()
    eta = float(thresholds.svag_mean_square(jacobian, batch_size=2, level=level))
    each, one = _hessians(jacobian), np.eye(3)
    batches = [each[list(b)].mean(axis=0) for b in itertools.combinations(range(5), 2)]
    root = math.sqrt(2 * level - 1)
    moments = np.mean(
        [
            np.kron(step, step)
            for a, b in itertools.product(batches, batches)
            for step in [one - eta / level * ((1 + root) / 2 * a + (1 - root) / 2 * b)]
        ],
        axis=0,
    )
    assert np.abs(np.linalg.eigvals(moments)).max() == pytest.approx(1.0, abs=1e-12)


def test_level_one_is_sgd_and_levels_end_at_the_sde():
    jacobian = _random(n=8, c=2, d=5, seed=1)
    settings = {"jacobian": jacobian, "batch_size": 3}
    levels = [1, 2, 4, 16, 1e6, math.inf]
    found = [float(thresholds.svag_mean_square(level=level, **settings)) for level in levels]
    assert found[0] == pytest.approx(float(thresholds.sgd_mean_square(**settings)), rel=1e-9)
    assert found == sorted(found)
    assert found[-1] == pytest.approx(found[-2], rel=1e-4)
    twice, _, noise = _maps(jacobian, 3)
    sde = 1 / np.linalg.eigvals(np.linalg.solve(twice, noise)).real.max()
    assert found[-1] == pytest.approx(sde, rel=1e-8)


def test_without_noise_the_flow_is_stable():
    assert thresholds.svag_mean_square(_random(), batch_size=5, level=math.inf) == math.inf


def test_gaussian_curvature_has_both_thresholds_of_the_reduced_models():
    # h = x^2, x standard normal: the map has 2 B / (h (B + 2)), the SDE B / h; 4000 quantiles instead of all x.
    from scipy.stats import norm

    x = norm.ppf((np.arange(4000) + 0.5) / 4000)[:, None]
    settings = {"jacobian": x, "batch_size": 2, "replacement": True}
    # The quantiles miss 0.5 % of the fourth moment in the tails.
    assert float(thresholds.svag_mean_square(level=1, **settings)) == pytest.approx(1.0, rel=0.01)
    assert float(thresholds.svag_mean_square(level=math.inf, **settings)) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("tolerance", [0.05, 0.3])
def test_the_worst_gradient_noise_has_the_relative_error_asked_for(tolerance):
    jacobian = _random(seed=3)
    eta = float(thresholds.sde_validity(jacobian, batch_size=2, tolerance=tolerance))
    twice, square, noise = _maps(jacobian, 2)
    sde = twice - eta * noise
    sgd = sde - eta * square
    assert np.linalg.eigvalsh((sgd + sgd.T) / 2).min() > 0
    # <S, SDE's moments> / <S, SGD's moments> over S: the least is 1 - tolerance.
    shares = np.linalg.eigvals(np.linalg.solve(sde, sgd)).real
    assert shares.min() == pytest.approx(1 - tolerance, abs=1e-10)
    assert eta < 2 * tolerance / np.linalg.eigvalsh(_hessians(jacobian).mean(axis=0)).max()


def test_validity_of_one_weight():
    threshold = thresholds.sde_validity(np.sqrt([[1.0], [3.0]]), batch_size=1, tolerance=0.2)
    assert float(threshold) == pytest.approx(4 / (4 / 0.2 + 1), rel=1e-12)
    assert threshold.criterion == "sde-validity"
    full = thresholds.sde_validity(np.sqrt([[1.0], [3.0]]), batch_size=2, tolerance=0.2)
    assert float(full) == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize("level", [0.5, math.nan, -math.inf])
def test_levels_below_one_are_refused(level):
    with pytest.raises(InvalidInput, match="level="):
        thresholds.svag_mean_square(_random(), batch_size=1, level=level)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, math.nan])
def test_tolerances_outside_are_refused(tolerance):
    with pytest.raises(InvalidInput, match="tolerance="):
        thresholds.sde_validity(_random(), batch_size=1, tolerance=tolerance)
