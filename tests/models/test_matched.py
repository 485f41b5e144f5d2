"""The matched linear SDE against the map's own law, step by step."""

import math

import numpy as np
import pytest

from eos_sde import models
from solvers import InvalidInput


@pytest.mark.parametrize("eta_h", [-0.5, 0.0, 0.3, 0.999, 1.001, 1.5, 1.999, 2.0, 2.3])
def test_law_at_every_step_is_the_maps(eta_h):
    # Mean and variance after k steps from x = 1: the map's recursion against the SDE's exact transition.
    eta, s = 0.2, 0.6
    h = eta_h / eta
    sde = models.matched_linear(h, eta=eta, noise=s)
    a, b = sde.params.rate, sde.params.strength
    mean, variance = 1.0, 0.0
    for k in range(1, 8):
        mean, variance = (1 - eta * h) * mean, (1 - eta * h) ** 2 * variance + (eta * s) ** 2
        t = k * eta
        sign = (-1) ** k if eta * h > 1 else 1
        expected = b**2 * t if a == 0 else b**2 * -math.expm1(-2 * a * t) / (2 * a)
        assert sign * math.exp(-a * t) == pytest.approx(mean, rel=1e-10)
        assert expected == pytest.approx(variance, rel=1e-10)


def test_stationary_variance_reference(reference):
    item = reference["discrete_ou"]
    eta_pair, h, s = item["parameters"]["eta"], item["parameters"]["lam"], item["parameters"]["s"]
    for eta, variance in zip(eta_pair, (item["value"][3], item["value"][7]), strict=True):
        sde = models.matched_linear(h, eta=eta, noise=s)
        assert sde.params.strength**2 / (2 * sde.params.rate) == pytest.approx(variance, rel=1e-14)


def test_the_edge_has_rate_zero_and_beyond_it_the_model_is_unstable():
    assert models.matched_linear(4.0, eta=0.5, noise=0.3).params.rate == 0
    assert models.matched_linear(4.2, eta=0.5, noise=0.3).params.rate < 0


def test_forgetting_in_one_step_is_refused():
    with pytest.raises(InvalidInput, match="infinite rate"):
        models.matched_linear(2.0, eta=0.5, noise=0.3)


def test_potential_gives_the_drift():
    sde = models.matched_linear(3.0, eta=0.5, noise=0.3)
    x, step = np.array([0.7, -1.2]), 1e-6
    slope = (
        sde.potential(0, (x + step,), sde.params, np) - sde.potential(0, (x - step,), sde.params, np)
    ) / (2 * step)
    np.testing.assert_allclose(
        sde.drift_at(0.0, (x,))[0], -slope, rtol=1e-9
    )  # exact for a quadratic but rounding


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"curvature": math.nan, "eta": 0.1, "noise": 0.1}, "curvature=nan"),
        ({"curvature": 1.0, "eta": -0.1, "noise": 0.1}, "eta=-0.1"),
        ({"curvature": 1.0, "eta": 0.1, "noise": -0.1}, "noise=-0.1"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        models.matched_linear(**arguments)
