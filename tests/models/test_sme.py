"""Stochastic modified equations: their fields against hand derivatives, and what they say of the edge."""

import numpy as np
import pytest

from eos_sde import models
from eos_sde.models.landscapes import LineLoss, double_well, line_loss
from solvers import InvalidInput

X = (np.linspace(-2.0, 2.0, 9),)
LINE = LineLoss(1.3, 0.7, -0.4)


def test_gradient_flow_is_minus_the_gradient():
    sde = models.gradient_flow(line_loss, eta=0.25, noise=0.6, params=LINE)
    x = X[0]
    np.testing.assert_allclose(sde.drift_at(0.0, X)[0], -(1.3 * x + 0.35 * x**2 - 0.4 / 6 * x**3), rtol=1e-14)
    np.testing.assert_allclose(sde.diffusion_at(0.0, X)[0], 0.5 * 0.6, rtol=1e-15)
    assert sde.convention == "ito"
    assert sde.potential is line_loss


def test_quadratic_of_several_weights():
    sde = models.gradient_flow(curvature=(3.0, 5.0), eta=0.1, noise=0.2, names=("a", "b"))
    y = (np.array([1.0, -2.0]), np.array([0.5, 4.0]))
    for value, expected in zip(sde.drift_at(0.0, y), (-3.0 * y[0], -5.0 * y[1]), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-15)
    drift, diffusion, p = sde.compiled()
    assert drift(0.0, (1.0, 0.5), p) == (-3.0, -2.5)
    np.testing.assert_allclose(diffusion(0.0, (1.0, 0.5), p), np.sqrt(0.1) * 0.2, rtol=1e-15)


def test_state_dependent_noise_reads_the_parameters_of_the_loss():
    def noise(t, y, p, xp):
        return (p[0] * xp.sqrt(1.0 + y[0] ** 2),)

    sde = models.gradient_flow(line_loss, eta=0.25, noise=noise, params=LINE, convention="klimontovich")
    np.testing.assert_allclose(sde.diffusion_at(0.0, X)[0], 0.5 * 1.3 * np.sqrt(1 + X[0] ** 2), rtol=1e-14)
    assert sde.convention == "klimontovich"
    faster = sde.replace(eta=1.0)
    np.testing.assert_allclose(faster.diffusion_at(0.0, X)[0], 1.3 * np.sqrt(1 + X[0] ** 2), rtol=1e-14)
    assert faster.compiled()[0] is sde.compiled()[0]  # another eta compiles nothing


def test_sme2_drift_by_hand():
    # -(L' + (eta/2) L' L'')
    sde = models.sme2(double_well, eta=0.3, noise=0.1)
    x = X[0]
    expected = -(x**3 - x) * (1 + 0.15 * (3 * x**2 - 1))
    np.testing.assert_allclose(sde.drift_at(0.0, X)[0], expected, rtol=1e-13, atol=1e-14)


def test_sme2_of_two_weights_adds_eta_over_2_hessian_times_gradient():
    def loss(t, y, p, xp):
        return 0.5 * (1.0 - y[0] * y[1]) ** 2

    sde = models.sme2(loss, eta=0.2, noise=0.1, names=("a", "b"))
    a, b = 1.5, -0.7
    gradient = np.array([-(1 - a * b) * b, -(1 - a * b) * a])
    hessian = np.array([[b * b, 2 * a * b - 1], [2 * a * b - 1, a * a]])
    np.testing.assert_allclose(sde.drift_at(0.0, (a, b)), -(gradient + 0.1 * hessian @ gradient), rtol=1e-14)


@pytest.mark.parametrize("eta_h", [0.5, 1.5, 1.9])
def test_no_modified_equation_contains_the_edge(eta_h):
    # Stationary variances of SCIENCE's fact 2, from rate and strength of each linear model.
    eta, h, s = 0.1, eta_h / 0.1, 0.7
    true = eta * s**2 / (h * (2 - eta_h))

    def variance(sde):
        return float(sde.diffusion_at(0.0, (1.0,))[0]) ** 2 / (-2 * float(sde.drift_at(0.0, (1.0,))[0]))

    assert variance(models.gradient_flow(curvature=h, eta=eta, noise=s)) == pytest.approx(
        eta * s**2 / (2 * h)
    )
    assert variance(models.sme2(curvature=h, eta=eta, noise=s)) == pytest.approx(
        eta * s**2 / (h * (2 + eta_h))
    )
    assert variance(models.matched_linear(h, eta=eta, noise=s)) == pytest.approx(true, rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"curvature": 1.0, "eta": 0.0, "noise": 1.0}, "eta=0.0 is not positive"),
        ({"curvature": 1.0, "eta": float("nan"), "noise": 1.0}, "eta=nan is not finite"),
        ({"curvature": 1.0, "eta": 0.1, "noise": -1.0}, "noise=-1.0 is negative"),
        ({"curvature": np.inf, "eta": 0.1, "noise": 1.0}, "curvature=inf is not finite"),
        ({"curvature": (1.0, 2.0), "eta": 0.1, "noise": 1.0}, "one number for each"),
        ({"eta": 0.1, "noise": 1.0}, "exactly one of potential"),
        ({"potential": double_well, "curvature": 1.0, "eta": 0.1, "noise": 1.0}, "exactly one of potential"),
        ({"potential": double_well, "params": {"eta": 1.0}, "eta": 0.1, "noise": 1.0}, "already has 'eta'"),
        ({"curvature": 1.0, "params": {"k": 1.0}, "eta": 0.1, "noise": 1.0}, "params belongs to a potential"),
    ],
)
@pytest.mark.parametrize("builder", [models.gradient_flow, models.sme2])
def test_refusals(builder, arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        builder(**arguments)
