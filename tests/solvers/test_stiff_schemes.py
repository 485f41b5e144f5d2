"""Implicit and tamed schemes: stiff drift at large steps, superlinear drift from afar."""

import numpy as np
import pytest

from solvers import schemes, wiener
from solvers.given_noise import drive
from solvers.sde import SDE


def test_tamed_euler_is_its_formula():
    def drift(y):
        return np.stack([y[:, 1] - y[:, 0] ** 3, -(y[:, 1] ** 5)], axis=1)

    sde = SDE(
        lambda t, y, p, xp: (y[1] - y[0] ** 3, -(y[1] ** 5)),
        lambda t, y, p, xp: (0.5, 0.1 * y[1]),
        names=("x", "z"),
        convention="ito",
    )
    dw = wiener.increments(3, 5, 1, 2, dt=0.05)
    y = np.array([[3.0, -2.0]] * 5)
    a = drift(y)
    expected = y + 0.05 * a / (1 + 0.05 * np.linalg.norm(a, axis=1, keepdims=True))
    expected += np.array([0.5, -0.2]) * dw[:, 0]
    states = drive(sde, y, dw, dt=0.05, scheme="tamed-euler", every_step=False)
    np.testing.assert_allclose(states.values[:, 0], expected, rtol=1e-14)


DAMPED = "3.0 * y[{1}] - 3.0 * y[{2}] - y[{0}] - y[{0}] ** 3"


CYCLIC = "2.0 * y[{0}] - 3.0 * y[{1}]"  # at dt = 0.5 the matrix 1 - dt J has a zero diagonal


@pytest.mark.parametrize(
    ("d", "entry"),
    [
        (1, DAMPED),
        pytest.param(2, CYCLIC, marks=pytest.mark.slow),
        (3, DAMPED),
        pytest.param(6, CYCLIC, marks=pytest.mark.slow),
    ],
    ids=["1 damped", "2 cyclic", "3 damped", "6 cyclic"],
)
def test_implicit_euler_solves_its_equation(d, entry):
    """Y - dt a(Y) = y + b dW, by Newton's method and with pivots exchanged; d = 6 iterates in a loop."""
    dt = 0.5
    drift = ", ".join(entry.format(i, (i + 1) % d, (i - 1) % d) for i in range(d))
    noise = ", ".join(f"0.3 + 0.1 * y[{i}]" for i in range(d))
    sde = SDE(
        eval(f"lambda t, y, p, xp: ({drift},)"),
        eval(f"lambda t, y, p, xp: ({noise},)"),
        names=tuple("abcdef"[:d]),
        convention="ito",
    )
    y = np.linspace(-3.0, 3.0, d) if d > 1 else np.array([3.0])
    dw = wiener.increments(4, 200, 1, d, dt=dt)
    new = drive(sde, y, dw, dt=dt, scheme="implicit-euler", every_step=False).values[:, 0]
    target = y + (0.3 + 0.1 * y) * dw[:, 0]
    residual = new - dt * np.stack(sde.drift_at(dt, tuple(new.T)), axis=1) - target
    np.testing.assert_allclose(residual, 0.0, atol=1e-12)


def test_implicit_euler_is_stable_where_euler_is_not():
    """At dt lambda = 50 the variance of X' = (X + s dW) / 51 is s^2 dt / (51^2 - 1), within 4 standard errors."""
    stiff = SDE(
        lambda t, y, p, xp: (-500.0 * (y[0] - xp.cos(t)),), lambda t, y, p, xp: (2.0,), convention="ito"
    )
    dw = wiener.increments(5, 4000, 40, dt=0.1)
    end = drive(stiff, 3.0, dw, dt=0.1, scheme="implicit-euler", every_step=False).values[:, 0, 0]
    mean = 3.0
    for k in range(40):
        mean = (mean + 50 * np.cos(0.1 * (k + 1))) / 51
    variance = 4.0 * 0.1 / (51**2 - 1)
    assert abs(end.mean() - mean) < 4 * np.sqrt(variance / 4000)
    assert abs(end.var() / variance - 1) < 4 * np.sqrt(2 / 4000)
    z = -50.0
    assert abs(schemes.SCHEMES["implicit-euler"].amplification(z)) < 1
    assert abs(schemes.SCHEMES["euler-maruyama"].amplification(z)) > 1


def test_a_step_that_newton_does_not_solve_is_not_a_number():
    """Y = c + dt (Y^2 + 1) has no real solution for c dt > 1/4 - dt^2."""
    sde = SDE(lambda t, y, p, xp: (y[0] ** 2 + 1,), lambda t, y, p, xp: (1.0,), convention="ito")
    still = np.zeros((1, 1, 1))
    assert np.isnan(drive(sde, 1.0, still, dt=1.0, scheme="implicit-euler", every_step=False)).all()
    assert np.isfinite(drive(sde, 1.0, still, dt=0.1, scheme="implicit-euler", every_step=False)).all()


def test_tamed_euler_survives_where_euler_diverges():
    """X - X^5 from 10 at dt = 0.05; afterwards the paths live in the well."""
    sde = SDE(lambda t, y, p, xp: (y[0] - y[0] ** 5,), lambda t, y, p, xp: (1.0,), convention="ito")
    dw = wiener.increments(6, 200, 400, dt=0.05)
    euler, tamed = (
        drive(sde, 10.0, dw, dt=0.05, scheme=scheme, every_step=False).values[:, 0, 0]
        for scheme in ("euler-maruyama", "tamed-euler")
    )
    assert not np.isfinite(euler).any()
    assert np.abs(tamed).max() < 2.5


@pytest.mark.parametrize("y0", [10.0, -15.0])
def test_implicit_euler_comes_in_from_far_out(y0):
    """Newton's method on the wall of -x^5 gains 4/5 a step; the root of Y + dt (Y^5 - Y) = y0 is found."""
    sde = SDE(lambda t, y, p, xp: (y[0] - y[0] ** 5,), lambda t, y, p, xp: (1.0,), convention="ito")
    dw = wiener.increments(7, 100, 1, dt=0.02)
    new = drive(sde, y0, dw, dt=0.02, scheme="implicit-euler", every_step=False).values[:, 0, 0]
    np.testing.assert_allclose(new + 0.02 * (new**5 - new), y0 + dw[:, 0, 0], rtol=1e-12)
