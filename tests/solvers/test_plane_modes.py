"""Modes in two dimensions by multigrid cycles: against factorisations, sums over lines, and exact symmetries."""

import itertools
import warnings

import numpy as np
import pytest

from solvers import SDE, AccuracyWarning, FokkerPlanck, Grid, eigenmodes, from_potential
from solvers.block_rates import rates_out
from solvers.nonreversible import stationary_masses
from solvers.planes import Plane, chain_of, joined, rates_of, reversed_in_time
from tests.operators import separable_wells


def model(drift, diffusion, noise="diagonal"):
    return SDE(drift, diffusion, names=("x", "y"), convention="ito", noise=noise)


def potential(U, sigma):
    return from_potential(U, lambda t, y, p, xp: (sigma, sigma), names=("x", "y"), convention="ito")


def wells(D):
    return potential(lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2, (2 * D) ** 0.5)


def shear():
    return model(
        lambda t, y, p, xp: (-4 * y[0] * (y[0] ** 2 - 1) + y[1], -2 * y[1] - y[0]),
        lambda t, y, p, xp: (0.4**0.5, 0.4**0.5),
    )


def correlated():
    return model(
        lambda t, y, p, xp: (-y[0] - 2 * y[1], 2 * y[0] - y[1]),
        lambda t, y, p, xp: ((1.0, 0.0), (0.6, 0.44**0.5)),
        noise="general",
    )


def torus():
    return model(
        lambda t, y, p, xp: (0.7 - xp.sin(y[0]), 0.3 - xp.sin(y[1] - y[0])), lambda t, y, p, xp: (0.8, 0.8)
    )


def turning(speed, D=0.2):
    return model(
        lambda t, y, p, xp: (-4 * y[0] * (y[0] ** 2 - 1) - speed * y[1], -2 * y[1] + speed * y[0]),
        lambda t, y, p, xp: ((2 * D) ** 0.5, (2 * D) ** 0.5),
    )


def oscillator(D):
    return model(
        lambda t, y, p, xp: (y[1], (1 - y[0] ** 2) * y[1] - y[0]),
        lambda t, y, p, xp: ((2 * D) ** 0.5, (2 * D) ** 0.5),
    )


def langevin(temperature):
    return model(
        lambda t, y, p, xp: (y[1], y[0] - y[0] ** 3 - y[1]),
        lambda t, y, p, xp: (0.0 * y[0], (2 * temperature) ** 0.5),
    )


BOX = {"x": (-2.2, 2.2, 151), "y": (-2.5, 2.5, 146)}
STRETCHED = {"x": 2.2 * np.sinh(np.linspace(-2, 2, 151)) / np.sinh(2.0), "y": np.linspace(-2.5, 2.5, 150)}
CIRCLES = {"x": (0, 2 * np.pi, 150), "y": (0, 2 * np.pi, 145)}
CASES = {
    "wells, odd numbers of cells": lambda: FokkerPlanck(wells(0.2), Grid.uniform(**BOX)),
    "stretched cells": lambda: FokkerPlanck(wells(0.2), Grid(**STRETCHED)),
    "absorbing walls": lambda: FokkerPlanck(
        wells(0.3),
        Grid.uniform(x=(-1, 1, 150), y=(-2, 2, 150)),
        boundary={"x": ("absorbing", "absorbing"), "y": ("reflecting", "reflecting")},
    ),
    "shear": lambda: FokkerPlanck(shear(), Grid.uniform(**BOX)),
    "correlated noise": lambda: FokkerPlanck(
        correlated(), Grid.uniform(x=(-3.6, 3.6, 200), y=(-3.8, 3.8, 200))
    ),
    "torus": lambda: FokkerPlanck(torus(), Grid.uniform(**CIRCLES), boundary="periodic"),
    "fast rotation": lambda: FokkerPlanck(turning(5.0), Grid.uniform(**BOX)),
    "weak noise in a wide box": lambda: FokkerPlanck(
        turning(1.5, 0.02), Grid.uniform(x=(-2.2, 2.2, 200), y=(-2.5, 2.5, 200))
    ),
    "limit cycle": lambda: FokkerPlanck(oscillator(0.5), Grid.uniform(x=(-5, 5, 150), y=(-6.5, 6.5, 150))),
    "no noise along an axis": lambda: FokkerPlanck(
        langevin(0.3), Grid.uniform(x=(-2.8, 2.8, 150), y=(-3.5, 3.5, 150))
    ),
    "a periodic axis without noise": lambda: FokkerPlanck(
        model(lambda t, y, p, xp: (y[1], 0.3 - xp.sin(y[0]) - y[1]), lambda t, y, p, xp: (0.0 * y[0], 1.0)),
        Grid.uniform(x=(0, 2 * np.pi, 150), y=(-5, 5, 150)),
        boundary={"x": "periodic", "y": "reflecting"},
    ),
    "absorbed rotation": lambda: FokkerPlanck(
        model(lambda t, y, p, xp: (-y[0] - 2 * y[1], 2 * y[0] - y[1]), lambda t, y, p, xp: (1.0, 1.0)),
        Grid.uniform(x=(-1.5, 1.5, 150), y=(-1.5, 1.5, 150)),
        boundary="absorbing",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_cycles_and_factorisations_agree(name):
    fp = CASES[name]()
    modes, other = eigenmodes(fp, 5), eigenmodes(fp, 5, method="shift-invert")
    assert modes.attrs["method"] == "davidson"
    # both solve to 1e-10; quotients of both sides are wrong by its square, times a condition number
    nonzero = np.abs(other.eigenvalue.values) > 0
    np.testing.assert_allclose(
        modes.eigenvalue.values[nonzero], other.eigenvalue.values[nonzero], rtol=1e-10, atol=1e-11
    )
    left, right = (modes[v].values.reshape(len(modes.mode), -1) for v in ("left", "right"))
    np.testing.assert_allclose((left * fp.grid.volumes.ravel()) @ right.T, np.eye(len(left)), atol=1e-9)
    # vectors: 1e-10 over gaps of a tenth, times the condition number
    for row, given in zip(modes.right.values, other.right.values, strict=True):
        np.testing.assert_allclose(row, given, atol=1e-7 * np.abs(given).max())
    # functions in the tails too: 1e-8 anywhere beside their maximum
    for row, value in zip(left, modes.eigenvalue.values, strict=True):
        assert np.abs(fp.generator.T @ row - value * row).max() < 1e-6 * np.abs(row).max()


@pytest.mark.slow
def test_eigenvalues_are_sums_of_those_of_lines():
    D, sides = 0.05, {"x": (-1.8, 1.8, 160), "y": (-1.4, 1.4, 150)}
    modes = eigenmodes(FokkerPlanck(wells(D), Grid.uniform(**sides)), 6)
    assert modes.attrs["method"] == "davidson"
    lines = []
    for name, U in (
        ("x", lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2),
        ("y", lambda t, y, p, xp: y[0] ** 2),
    ):
        line = from_potential(U, lambda t, y, p, xp: ((2 * D) ** 0.5,), names=(name,), convention="ito")
        lines.append(eigenmodes(FokkerPlanck(line, Grid.uniform(**{name: sides[name]})), 6).eigenvalue.values)
    exact = np.sort([sum(pair) for pair in itertools.product(*lines)])[::-1]
    # 4e-9 beside 2: quotients are sums of squares, with an error of the square of the residual
    assert -exact[1] < 1e-8
    np.testing.assert_allclose(modes.eigenvalue.values[1:], exact[1:6], rtol=1e-9)


def test_degenerate_modes_are_all_found_and_repeat_bit_for_bit():
    fp = FokkerPlanck(
        potential(lambda t, y, p, xp: 0.5 * (y[0] ** 2 + y[1] ** 2), 1.0),
        Grid.uniform(x=(-4, 4, 150), y=(-4, 4, 150)),
    )
    modes, again = eigenmodes(fp, 6), eigenmodes(fp, 6)
    assert modes.attrs["method"] == "davidson"
    # 0, 1, 1, 2, 2, 2: second order with (8/150)^2 / 12 of the squared rate
    np.testing.assert_allclose(modes.eigenvalue, [0, -1, -1, -2, -2, -2], atol=5e-3)
    for name in ("eigenvalue", "left", "right"):
        np.testing.assert_array_equal(modes[name], again[name])


@pytest.mark.slow
def test_where_cycles_fail_the_operator_is_factored_and_says_so():
    # closed orbits at high speed: blocks of cells add diffusion across them
    fp = FokkerPlanck(
        model(lambda t, y, p, xp: (-y[0] - 40 * y[1], 40 * y[0] - y[1]), lambda t, y, p, xp: (1.0, 1.0)),
        Grid.uniform(x=(-3.6, 3.6, 150), y=(-3.8, 3.8, 150)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        modes = eigenmodes(fp, 3)
    np.testing.assert_allclose(modes.eigenvalue.values[1:], [-1 + 40j, -1 - 40j], rtol=0.02)
    if modes.attrs["method"] != "davidson":
        assert "did not converge" in modes.attrs["method_reason"]


def test_settled_masses_are_stationary_where_the_drift_dominates():
    """Sweeps from masses that are off by factors of millions in a corner, against a factorisation."""
    fp = FokkerPlanck(turning(1.5, 0.01), Grid.uniform(x=(-1.6, 1.6, 40), y=(-1.6, 1.6, 40)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        exact = np.log(stationary_masses(fp.chain)).reshape(40, 40)
    rates = rates_of(fp.chain)
    assert rates is not None
    plane = Plane(rates, fp.chain.loss.reshape(40, 40), np.zeros((40, 40)), (False, False))
    corner = (slice(33, None), slice(33, None))
    wrong = exact.copy()
    wrong[corner] += 15.0
    settled = plane.settled(wrong)
    # each set of sweeps leaves less than `_SETTLED` of change; along the drift that is all there is
    assert np.abs((settled - exact)[corner]).max() < 0.1
    assert np.abs((wrong - exact)[corner]).max() > 10.0


def test_blocks_have_the_rates_of_the_coarser_grid():
    """Blocks of a diffusion of constant drift are the same scheme on cells of twice the width, to rounding."""
    drifting = model(lambda t, y, p, xp: (0.3 + 0 * y[0], -0.2 + 0 * y[1]), lambda t, y, p, xp: (0.8, 0.5))
    planes = []
    for n in (32, 16):
        grid = Grid.uniform(x=(0, 2, n), y=(0, 1, n))
        fp = FokkerPlanck(drifting, grid, boundary="periodic")
        rates = rates_of(fp.chain)
        assert rates is not None
        planes.append((Plane(rates, np.zeros((n, n)), np.zeros((n, n)), (True, True)), fp.chain.widths))
    blocks, widths = joined(*planes[0])
    np.testing.assert_allclose(blocks.rates, planes[1][0].rates, rtol=1e-12)
    np.testing.assert_allclose(widths[0], planes[1][1][0], rtol=1e-12)


def test_a_chain_reversed_twice_is_itself():
    fp = FokkerPlanck(separable_wells(), Grid.uniform(x=(-2, 2, 30), y=(-2, 2, 25)))
    rates = rates_of(fp.chain)
    assert rates is not None
    logs = fp.chain.log_weights.reshape(30, 25)
    plane = Plane(rates, fp.chain.loss.reshape(30, 25), np.zeros((30, 25)), (False, False))
    # with detailed balance the first reversal changes nothing
    np.testing.assert_allclose(reversed_in_time(plane, logs).rates, rates, rtol=1e-9)
    np.testing.assert_allclose(
        chain_of(plane, fp.chain).generator.toarray(), fp.generator.toarray(), rtol=1e-13, atol=1e-13
    )


def test_jumps_beyond_neighbours_are_refused():
    one = np.ones(1)
    assert not rates_out(5, 5, False, False, np.array([0]), np.array([2]), one, one, np.zeros((5, 5, 8)))
