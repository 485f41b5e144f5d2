"""Thresholds located on models whose thresholds are known otherwise: closed forms, shooting, quadrature, simulation."""

import math

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq

from eos_sde import thresholds
from eos_sde.models import maps
from eos_sde.thresholds import locate
from eos_sde.thresholds.grids import discretisation_error
from eos_sde.thresholds.map_exponents import log_moment_shifted_normal, mean_log_shifted_normal
from solvers import SDE, FokkerPlanck, Grid, InvalidInput, eigenmodes, escape_rate


def linear(a, s, convention="ito"):
    return SDE(
        lambda t, y, p, xp: (p.a * y[0],),
        lambda t, y, p, xp: (p.s * y[0],),
        params={"a": a, "s": s},
        convention=convention,
    )


def double_well(D):
    return SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (xp.sqrt(2.0 * p.D),),
        params={"D": D},
        convention="ito",
    )


# ---- exponents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [0.1, 0.7, 2.0])
def test_linear_sde_in_its_drift(s):
    """Dx = a x dt + s x dW (Ito): Lambda(p) = p (a + (p - 1) s^2 / 2), and the exponent a - s^2 / 2."""
    settings = {"bracket": (-9.0, 5.0), "at": 0.0}
    almost_sure = locate(lambda a: linear(a, s), criterion="almost_sure", **settings)
    assert abs(float(almost_sure) - s**2 / 2) <= almost_sure.stderr
    assert almost_sure.evaluations <= 4  # linear in a: two ends and a secant
    for p in (-0.5, 0.5, 1, 2, 3):
        moment = locate(lambda a: linear(a, s), criterion="moment", p=p, **settings)
        assert abs(float(moment) - (1 - p) * s**2 / 2) <= moment.stderr
        assert moment.stderr <= 2e-6 * 14


def noisy_curvature(eta, s=0.8):
    """SGD on h x^2 / 2 with h = 1 and curvature noise: x+ = (1 - eta - eta s xi) x."""
    return maps.loss_map(lambda t, y, p, xp: 0.5 * y[0] ** 2, eta, lambda t, y, p, xp: (s * y[0],))


def test_scalar_sgd_with_noisy_curvature():
    settings = {"bracket": (0.3, 4.0), "at": 0.0, "tolerance": 1e-9}
    almost_sure = locate(noisy_curvature, criterion="almost_sure", **settings)
    expected = thresholds.scalar_almost_sure(1.0, 0.64)
    assert abs(float(almost_sure) - float(expected)) <= almost_sure.stderr
    mean_square = locate(noisy_curvature, criterion="moment", **settings)
    assert abs(float(mean_square) - 2 / 1.64) <= mean_square.stderr  # (1 - eta)^2 + eta^2 s^2 = 1
    assert float(mean_square) < float(almost_sure)
    fourth = locate(noisy_curvature, criterion="moment", p=4, **settings)
    m, v = (lambda eta: 1 - eta), (lambda eta: (0.8 * eta) ** 2)
    expected = brentq(lambda eta: m(eta) ** 4 + 6 * m(eta) ** 2 * v(eta) + 3 * v(eta) ** 2 - 1, 0.3, 4.0)
    assert abs(float(fourth) - expected) <= fourth.stderr
    # E|1 - eta - eta s xi|^p by quadrature on both sides of the kink
    for p in (-0.5, 0.7, 1.0):

        def moment(eta, p=p):
            kink = (1 - eta) / (0.8 * eta)
            integrals = [
                quad(
                    lambda u, side=side: u**p * math.exp(-0.5 * (kink + side * u) ** 2),
                    0,
                    12 + abs(kink),
                    limit=400,
                )[0]
                for side in (-1, 1)
            ]
            return (0.8 * eta) ** p * sum(integrals) / math.sqrt(2 * math.pi) - 1

        found = locate(noisy_curvature, criterion="moment", p=p, **settings)
        assert float(found) == pytest.approx(brentq(moment, 0.3, 4.0, xtol=1e-10), abs=1e-7)


def test_a_map_without_noise_is_unstable_at_the_edge():
    found = locate(
        lambda eta: maps.quadratic_map(eta, 1.6, 0.0), bracket=(0.5, 2.0), criterion="almost_sure", at=0.0
    )
    assert abs(float(found) - 2 / 1.6) <= found.stderr + 1e-15


def coupled(eta, s=0.5):
    """Two weights, the second of curvature 0.7; the noise of each in proportion to it."""
    return maps.loss_map(
        lambda t, y, p, xp: 0.5 * y[0] ** 2 + 0.35 * y[1] ** 2,
        eta,
        lambda t, y, p, xp: (s * y[0], 0.3 * s * y[1]),
        names=("x", "z"),
    )


def test_maps_of_two_components():
    settings = {"bracket": (1.0, 3.0), "at": (0.0, 0.0)}
    mean_square = locate(coupled, criterion="moment", **settings)
    assert abs(float(mean_square) - 2 / 1.25) <= mean_square.stderr  # that of the first weight alone
    with pytest.raises(InvalidInput, match="give method='simulation' and a seed"):
        locate(coupled, criterion="almost_sure", **settings)
    simulated = locate(
        coupled, criterion="almost_sure", method="simulation", seed=3, duration=3000.0, paths=40, **settings
    )
    alone = float(thresholds.scalar_almost_sure(1.0, 0.25))
    # 4 standard errors: false alarm 6e-5; the second weight decays faster there, and adds nothing
    assert abs(float(simulated) - alone) < 4 * simulated.stderr
    assert 1e-3 < simulated.stderr < 0.05
    assert abs(float(mean_square) - alone) > 5 * simulated.stderr  # negative control
    assert simulated.evaluations <= 8  # it stops at a tenth of the sampling error
    with pytest.raises(InvalidInput, match="seed=None"):
        locate(coupled, criterion="almost_sure", method="simulation", **settings)
    with pytest.raises(InvalidInput, match=r"dt=0\.1: a map has its own step"):
        locate(coupled, criterion="moment", dt=0.1, **settings)


def test_shifted_normals():
    for a in (0.0, 0.3, 2.0, 30.0):
        inner = quad(
            lambda u, a=a: math.log(u) * sum(math.exp(-0.5 * (a + side * u) ** 2) for side in (-1, 1)),
            0,
            12 + a,
            limit=500,
            points=(a,) if a else None,
        )
        assert mean_log_shifted_normal(a) == pytest.approx(inner[0] / math.sqrt(2 * math.pi), abs=1e-7)
        assert log_moment_shifted_normal(a, 2) == pytest.approx(math.log(1 + a * a), abs=1e-12)
        assert log_moment_shifted_normal(a, 4) == pytest.approx(math.log(a**4 + 6 * a**2 + 3), abs=1e-12)
    # far from the kink E|a + N|^p = a^p (1 + p (p - 1) / (2 a^2) + ...)
    assert log_moment_shifted_normal(1e3, 0.5) == pytest.approx(0.5 * math.log(1e3) - 0.125e-6, abs=1e-11)


def turning(damping):
    """Two dimensions, two noises that do not commute."""
    return SDE(
        lambda t, y, p, xp: (-p.c * y[0] + y[1], -1.5 * y[0] - 0.3 * y[1]),
        lambda t, y, p, xp: ((0.8 * y[0], 0.5 * y[1]), (0.4 * y[1], -0.6 * y[0])),
        params={"c": damping},
        names=("x", "z"),
        convention="stratonovich",
        noise="general",
    )


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "p"), [("almost_sure", None), ("moment", 1.0)])
def test_two_dimensions_against_simulation(criterion, p):
    settings = {"bracket": (-2.0, 2.0), "criterion": criterion, "at": (0.0, 0.0)} | ({"p": p} if p else {})
    spectral = locate(turning, **settings)
    assert spectral.stderr < 1e-5
    assert spectral.evaluations <= 10
    length = {"duration": 100.0, "paths": 64} if p is None else {"duration": 12.0, "paths": 1024}
    simulated = locate(turning, method="simulation", seed=11, dt=0.04, tolerance=1e-3, **length, **settings)
    # 4 standard errors: false alarm 6e-5
    assert abs(float(spectral) - float(simulated)) < 4 * simulated.stderr
    assert simulated.stderr < 0.1
    assert simulated.evaluations <= 8
    other = locate(turning, **{**settings, "criterion": "moment", "p": 2.5})
    assert abs(float(other) - float(simulated)) > 5 * simulated.stderr  # negative control


# ---- spectra ---------------------------------------------------------------------------------------------


def shooting(D, rate):
    """q(0.5) of D q'' + (x - x^3) q' + rate q = 0 from q = 1, q' = 0 far to the left: 0 if that is the escape rate."""
    found = solve_ivp(
        lambda x, q: (q[1], -((x - x**3) * q[1] + rate * q[0]) / D), (-2.5, 0.5), (1.0, 0.0),
        method="DOP853", rtol=1e-11, atol=1e-13,
    )  # fmt: skip
    return float(found.y[0, -1])


@pytest.mark.parametrize("horizon", [30.0, 1000.0])
def test_escape_against_shooting(horizon):
    expected = brentq(lambda D: shooting(D, 1 / horizon), 0.04, 0.3, xtol=1e-12)
    errors = []
    for cells in (80, 160, 320):
        found = locate(
            double_well,
            bracket=(0.04, 0.3),
            criterion="escape",
            horizon=horizon,
            grid=Grid.uniform(x=(-2.5, 0.5, cells)),
            boundary={"x": ("reflecting", "absorbing")},
            tolerance=1e-8,
        )
        errors.append(abs(float(found) - expected))
        assert errors[-1] <= 1.2 * found.stderr
        assert found.stderr <= 2 * errors[-1]  # honest, and no excuse
        assert found.evaluations <= 9
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    # a region across the middle of cells in place of the wall
    beyond = locate(
        double_well, bracket=(0.04, 0.3), criterion="escape", horizon=horizon, target=lambda x: x > 0.5,
        grid=Grid.uniform(x=(-2.5, 2.5, 411)),
    )  # fmt: skip
    assert abs(float(beyond) - expected) <= 2 * beyond.stderr


def test_small_rates_meet_kramers_quadrature():
    """Mean exit time by two quadratures; one over it is the rate up to rate / relaxation, here 1e-8 / 2."""
    horizon = 1e8

    def mean_time(D):
        def scale(x):
            return math.exp((x**4 / 4 - x**2 / 2 + 0.25) / D)

        def below(x):
            return quad(lambda z: math.exp(-(z**4 / 4 - z**2 / 2 + 0.25) / D), -2.2, x, points=(-1.0,), epsabs=0,
                        epsrel=1e-11, limit=300)[0]  # fmt: skip

        return (
            quad(lambda x: scale(x) * below(x), -1.0, 1.0, points=(0.0,), epsabs=0, epsrel=1e-8, limit=300)[0]
            / D
        )

    expected = brentq(lambda D: math.log(mean_time(D) / horizon), 0.012, 0.03, xtol=1e-9)
    found = locate(
        double_well, bracket=(0.01, 0.05), criterion="escape", horizon=horizon, target=lambda x: x > 1.0,
        grid=Grid.uniform(x=(-2.0, 1.2, 640)),
    )  # fmt: skip
    # the time from -1 against that of the quasi-stationary start: a relative 1e-8 of the rate
    assert abs(float(found) - expected) <= 1.5 * found.stderr + 1e-8
    assert found.stderr < 1e-4 * expected


def test_few_eigen_solves():
    """The same root by brentq on the rate costs more than twice the eigen-solves."""
    grid, target = Grid.uniform(x=(-2.2, 2.2, 300)), 1e-5
    calls = []

    def excess(D):
        calls.append(D)
        return math.log(float(eigenmodes(FokkerPlanck(double_well(D), grid), 2)["gap"]) / target)

    width = 0.18
    plain = brentq(excess, 0.02, 0.2, xtol=1e-8 * width)
    found = locate(double_well, bracket=(0.02, 0.2), criterion="gap", level=target, grid=grid, tolerance=1e-8)
    assert float(found) == pytest.approx(plain, abs=2e-8 * width)
    assert found.evaluations - 2 <= 6
    assert len(calls) > 1.5 * (found.evaluations - 2)
    assert f"in {found.evaluations - 2} eigen-solves and 2 on coarser grids" in found.method


def test_the_second_order_is_measured():
    assert discretisation_error([0.1, 0.5]) == pytest.approx(0.1 / 3)  # differences 0.1, 0.4
    assert discretisation_error([0.1, 0.3]) == pytest.approx(0.1)  # first order
    assert discretisation_error([0.1, 1.7]) == pytest.approx(0.1 / 3)  # never taken for more than second
    assert discretisation_error([0.1, 0.15]) == pytest.approx(0.1)  # not settled
    assert discretisation_error([0.1, -0.4]) == pytest.approx(0.1 / 3)
    assert discretisation_error([0.2]) == 0.2
    assert discretisation_error([]) == math.inf


# ---- shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convention", "d", "p"), [("ito", 0.1, 0.2), ("stratonovich", 0, 0.1), ("klimontovich", -0.1, 0)]
)
def test_both_bifurcations_of_the_pitchfork(convention, d, p):
    """Dx = (a x - x^3) dt + s x dW, s^2 = 0.2: a = c s^2 where the exponent is 0, p(x) ~ x^(2 a / s^2 - 2 c)."""

    def build(a):
        return SDE(
            lambda t, y, p, xp: (p.a * y[0] - y[0] ** 3,),
            lambda t, y, p, xp: (0.2**0.5 * y[0],),
            params={"a": a},
            convention=convention,
        )

    exponent = locate(build, bracket=(-0.35, 0.5), criterion="almost_sure", at=0.0)
    assert abs(float(exponent) - d) <= exponent.stderr
    shape = locate(build, bracket=(-0.07, 0.5), criterion="density_shape", grid=Grid.uniform(x=(-2, 2, 401)))
    assert abs(float(shape) - p) <= shape.stderr
    assert shape.stderr < 0.01
    assert shape.criterion == "density_shape"
    assert "from 1 to 2 modes" in shape.method
    assert float(shape) > float(exponent) + 5 * shape.stderr  # they are different thresholds
    known = thresholds.pitchfork_p_bifurcation(math.sqrt(0.2), convention=convention)
    assert abs(float(shape) - float(known)) <= shape.stderr


def test_the_shape_of_a_map():
    """x+ = (1 - eta h) x + noise keeps one mode; the flip beyond the edge makes two."""
    found = locate(
        lambda mu: maps.line_map(2.0 + mu, 0.02, curvature=1.0, fourth=-3.0),
        bracket=(-0.2, 0.3),
        criterion="density_shape",
        grid=Grid.uniform(x=(-0.9, 0.9, 161)),
        tolerance=1e-2,
    )
    assert -0.05 < float(found) < 0.15
    with pytest.raises(InvalidInput, match="flux is for SDEs"):
        locate(
            lambda mu: maps.quadratic_map(1.0, 0.5 + mu, 0.3), bracket=(0.0, 1.0), criterion="gap", level=0.5,
            grid=Grid.uniform(x=(-2.5, 2.5, 60)), flux="chang-cooper",
        )  # fmt: skip


def test_rates_of_located_thresholds_are_what_was_asked_for():
    grid = Grid.uniform(x=(-2.2, 2.2, 200))
    found = locate(
        double_well, bracket=(0.03, 0.3), criterion="escape", horizon=50.0, grid=grid, target=lambda x: x > 0
    )
    rate = float(escape_rate(FokkerPlanck(double_well(float(found)), grid), target=lambda x: x > 0)["rate"])
    assert rate == pytest.approx(1 / 50, rel=1e-5)
    assert np.isfinite(found.stderr)
