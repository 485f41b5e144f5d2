"""Schemes: one step against the formula, conversion of conventions, agreement of noise structures, compilation."""

import platform
import re

import numpy as np
import pytest
from numba import njit

from solvers import schemes, weak_increments, wiener
from solvers.errors import InvalidInput
from solvers.given_noise import drive
from solvers.sde import SDE
from tests import problems

SLOW = pytest.mark.slow  # the same operations are compiled by another case
NOISE = np.array([[[0.3], [-0.2]], [[0.1], [0.7]]])  # two paths, two steps


GAUSSIAN = [name for name, scheme in schemes.SCHEMES.items() if scheme.strong is not None]


def _numbers(sde, scheme, paths, steps, dt, seed=1):
    draws = schemes.stepper(schemes.find(scheme), sde).draws
    return weak_increments.drawn(draws, seed, paths, steps, dt)


def test_every_scheme_states_orders_convention_source_and_its_line_in_the_table():
    for name, scheme in schemes.SCHEMES.items():
        assert name == scheme.name
        assert (scheme.strong is None) == (scheme.strong_special is None)
        assert scheme.strong is None or 0 < scheme.strong <= scheme.strong_special
        assert scheme.weak > 0
        assert scheme.convention in {"ito", "stratonovich"}
        assert scheme.source
        assert scheme.remedy or scheme.accepts == set(schemes.structure.KINDS)
        assert f"\n{name} " in schemes.__doc__


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


@pytest.mark.parametrize(
    "scheme",
    [
        "milstein",
        "heun",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("euler-maruyama", "implicit-euler", "platen", "weak-platen")
        ),
    ],
)
def test_diagonal_noise_equals_the_diagonal_matrix(scheme):
    """Coupled amplitudes where the scheme accepts them, so that the cross terms are compared too."""
    commuting = schemes.SCHEMES[scheme].accepts == schemes.structure.COMMUTING
    own, other = (0, 1) if commuting else (1, 0)

    def drift(t, y, p, xp):
        return (-y[0] + xp.sin(y[1]), y[0] * y[1] - y[1] ** 3)

    diagonal = SDE(
        drift,
        lambda t, y, p, xp: (0.3 * y[own], 0.2 + 0.1 * y[other] ** 2),
        names=("x", "z"),
        convention="ito",
    )
    general = SDE(
        drift,
        lambda t, y, p, xp: ((0.3 * y[own], 0.0), (0.0, 0.2 + 0.1 * y[other] ** 2)),
        names=("x", "z"),
        convention="ito",
        noise="general",
    )
    dw = _numbers(general, scheme, 10, 40, 0.02)
    a, b = (drive(sde, [0.5, -0.4], dw, dt=0.02, scheme=scheme) for sde in (diagonal, general))
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_milstein_is_its_formula():
    problem = problems.geometric_brownian(mu=0.5, s=0.6)
    dw = NOISE[..., 0]
    states = drive(problem.sde, 2.0, NOISE, dt=0.1, scheme="milstein")
    factor = 1 + 0.5 * 0.1 + 0.6 * dw + 0.5 * 0.36 * (dw**2 - 0.1)
    np.testing.assert_allclose(states.values[:, 1:, 0], 2.0 * np.cumprod(factor, axis=1), rtol=1e-14)


def test_platen_replaces_derivatives_by_differences():
    """The same scheme where the noise is linear, and L^j b^k is a difference quotient exactly."""
    problem = problems.correlated_geometric()
    dw = wiener.increments(3, 5, 20, 2, dt=0.05)
    np.testing.assert_allclose(
        drive(problem.sde, problem.y0, dw, dt=0.05, scheme="platen"),
        drive(problem.sde, problem.y0, dw, dt=0.05, scheme="milstein"),
        rtol=1e-12,
    )


@pytest.mark.slow
def test_weak_platen_is_its_formula():
    """Against a transcription of eq. (15.1.3) with loops over processes, for noise that does not commute."""
    sde = SDE(
        lambda t, y, p, xp: (y[1] - t, xp.sin(y[0])),
        lambda t, y, p, xp: ((0.3 * y[1], 0.2 * xp.cos(y[0]), t), (0.1 * y[0], 0.4, 0.5 * y[0] * y[1])),
        names=("x", "z"),
        convention="ito",
        noise="general",
    )
    t, h, m = 0.7, 0.1, 3
    dw = _numbers(sde, "weak-platen", 4, 1, h)
    states = drive(sde, [0.5, -0.8], dw, dt=h, t0=t, scheme="weak-platen", every_step=False)
    v, root = np.array([0.5, -0.8]), np.sqrt(h)

    def a(time, y):
        return np.array(sde.drift_at(time, tuple(y)))

    def b(time, y, j):
        return np.array(sde.diffusion_at(time, tuple(y)))[:, j]

    for numbers, state in zip(dw[:, 0], states.values[:, 0], strict=True):
        w, signs = numbers[:m], iter(numbers[m:] * root)
        area = np.zeros((m, m))
        for r in range(m):
            for j in range(r + 1, m):
                area[r, j] = next(signs)
        area -= area.T
        u = v + h * a(t, v)
        y = v + h / 2 * (a(t, v) + a(t + h, u + sum(b(t, v, j) * w[j] for j in range(m))))
        for j in range(m):
            up, down = (b(t + h, u + sign * root * b(t, v, j), j) for sign in (1, -1))
            y = y + (up + down + 2 * b(t, v, j)) * w[j] / 4 + (up - down) * (w[j] ** 2 - h) / (4 * root)
            for r in range(m):
                if r != j:
                    up, down = (b(t, v + sign * root * b(t, v, r), j) for sign in (1, -1))
                    y = y + (up + down - 2 * b(t, v, j)) * w[j] / 4
                    y = y + (up - down) * (w[j] * w[r] + area[r, j]) / (4 * root)
        np.testing.assert_allclose(state, y, rtol=1e-13)


def test_the_same_model_gives_the_same_step():
    """So that Numba compiles once: for new parameters, equal functions and derivatives traced anew."""
    for name in GAUSSIAN:
        scheme = schemes.find(name)
        make = problems.additive if name == "sra1" else problems.geometric_brownian
        first = schemes.stepper(scheme, make().sde)
        assert schemes.stepper(scheme, make().sde) is first
    assert schemes.stepper(scheme, make().sde, block=8) is not first


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="reads x86 assembly")
@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(name, marks=[] if name in {"tamed-euler", "implicit-euler", "platen", "sriw1"} else SLOW)
        for name in schemes.SCHEMES
    ],
)
def test_the_loop_over_paths_is_vectorised(scheme):
    additive = scheme == "sra1"
    sde = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (0.5 + 0.0 * y[0] if additive else 0.5 * y[0],),
        convention="ito",
    )
    step, ops, draws, _ = schemes.stepper(schemes.find(scheme), sde, block=64)
    load, load_noise, store = ops.load, ops.load_noise, ops.store

    @njit(fastmath=schemes.FLAGS, error_model="numpy")
    def advance(t, dt, x, dw):
        for i in range(64):
            store(x, i, step((), t, dt, load(x, i), load_noise(dw, i)))

    advance(0.0, 0.01, np.ones(64), np.zeros(64 * sum(draws)))
    (assembly,) = advance.inspect_asm().values()
    assert re.search(r"\bv?(mul|fn?m(add|sub)\d+)pd\b", assembly)
