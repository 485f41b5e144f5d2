"""Escape from a subcritical flip: Kramers, passage times by quadrature, simulated maps; the logistic map's crisis."""

import math

import numpy as np
import pytest
from scipy.integrate import cumulative_simpson, simpson

from eos_sde import thresholds
from eos_sde.models import flip_coefficients
from eos_sde.thresholds.escape import _checked
from solvers import InvalidInput

LINE = {"curvature": 4.0, "third": 0.3, "fourth": 2.0}


def form(eta, *, gradient_variance, curvature_variance=0.0, feedback=0.0, curvature, third, fourth):
    return _checked(curvature, third, fourth, gradient_variance, curvature_variance, feedback).form(eta)


# ---- the rate


@pytest.mark.parametrize("curvature_variance", [0.0, 0.02])
@pytest.mark.parametrize("barrier", [6.0, 9.0])
def test_rate_is_the_inverse_passage_time(barrier, curvature_variance):
    """Mean time from 0 to the wall by quadrature of the scale and speed of the Ito equation.

    Rate times time is 1 up to the ratio of the fast rates to it, of order exp(-barrier); the grid's second-order
    error is below 1e-3 (400 cells and more).
    """
    eta = 1.9 / 4.0
    mu, c = flip_coefficients(eta, *LINE.values())
    given = {
        "gradient_variance": mu**2 / (2 * abs(c) * barrier) / eta**2,
        "curvature_variance": curvature_variance,
    }
    one = form(eta, **LINE, **given)
    a = np.linspace(0.0, one.wall(), 40_001)
    squared = one.s**2 + one.m**2 * a**2
    fall = cumulative_simpson(2 * (mu * a - c * a**3) / squared, x=a, initial=0.0)
    inside = cumulative_simpson(np.exp(fall) / squared, x=a, initial=0.0)
    time = simpson(2 * np.exp(-fall) * inside, x=a)
    rate = thresholds.flip_escape_rate(eta, **LINE, **given)
    assert abs(rate * time - 1) < 4 * math.exp(-one.barrier) + 1e-3
    assert thresholds.flip_barrier(eta, **LINE, **given) == one.barrier
    if curvature_variance == 0:
        assert one.barrier == pytest.approx(barrier, rel=1e-9)
    else:  # the noise that grows with the amplitude lowers the barrier
        assert one.barrier < 0.95 * barrier


def test_kramers_in_the_limit_of_small_noise():
    """Corrections are of the order of the inverse barrier, as for the flip rate."""
    eta, previous = 1.9 / 4.0, math.inf
    mu, c = flip_coefficients(eta, *LINE.values())
    for barrier in (8.0, 16.0, 32.0):
        variance = mu**2 / (2 * abs(c) * barrier) / eta**2
        kramers = math.sqrt(2) * abs(mu) / math.pi * math.exp(-barrier)
        off = abs(thresholds.flip_escape_rate(eta, **LINE, gradient_variance=variance) / kramers - 1)
        assert off < min(1 / barrier, previous)
        previous = off


def test_simulated_map_decays_at_the_rate_of_the_transfer_operator():
    """The cubic map with Gaussian kicks, in NumPy: decay of the survivors between half and whole horizon.

    20 000 paths: 4 standard errors of log(n1/n2) (false alarm 6e-5), plus 1 % for the cells. Negative control:
    absorbing at the top of the barrier, which counts those that would return, doubles the rate.
    """
    eta, steps = 1.9 / 4.0, 1000
    given = {"gradient_variance": 0.03, "curvature_variance": 0.01}
    one = form(eta, **LINE, **given)
    rng = np.random.default_rng(0)
    survivors, top = [], []
    for wall, counts in ((one.wall(), survivors), (math.sqrt(one.edge), top)):
        a = np.zeros(20_000)
        for k in range(1, steps + 1):
            kick = np.sqrt(one.s**2 + one.m**2 * a**2) * rng.standard_normal(a.size)
            a = a * (1 + one.mu - one.C * a**2) + kick
            a = a[np.abs(a) < wall]
            if k in {steps // 2, steps}:
                counts.append(a.size)
    rate = thresholds.flip_escape_rate(eta, **LINE, **given, discrete=True)

    def decay(counts):
        value = math.log(counts[0] / counts[1]) / (steps / 2)
        return value, math.sqrt(1 / counts[1] - 1 / counts[0]) / (steps / 2)

    value, error = decay(survivors)
    assert abs(value - rate) < 4 * error + 0.01 * rate
    value, error = decay(top)
    assert value - rate > 4 * error + 0.01 * rate
    continuous = thresholds.flip_escape_rate(eta, **LINE, **given)
    assert 0 < abs(continuous / rate - 1) < math.sqrt(abs(one.mu))


# ---- thresholds


@pytest.mark.parametrize("variance", [1e-2, 1e-4])
def test_rate_times_horizon_is_one_at_the_threshold(variance):
    eta = thresholds.flip_escape(**LINE, gradient_variance=variance, horizon=500)
    assert eta.criterion == "escape"
    rate = thresholds.flip_escape_rate(float(eta), **LINE, gradient_variance=variance)
    assert math.isclose(rate * 500, 1.0, rel_tol=0.02)
    assert eta.stderr < 1e-5
    longer = thresholds.flip_escape(**LINE, gradient_variance=variance, horizon=5000)
    assert float(longer) < float(eta) < 2.01 / 4.0
    discrete = thresholds.flip_escape(**LINE, gradient_variance=variance, horizon=500, discrete=True)
    assert abs(float(discrete) - float(eta)) < 0.02 * abs(2 / 4.0 - float(eta))


def test_without_noise_the_edge_and_the_horizon_decide():
    """From the unstable minimum the quasi-stationary rate is mu itself: (2 + 1/horizon)/curvature, up to O(s)."""
    eta = thresholds.flip_escape(**LINE, gradient_variance=1e-14, horizon=100)
    assert float(eta) == pytest.approx(2.01 / 4.0, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("third", [0.0, 0.6])
def test_normal_form_against_the_map_on_the_line(third):
    """Distance to the edge, 2 - eta h, against SGD on the line itself: their ratio tends to 1 with the noise.

    On an even loss the map is the normal form's own: 0.5 % for the grids.
    """
    h, fourth, off = 4.0, 2.0, []
    for variance in (1e-2, 1e-3):
        given = {"curvature": h, "third": third, "fourth": fourth, "gradient_variance": variance}
        eta = thresholds.flip_escape(**given, horizon=300, discrete=True)
        reach = form(float(eta), **given).wall()
        noise, span = math.sqrt(variance), abs(2 / h - float(eta))
        exact = thresholds.line_escape(
            lambda x: h * x + third * x * x / 2 + fourth * x * x * x / 6,
            lambda x, noise=noise: noise + 0 * x,
            interval=(-reach, reach), horizon=300, bracket=(2 / h - 1.5 * span, 2 / h + 0.5 * span),
        )  # fmt: skip
        off.append(abs((2 - float(eta) * h) / (2 - float(exact) * h) - 1))
    assert off[1] < (0.05 if third else 0.005)
    assert off[1] < off[0] or not third


def test_supercritical_flip_does_not_escape_but_the_logistic_map_has_its_crisis():
    """The slope h x + f3 x^2/2 makes the map logistic, bounded through all bifurcations up to its crisis at eta h = 3.

    Beyond the crisis the escape time grows like (eta h - 3)^-1/2, so that 1/horizon is met within O(horizon^-2); the
    noise, of 0.5 % of the basin's width, reaches over the crisis by about as much: 1 % covers both.
    """
    h, third = 1.0, 1.0
    flip = thresholds.flip_escape(curvature=h, third=third, fourth=0.0, gradient_variance=1e-4, horizon=200)
    assert math.isinf(float(flip))
    assert "supercritical" in flip.method
    barrier = -2 * h / third  # the maximum of the loss; what is above 0.68 lands beyond it
    found = thresholds.line_escape(
        lambda x: h * x + third * x * x / 2, lambda x: 5e-3 + 0 * x,
        interval=(barrier, 0.68), horizon=200, bracket=(2.95, 3.2),
    )  # fmt: skip
    assert float(found) == pytest.approx(3.0, rel=0.01)


def test_feedback_turns_the_flip_supercritical():
    given = {**LINE, "gradient_variance": 1e-3, "horizon": 100}
    early = float(thresholds.flip_escape(**given))
    weak = float(thresholds.flip_escape(**given, feedback=0.2))
    assert early < weak < 2.01 / 4
    assert math.isinf(float(thresholds.flip_escape(**given, feedback=1.0)))


def test_barrier_beyond_the_edge_and_of_a_supercritical_flip():
    assert thresholds.flip_barrier(0.5, **LINE, gradient_variance=1.0) == 0
    assert math.isinf(thresholds.flip_barrier(0.49, **LINE, gradient_variance=1.0, feedback=1.0))


def test_catapult():
    edge = thresholds.catapult(8.0)
    assert (float(edge), edge.stderr, edge.criterion) == (0.5, 0.0, "catapult")
    assert float(edge) == 2 * float(thresholds.gradient_descent(8.0))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: thresholds.catapult(0.0), "sharpness=0.0"),
        (lambda: thresholds.flip_escape(**LINE, gradient_variance=0.0, horizon=100), "use sgd_mean_square"),
        (lambda: thresholds.flip_escape(**LINE, gradient_variance=1.0, horizon=5), "horizon=5"),
        (lambda: thresholds.flip_escape(**LINE, gradient_variance=1e3, horizon=50), "leave no barrier"),
        (lambda: thresholds.flip_escape_rate(0.2, **LINE, gradient_variance=1.0), "not near the edge"),
        (
            lambda: thresholds.flip_escape_rate(
                0.49, curvature=4.0, third=1.0, fourth=0.0, gradient_variance=1.0
            ),
            "use line_escape",
        ),
        (
            lambda: thresholds.line_escape(abs, abs, interval=(1.0, 0.0), horizon=20, bracket=(0.1, 0.2)),
            "interval",
        ),
        (
            lambda: thresholds.line_escape(
                lambda x: x, lambda x: 1.0 + 0 * x, interval=(-1.0, 1.0), horizon=1000, bracket=(1.0, 1.5)
            ),
            "cross",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        call()
