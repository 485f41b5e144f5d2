"""Densities in time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from solvers import FokkerPlanck, Grid, InvalidInput, eigenmodes, evolve, stationary_density
from solvers.exponentials import _FOURTH, _THIRD
from solvers.exponentials import GAMMA as _GAMMA
from tests.operators import double_well, ornstein_uhlenbeck, separable_wells, tilted_cosine


def one_cell(grid, *index):
    density = np.zeros(grid.shape)
    density[index] = 1 / grid.volumes[index]
    return density


@pytest.mark.parametrize(("weights", "order"), [(_FOURTH, 4), (_THIRD, 3)])
def test_step_has_its_order_and_is_l_stable(weights, order):
    def stability(z):
        return sum(c * (1 - _GAMMA * z) ** -k for k, c in enumerate(weights, start=1))

    errors = [abs(stability(z) - np.exp(z)) for z in (-0.2, -0.1)]
    assert abs(np.log2(errors[0] / errors[1]) - (order + 1)) < 0.3
    # L-stable: bounded by 1 on the imaginary axis (hence in the half plane), and 0 at infinity
    assert np.abs(stability(1j * np.logspace(-3, 4, 4000))).max() <= 1 + 1e-12
    assert abs(stability(-1e12)) < 1e-10


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


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 59), st.floats(1e-6, 100), st.floats(0.01, 1), st.booleans())
def test_positive_and_conserving_from_one_cell(cell, time, noise, periodic):
    if periodic:
        fp = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, 2 * np.pi, 60)), boundary="periodic")
    else:
        fp = FokkerPlanck(double_well(noise), Grid.uniform(x=(-3, 3, 60)))
    result = evolve(fp, one_cell(fp.grid, cell), [time, 3 * time], tol=1e-5)
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
    ]:
        with pytest.raises(InvalidInput, match=words):
            evolve(fp, density, times)


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
