"""Kramers and Eyring-Kramers formulas against computed rates."""

import numpy as np
import pytest

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eyring_kramers_rate,
    from_potential,
    kramers_comparison,
)
from tests.operators import double_well, ornstein_uhlenbeck, rotating_ou


def bent_wells(t, y, p, xp):
    """Minima at (+-1, a), saddle at 0; the wells are sheared, which leaves every determinant alone."""
    return (y[0] ** 2 - 1) ** 2 + (y[1] - p.a * y[0] ** 2) ** 2


def isotropic(potential, D, names, **params):
    return from_potential(
        potential,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * len(y),
        params={"D": D, **params},
        names=names,
        convention="ito",
    )


def multiplicative(noise, convention):
    return SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (xp.sqrt(p.noise * 0.2 * (1 + y[0] ** 2)),),
        params={"noise": noise},
        convention=convention,
    )


def test_the_formula_in_one_dimension():
    # sqrt(U''(1) |U''(0)|) / (2 pi) exp(-1 / (4 D)), from points given roughly
    result = eyring_kramers_rate(double_well(0.05, potential=True), minimum=-0.8, saddle=0.2)
    np.testing.assert_allclose(float(result.rate), 2**0.5 / (2 * np.pi) * np.exp(-5), rtol=1e-12)
    np.testing.assert_allclose(float(result.barrier), 5, rtol=1e-12)
    np.testing.assert_allclose(result.minimum, -1, rtol=1e-12)
    np.testing.assert_allclose(result.saddle, 0, atol=1e-12)
    assert result.rate.attrs["units"] == "1/time"
    # the drift alone will do in one dimension
    other = eyring_kramers_rate(double_well(0.05), minimum={"x": -0.8}, saddle=[0.2])
    np.testing.assert_allclose(float(other.rate), float(result.rate), rtol=1e-10)


def test_the_formula_in_more_dimensions():
    # the Hessian at (-1, a) is [[8 + 8 a^2, 4 a], [4 a, 2]] of determinant 16, at 0 diag(-4, 2)
    found = [
        eyring_kramers_rate(bent_wells, minimum=(-1.1, 0.6), saddle=(0.1, 0), D=0.1, params={"a": 0.7}),
        eyring_kramers_rate(
            isotropic(bent_wells, 0.1, ("x", "y"), a=0.7), minimum={"y": 0.6, "x": -1.1}, saddle=(0.1, 0)
        ),
    ]
    for result in found:
        exact = 4 / (2 * np.pi) * np.sqrt(16 / 8) * np.exp(-10)
        np.testing.assert_allclose(float(result.rate), exact, rtol=1e-12)
        np.testing.assert_allclose(result.minimum, [-1, 0.7], rtol=1e-9)

    # nine more directions, each stiffer in the well than at the saddle by a factor of 4: a factor of 2 each
    def many(t, y, p, xp):
        return (y[0] ** 2 - 1) ** 2 + sum(0.5 * (1 + 3 * y[0] ** 2) * component**2 for component in y[1:])

    wide = eyring_kramers_rate(many, minimum=[1.0] + 9 * [0.1], saddle=10 * [0.0], D=0.1)
    np.testing.assert_allclose(float(wide.prefactor), 4 / (2 * np.pi) * np.sqrt(2.0) * 2**9, rtol=1e-10)
    deep = eyring_kramers_rate(bent_wells, minimum=(-1, 0.7), saddle=(0, 0), D=1e-4, params={"a": 0.7})
    assert float(deep.rate) == 0
    np.testing.assert_allclose(float(deep.log_rate), np.log(4 / (2 * np.pi) * np.sqrt(2)) - 1e4, rtol=1e-12)


def test_the_computed_rate_approaches_the_formula_like_the_noise():
    # Laplace's method one order on: 1 / ratio = 1 + 3/2 D + O(D^2) for U = x^4/4 - x^2/2, 3/4 from each end
    # ((5 U3^2 / U2 - 3 U4) / (24 U2^2)), when the target is the other minimum
    slopes = []
    for D in (0.04, 0.02, 0.01):
        fp = FokkerPlanck(double_well(D, potential=True), Grid.uniform(x=(-2, 2, 1600)))
        result = kramers_comparison(fp, minimum=-0.9, saddle=0.1, target=lambda x: x > 1)
        slopes.append((1 / float(result.ratio) - 1) / D)
    # the next order adds about 10 D to the slope; the grid h^2 / (12 D) |U'|^2 / D, 1e-4 of the rate
    assert slopes[0] > slopes[1] > slopes[2]
    np.testing.assert_allclose(2 * slopes[2] - slopes[1], 1.5, atol=0.05)
    np.testing.assert_allclose(float(result.barrier), 25, rtol=1e-12)


def test_the_computed_rate_in_the_plane():
    # 1 / ratio = 1 + 3/8 D + ...: the shear has determinant 1, so the law of x alone decides
    ratios = []
    for D in (0.16, 0.08):
        sde = isotropic(bent_wells, D, ("x", "y"), a=0.5)
        fp = FokkerPlanck(sde, Grid.uniform(x=(-1.8, 1.8, 90), y=(-1, 2, 75)))
        found = kramers_comparison(fp, minimum=(-1, 0.5), saddle=(0, 0), target=lambda x, y: x > 0.9)
        ratios.append(float(found.ratio))
    assert 0.9 < ratios[0] < ratios[1] < 1
    # second-order grid error: (h dU/dx / D)^2 / 12 at most 1 % near the barrier
    np.testing.assert_allclose(1 / ratios[1] - 1, 0.375 * 0.08, atol=0.02)


@pytest.mark.parametrize("convention", ["ito", "stratonovich", "klimontovich"])
def test_noise_that_depends_on_the_state(convention):
    errors = []
    for noise in (0.2, 0.1):
        fp = FokkerPlanck(multiplicative(noise, convention), Grid.uniform(x=(-2.5, 2.5, 1000)))
        result = kramers_comparison(fp, minimum=-0.9, saddle=0.1, target=lambda x: x > 0.9)
        errors.append(1 / float(result.ratio) - 1)
    assert 0 < errors[1] < 0.02
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.25)
    # the readings differ by far more than the formula is off
    for other in {"ito", "stratonovich", "klimontovich"} - {convention}:
        wrong = eyring_kramers_rate(multiplicative(0.1, other), minimum=-0.9, saddle=0.1)
        assert abs(float(wrong.rate) / float(result.rate) - 1) > 0.15
    # the bottom of Phi: a = c D' with D = noise (1 + x^2) / 10, so x^2 = 1 - c noise / 5
    share = {"ito": 1.0, "stratonovich": 0.5, "klimontovich": 0.0}[convention]
    found = eyring_kramers_rate(multiplicative(0.1, convention), minimum=-0.9, saddle=0.1)
    np.testing.assert_allclose(found.minimum, -np.sqrt(1 - share * 0.1 / 5), rtol=1e-10)


def test_unusable_input_is_refused():
    well = double_well(0.05, potential=True)
    fp = FokkerPlanck(well, Grid.uniform(x=(-2, 2, 50)))
    deep = FokkerPlanck(double_well(0.0002, potential=True), Grid.uniform(x=(-2, 2, 50)))
    plane = isotropic(bent_wells, 0.1, ("x", "y"), a=0.5)
    unequal = from_potential(
        lambda t, y, p, xp: y[0] ** 4 / 4 - y[0] ** 2 / 2 + y[1] ** 2,
        lambda t, y, p, xp: (0.5, 0.4),
        names=("x", "y"),
        convention="ito",
    )
    varying = from_potential(
        lambda t, y, p, xp: y[0] ** 4 / 4 - y[0] ** 2 / 2 + y[1] ** 2,
        lambda t, y, p, xp: (1 + y[0] ** 2, 1 + y[0] ** 2),
        names=("x", "y"),
        convention="klimontovich",
    )
    ou = ornstein_uhlenbeck(1.0, 0.5)
    ends = {"minimum": (-1, 0), "saddle": (0, 0)}
    quartic = lambda t, y, p, xp: y[0] ** 4  # noqa: E731
    for call, words in [
        (lambda: eyring_kramers_rate(well, minimum=-1, saddle=0, D=0.1), "leave out D"),
        (lambda: eyring_kramers_rate(0.3, minimum=-1, saddle=0), "model is a float"),
        (lambda: eyring_kramers_rate(bent_wells, D=0.0, params={"a": 1}, **ends), "D=0.0"),
        (lambda: eyring_kramers_rate(rotating_ou(), **ends), "from_potential"),
        (lambda: eyring_kramers_rate(unequal, **ends), "same positive noise"),
        (lambda: eyring_kramers_rate(varying, **ends), "depends on the state"),
        (lambda: eyring_kramers_rate(well, minimum=0.1, saddle=-1), "1 directions downhill"),
        (lambda: eyring_kramers_rate(plane, minimum=(1, 0.5), saddle=(1, 0.4)), "0 directions downhill"),
        (lambda: eyring_kramers_rate(ou, minimum=0.0, saddle=1.0), "0 directions"),
        (lambda: eyring_kramers_rate(quartic, minimum=0.0, saddle=0.0, D=1.0), "degenerate"),
        (lambda: eyring_kramers_rate(well, minimum=(1, 2), saddle=0), "give 1 finite numbers"),
        (lambda: eyring_kramers_rate(well, minimum="left", saddle=0), "is no point"),
        (lambda: eyring_kramers_rate(well, minimum={"z": 1}, saddle=0), "names z"),
        (
            lambda: kramers_comparison(fp, minimum=-1, saddle=0, target=lambda x: x < 0),
            "contains the minimum",
        ),
        (lambda: kramers_comparison(well, minimum=-1, saddle=0, target=lambda x: x > 0), "SDE"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
    with pytest.raises(RuntimeError, match="smallest float"):
        kramers_comparison(deep, minimum=-1, saddle=0, target=lambda x: x > 1)
