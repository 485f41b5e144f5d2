"""Power-law escape against quadrature of the same SDE, and against the Fokker-Planck operator."""

import numpy as np
import pytest
from scipy.integrate import cumulative_simpson, simpson

from eos_sde import thresholds
from solvers import SDE, FokkerPlanck, Grid, InvalidInput, mean_first_passage_time

LOSS, HEIGHT = 0.2, 0.5
"""L(x) = LOSS + HEIGHT (3 x^2 - 2 x^3): a minimum at 0 and a saddle at 1 with curvatures 6 HEIGHT and -6 HEIGHT."""
PLACE = {
    "curvature": 6 * HEIGHT,
    "saddle_curvature": 6 * HEIGHT,
    "loss": LOSS,
    "saddle_loss": LOSS + HEIGHT,
}


def loss(x):
    return LOSS + HEIGHT * (3 * x**2 - 2 * x**3)


def exact_rate(eta, batch_size):
    """1 / (mean time from 0 to 1.3), by the double integral over the Ito scale and speed; ends far from both."""
    stiffness = batch_size / (eta * PLACE["curvature"])
    x = np.linspace(-1.0, 1.3, 40001)
    logarithm = np.log(loss(x) / LOSS)
    density = np.exp(-(1 + stiffness) * logarithm)
    scale = stiffness / LOSS * np.exp(stiffness * logarithm)  # 1/(D p), with D = L/stiffness
    inner = cumulative_simpson(density, x=x, initial=0.0)
    from_zero = x >= 0
    return 1.0 / simpson((scale * inner)[from_zero], x=x[from_zero])


def test_the_rate_is_asymptotically_exact():
    """The relative error falls as 1/stiffness: halved, within a tenth, when the learning rate is."""
    errors = []
    for eta in (0.02, 0.01, 0.005):
        predicted = thresholds.power_law_escape_rate(eta, batch_size=1, **PLACE)
        errors.append(predicted / exact_rate(eta, 1) - 1)
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    assert abs(errors[-1]) < 0.02
    assert 1.7 < ratios[1] < 2.3
    assert abs(ratios[1] - 2) < abs(ratios[0] - 2) + 0.1


def test_the_quadrature_is_that_of_the_fokker_planck_operator():
    """Mean time from 0 to an absorbing wall at 1.3, on 4000 cells of 6e-4: second order, well below 1e-4."""
    eta, batch_size = 0.1, 1
    sde = SDE(
        lambda t, y, p, xp: (-6 * p.b * (y[0] - y[0] * y[0]),),
        lambda t, y, p, xp: (xp.sqrt(p.c * (p.a + p.b * (3 * y[0] ** 2 - 2 * y[0] ** 3))),),
        params={"a": LOSS, "b": HEIGHT, "c": 2 * eta * PLACE["curvature"] / batch_size},
        convention="ito",
    )
    fp = FokkerPlanck(sde, Grid.uniform(x=(-1.0, 1.3, 4000)), boundary={"x": ("reflecting", "absorbing")})
    time = mean_first_passage_time(fp).interp(x=0.0)
    assert float(time) == pytest.approx(1 / exact_rate(eta, batch_size), rel=1e-4)


def test_at_the_threshold_one_escape_is_expected():
    threshold = thresholds.power_law_escape(batch_size=4, steps=10_000, **PLACE)
    eta = float(threshold)
    rate = thresholds.power_law_escape_rate(eta, batch_size=4, **PLACE)
    assert rate * eta * 10_000 == pytest.approx(1.0, rel=1e-10)
    assert threshold.criterion == "escape"
    assert float(thresholds.power_law_escape(batch_size=10**6, steps=10, **PLACE)) == np.inf


def test_the_exponent_of_the_stationary_density():
    assert thresholds.power_law_exponent(0.1, curvature=5.0, batch_size=3) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saddle_loss": 0.1}, "saddle_loss=0.1 is not above"),
        ({"loss": 0.0}, "loss"),
        ({"curvature": -1.0}, "curvature"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        thresholds.power_law_escape(batch_size=1, steps=10, **PLACE | changes)
