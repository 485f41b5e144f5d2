"""Flip normal form against the map on a line; self-stabilization against its invariant and period."""

import math

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from eos_sde import models
from solvers import InvalidInput


def two_cycle(eta, h, f3, f4):
    """Half the distance between the two points that the noiseless map alternates between."""
    x = 0.1
    for _ in range(20_000):
        previous, x = x, x - eta * (h * x + f3 * x**2 / 2 + f4 * x**3 / 6)
    return abs(x - previous) / 2


@pytest.mark.parametrize(("f3", "f4"), [(1.0, 0.0), (1.0, -1.0), (2.0, 1.0)])
def test_amplitude_converges_to_the_maps_cycle(f3, f4):
    # The normal form is the leading order in mu: the relative error must fall in proportion to mu.
    h = 1.0
    errors = [
        models.two_cycle_amplitude((2 + mu) / h, h, f3, f4) / two_cycle((2 + mu) / h, h, f3, f4) - 1
        for mu in (0.04, 0.01)
    ]
    assert abs(errors[1]) < 0.25 * 0.01
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_amplitude_of_an_even_loss_is_exact():
    # x -> -x is a cycle of the cubic map exactly.
    assert models.two_cycle_amplitude(2.2, 1.0, 0.0, -1.0) == pytest.approx(
        two_cycle(2.2, 1.0, 0.0, -1.0), rel=1e-12
    )


def test_amplitude_agrees_with_the_condition_at_the_edge():
    # C > 0 at eta h = 2 exactly when 3 f3^2 > h f4.
    h = 1.7
    for f3, f4 in ((0.5, 0.4), (0.5, 0.5), (-1.0, 1.7), (-1.0, 1.8)):
        assert (models.flip_coefficients(2 / h, h, f3, f4)[1] > 0) == (3 * f3**2 > h * f4)


def test_growth_and_saturation_of_the_two_step_amplitude():
    # One step of the map from a small A: (1 + mu) A - C A^3 + O(A^4) after averaging out the quadratic term,
    # checked on the even loss, where the map itself is this cubic.
    eta, h, f4 = 2.1, 1.0, -0.8
    mu, c = models.flip_coefficients(eta, h, 0.0, f4)
    x = 0.3
    assert -(x - eta * (h * x + f4 * x**3 / 6)) == pytest.approx((1 + mu) * x - c * x**3, rel=1e-14)


@pytest.mark.parametrize("slow", [0.3, 0.7])
def test_feedback_of_other_directions_saturates_the_oscillation(slow):
    """Gradient descent on h x^2/2 + f4 x^4/24 + g y x^2/2 + h2 y^2/2: unstable on the line alone, a cycle with y.

    x -> -x with y at rest is a cycle of the map exactly, at the amplitude of the normal form.
    """
    h, f4, g, mu = 1.0, 1.0, 1.0, 0.04
    eta = (2 + mu) / h
    x, y = 0.1, 0.0
    for _ in range(20_000):
        x, y = x - eta * (h * x + f4 * x**3 / 6 + g * y * x), y - eta * (slow * y + g * x**2 / 2)
    mu, c = models.flip_coefficients(eta, h, 0.0, f4, feedback=g**2 / slow)
    assert x**2 == pytest.approx(mu / c, rel=1e-12)
    assert y == pytest.approx(-g * x**2 / (2 * slow), rel=1e-12)
    assert models.flip_coefficients(eta, h, 0.0, f4)[1] < 0


def test_curvature_noise_of_the_flip():
    sde = models.flip_normal_form(0.2, 0.5, 0.3, 0.4)
    (noise,) = sde.diffusion_at(0.0, (np.array([0.0, 1.0, -2.0]),))
    np.testing.assert_allclose(noise, [0.3, 0.5, np.sqrt(0.09 + 0.64)], rtol=1e-15)
    assert models.flip_normal_form(0.2, 0.5, 0.3, 0.0).params == (0.2, 0.5, 0.3)


def test_flip_drift_is_minus_the_slope_of_its_potential():
    sde = models.flip_normal_form(0.2, 0.5, 0.1)
    a, step = np.array([0.3, -0.9]), 1e-5
    slope = (
        sde.potential(0, (a + step,), sde.params, np) - sde.potential(0, (a - step,), sde.params, np)
    ) / (2 * step)
    np.testing.assert_allclose(
        sde.drift_at(0.0, (a,))[0], -slope, rtol=1e-8
    )  # central difference, h^2 f'''/6
    np.testing.assert_allclose(sde.drift_at(0.0, (a,))[0], 0.2 * a - 0.5 * a**3, rtol=1e-14)


def test_kramers_rate_against_the_mean_first_passage_time():
    # Exact: mean time from one phase to the top of the barrier, T = (2/s^2) int_{-a}^0 e^phi
    # int_{-inf}^x e^-phi; half of the arrivals cross, so the rate is 1/(2T), up to relative corrections of
    # order 2 C s^2/mu^2 = 1/4.
    mu, c, s = 0.2, 0.5, 0.1
    mu_over = mu**2 / (2 * c * s**2)
    assert mu_over == pytest.approx(4.0)

    def phi(a):
        return 2 / s**2 * (-mu * a**2 / 2 + c * a**4 / 4)

    well = -math.sqrt(mu / c)
    outer = quad(lambda x: math.exp(phi(x)) * quad(lambda z: math.exp(-phi(z)), -2.0, x)[0], well, 0.0)[0]
    exact = 1 / (2 * 2 / s**2 * outer)
    assert models.flip_rate_kramers(mu, c, s) == pytest.approx(exact, rel=1 / mu_over)
    assert models.flip_rate_kramers(mu, c, s) != pytest.approx(2 * exact, rel=1 / mu_over)


def trajectory(alpha, beta, eta, x0, y0, steps):
    sde = models.self_stabilization(alpha, beta, eta)
    return solve_ivp(
        lambda t, y: [float(v) for v in sde.drift_at(t, tuple(y))],
        (0, steps),
        (x0, y0),
        rtol=1e-10,
        atol=1e-12,
    )


def test_invariant_is_constant():
    alpha, beta, eta = 0.8, 2.0, 0.05
    run = trajectory(alpha, beta, eta, 0.2, 0.5, 200)
    values = models.self_stabilization_invariant(*run.y, alpha=alpha, beta=beta)
    np.testing.assert_allclose(values, values[0], rtol=1e-7)  # integrator tolerance times the steps taken


def test_period_of_small_oscillations():
    alpha, beta, eta = 0.8, 2.0, 0.05
    centre = math.sqrt(2 * alpha / beta)
    period = 2 * math.pi / (eta * math.sqrt(2 * alpha))
    run = trajectory(alpha, beta, eta, centre * 1.001, 0.0, period)
    # After one period the state is back; the period's own amplitude dependence is of second order, 1e-6.
    assert run.y[0, -1] / centre - 1 == pytest.approx(1e-3, rel=1e-2)
    assert run.y[1, -1] == pytest.approx(0.0, abs=1e-3 * 1e-2)


def test_noise_kicks_the_amplitude_by_eta_times_the_gradient_noise():
    sde = models.self_stabilization(0.8, 2.0, 0.05, 0.3)
    x_noise, y_noise = sde.diffusion_at(0.0, (1.0, 0.0))
    assert x_noise == pytest.approx(0.05 * 0.3)
    assert y_noise == 0
    assert sde.names == ("x", "y")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: models.flip_normal_form(math.nan, 1.0, 0.1), "mu=nan"),
        (lambda: models.flip_normal_form(0.1, 1.0, -0.1), "s=-0.1"),
        (lambda: models.flip_normal_form(0.1, 1.0, 0.1, -0.1), "m=-0.1"),
        (lambda: models.flip_coefficients(1.0, 1.0, 0.0, 0.0, feedback=math.inf), "feedback=inf"),
        (lambda: models.flip_coefficients(0.0, 1.0, 0.0, 0.0), "eta=0.0"),
        (lambda: models.two_cycle_amplitude(1.9, 1.0, 1.0, 0.0), "is not above 2"),
        (lambda: models.two_cycle_amplitude(2.1, 1.0, 0.0, 1.0), "2-cycle is unstable"),
        (lambda: models.flip_rate_kramers(-0.1, 1.0, 0.1), "mu=-0.1"),
        (lambda: models.flip_rate_kramers(0.1, 1.0, 0.0), "s=0.0"),
        (lambda: models.self_stabilization(-1.0, 1.0, 0.1), "alpha=-1.0"),
        (lambda: models.self_stabilization(1.0, 0.0, 0.1), "beta=0.0"),
        (lambda: models.self_stabilization(1.0, 1.0, 0.1, -1.0), "noise=-1.0"),
        (lambda: models.self_stabilization_invariant(0.0, 1.0, alpha=1.0, beta=1.0), "x=0"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        call()
