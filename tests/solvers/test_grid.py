"""Grids and walls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers import SDE, Grid, InvalidInput, simulate
from solvers.boundary import walls


def test_uniform_grid_has_named_axes():
    grid = Grid.uniform(x=(-1, 1, 4), y=(0, 3, 3))
    assert grid.names == ("x", "y")
    assert grid.shape == (4, 3)
    assert grid.size == 12
    assert grid.d == 2
    np.testing.assert_allclose(grid.centers["x"], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(grid.volumes, 0.5)
    assert [mesh.shape for mesh in grid.coords()] == [(4, 3), (4, 3)]
    assert grid == Grid(x=grid.edges["x"], y=grid.edges["y"])


def test_an_edge_meant_to_be_zero_is_zero():
    assert 0.0 in Grid.uniform(x=(-0.3, 0.6, 9)).edges["x"]


@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=30), st.floats(-5, 5))
def test_volumes_fill_the_box(widths, start):
    edges = start + np.concatenate([[0], np.cumsum(widths)])
    grid = Grid(x=edges, y=[0.0, 1.0, 3.0])
    # sums of <= 60 products, each rounded once
    np.testing.assert_allclose(grid.volumes.sum(), 3 * (edges[-1] - edges[0]), rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grid(), "at least one axis"),
        (lambda: Grid(x=[0.0, 1.0]), "2 cells"),
        (lambda: Grid(x=[0.0, 1.0, 1.0]), "must increase"),
        (lambda: Grid(x=[0.0, np.nan, 1.0]), "finite"),
        (lambda: Grid(x=["a", "b", "c"]), "not numbers"),
        (lambda: Grid(x=np.zeros((2, 2))), r"shape \(2, 2\)"),
        (lambda: Grid.uniform(x=(1, 0, 10)), "low < high"),
        (lambda: Grid.uniform(x=(0, 1, 1)), "integer >= 2"),
        (lambda: Grid.uniform(x=(0, 1, 10.0)), "integer >= 2"),
        (lambda: Grid.uniform(x=(0, 1)), "triple"),
        (lambda: Grid.uniform(right=(0, 1, 5)), "axis 'right' has the name of a variable"),
        (lambda: Grid.uniform(x=(0, 1, 5), mean=(0, 1, 5)), "axis 'mean' has the name of a variable"),
    ],
)
def test_unusable_axes_are_refused(make, words):
    with pytest.raises(InvalidInput, match=words):
        make()


def test_walls_are_spelt_out():
    assert walls("reflecting", ("x", "y")) == {
        "x": ("reflecting", "reflecting"),
        "y": ("reflecting", "reflecting"),
    }
    assert walls({"y": ("absorbing", "reflecting")}, ("x", "y"))["x"] == ("reflecting", "reflecting")
    assert walls({"x": "periodic"}, ("x",)) == {"x": ("periodic", "periodic")}


@pytest.mark.parametrize(
    ("boundary", "words"),
    [
        ("open", "unknown"),
        ({"z": "reflecting"}, "axis 'z'"),
        ({"x": ("periodic", "reflecting")}, "both sides"),
        ({"x": ("reflecting",)}, "pair"),
        (3, "neither"),
    ],
)
def test_unknown_walls_are_refused(boundary, words):
    with pytest.raises(InvalidInput, match=words):
        walls(boundary, ("x",))


def test_no_result_uses_a_name_that_an_axis_may_have():
    from solvers import (
        FokkerPlanck,
        TransferOperator,
        committor,
        continuation,
        effective_potential,
        eigenmodes,
        entropy_production,
        escape_rate,
        evolve,
        evolve_backward,
        mean_first_passage_time,
        metastable_sets,
        probability_current,
        reaction_rate,
    )
    from solvers.collecting import STATISTICS
    from solvers.grid import _TAKEN
    from solvers.request import _RUN_NAMES
    from tests.operators import ornstein_uhlenbeck

    sde, grid = ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-4, 4, 50))
    fp = FokkerPlanck(sde, grid)
    results = [
        eigenmodes(fp, 2, richardson=True),
        continuation(lambda D: FokkerPlanck(sde.replace(D=D), grid), [0.5, 0.51], k=2, name="D"),
        effective_potential(fp).to_dataset(),
        mean_first_passage_time(fp, lambda x: x > 1).to_dataset(),
        committor(fp, lambda x: x < -1, lambda x: x > 1).to_dataset(),
        evolve_backward(fp, lambda x: x, [1.0]).to_dataset(),
        eigenmodes(TransferOperator(sde, grid, step=0.2), 2),
        escape_rate(fp, target=lambda x: x > 1),
        evolve(fp, np.ones(50), [1.0]).to_dataset(),
        probability_current(fp),
        entropy_production(fp),
        reaction_rate(fp, lambda x: x < -1, lambda x: x > 1),
        metastable_sets(fp, 2),
        metastable_sets(TransferOperator(sde, grid, step=0.2), 2),
        simulate(
            sde, 0.0, t1=0.1, dt=0.1, paths=2, seed=0, histogram=grid, save_paths=True,
            stop=lambda t, y, p, xp: y[0] > 9, statistics=("mean", "variance", "covariance"),
        ),
    ]  # fmt: skip
    for result in results:
        # names made of the axis's own cannot be another axis but by intent
        own = {"x", "x_edge", "face_current_x", "reactive_face_current_x", "D"}
        assert set(result.variables) <= _TAKEN | own
    assert set(STATISTICS) <= _TAKEN | _RUN_NAMES


def test_a_histogram_over_a_name_of_a_run_is_refused():
    sde = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), names=("q",), convention="ito")
    with pytest.raises(InvalidInput, match="axis 'q' of the histogram"):
        simulate(
            sde, 0.0, t1=1.0, dt=0.1, paths=2, seed=0, histogram=Grid.uniform(q=(-1, 1, 4)), quantiles=(0.5,)
        )
