"""Modes of large three-dimensional operators by Davidson steps and multigrid, against sums of exact ones."""

import itertools

import numpy as np
import pytest

from solvers import FokkerPlanck, Grid, InvalidInput, eigenmodes, from_potential
from solvers.davidson import davidson
from solvers.lattice_rates import rates_of
from solvers.multigrid import Multigrid, operator

pytestmark = pytest.mark.filterwarnings("ignore:cells along")


def wells(D, names=("x", "y", "z")):
    """Double wells of different depth along the first axis, parabolas along the others."""
    if len(names) == 1:
        return from_potential(
            lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + 0.1 * y[0],
            lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
            params={"D": D},
            names=names,
            convention="ito",
        )
    return from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + 0.1 * y[0] + y[1] ** 2 + 0.5 * y[2] ** 2,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * 3,
        params={"D": D},
        names=names,
        convention="ito",
    )


def parabola(stiffness, D, name):
    return from_potential(
        lambda t, y, p, xp: 0.5 * p.stiffness * y[0] ** 2,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
        params={"D": D, "stiffness": stiffness},
        names=(name,),
        convention="ito",
    )


def summed_eigenvalues(models, axes, boundaries, count):
    """The eigenvalues of a separable operator on a product grid: sums of those of its factors on their axes."""
    lines = []
    for model, (name, axis), boundary in zip(models, axes.items(), boundaries, strict=True):
        grid = Grid(**{name: axis}) if isinstance(axis, np.ndarray) else Grid.uniform(**{name: axis})
        line = FokkerPlanck(model, grid, boundary={name: boundary}, allow_wall_mass=True)
        lines.append(eigenmodes(line, k=6).eigenvalue.values)
    return np.sort([sum(v) for v in itertools.product(*lines)])[::-1][:count]


AXES = {"x": (-2, 2, 33), "y": (-2.5, 2.5, 30), "z": (-3, 3, 28)}


@pytest.mark.parametrize("D", [0.3, 0.03])
def test_discrete_eigenvalues_are_sums_of_those_of_lines(D):
    fp = FokkerPlanck(wells(D), Grid.uniform(**AXES))
    modes = eigenmodes(fp, k=6)
    assert modes.attrs["method"] == "davidson"
    exact = summed_eigenvalues(
        [wells(D, ("x",)), parabola(2.0, D, "y"), parabola(1.0, D, "z")], AXES, ["reflecting"] * 3, 6
    )
    # quotients are wrong by the square of the residuals: far below 1e-10, for the tiny one (5e-14) as well
    np.testing.assert_allclose(modes.eigenvalue.values[1:], exact[1:], rtol=1e-10)
    assert modes.eigenvalue.values[0] == 0.0


def test_left_and_right_vectors_are_biorthonormal_and_solve_their_equations():
    fp = FokkerPlanck(wells(0.3), Grid.uniform(**AXES))
    modes = eigenmodes(fp, k=6)
    left = modes.left.values.reshape(6, -1)
    right = (modes.right.values * fp.grid.volumes).reshape(6, -1)
    # vectors of tol 1e-10 over gaps of order 0.1, times a condition number of 10
    np.testing.assert_allclose(left @ right.T, np.eye(6), atol=1e-8)
    assert np.all(modes.residual < 1e-10)
    for value, function in zip(modes.eigenvalue.values, left, strict=True):
        rest = fp.adjoint @ function - value * function
        # pointwise, in the tails too, against what flows out of a cell, 200 per unit of time: residuals of
        # 1e-10 (times eigenvalues of order 1) are divided by sqrt(pi) down to 1e-6 of its largest
        assert np.abs(rest / (fp.chain.outflow * np.abs(function).max())).max() < 1e-10 / 1e-6 / 200


def test_walls_periodic_axes_and_stretched_cells():
    D = 0.4
    edges = 2.5 * np.sinh(np.linspace(-1.5, 1.5, 31)) / np.sinh(1.5)
    axes = {"x": (-2, 2, 31), "y": edges, "z": (0.0, 2 * np.pi, 34)}

    def along(name):
        return from_potential(
            lambda t, y, p, xp: -0.5 * xp.cos(y[0]),
            lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
            params={"D": D},
            names=(name,),
            convention="ito",
        )

    full = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + 0.1 * y[0] + y[1] ** 2 - 0.5 * xp.cos(y[2]),
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * 3,
        params={"D": D},
        names=("x", "y", "z"),
        convention="ito",
    )
    grid = Grid(x=np.linspace(-2, 2, 32), y=edges, z=np.linspace(0, 2 * np.pi, 35))
    walls = [("absorbing", "reflecting"), ("reflecting", "reflecting"), ("periodic", "periodic")]
    fp = FokkerPlanck(full, grid, boundary=dict(zip(grid.names, walls, strict=True)), allow_wall_mass=True)
    modes = eigenmodes(fp, k=4, method="davidson")
    exact = summed_eigenvalues([wells(D, ("x",)), parabola(2.0, D, "y"), along("z")], axes, walls, 5)
    np.testing.assert_allclose(modes.eigenvalue.values, exact[:4], rtol=1e-10)
    assert np.all(modes.right.values[0] > 0)


def test_the_same_modes_as_a_factorisation():
    fp = FokkerPlanck(wells(0.3), Grid.uniform(x=(-2, 2, 20), y=(-2, 2, 17), z=(-2, 2, 18)))
    ours, theirs = eigenmodes(fp, k=5, method="davidson"), eigenmodes(fp, k=5, method="shift-invert")
    np.testing.assert_allclose(ours.eigenvalue[1:], theirs.eigenvalue[1:], rtol=1e-10)
    apart = np.abs(ours.right - theirs.right).sum(fp.grid.names) * float(fp.grid.volumes.ravel()[0])
    assert float(apart.max()) < 1e-8


def test_cycles_contract_alike_on_every_grid():
    """The condition number of the preconditioned operator, without its null vector, does not grow."""
    steps = []
    for cells in (16, 32, 48):
        grid = Grid.uniform(x=(-2, 2, cells), y=(-2.5, 2.5, cells), z=(-3, 3, cells))
        chain = FokkerPlanck(wells(0.3), grid).chain
        level = operator(rates_of(chain), "symmetric", float)
        null = np.exp(0.5 * chain.log_weights)
        null /= np.linalg.norm(null)
        start = np.random.default_rng(1).standard_normal((3, chain.size))
        found = davidson(
            lambda x, level=level: level.apply(
                x.reshape(level.diagonal.shape), np.empty(level.diagonal.shape)
            ).ravel(),
            Multigrid(chain, "symmetric"),
            start,
            wanted=2,
            tol=1e-8,
            norm=2 * level.diagonal.max(),
            known=null[None],
        )
        steps.append(found.steps)
    # a fixed factor per step; from random vectors the start costs a little more on finer grids
    assert max(steps) <= min(steps) + 5


def test_davidson_on_a_known_matrix():
    rng = np.random.default_rng(5)
    values = np.concatenate([[0.0, 1e-9, 1.0, 1.0, 1.1], np.geomspace(2, 1e4, 195)])
    vectors = np.linalg.qr(rng.standard_normal((200, 200)))[0]
    matrix = (vectors * values) @ vectors.T
    inverse = (vectors / (values + 0.3)) @ vectors.T
    found = davidson(
        lambda x: matrix @ x, lambda x: inverse @ x, rng.standard_normal((5, 200)),
        wanted=4, tol=1e-10, norm=1e4, known=vectors[:, :1].T,
    )  # fmt: skip
    # absolute rounding of the matrix, eps |A| times a modest factor
    np.testing.assert_allclose(found.values, values[1:5], rtol=1e-9, atol=1e-11)


def test_davidson_is_refused_where_it_does_not_apply():
    from solvers import SDE

    turning = SDE(
        lambda t, y, p, xp: (-y[0] - y[1], y[0] - y[1]),
        lambda t, y, p, xp: (1.0, 1.0),
        names=("x", "y"),
        convention="ito",
    )
    with pytest.raises(InvalidInput, match="reversible"):
        eigenmodes(FokkerPlanck(turning, Grid.uniform(x=(-3, 3, 20), y=(-3, 3, 20))), method="davidson")
