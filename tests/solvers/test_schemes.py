"""Schemes: one step against the formula, conversion of conventions, agreement of noise structures."""

import numpy as np
import pytest

from solvers import schemes, wiener
from solvers.errors import InvalidInput
from solvers.given_noise import drive
from solvers.sde import SDE
from tests import problems

NOISE = np.array([[[0.3], [-0.2]], [[0.1], [0.7]]])  # two paths, two steps


def test_every_scheme_states_orders_convention_and_source():
    for name, scheme in schemes.SCHEMES.items():
        assert name == scheme.name
        assert (scheme.strong is None) == (scheme.strong_special is None)
        assert scheme.strong is None or 0 < scheme.strong <= scheme.strong_special
        assert scheme.weak > 0
        assert scheme.convention in {"ito", "stratonovich"}
        assert scheme.source


def test_an_unknown_scheme_is_refused_naming_the_available():
    with pytest.raises(InvalidInput, match=r"'rk4' is unknown; available: .*euler-maruyama.*heun"):
        schemes.find("rk4")


def test_euler_maruyama_is_its_formula():
    problem = problems.geometric_brownian(mu=0.5, s=0.6)
    states = drive(problem.sde, 2.0, NOISE, dt=0.1)
    expected = 2.0 * np.cumprod(1 + 0.5 * 0.1 + 0.6 * NOISE[..., 0], axis=1)
    np.testing.assert_allclose(states.values[:, 1:, 0], expected, rtol=1e-14)
    np.testing.assert_array_equal(states.values[:, 0, 0], 2.0)


def test_heun_is_its_formula():
    problem = problems.geometric_brownian(mu=0.5, s=0.6, convention="stratonovich")
    states = drive(problem.sde, 2.0, NOISE, dt=0.1, scheme="heun")
    z = 0.5 * 0.1 + 0.6 * NOISE[..., 0]
    np.testing.assert_allclose(
        states.values[:, 1:, 0], 2.0 * np.cumprod(1 + z + z**2 / 2, axis=1), rtol=1e-14
    )


def test_coefficients_are_read_at_the_times_of_the_scheme():
    sde = SDE(lambda t, y, p, xp: (t + 0.0 * y[0],), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    still = np.zeros((1, 4, 1))
    euler = drive(sde, 0.0, still, dt=0.5, t0=1.0).values[0, -1, 0]
    heun = drive(sde, 0.0, still, dt=0.5, t0=1.0, scheme="heun").values[0, -1, 0]
    assert euler == 0.5 * (1 + 1.5 + 2 + 2.5)
    assert heun == (3.0**2 - 1) / 2  # the trapezoidal rule is exact


@pytest.mark.parametrize("scheme", ["euler-maruyama", "heun"])
@pytest.mark.parametrize("convention", ["ito", "stratonovich", "klimontovich"])
def test_any_convention_is_converted_exactly(scheme, convention):
    """The same law in three conventions gives the same paths, up to rounding in the converted drift."""
    here = problems.multiplicative_well(convention).sde
    there = here.to("ito" if convention == "stratonovich" else "stratonovich")
    dw = wiener.increments(1, 20, 50, dt=0.01)
    np.testing.assert_allclose(
        drive(here, 1.0, dw, dt=0.01, scheme=scheme),
        drive(there, 1.0, dw, dt=0.01, scheme=scheme),
        rtol=1e-11,
    )


def test_the_three_conventions_are_three_models():
    """Negative control of the conversion test."""
    dw = wiener.increments(1, 20, 50, dt=0.01)
    paths = [drive(problems.multiplicative_well(c).sde, 1.0, dw, dt=0.01) for c in ("ito", "klimontovich")]
    assert np.abs(paths[0] - paths[1]).max() > 0.01


@pytest.mark.parametrize("scheme", ["euler-maruyama", "heun"])
def test_diagonal_noise_equals_the_diagonal_matrix(scheme):
    def drift(t, y, p, xp):
        return (-y[0] + xp.sin(y[1]), y[0] * y[1] - y[1] ** 3)

    diagonal = SDE(
        drift,
        lambda t, y, p, xp: (0.3 * y[1], 0.2 + 0.1 * y[0]),
        names=("x", "z"),
        convention="stratonovich",
    )
    general = SDE(
        drift,
        lambda t, y, p, xp: ((0.3 * y[1], 0.0), (0.0, 0.2 + 0.1 * y[0])),
        names=("x", "z"),
        convention="stratonovich",
        noise="general",
    )
    dw = wiener.increments(2, 10, 40, 2, dt=0.02)
    a, b = (drive(sde, [0.5, -0.4], dw, dt=0.02, scheme=scheme) for sde in (diagonal, general))
    np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    ("increments", "message"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (np.zeros((2, 3, 2)), r"\(paths, steps, 1\)"),
        (np.full((1, 1, 1), np.nan), "nan"),
    ],
)
def test_bad_increments_are_refused(increments, message):
    with pytest.raises(InvalidInput, match=message):
        drive(problems.geometric_brownian().sde, 1.0, increments, dt=0.1)
