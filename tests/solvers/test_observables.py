"""Passage times, committors, escape, effective potential."""

import numpy as np
import pytest

from solvers import (
    SDE,
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
