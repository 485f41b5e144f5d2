"""Passage times, committors, escape, effective potential."""

import numpy as np
import pytest

from solvers import (
    SDE,
    AccuracyWarning,
    ConvergenceFailure,
    FokkerPlanck,
    Grid,
    InvalidInput,
    committor,
    effective_potential,
    eigenmodes,
    escape_rate,
    mean_first_passage_time,
)
from tests.operators import brownian_square, double_well, ornstein_uhlenbeck, separable_wells


def test_mean_first_passage_times_of_the_double_well(reference):
    to_saddle, to_well = reference["mfpt_dw_D0.1"]["value"]
    errors = []
    for n in (397, 794):  # no edge lies on 0 or 1: the target's edge is found inside a cell
        fp = FokkerPlanck(double_well(0.1), Grid.uniform(x=(-4, 4, n)))
        found = [
            float(mean_first_passage_time(fp, target).interp(x=-1.0, method="cubic"))
            for target in (lambda x: x >= 0, lambda x: x >= 1)
        ]
        errors.append(np.abs(np.array(found) / [to_saddle, to_well] - 1))
    assert errors[0].max() < 1e-3
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.25)


def test_committor_of_the_double_well(reference):
    fp = FokkerPlanck(double_well(0.1), Grid.uniform(x=(-4, 4, 411)))
    result = committor(fp, lambda x: x <= -1, lambda x: x >= 1)
    case = reference["committor_dw_D0.1"]
    found = result.interp(x=case["parameters"]["x"], method="cubic").values
    np.testing.assert_allclose(found, case["value"], atol=1e-4)  # h^2 = 4e-4
    assert float(result.min()) == 0
    assert float(result.max()) == 1
    assert np.all(np.diff(result.values) >= 0)


def test_escape_rate_by_wall_and_by_target(reference):
    exact = reference["qsd_dw_left_D0.1"]["value"]
    walled = FokkerPlanck(
        double_well(0.1), Grid.uniform(x=(-3, 0.5, 400)), boundary={"x": ("reflecting", "absorbing")}
    )
    result = escape_rate(walled)
    assert abs(float(result.rate) / exact - 1) < 1e-4
    np.testing.assert_allclose(float((result.quasi_stationary * walled.grid.volumes).sum()), 1, rtol=1e-12)
    assert float(result.rate) == float(eigenmodes(walled, 1).gap)
    open_ = FokkerPlanck(double_well(0.1), Grid.uniform(x=(-3, 3, 401)))
    killed = escape_rate(open_, target=lambda x: x > 0.5)
    assert abs(float(killed.rate) / exact - 1) < 5e-4
    assert float(killed.quasi_stationary.sel(x=1, method="nearest")) == 0


def test_tiny_escape_rates_keep_relative_accuracy():
    # the mean exit time from the metastable state is the inverse rate; computed by another equation
    fp = FokkerPlanck(double_well(0.015, potential=True), Grid.uniform(x=(-2, 2, 800)))
    rate = float(escape_rate(fp, target=lambda x: x > 0.4).rate)
    assert rate < 1e-7
    time = float(mean_first_passage_time(fp, lambda x: x > 0.4).sel(x=-1, method="nearest"))
    # the two differ by the relaxation time in the well times the rate, 1e-8; the solve loses
    # eps |L| / rate = 1e-12 * 1e8 = 1e-4 relative
    assert abs(rate * time - 1) < 1e-3


def test_exit_from_the_unit_square(reference):
    errors = []
    for n in (21, 41):
        fp = FokkerPlanck(brownian_square(), Grid.uniform(x=(0, 1, n), y=(0, 1, n)), boundary="absorbing")
        time = float(mean_first_passage_time(fp).sel(x=0.5, y=0.5, method="nearest"))
        errors.append(time / reference["mfpt_square"]["value"] - 1)
    assert abs(errors[1]) < 1e-3
    assert abs(errors[0] / errors[1] - 4) < 0.3


def test_exit_from_a_disc_is_second_order():
    # E tau = (1 - r^2) / 4 for D = 1; the circle cuts cells anywhere
    errors = []
    for n in (31, 61):
        fp = FokkerPlanck(brownian_square(), Grid.uniform(x=(-1.2, 1.2, n), y=(-1.2, 1.2, n)))
        times = mean_first_passage_time(fp, lambda x, y: x**2 + y**2 >= 1)
        errors.append(abs(float(times.sel(x=0, y=0, method="nearest")) / 0.25 - 1))
    assert errors[1] < 2e-3
    assert errors[0] / errors[1] > 2.5


def test_effective_potential_reaches_where_the_density_underflows():
    fp = FokkerPlanck(double_well(0.01, potential=True), Grid.uniform(x=(-4, 4, 400)))
    x = fp.grid.centers["x"]
    exact = (x**4 / 4 - x**2 / 2) / 0.01
    # sums of 400 terms of size up to 1e3
    np.testing.assert_allclose(effective_potential(fp), exact - exact.min(), atol=1e-9)


def test_unusable_input_is_refused():
    fp = FokkerPlanck(double_well(0.1), Grid.uniform(x=(-3, 3, 50)))
    for call, words in [
        (lambda: escape_rate(fp), "nothing removes"),
        (lambda: mean_first_passage_time(fp), "nothing is ever reached"),
        (lambda: mean_first_passage_time(fp, lambda x: x > 5), "no cell centre"),
        (lambda: mean_first_passage_time(fp, lambda x: x > -5), "every cell"),
        (lambda: mean_first_passage_time(fp, lambda x: x), "booleans"),
        (lambda: mean_first_passage_time(fp, 1.0), "predicate"),
        (lambda: mean_first_passage_time(fp, lambda x, y: x > y), r"target does not take \(x\)"),
        (lambda: mean_first_passage_time(fp, lambda x: x > 0 and x < 1), r"target branches .* \| and &"),
        (lambda: escape_rate(fp, target=lambda: True), r"target does not take \(x\)"),
        (lambda: committor(fp, lambda x: not x < 0, lambda x: x < 1), "source branches"),
        (lambda: committor(fp, lambda x: x < 0, lambda x: x < 1), "overlap"),
        (lambda: mean_first_passage_time(fp.generator, lambda x: x > 0), "csr_array"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
    still = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    stuck = FokkerPlanck(still, Grid.uniform(x=(-1, 1, 10)))
    with pytest.raises(InvalidInput, match="never reaches"):
        mean_first_passage_time(stuck, lambda x: x > 0.5)


def test_committor_in_two_dimensions_is_symmetric():
    fp = FokkerPlanck(separable_wells(), Grid.uniform(x=(-2, 2, 30), y=(-2, 2, 20)))
    result = committor(fp, lambda x, y: (x + 1) ** 2 + y**2 < 0.1, lambda x, y: (x - 1) ** 2 + y**2 < 0.1)
    np.testing.assert_allclose(result.values + result.values[::-1], 1, atol=1e-9)
    assert FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-1, 1, 20))).reversible


def _passage_by_quadrature(D, start=-1.0, low=-2.0):
    """T = (1/D) int_start^0 dy e^(U(y)/D) int_low^y dz e^(-U(z)/D) for U = x^4/4 - x^2/2, trapezoidal."""
    x = np.linspace(low, 0, 40001)
    u = x**4 / 4 - x**2 / 2
    h = x[1] - x[0]
    weight = np.exp(-(u - u.min()) / D)
    inner = h * (np.cumsum(weight) - 0.5 * (weight + weight[0]))
    within = x >= start  # U <= 0 = U(0) there
    return np.exp(-u.min() / D) / D * np.trapezoid(np.exp(u[within] / D) * inner[within], x[within])


@pytest.mark.parametrize("D", [0.02, 0.005, 0.003, 0.001])
def test_passage_times_over_any_barrier_keep_relative_accuracy(D):
    # up to a barrier of 250 D; the scheme is second order: h^2 |U''|^2 / (12 D) at most 3 percent here
    fp = FokkerPlanck(double_well(D, potential=True), Grid.uniform(x=(-2, 2, 400)))
    times = mean_first_passage_time(fp, lambda x: x > 0)
    assert float(times.min()) == 0
    assert abs(float(times.interp(x=-1.0)) / _passage_by_quadrature(D) - 1) < 0.03


def test_elimination_agrees_with_a_sparse_factorisation_where_that_is_accurate():
    from solvers.elimination import Elimination

    rng = np.random.default_rng(5)
    fp = FokkerPlanck(separable_wells(), Grid.uniform(x=(-1, 1, 17), y=(-1, 1, 12)), boundary="absorbing")
    a = -fp.generator.toarray().T
    right = rng.random(fp.grid.size)
    elimination = Elimination(fp.chain)
    np.testing.assert_allclose(elimination.solve(right), np.linalg.solve(a, right), rtol=1e-11)
    np.testing.assert_allclose(elimination.solve_transposed(right), np.linalg.solve(a.T, right), rtol=1e-11)


def test_long_times_in_two_dimensions_and_around_a_circle():
    # separable: the time along x alone, whatever y does
    def well(D, names):
        from solvers import from_potential

        def potential(t, y, p, xp):
            return y[0] ** 4 / 4 - y[0] ** 2 / 2 + (y[1] ** 2 if len(y) > 1 else 0.0)

        def noise(t, y, p, xp):
            return (xp.sqrt(2 * p.D),) * len(y)

        return from_potential(potential, noise, params={"D": D}, names=names, convention="ito")

    one = FokkerPlanck(well(0.005, ("x",)), Grid.uniform(x=(-2, 2, 80)))
    two = FokkerPlanck(well(0.005, ("x", "y")), Grid.uniform(x=(-2, 2, 80), y=(-0.5, 0.5, 20)))
    line = mean_first_passage_time(one, lambda x: x > 0).values
    plane = mean_first_passage_time(two, lambda x, y: x > 0).values
    assert line[0] > 1e21
    np.testing.assert_allclose(plane, np.broadcast_to(line[:, None], plane.shape), rtol=1e-9)
    hill = SDE(lambda t, y, p, xp: (xp.sin(y[0]),), lambda t, y, p, xp: (0.2,), convention="ito")
    circle = FokkerPlanck(hill, Grid.uniform(x=(0, 2 * np.pi, 90)), boundary="periodic")
    times = mean_first_passage_time(circle, lambda x: np.cos(x) > 0.99)
    assert float(times.max()) > 1e20
    np.testing.assert_allclose(times.values, times.values[::-1], rtol=1e-9)


def test_the_committor_between_deep_wells():
    # q = int_{-1}^x e^(U/D) / int_{-1}^1 e^(U/D): symmetric, and from well to well a step of width sqrt(D)
    fp = FokkerPlanck(double_well(0.002, potential=True), Grid.uniform(x=(-2, 2, 400)))
    result = committor(fp, lambda x: x <= -1, lambda x: x >= 1)
    np.testing.assert_allclose(result.values + result.values[::-1], 1, atol=1e-12)
    x = fp.grid.centers["x"]
    low = (x > -1) & (x < -0.9)
    assert (result.values[low] > 0).all()
    assert result.values[low].max() < 1e-40


def test_a_time_beyond_the_floats_is_refused_with_the_number():
    fp = FokkerPlanck(double_well(0.0003, potential=True), Grid.uniform(x=(-2, 2, 400)))
    with pytest.raises(ConvergenceFailure, match=r"1.8e\+308"):
        mean_first_passage_time(fp, lambda x: x > 0)


def test_undetermined_times_with_signed_cross_terms_are_refused():
    sde = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3, -y[1]),
        lambda t, y, p, xp: ((0.09, 0.0), (0.08, 0.05)),
        names=("x", "y"),
        convention="ito",
        noise="general",
    )
    with pytest.warns(AccuracyWarning, match="D12"):
        fp = FokkerPlanck(sde, Grid.uniform(x=(-1.5, 1.5, 40), y=(-0.4, 0.4, 60)))
    with pytest.raises(ConvergenceFailure, match="mean first passage time"):
        mean_first_passage_time(fp, lambda x, y: x > 0)


@pytest.mark.parametrize("D", [0.005, 0.003, 0.001])
def test_tiny_rates_and_gaps_keep_every_digit_in_one_dimension(D):
    # from the bottom of the well the mean time is 1 / rate up to relaxation time * rate, below 1e-20; at a
    # symmetric saddle half of the crossings turn back, so that the gap is 2 (rate / 2)
    fp = FokkerPlanck(double_well(D, potential=True), Grid.uniform(x=(-2, 2, 400)))
    time = float(mean_first_passage_time(fp, lambda x: x > 0).interp(x=-1.0))
    assert abs(time * float(escape_rate(fp, target=lambda x: x > 0).rate) - 1) < 1e-9
    assert abs(time * float(eigenmodes(fp, 2).gap) - 1) < 1e-9


def test_tiny_escape_rates_in_two_dimensions():
    fp = FokkerPlanck(separable_wells(0.02), Grid.uniform(x=(-1.6, 1.6, 64), y=(-0.6, 0.6, 24)))
    time = float(mean_first_passage_time(fp, lambda x, y: x > 0).sel(x=-1, y=0, method="nearest"))
    assert time > 1e21
    # the time from a cell off the average of the quasi-stationary density: within 1e-6
    assert abs(time * float(escape_rate(fp, target=lambda x, y: x > 0).rate) - 1) < 1e-6
