"""Densities in time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from solvers import (
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eigenmodes,
    evolve,
    evolve_backward,
    stationary_density,
)
from tests.operators import double_well, ornstein_uhlenbeck, rotating_ou, separable_wells, tilted_cosine


def one_cell(grid, *index):
    density = np.zeros(grid.shape)
    density[index] = 1 / grid.volumes[index]
    return density


def test_gaussian_spreads_as_it_should(reference):
    mean, variance = reference["time_ou_T"]["value"]
    errors = []
    for n in (300, 600):
        grid = Grid.uniform(x=(-6, 6, n))
        # a cell with its edge at 2: start in both neighbours, so that the mean is 2; h^2/4 is added variance
        start = np.zeros(n)
        start[[n * 2 // 3 - 1, n * 2 // 3]] = 0.5 / grid.widths["x"][0]
        result = evolve(FokkerPlanck(ornstein_uhlenbeck(1, 0.5), grid), start, [0.7])
        masses = result.values[0] * grid.volumes
        found = masses @ grid.centers["x"]
        second = masses @ (grid.centers["x"] - found) ** 2
        errors.append(np.abs([found / mean - 1, second / variance - 1]))
    assert errors[1].max() < 5e-4
    assert np.all(np.abs(errors[0] / errors[1] - 4) < 0.6)


def test_agrees_with_the_matrix_exponential():
    grid = Grid.uniform(x=(0, 2 * np.pi, 40))
    fp = FokkerPlanck(tilted_cosine(), grid, boundary="periodic")
    start = one_cell(grid, 7)
    result = evolve(fp, start, [0.0, 0.3, 2.0], tol=1e-8)
    np.testing.assert_array_equal(result.values[0], start)
    for time, found in zip(result.time.values[1:], result.values[1:], strict=True):
        exact = expm(time * fp.generator.toarray()) @ (start * grid.volumes)
        # local errors of 1e-8 over some tens of steps, in mass
        assert np.abs(found * grid.volumes - exact).sum() < 1e-6


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 59),
    st.floats(1e-6, 100),
    st.floats(0.01, 1),
    st.booleans(),
    st.sampled_from(["auto", "implicit", "uniformization"]),
)
def test_positive_and_conserving_from_one_cell(cell, time, noise, periodic, method):
    if periodic:
        fp = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, 2 * np.pi, 60)), boundary="periodic")
    else:
        fp = FokkerPlanck(double_well(noise), Grid.uniform(x=(-3, 3, 60)))
    result = evolve(fp, one_cell(fp.grid, cell), [time, 3 * time], tol=1e-5, method=method)
    assert result.values.min() >= 0
    # some hundred steps, each rounded once
    np.testing.assert_allclose((result.values * fp.grid.volumes).sum(axis=1), 1, rtol=1e-13)


def test_tends_to_the_stationary_density_at_the_rate_of_the_gap():
    fp = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-3, 3, 120)))
    gap = float(eigenmodes(fp, 2).gap)
    result = evolve(fp, one_cell(fp.grid, 30), [20.0, 40.0], tol=1e-9)
    far = [float(abs(result[i] - stationary_density(fp)).sum()) for i in (0, 1)]
    assert abs(np.log(far[0] / far[1]) / 20 / gap - 1) < 1e-4


def test_two_dimensions_and_absorption():
    grid = Grid.uniform(x=(-2, 2, 30), y=(-2, 2, 20))
    result = evolve(FokkerPlanck(separable_wells(), grid), one_cell(grid, 8, 10), [0.5], tol=1e-5)
    assert result.dims == ("time", "x", "y")
    np.testing.assert_allclose(float((result[0] * grid.volumes).sum()), 1, rtol=1e-12)
    fp = FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-1, 1, 50)), boundary="absorbing")
    late = evolve(fp, one_cell(fp.grid, 25), [3.0, 4.0], tol=1e-9)
    mass = (late.values * fp.grid.volumes).sum(axis=1)
    assert abs(np.log(mass[0] / mass[1]) / float(eigenmodes(fp, 1).gap) - 1) < 1e-4


def test_unusable_input_is_refused():
    grid = Grid.uniform(x=(-3, 3, 20))
    fp = FokkerPlanck(double_well(0.2), grid)
    for density, times, words in [
        (-one_cell(grid, 3), [1.0], "finite values >= 0"),
        (np.zeros(20), [1.0], "zero everywhere"),
        (np.ones(19), [1.0], "shape"),
        (np.ones(20), [2.0, 1.0], "increasing"),
        (np.ones(20), [-1.0], "increasing"),
        (np.ones(20), [], "increasing"),
        (np.full(20, np.nan), [1.0], "nan"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            evolve(fp, density, times)
    for settings_, words in [
        ({"method": "euler"}, "'euler' is unknown; choose one of 'auto', 'krylov'"),
        ({"tol": 2.0}, "tol=2.0"),
        ({"t0": 2.0}, "times >= 2"),
        ({"t0": np.nan}, "t0=nan"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            evolve(fp, np.ones(20), [1.0], **settings_)
    with pytest.raises(InvalidInput, match="pass a FokkerPlanck or a TimeDependentFokkerPlanck"):
        evolve(fp.generator, np.ones(20), [1.0])
    for observable, words in [
        (lambda x, y: x, "observable does not take"),
        (lambda x: 1 / (x > 5), "observable contains inf"),
        (lambda x: "much", "not numbers on the grid"),
        (np.ones(7), "observable has shape"),
    ]:
        with np.errstate(divide="ignore"), pytest.raises(InvalidInput, match=words):
            evolve_backward(fp, observable, [1.0])


def test_a_density_from_another_grid_is_refused():
    fp = FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-4, 4, 50)))
    own = stationary_density(fp)
    evolve(fp, own, [0.1])
    evolve(fp, own.drop_vars("x"), [0.1])
    other = stationary_density(FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-3, 3, 50))))
    with pytest.raises(InvalidInput, match=r"x=-2.94 where the grid has .* x=-3.92.*another grid"):
        evolve(fp, other, [0.1])
    with pytest.raises(InvalidInput, match="40 cells along x"):
        evolve(fp, own[:40], [0.1])
    with pytest.raises(InvalidInput, match="no array of numbers"):
        evolve(fp, "flat", [0.1])


@pytest.mark.parametrize("method", ["auto", "implicit", "uniformization"])
@pytest.mark.parametrize("walls", ["reflecting", "absorbing"])
def test_expectations_are_dual_to_densities(method, walls):
    fp = FokkerPlanck(double_well(0.3), Grid(x=np.sinh(np.linspace(-1.8, 1.8, 71))), boundary=walls)
    start, times = one_cell(fp.grid, 20), [0.0, 0.01, 1.0, 4.0]
    forward = evolve(fp, start, times, tol=1e-8, method=method)
    backward = evolve_backward(fp, lambda x: np.exp(-x), times, tol=1e-8, method=method)
    values, masses = np.exp(-fp.grid.centers["x"]), start * fp.grid.volumes
    there = forward.values @ (values * fp.grid.volumes)
    back = backward.values @ masses
    # tol of the mass times the largest value, and tol of the range, per step of at most some hundred
    steps = forward.attrs.get("steps", 10) + backward.attrs.get("steps", 10)
    np.testing.assert_allclose(there, back, rtol=0, atol=steps * 1e-8 * values.max())
    assert abs(there[-1] - there[0]) > 0.1


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 39),
    st.floats(1e-6, 100),
    st.sampled_from(["reflecting", "absorbing", "periodic"]),
    st.sampled_from(["auto", "implicit", "uniformization"]),
)
def test_expectations_keep_the_maximum_principle(cell, time, walls, method):
    model = tilted_cosine() if walls == "periodic" else double_well(0.1)
    low, high = (0, 2 * np.pi) if walls == "periodic" else (-2.5, 2.5)
    fp = FokkerPlanck(model, Grid.uniform(x=(low, high, 40)), boundary=walls)
    indicator = np.zeros(40)
    indicator[cell] = 1.0
    probability = evolve_backward(fp, indicator, [time, 2 * time], tol=1e-5, method=method)
    assert probability.values.min() >= 0
    assert probability.values.max() <= 1
    one = evolve_backward(fp, np.ones(40), [time], tol=1e-5, method=method)
    if walls != "absorbing":
        assert np.all(one.values == 1)
    # to be in one cell and to be in another exclude each other: rounding and tolerances of some hundred steps
    assert np.all(probability.values[0] <= one.values[0] + 1e-3)


def test_expectations_of_a_linear_process():
    """E X_t = y exp(-t), E X_t^2 = y^2 exp(-2t) + D (1 - exp(-2t)), second order in the cells."""
    errors = []
    for n in (150, 300):
        fp = FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-8, 8, n)))
        inside = np.abs(fp.grid.centers["x"]) < 2  # walls are felt at 8
        y = fp.grid.centers["x"][inside]
        mean = evolve_backward(fp, lambda x: x, [0.7]).values[0][inside]
        square = evolve_backward(fp, lambda x: x**2, [0.7]).values[0][inside]
        decay = np.exp(-0.7)
        errors.append(
            [
                np.abs(mean - y * decay).max(),
                np.abs(square - y**2 * decay**2 - 0.5 * (1 - decay**2)).max(),
            ]
        )
    errors = np.array(errors)
    assert errors[1].max() < 2e-3
    assert np.all(np.abs(errors[0] / errors[1] - 4) < 0.5)


def test_survival_is_the_expectation_of_one():
    fp = FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-1, 1, 60)), boundary="absorbing")
    survival = evolve_backward(fp, lambda x: 1.0, [3.0, 4.0], tol=1e-9)
    ratio = survival.values[0, 30] / survival.values[1, 30]
    assert abs(np.log(ratio) / float(eigenmodes(fp, 1).gap) - 1) < 1e-4
    start = one_cell(fp.grid, 12)
    left = (evolve(fp, start, [3.0], tol=1e-9).values[0] * fp.grid.volumes).sum()
    assert abs(survival.values[0, 12] - left) < 1e-8


def test_many_times_cost_no_further_factorisation():
    fp = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-3, 3, 200)))
    start = one_cell(fp.grid, 60)
    one = evolve(fp, start, [0.1, 1.0], tol=1e-6)
    many = evolve(fp, start, np.linspace(0.1, 1.0, 300), tol=1e-6)
    assert many.attrs["factorisations"] == one.attrs["factorisations"] == 1
    assert many.attrs["solves"] == one.attrs["solves"]
    few = evolve(fp, start, [1.0], tol=1e-6, method="implicit")
    dense = evolve(fp, start, np.linspace(0.01, 1.0, 300), tol=1e-6, method="implicit")
    assert dense.attrs["steps"] <= few.attrs["steps"] + 4
    middle = evolve(fp, start, [float(dense.time[150])], tol=1e-9)
    # estimates bound each step's error at the output too
    assert np.abs(dense.values[150] - middle.values[0]).sum() * fp.grid.widths["x"][0] < 1e-6 * 40
    np.testing.assert_allclose((many.values * fp.grid.volumes).sum(axis=1), 1, rtol=1e-13)


def test_methods_agree_in_two_dimensions():
    grid = Grid.uniform(x=(-3, 3, 24), y=(-3, 3, 20))
    fp = FokkerPlanck(rotating_ou(), grid)
    start, x2 = one_cell(grid, 3, 5), grid.coords()[0] ** 2
    exact = expm(0.8 * fp.generator.toarray())
    for method in ("auto", "krylov", "implicit", "uniformization"):
        found = evolve(fp, start, [0.8], tol=1e-8, method=method)
        mean = evolve_backward(fp, x2, [0.8], tol=1e-8, method=method)
        assert (
            np.abs((found[0].values * grid.volumes).ravel() - exact @ (start * grid.volumes).ravel()).sum()
            < 1e-6
        )
        assert np.abs(mean[0].values.ravel() - exact.T @ x2.ravel()).max() < 1e-6 * x2.max()
        assert found.attrs["method_reason"]


def test_signed_cross_terms_are_followed_as_they_are():
    """The discrete solution dips below zero by 7e-5: nothing but what is shown is cut."""
    grid = Grid(x=np.sinh(np.linspace(-2, 2, 25)), y=np.linspace(-4, 4, 21))
    with pytest.warns(AccuracyWarning, match="non-uniform"):
        fp = FokkerPlanck(rotating_ou(), grid)
    start = one_cell(grid, 12, 10)
    exact = expm(fp.generator.toarray()) @ (start * grid.volumes).ravel()
    negative = -exact[exact < 0].sum()
    assert negative > 1e-6
    for method in ("krylov", "implicit"):
        found = (evolve(fp, start, [1.0], tol=1e-8, method=method)[0].values * grid.volumes).ravel()
        assert found.min() >= 0
        # cut, and the rest rescaled by as much
        assert np.abs(found - exact).sum() < 2.1 * negative
    with pytest.raises(InvalidInput, match="needs nonnegative rates"):
        evolve(fp, start, [1.0], method="uniformization")
