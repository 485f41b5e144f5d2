"""Modes of densities, and the parameters at which their number changes."""

import numpy as np
import pytest
import xarray as xr

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TransferOperator,
    density_modes,
    from_potential,
    p_bifurcation,
    stationary_density,
)
from tests.operators import double_well, multiplicative, rotating_ou, separable_wells


def labelled(values, **axes):
    return xr.DataArray(values, coords=axes, dims=list(axes))


def pitchfork(a, convention):
    """SDE dx = (a x - x^3) dt + s x dW, s^2 = 0.2: p ~ x^(2 a / s^2 - 2 c) exp(-x^2 / s^2)."""
    return SDE(
        lambda t, y, p, xp: (p.a * y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (0.2**0.5 * y[0],),
        params={"a": a},
        convention=convention,
    )


def quartic(a, b=0.0, names=("x",)):
    return from_potential(
        lambda t, y, p, xp: y[0] ** 4 / 4 - p.a * y[0] ** 2 / 2 + p.b * y[0] + sum(v * v for v in y[1:]),
        lambda t, y, p, xp: (0.2**0.5,) * len(y),
        params={"a": a, "b": b},
        names=names,
        convention="ito",
    )


@pytest.mark.parametrize("convention", ["ito", "stratonovich", "klimontovich"])
def test_modes_of_the_double_well_with_state_dependent_noise(convention, reference):
    name = {"ito": "ito", "stratonovich": "strat", "klimontovich": "hk"}[convention]
    exact = reference[f"mult_stat_{name}"]["value"][2]
    errors = []
    for n in (75, 150):
        found = density_modes(FokkerPlanck(multiplicative(convention), Grid.uniform(x=(-3, 3, n))))
        assert int(found["count"]) == 2
        errors.append(float(np.abs(np.sort(found.position.values[:, 0]) - [-exact, exact]).max()))
        np.testing.assert_allclose(found.saddle.values[1], 0, atol=1e-9)
    # the scheme is second order in h = 0.04; the place inside the cell is better than that
    assert errors[1] < 0.04**2
    assert errors[0] / errors[1] > 3
    np.testing.assert_allclose(found.height[0], reference_height(convention, exact), rtol=2e-3)


def reference_height(convention, x):
    exponent = {"ito": 9.0, "stratonovich": 9.5, "klimontovich": 10.0}[convention]
    line = np.linspace(-4, 4, 4001)
    weight = (1 + line**2) ** exponent * np.exp(-5 * line**2)
    return (1 + x**2) ** exponent * np.exp(-5 * x**2) / np.trapezoid(weight, line)


def test_places_are_found_inside_cells():
    x, y = np.linspace(-3, 3, 41), np.linspace(-2, 2, 33)
    at = (0.123, -0.317)
    u, v = x[:, None] - at[0], y[None, :] - at[1]
    found = density_modes(labelled(np.exp(-(u**2) - 0.8 * u * v - v**2), x=x, y=y))
    assert int(found["count"]) == 1
    np.testing.assert_allclose(
        found.position.values[0], at, atol=1e-9
    )  # a Gaussian's logarithm is its parabola
    assert np.isnan(found.saddle.values).all()
    assert found.position.attrs["units"] == "1"
    # a quartic logarithm along an axis is exact too, on a stretched axis
    s = np.sinh(np.linspace(-1.5, 1.5, 41))
    found = density_modes(labelled(np.exp(-(s**4) / 4 + 0.6 * s**2 / 2), s=s))
    np.testing.assert_allclose(np.sort(found.position.values[:, 0]), [-(0.6**0.5), 0.6**0.5], atol=1e-9)
    np.testing.assert_allclose(found.saddle.values[1], 0, atol=1e-9)
    np.testing.assert_allclose(found.prominence.values, [1, 1 - np.exp(-0.09)], atol=2e-3)


def test_modes_in_the_plane_and_on_a_circle():
    found = density_modes(FokkerPlanck(separable_wells(), Grid.uniform(x=(-2, 2, 40), y=(-2, 2, 30))))
    np.testing.assert_allclose(np.sort(found.position.values[:, 0]), [-1, 1], atol=1e-4)
    np.testing.assert_allclose(found.position.values[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(found.prominence, [1, 1 - np.exp(-5)], rtol=1e-2)
    # one mode that sits on the seam, one ridge at 30 degrees narrower than a cell's diagonal
    angle = np.arange(0.05, 2 * np.pi, 0.1) * (2 * np.pi / 6.3)
    bump = np.exp(3 * np.cos(angle - 0.02))
    assert int(density_modes(labelled(bump, a=angle), periodic=["a"])["count"]) == 1
    seam = density_modes(labelled(bump, a=angle), periodic=["a"])
    place = float(seam.position[0, 0])
    assert min(abs(place - 0.02), abs(place - 0.02 - 2 * np.pi)) < 1e-3
    assert not bool(seam.at_wall[0])
    assert int(density_modes(labelled(bump, a=angle))["count"]) == 2
    ring = SDE(lambda t, y, p, xp: (-xp.sin(y[0]),), lambda t, y, p, xp: (1.0,), convention="ito")
    grid = Grid.uniform(x=(0, 2 * np.pi, 60))
    assert int(density_modes(FokkerPlanck(ring, grid, boundary="periodic"))["count"]) == 1


def test_noise_of_rounding_and_of_sampling_does_not_count():
    # the stationary density of an irreversible operator comes from a sparse solve: its tails are rounding
    fp = FokkerPlanck(rotating_ou(), Grid.uniform(x=(-5, 5, 140), y=(-6, 6, 160)))
    assert int(density_modes(fp)["count"]) == 1
    assert int(density_modes(stationary_density(fp), prominence=0.0, floor=0.0)["count"]) >= 1
    # 1e4 samples in 60 bins: near the modes a bin of 330 is off by 5 %, one at the floor by 10 %, so that a false
    # drop by 40 % is one of four standard deviations at least: below 1e-3 over all bins; seed fixed
    rng = np.random.default_rng(7)
    samples = np.where(rng.random(10000) < 0.5, -2.0, 2.0) + rng.standard_normal(10000)
    counts, edges = np.histogram(samples, bins=60, range=(-5, 5), density=True)
    histogram = labelled(counts, x=0.5 * (edges[1:] + edges[:-1]))
    assert int(density_modes(histogram, prominence=0.0, floor=0.3)["count"]) > 2
    found = density_modes(histogram, prominence=0.4, floor=0.3)
    assert int(found["count"]) == 2
    np.testing.assert_allclose(np.sort(found.position.values[:, 0]), [-2, 2], atol=0.6)


def test_a_mode_at_a_wall_says_so():
    x = np.linspace(0.05, 0.95, 10)
    found = density_modes(labelled(np.exp(-x), x=x))
    assert found.at_wall.values.tolist() == [True]
    assert float(found.position[0, 0]) == x[0]


@pytest.mark.parametrize(
    ("convention", "exact"), [("ito", 0.2), ("stratonovich", 0.1), ("klimontovich", 0.0)]
)
def test_the_p_bifurcation_of_the_stochastic_pitchfork(convention, exact, reference):
    # the exponent 2 a / s^2 - 2 c + ... of |x| changes sign: a = s^2 (Ito), s^2 / 2 (Stratonovich), 0
    if convention == "stratonovich":
        assert reference["pitchfork_thresholds"]["value"][1] == exact
    grid = Grid.uniform(x=(-2, 2, 401))
    found = p_bifurcation(lambda a: FokkerPlanck(pitchfork(a, convention), grid), (-0.05, 0.5))
    h = 0.01
    assert abs(float(found.value) - exact) < 10 * h**2  # modes at sqrt(a - a_c), a cusp between them
    assert abs(float(found.value) - exact) < float(found.uncertainty)
    assert found["count"].values.tolist() == [1, 2]
    assert abs(float(found.position[0])) < 2 * h


def test_p_bifurcations_of_a_quartic_potential():
    # a pitchfork at a = 0, a fold of one well at b = 2 / 27^(1/2); with a potential the weights are exact, and so
    # is the polynomial of degree 4
    for n in (100, 101):
        grid = Grid.uniform(x=(-3, 3, n))
        found = p_bifurcation(lambda a, grid=grid: FokkerPlanck(quartic(a), grid), (-0.5, 1.0))
        assert abs(float(found.value)) < 1e-9
        assert 1e-4 < float(found.uncertainty) < 0.03  # order h^2
        fold = p_bifurcation(lambda b, grid=grid: FokkerPlanck(quartic(1.0, b), grid), (0.0, 1.0))
        # a parabola through squared distances of a fold, which are not quite one
        assert abs(float(fold.value) - 2 / 27**0.5) < 1e-3
        assert fold["count"].values.tolist() == [2, 1]
        assert abs(float(fold.position[0]) - 1 / 3**0.5) < 0.06
        assert fold.bracket.values[0] < fold.bracket.values[1]
    plane = Grid.uniform(x=(-3, 3, 60), y=(-1, 1, 20))
    found = p_bifurcation(lambda a: FokkerPlanck(quartic(a, names=("x", "y")), plane), (-0.5, 1.0), tol=1e-2)
    assert abs(float(found.value)) < 1e-4


def test_the_two_phases_of_a_noisy_map_appear():
    # x -> -(1 + mu) x + x^3 in the mean, with noise: one mode becomes two after the flip at mu = 0
    def build(mu):
        sde = SDE(
            lambda t, y, p, xp: (-(2 + p.mu) * y[0] + y[0] ** 3,),
            lambda t, y, p, xp: (0.05,),
            params={"mu": mu},
            convention="ito",
        )
        return TransferOperator(sde, Grid.uniform(x=(-0.8, 0.8, 161)), step=1.0)

    found = p_bifurcation(build, (-0.2, 0.3), tol=1e-2)
    assert found["count"].values.tolist() == [1, 2]
    assert -0.05 < float(found.value) < 0.15
    assert np.all(np.abs(density_modes(build(0.3)).position.values) > 0.4)


def test_unusable_input_is_refused():
    x = np.linspace(0, 1, 5)
    fp = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-2, 2, 40)))
    good = labelled(np.ones(5), x=x)
    for call, words in [
        (lambda: density_modes(np.ones(5)), "ndarray"),
        (lambda: density_modes(good, prominence=1.0), "prominence=1.0"),
        (lambda: density_modes(good, floor=-1), "floor=-1"),
        (lambda: density_modes(good, periodic=["y"]), "no coordinate 'y'"),
        (lambda: density_modes(fp, periodic=["x"]), "knows its periodic axes"),
        (lambda: density_modes(-good), "not a density"),
        (lambda: density_modes(labelled(np.ones(2), x=x[:2])), "three cells"),
        (lambda: p_bifurcation(fp, (0, 1)), "build is a FokkerPlanck"),
        (lambda: p_bifurcation(lambda a: fp, 1.0), "bracket=1.0"),
        (lambda: p_bifurcation(lambda a: fp, (1, 1)), "low < high"),
        (lambda: p_bifurcation(lambda a: fp, (0, 1)), "2 modes at both ends"),
        (lambda: p_bifurcation(lambda a: fp, (0, 1), tol=0), "tol=0"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
