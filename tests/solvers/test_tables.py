"""Tabulated drifts, diffusions and potentials: order, agreement of the readings, immutability, refusals."""

import numpy as np
import pytest

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eigenmodes,
    from_potential,
    simulate,
    stationary_density,
    tabulated,
)
from solvers.errors import ImpureFunction
from solvers.purity import purity_key
from solvers.tangent import jacobian
from tests.operators import double_well, multiplicative, separable_wells

NODES = np.linspace(-3, 3, 25)
UNEVEN = np.sort(np.concatenate([NODES[:-3], NODES[:-3] + 0.07]))


def _cubic(x):
    return 1.0 + 0.3 * x - x**3


def _noise(*sigma):
    return lambda t, y, p, xp: sigma


@pytest.mark.parametrize("nodes", [NODES, UNEVEN])
def test_a_cubic_is_reproduced_and_ends_are_inside(nodes):
    f = tabulated(nodes, _cubic(nodes))
    x = np.linspace(nodes[0], nodes[-1], 1001)
    # a spline with not-a-knot ends is the cubic itself; coefficients up to 30 are rounded a few times
    np.testing.assert_allclose(f(x), _cubic(x), atol=1e-12)
    assert np.isnan(f(np.array([nodes[0] - 1e-9, nodes[-1] + 1e-9, np.nan]))).all()
    assert np.isfinite(f(nodes[[0, -1]])).all()


@pytest.mark.parametrize("nodes", [NODES, UNEVEN])
@pytest.mark.parametrize("outside", ["nan", "linear"])
def test_compiled_code_and_arrays_agree(nodes, outside):
    f = tabulated(nodes, np.sin(nodes), outside=outside)
    sde = SDE(lambda t, y, p, xp: (f(y[0]),), _noise(1.0), convention="ito")
    drift, _, params = sde.compiled()
    places = np.array([*np.linspace(-4, 4, 57), *nodes[[0, 1, -2, -1]], np.nan])
    compiled = np.array([drift(0.0, (x,), params)[0] for x in places])
    # sums of four terms in another order
    np.testing.assert_allclose(compiled, f(places), rtol=1e-13, atol=1e-15)
    beyond = (places < nodes[0]) | (places > nodes[-1])
    assert np.isnan(compiled[beyond]).all() == (outside == "nan")


@pytest.mark.parametrize("d", [1, 2, 3])
def test_fourth_order_in_every_dimension(d):
    def exact(*y):
        return np.exp(0.3 * sum(y)) * np.cos(sum((k + 1) * v for k, v in enumerate(y)))

    rng = np.random.default_rng(0)
    places = tuple(rng.uniform(-1, 1, (d, 200)))
    errors = []
    for n in (11, 21, 41):
        lines = (np.linspace(-1, 1, n), np.geomspace(1, 3, n) - 2, np.linspace(-1, 1, n))[:d]
        f = tabulated(lines, exact(*np.meshgrid(*lines, indexing="ij")))
        errors.append(np.abs(f(*places) - exact(*places)).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # the largest error of 200 places near the not-a-knot ends settles slowly: 3.6 to 4.6 at these sizes
    assert np.all(orders > 3.4)


def test_derivatives_are_those_of_the_spline():
    f = tabulated(NODES, _cubic(NODES), outside="linear")
    sde = SDE(lambda t, y, p, xp: (p.k * f(y[0] ** 2 / 2),), _noise(1.0), params={"k": 2.0}, convention="ito")
    # d/dx 2 f(x^2/2) = 2 x (0.3 - 3 (x^2/2)^2)
    np.testing.assert_allclose(jacobian(sde)(0.0, (1.5,)), 2 * 1.5 * (0.3 - 3 * 1.125**2), rtol=1e-11)
    plane = tabulated((NODES, UNEVEN), _cubic(NODES)[:, None] * UNEVEN**2, outside="linear")
    model = from_potential(
        lambda t, y, p, xp: plane(y[0], y[1]), _noise(1.0, 1.0), names=("x", "y"), convention="ito"
    )
    x, y = 0.4, -0.7
    exact = [-(0.3 - 3 * x**2) * y**2, -_cubic(x) * 2 * y]
    np.testing.assert_allclose(np.ravel(model.drift_at(0.0, (x, y))), exact, rtol=1e-11)
    np.testing.assert_allclose(model.compiled()[0](0.0, (x, y), ()), exact, rtol=1e-11)


def test_linear_continuation_keeps_value_and_slope():
    f = tabulated((NODES, NODES), np.outer(_cubic(NODES), NODES**2), outside="linear")
    slope = 0.3 - 27
    assert float(f(4.0, 1.5)) == pytest.approx((_cubic(3.0) + slope) * 2.25, rel=1e-12)
    assert float(f(-5.0, 1.5)) == pytest.approx((_cubic(-3.0) - 2 * slope) * 2.25, rel=1e-12)
    assert float(f(0.5, 4.0)) == pytest.approx(_cubic(0.5) * (9 + 6), rel=1e-12)


def test_a_tabulated_model_is_the_model(reference):
    wide = np.linspace(-4, 4, 161)
    table = tabulated(wide, wide - wide**3)
    sde = SDE(
        lambda t, y, p, xp: (table(y[0]),),
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
        params={"D": 0.1},
        convention="ito",
    )
    grid = Grid.uniform(x=(-2.5, 2.5, 300))
    ours, known = (eigenmodes(FokkerPlanck(m, grid), 4).eigenvalue.values for m in (sde, double_well(0.1)))
    np.testing.assert_allclose(ours[1:], known[1:], rtol=1e-9)
    runs = [
        simulate(m, 1.0, t1=1.0, dt=0.01, paths=64, seed=3)["mean"].values for m in (sde, double_well(0.1))
    ]
    # 100 steps of a cubic drift whose spline is exact to 1e-14
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-11)


def test_a_tabulated_potential_keeps_boltzmann_weights():
    table = tabulated(NODES, NODES**4 / 4 - NODES**2 / 2)
    sde = from_potential(lambda t, y, p, xp: table(y[0]), _noise(0.2**0.5), convention="ito")
    fp = FokkerPlanck(sde, Grid.uniform(x=(-2, 2, 37)))
    x = fp.grid.centers["x"]
    exact = np.exp(-table(x) / 0.1)
    np.testing.assert_allclose(
        stationary_density(fp).values, exact / (exact * fp.grid.volumes).sum(), rtol=1e-11
    )
    flat = Grid.uniform(x=(-2, 2, 21), y=(-2, 2, 16))
    plane = tabulated(Grid.uniform(x=(-3, 3, 60), y=(-3, 3, 50)), _two_wells(60, 50))
    model = from_potential(
        lambda t, y, p, xp: plane(y[0], y[1]),
        _noise(0.4**0.5, 0.4**0.5),
        names=("x", "y"),
        convention="ito",
    )
    tabled, known = FokkerPlanck(model, flat), FokkerPlanck(separable_wells(), flat)
    assert tabled.reversible
    # the spline of x^4 is off by h^4 = 1e-4 times 0.02 in 2-D: 1e-5 of D
    assert abs(stationary_density(tabled) - stationary_density(known)).max() < 1e-4


def _two_wells(n, m):
    x, y = Grid.uniform(x=(-3, 3, n), y=(-3, 3, m)).coords()
    return (x**2 - 1) ** 2 + y**2


@pytest.mark.parametrize("convention", ["ito", "stratonovich", "klimontovich"])
def test_tabulated_noise_in_every_convention(convention):
    wide = np.linspace(-4.5, 4.5, 181)
    sigma = tabulated(wide, np.sqrt(0.2 * (1 + wide**2)))
    sde = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,), lambda t, y, p, xp: (sigma(y[0]),), convention=convention
    )
    grid = Grid.uniform(x=(-4, 4, 400))
    ours, known = (stationary_density(FokkerPlanck(m, grid)) for m in (sde, multiplicative(convention)))
    # nodes 0.05 apart: sigma is off by h^4 sigma'''' / 384 < 1e-7
    assert float(abs(ours - known).max()) < 1e-6
    x = (np.linspace(-2, 2, 9),)
    np.testing.assert_allclose(
        sde.to("ito").drift_at(0.0, x), multiplicative(convention).to("ito").drift_at(0.0, x), atol=1e-5
    )


def test_a_grid_beyond_the_table_is_refused_with_the_place():
    table = tabulated(NODES, -NODES)
    sde = SDE(lambda t, y, p, xp: (table(y[0]),), _noise(1.0), convention="ito")
    with pytest.raises(InvalidInput, match=r"drift of x is nan at x=-3\.9"):
        FokkerPlanck(sde, Grid.uniform(x=(-4, 4, 40)))


def test_tables_cannot_change_and_equal_tables_compile_once():
    values = -NODES.copy()
    table = tabulated(NODES, values)
    values[:] = 0.0
    assert float(table(1.0)) == pytest.approx(-1)
    again = tabulated(NODES.tolist(), (-NODES).tolist())
    other = tabulated(NODES, -2 * NODES)

    def model(f):
        return SDE(lambda t, y, p, xp: (f(y[0]),), _noise(1.0), convention="ito")

    keys = [purity_key(model(f).drift, "drift") for f in (table, again, other)]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]
    assert model(table).compiled()[0] is model(again).compiled()[0]
    assert model(other).compiled()[0](0.0, (1.0,), ())[0] == pytest.approx(-2)
    held = np.array([1.0, 2.0])
    with pytest.raises(ImpureFunction, match="'held'"):
        SDE(lambda t, y, p, xp: (held[0] * y[0],), _noise(1.0), convention="ito")


def test_jax_is_refused_in_a_sentence():
    jax = pytest.importorskip("jax")
    table = tabulated(NODES, -NODES)
    with pytest.raises(InvalidInput, match="in JAX write the function as a formula"):
        table(jax.numpy.ones(3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((NODES[:3], NODES[:3]), "at least 4"),
        ((NODES, NODES[1:]), r"values has shape \(24,\)"),
        ((NODES[::-1], NODES), "increase"),
        (("ab", NODES), "not numbers"),
        ((NODES, "ab"), "no array of numbers"),
        ((NODES, np.where(NODES > 2.9, np.inf, 0.0)), "contains inf"),
        (([NODES] * 4, NODES), "4 axes"),
    ],
)
def test_unusable_tables_are_refused(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        tabulated(*arguments)
    with pytest.raises(InvalidInput, match="outside='clip'"):
        tabulated(NODES, NODES, outside="clip")
