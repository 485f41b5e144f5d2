"""Uniform, logarithmic and stretched axes: edges, refusals, and the order of convergence on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eigenmodes,
    log_axis,
    stationary_density,
    stretched_axis,
    uniform_axis,
)
from tests.operators import double_well
from tests.orders import assert_order


def test_axes_of_different_kinds_mix():
    grid = Grid.log(x=(1e-3, 10, 40), y=uniform_axis(-2, 2, 10), z=stretched_axis(0, 1, 8, around=0))
    assert grid.shape == (40, 10, 8)
    ratios = grid.edges["x"][1:] / grid.edges["x"][:-1]
    np.testing.assert_allclose(ratios, 1e4 ** (1 / 40), rtol=1e-13)
    assert grid.edges["x"][0] == 1e-3
    assert grid.edges["x"][-1] == 10
    mixed = Grid.stretched(x=(-1, 1, 30), y=(0, 1, 5), around={"x": 0.2}, width={"x": 0.05}, ratio=4)
    assert mixed.is_uniform("y")
    assert not mixed.is_uniform("x")


def test_negative_logarithmic_axes_increase():
    edges = log_axis(-8, -1, 3)
    np.testing.assert_allclose(edges, [-8, -4, -2, -1], rtol=1e-14)


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=3, unique=True),
    st.floats(1, 50),
    st.floats(0.05, 2),
    st.integers(60, 300),
)
def test_stretched_axes_increase_smoothly_and_hit_their_points(points, ratio, width, cells):
    stops = np.unique([-3.0, *points, 3.0])
    if np.diff(stops).min() < 0.5:
        return
    edges = stretched_axis(-3, 3, cells, around=points, width=width, ratio=ratio)
    assert edges.shape == (cells + 1,)
    assert np.isin(points, edges).all()
    h = np.diff(edges)
    assert h.min() > 0
    # the number of cells per length is between 1 and 1 + (ratio - 1) len(points), of one scale; rounding cells
    # per stretch changes the scale by at most one cell in the fewest
    fewest = np.diff(np.flatnonzero(np.isin(edges, stops))).min()
    assert h.max() / h.min() < (1 + (ratio - 1) * len(points)) * (1 + 2 / fewest)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: log_axis(0, 1, 10), "would contain 0"),
        (lambda: Grid.log(x=(-1, 1, 10)), "axis x: a logarithmic axis"),
        (lambda: Grid.log(x=(1, 2)), "triple"),
        (lambda: uniform_axis(0, np.inf, 10), "finite low < high"),
        (lambda: uniform_axis(0, 1, True), "integer >= 2"),
        (lambda: uniform_axis("a", 1, 3), "finite low < high"),
        (lambda: stretched_axis(0, 1, 10, around=2), "at least one point"),
        (lambda: stretched_axis(0, 1, 10, around=()), "at least one point"),
        (lambda: stretched_axis(0, 1, 10, around="x"), "give numbers"),
        (lambda: stretched_axis(0, 1, 10, around=0, width=0), "half width"),
        (lambda: stretched_axis(0, 1, 10, around=0, ratio=0.5), "ratio=0.5"),
        (lambda: stretched_axis(0, 1, 3, around=(0.3, 0.30001)), "no cell between"),
        (lambda: Grid.stretched(x=(0, 1, 10), around={"z": 0}), "around names axis 'z'"),
        (lambda: Grid.stretched(x=(0, 1, 10), around=0.5), "give a mapping"),
    ],
)
def test_unusable_axes_are_refused(make, words):
    with pytest.raises(InvalidInput, match=words):
        make()


def test_second_order_on_a_logarithmic_axis():
    """d(log X) = -log X dt + dW: eigenvalues -n, lognormal density; the box ends at 7 standard deviations."""
    sde = SDE(
        lambda t, y, p, xp: (-y[0] * xp.log(y[0]),),
        lambda t, y, p, xp: (y[0],),
        convention="stratonovich",
    )
    errors = []
    for n in (50, 100, 200):
        fp = FokkerPlanck(sde, Grid.log(x=(np.exp(-5), np.exp(5), n)))
        values = eigenmodes(fp, 4).eigenvalue.values[1:].real
        density = stationary_density(fp)
        log = np.log(density.x.values)
        exact = np.exp(-(log**2)) / np.sqrt(np.pi) / density.x.values
        errors.append([*np.abs(values / [-1, -2, -3] - 1), (abs(density - exact) * fp.grid.volumes).sum()])
    assert_order(errors, (50, 100, 200), 2)


def test_second_order_on_a_stretched_axis(reference):
    exact = -np.array(reference["dw1d_D0.1"]["value"][:3])
    errors, sizes = [], (71, 142, 284)
    for times, n in enumerate(sizes):
        grid = Grid.stretched(x=(-2.2, 2.2, n), around={"x": (-1, 1)}, width={"x": 0.3}, ratio=8)
        assert grid.widths["x"].max() > 5 * grid.widths["x"].min()
        # whole numbers of cells between the points: these sizes double each, so that every cell is halved
        counts = np.histogram(grid.centers["x"], [-2.2, -1, 1, 2.2])[0]
        assert counts.tolist() == [18 * 2**times, 35 * 2**times, 18 * 2**times]
        values = eigenmodes(FokkerPlanck(double_well(0.1), grid), 4).eigenvalue.values[1:].real
        errors.append(np.abs(values / exact - 1))
    assert_order(errors, sizes, 2)
