"""Grid.fit: the mass outside its box against exact tails, the spacing against eigenvalues, and refusals."""

import math

import numpy as np
import pytest
from scipy import linalg, special, stats

from solvers import (
    SDE,
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eigenmodes,
    from_potential,
    simulate,
)
from tests.operators import double_well, multiplicative, ornstein_uhlenbeck, separable_wells, tilted_cosine


def _constant(*sigma):
    return lambda t, y, p, xp: sigma


def _langevin(gamma):
    """Dx = v dt, dv = -gamma v - 4 x dt + noise, variances 1/8 and 1/2 (x has no noise)."""
    return SDE(
        lambda t, y, p, xp: (y[1], -p.gamma * y[1] - 4 * y[0]),
        lambda t, y, p, xp: (0.0 * y[0], xp.sqrt(p.gamma)),
        params={"gamma": gamma},
        names=("x", "v"),
        convention="ito",
    )


def _flattening(a):
    """Density proportional to (1 + x^2)^-(1 + a): Student's t with 1 + 2 a degrees of freedom, scaled."""
    return SDE(
        lambda t, y, p, xp: (-p.a * y[0],),
        lambda t, y, p, xp: (xp.sqrt(1 + y[0] ** 2),),
        params={"a": a},
        convention="ito",
    )


def _square_root():
    """DX = (1 - X)/2 dt + sqrt(X) dW: the stationary density is exp(-x)."""
    return SDE(
        lambda t, y, p, xp: (0.5 * (1 - y[0]),), lambda t, y, p, xp: (xp.sqrt(y[0]),), convention="ito"
    )


def _pitchfork(a):
    return SDE(
        lambda t, y, p, xp: (p.a * y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (0.2**0.5 * y[0],),
        params={"a": a},
        convention="stratonovich",
    )


def _student(a):
    freedom = 1 + 2 * a
    return stats.t(freedom, scale=freedom**-0.5)


@pytest.mark.parametrize(
    ("sde", "box", "law", "mass"),
    [
        (ornstein_uhlenbeck(1, 0.5), None, stats.norm(0, 0.5**0.5), 1e-8),
        (ornstein_uhlenbeck(1e4, 1e-6), None, stats.norm(0, 1e-5), 1e-5),
        (
            SDE(lambda t, y, p, xp: (300 - y[0],), _constant(0.1), convention="ito"),
            None,
            stats.norm(300, 0.1 * 0.5**0.5),
            1e-8,
        ),
        (_flattening(1.0), None, _student(1.0), 1e-6),
        (_flattening(0.0), None, _student(0.0), 1e-5),
        (_square_root(), {"x": (0, None)}, stats.gamma(1), 1e-8),
        (_pitchfork(0.02), {"x": (0, None)}, stats.gengamma(0.1, 2, scale=0.2**0.5), 1e-8),
        (_pitchfork(0.3), {"x": (0, None)}, stats.gengamma(1.5, 2, scale=0.2**0.5), 1e-8),
    ],
)
def test_the_box_holds_the_mass_and_little_else(sde, box, law, mass):
    grid = Grid.fit(sde, mass=mass, box=box)
    low, high = grid.edges["x"][[0, -1]]
    (fit,) = grid.fitted
    for outside, measured, given in (
        (law.cdf(low), fit.mass_below, box is not None),
        (law.sf(high), fit.mass_above, False),
    ):
        # the operator on 4000 search cells gives tails to a few percent of a mass
        assert outside <= 1.1 * mass / 2
        if given:
            continue
        assert abs(measured - outside) < 0.1 * mass
        # the end is one of 4000 search cells, moved outwards by less than another: 0.2 % of the box
        assert outside > 0.2 * mass / 2
    assert fit.excess <= 1e-3
    assert Grid.fit(sde, mass=mass, box=box) == grid


def test_spacings_follow_the_density():
    kinds = {
        "uniform": Grid.fit(double_well(0.1)),
        "sinh": Grid.fit(_flattening(0.5), mass=1e-6),
        "log": Grid.fit(_pitchfork(0.02), box={"x": (0, None)}),
    }
    for kind, grid in kinds.items():
        assert grid.fitted[0].chart.kind == kind
        assert f"{grid.fitted[0].cells}" in str(grid.fitted[0])
    widths = kinds["sinh"].widths["x"]
    assert np.argmin(widths) in {len(widths) // 2 - 1, len(widths) // 2}
    assert kinds["log"].size < 500  # 12 decades of x^-0.8


def test_slow_eigenvalues_are_as_accurate_as_promised(reference):
    exact = np.array(reference["dw1d_D0.1"]["value"][:3])
    for excess in (1e-2, 1e-3, 1e-4):
        fp = FokkerPlanck(double_well(0.1), Grid.fit(double_well(0.1), excess=excess))
        values = -eigenmodes(fp, 4).eigenvalue.values[1:].real
        # the scheme's diffusion is `excess` too large on average; eigenvalue k weights steep places more, by
        # about its number of nodes squared
        assert np.all(np.abs(values / exact - 1) < excess * np.array([1, 4, 9]))


def test_small_noise_in_two_wells():
    grid = Grid.fit(double_well(1e-3))
    low, high = grid.edges["x"][[0, -1]]
    # both wells, to 5.6 standard deviations of the parabola at the bottom, (D / 2)^1/2, within its cubic term
    assert abs(high - 1 - 5.6 * 5e-4**0.5) < 0.015
    assert abs(low + high) < 2e-3
    assert 500 < grid.size < 2000


def test_every_convention_has_its_own_box():
    tops = [Grid.fit(multiplicative(c)).edges["x"][-1] for c in ("ito", "stratonovich", "klimontovich")]
    assert tops[0] < tops[1] < tops[2]


def test_a_box_in_two_dimensions_with_rotation_and_correlated_noise():
    from tests.operators import rotating_ou

    grid = Grid.fit(rotating_ou())
    drift, noise = np.array([[1.0, 2.0], [-2.0, 1.0]]), np.array([[1.0, 0.6], [0.6, 0.8]])
    deviation = np.sqrt(np.diag(linalg.solve_continuous_lyapunov(drift, noise)))
    top = np.array([grid.edges[n][-1] for n in grid.names])
    # 2.5e-9 a side is 5.85 deviations; 80 search cells of 1.7 boxes are 0.25 deviations wide, and rotation makes
    # upwind tails longer
    assert np.all(top / deviation > 5.8)
    assert np.all(top / deviation < 7.0)


def test_a_double_well_in_two_dimensions():
    grid = Grid.fit(separable_wells(0.05))
    # exp(-(x^2 - 1)^2 / D), exp(-y^2 / D)
    assert special.erfc(grid.edges["y"][-1] / 0.05**0.5) < 1e-8
    assert grid.edges["y"][-1] < 6.6 * 0.025**0.5
    assert grid.edges["x"][0] < -1.3
    x = np.linspace(-3, 3, 60001)
    density = np.exp(-((x**2 - 1) ** 2) / 0.05)
    assert density[np.abs(x) > grid.edges["x"][-1]].sum() < 5e-9 * density.sum()


@pytest.mark.slow
def test_an_axis_without_noise():
    grid = Grid.fit(_langevin(0.8), mass=1e-6)
    top = np.array([grid.edges[n][-1] for n in grid.names]) / np.sqrt([1 / 8, 1 / 2])
    # 2.5e-7 a side is 5.03 deviations; the second-order operator on 200 cells is 1 % too wide
    assert np.all(top > 5.0)
    assert np.all(top < 5.5)
    assert [fit.noisy for fit in grid.fitted] == [False, True]


def _outside(grid, density, wide):
    """Share of a density on a wide, fine lattice that lies outside a grid."""
    x, y = np.meshgrid(*wide, indexing="ij")
    values = density(x, y)
    inside = np.ones(x.shape, bool)
    for name, coordinate in zip(grid.names, (x, y), strict=True):
        inside &= (grid.edges[name][0] <= coordinate) & (coordinate <= grid.edges[name][-1])
    return 1 - values[inside].sum() / values.sum()


@pytest.mark.parametrize("center", [0.0, 30.0])
@pytest.mark.slow
def test_a_double_well_with_inertia(center):
    """Upwind diffusion hides its mass in every wide box; the density is exp(-(v^2 + x^4/2 - x^2) / 0.25)."""
    sde = SDE(
        lambda t, y, p, xp: (y[1], (y[0] - p.c) - (y[0] - p.c) ** 3 - 0.5 * y[1]),
        _constant(0.0, 0.5),
        params={"c": center},
        names=("x", "v"),
        convention="ito",
    )
    grid = Grid.fit(sde, mass=1e-6)
    wide = center + np.linspace(-4, 4, 2001), np.linspace(-5, 5, 2001)
    left = _outside(grid, lambda x, v: np.exp(-4 * (v**2 + (x - center) ** 4 / 2 - (x - center) ** 2)), wide)
    # sides may move by a tenth of the box once it counts as settled, where the mass falls by e^4 or more
    assert left < 2e-6
    # 2.5e-7 a side is 2.0 in x and 2.5 in v
    assert np.all(np.array([np.ptp(grid.edges[n]) for n in grid.names]) < 1.2 * 2 * np.array([2.0, 2.5]))


@pytest.mark.slow
def test_a_well_over_a_barrier_with_inertia_has_no_stationary_density():
    sde = SDE(
        lambda t, y, p, xp: (y[1], y[0] ** 2 - y[0] - 0.5 * y[1]),
        _constant(0.0, 0.2),
        names=("x", "v"),
        convention="ito",
    )
    with pytest.raises(InvalidInput, match="no stationary density"):
        Grid.fit(sde)


def test_a_potential_that_overflows_far_out():
    """Mueller and Brown's potential, scaled: exp of squares, finite only near the wells."""
    terms = (
        (-2, -1, 0, -10, 1, 0),
        (-1, -1, 0, -10, 0, 0.5),
        (-1.7, -6.5, 11, -6.5, -0.5, 1.5),
        (0.15, 0.7, 0.6, 0.7, -1, 1),
    )

    def potential(x, y, exp):
        return sum(
            h * exp(a * (x - u) ** 2 + b * (x - u) * (y - v) + c * (y - v) ** 2) for h, a, b, c, u, v in terms
        )

    sde = from_potential(
        lambda t, y, p, xp: potential(y[0], y[1], xp.exp),
        _constant(0.6, 0.6),
        names=("x", "y"),
        convention="ito",
    )
    grid = Grid.fit(sde)
    wide = np.linspace(-4, 3, 1401), np.linspace(-3, 5, 1601)
    left = _outside(grid, lambda x, y: np.exp(-np.minimum(potential(x, y, np.exp), 100.0) / 0.18), wide)
    assert left < 1e-8
    assert max(np.ptp(grid.edges[n]) for n in grid.names) < 5


def test_a_narrow_box_far_out_is_told_to_enough_digits():
    sde = SDE(lambda t, y, p, xp: (1e6 - y[0],), _constant(1e-3), convention="ito")
    low, high = str(Grid.fit(sde, cells=50).fitted[0]).split(" in ")[0].split(" from ")[1].split(" to ")
    # 5e-9 a side is 5.7 deviations of 7e-4
    assert 2 * 5.7 * 7e-4 < float(high) - float(low) < 2 * 6.1 * 7.1e-4


def test_cells_an_axis_does_not_need_serve_the_other():
    """A thin, cold well: 1e6 cells in all are enough for an excess that 1000 per axis are not."""
    grid = Grid.fit(separable_wells(1e-3))
    assert grid.shape[0] > 1000
    assert grid.size <= 1_000_000
    assert max(fit.excess for fit in grid.fitted) <= 1e-3


@pytest.mark.slow
def test_self_stabilization():
    from eos_sde.models import self_stabilization

    sde = self_stabilization(0.5, 2.0, 0.1, 1.0)
    grid = Grid.fit(sde, mass=1e-6)
    run = simulate(
        sde, (0.5, 0.0), t1=4000.0, dt=0.05, paths=2000, seed=1, save_at=[2000.0, 4000.0], save_paths=True
    )
    state = run.state.values.reshape(-1, 2)
    for k, name in enumerate(grid.names):
        low, high = grid.edges[name][[0, -1]]
        # of 4000 states 4e-3 are expected outside; none is, and they fill half of the box
        assert state[:, k].min() > low
        assert state[:, k].max() < high
        assert np.ptp(state[:, k]) > 0.5 * (high - low)


@pytest.mark.slow
def test_three_dimensions():
    drift = np.array([[1.0, -0.5, 0.0], [0.5, 1.0, 0.0], [-0.3, 0.0, 2.0]])
    sde = SDE(
        lambda t, y, p, xp: (-y[0] + 0.5 * y[1], -0.5 * y[0] - y[1], -2 * y[2] + 0.3 * y[0]),
        _constant(1.0, 0.5, 0.8),
        names=("x", "y", "z"),
        convention="ito",
    )
    grid = Grid.fit(sde, mass=1e-6)
    deviation = np.sqrt(np.diag(linalg.solve_continuous_lyapunov(drift, np.diag([1, 0.25, 0.64]))))
    top = np.array([grid.edges[n][-1] for n in grid.names])
    # 1.7e-7 a side is 5.1 deviations; 20 search cells of 1.7 boxes are 0.9 deviations wide and too diffusive
    assert np.all(top / deviation > 5.0)
    assert np.all(top / deviation < 8.0)
    assert math.prod(grid.shape) <= 128**3


@pytest.mark.parametrize(
    ("sde", "settings", "words"),
    [
        (SDE(lambda t, y, p, xp: (0 * y[0],), _constant(1.0), convention="ito"), {}, "no stationary density"),
        (
            SDE(lambda t, y, p, xp: (1.0,), _constant(1.0), convention="ito"),
            {},
            "100 % of the mass lies above",
        ),
        (
            SDE(lambda t, y, p, xp: (y[0] ** 3 - y[0],), _constant(0.3), convention="ito"),
            {},
            "no stationary density",
        ),
        (tilted_cosine(), {}, "no stationary density"),
        (_flattening(-0.3), {}, "tail along x is too heavy"),
        (_pitchfork(0.3), {}, "nothing crosses x=0"),
        (_pitchfork(-0.3), {"box": {"x": (0, None)}}, "collapses onto x=0"),
        (_square_root(), {}, "say where the model ends"),
        (ornstein_uhlenbeck(1, 0.5), {"mass": 0}, "mass=0"),
        (ornstein_uhlenbeck(1, 0.5), {"excess": 2}, "excess=2"),
        (ornstein_uhlenbeck(1, 0.5), {"box": 3}, "box=3"),
        (ornstein_uhlenbeck(1, 0.5), {"box": {"z": (0, 1)}}, "box names axis 'z'"),
        (ornstein_uhlenbeck(1, 0.5), {"box": {"x": (1, 0)}}, "finite low < high"),
        (ornstein_uhlenbeck(1, 0.5), {"box": {"x": 1}}, "give \\(low, high\\)"),
        (ornstein_uhlenbeck(1, 0.5), {"boundary": "absorbing"}, "say where it is"),
        (ornstein_uhlenbeck(1, 0.5), {"cells": 1}, "cells=1"),
        (ornstein_uhlenbeck(1, 0.5), {"cells": {"q": 10}}, "cells names axis 'q'"),
        (3, {}, "sde is a int"),
        (
            SDE(lambda t, y, p, xp: (xp.sin(t) - y[0],), _constant(1.0), convention="ito"),
            {},
            "depends on time",
        ),
        (
            SDE(
                lambda t, y, p, xp: tuple(-v for v in y),
                _constant(1.0, 1.0, 1.0, 1.0),
                names=tuple("abcd"),
                convention="ito",
            ),
            {},
            "up to three",
        ),
    ],
)
def test_what_has_no_fit_is_refused(sde, settings, words):
    with pytest.raises(InvalidInput, match=words):
        Grid.fit(sde, **settings)


def test_escape_is_refused_in_two_dimensions():
    sde = SDE(
        lambda t, y, p, xp: (y[0] ** 3 - y[0], -y[1]), _constant(0.3, 0.3), names=("x", "y"), convention="ito"
    )
    with pytest.raises(InvalidInput, match="no stationary density"):
        Grid.fit(sde)


@pytest.mark.slow
def test_given_walls_and_cells_are_kept():
    circle = Grid.fit(tilted_cosine(), box={"x": (0, 2 * np.pi)}, boundary="periodic")
    assert circle.edges["x"][0] == 0
    assert circle.edges["x"][-1] == 2 * np.pi
    half = Grid.fit(
        ornstein_uhlenbeck(1, 0.5), box={"x": (-1, None)}, boundary={"x": ("absorbing", "reflecting")}
    )
    assert half.edges["x"][0] == -1
    assert half.edges["x"][-1] > 3.9
    assert Grid.fit(ornstein_uhlenbeck(1, 0.5), cells=31).size == 31


@pytest.mark.slow
def test_cells_of_one_axis_are_kept():
    assert Grid.fit(separable_wells(), cells={"y": 50}).shape[1] == 50


def test_a_limit_on_cells_that_spoils_the_resolution_is_reported():
    with pytest.warns(AccuracyWarning, match=r"cells along x, as many as .* excess diffusion of \d"):
        grid = Grid.fit(separable_wells(1e-3), excess=1e-5)
    assert 990_000 < grid.size <= 1_000_000
    assert grid.fitted[0].excess > 1e-5
