"""Lyapunov and moment Lyapunov exponents."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.linalg import expm

from solvers import (
    SDE,
    AccuracyWarning,
    InvalidInput,
    lyapunov_exponent,
    moment_lyapunov_exponent,
)
from solvers.angular_spectrum import second_moment_exponent
from solvers.linearisation import linearised
from solvers.lyapunov import linear_lyapunov_exponent, linear_moment_lyapunov_exponent

EVEN = [2.0, 4.0, 6.0]


def oscillator(zeta=0.05, s=0.5):
    return SDE(
        lambda t, y, p, xp: (y[1], -y[0] - 2 * p.zeta * y[1]),
        lambda t, y, p, xp: (0.0 * y[0], -p.s * y[0]),
        params={"zeta": zeta, "s": s},
        names=("x", "v"),
        convention="ito",
    )


def geometric(convention="ito"):
    return SDE(lambda t, y, p, xp: (0.1 * y[0],), lambda t, y, p, xp: (0.6 * y[0],), convention=convention)


def test_noisy_oscillator(reference):
    exact = reference["lyap_osc_z0.05_s0.5"]["value"]
    result = lyapunov_exponent(oscillator(), at=(0.0, 0.0))
    assert abs(float(result.value) - exact) < 1e-8
    assert float(result.stderr) == 0


def test_moment_exponents_of_the_noisy_oscillator(reference):
    case = reference["mle_osc_p_z0.05_s0.5"]
    found = moment_lyapunov_exponent(oscillator(), case["parameters"]["p"], at=(0.0, 0.0))
    np.testing.assert_allclose(found, case["value"], atol=1e-8)
    even = reference["mle_osc_even_z0.05_s0.5"]["value"]
    np.testing.assert_allclose(moment_lyapunov_exponent(oscillator(), EVEN, at=(0, 0)), even, atol=1e-8)


def test_exponent_is_the_slope_of_the_moment_exponent_at_zero():
    sde = oscillator(0.1, 0.7)
    h = 1e-4
    ends = moment_lyapunov_exponent(sde, [-h, h], at=(0, 0)).values
    # central difference: h^2 times a third derivative, and rounding 1e-13 / h
    assert abs((ends[1] - ends[0]) / (2 * h) - float(lyapunov_exponent(sde, at=(0, 0)).value)) < 1e-7


def test_geometric_brownian_motion_in_each_convention(reference):
    exact = reference["gbm"]["value"]
    assert abs(float(lyapunov_exponent(geometric(), at=0.0).value) - exact[0]) < 1e-14
    np.testing.assert_allclose(moment_lyapunov_exponent(geometric(), [1, 2, -1], at=0.0), exact[1:4])
    # Stratonovich: a; Klimontovich: a + s^2/2. Negative control: all three differ
    assert abs(float(lyapunov_exponent(geometric("stratonovich"), at=0.0).value) - 0.1) < 1e-14
    assert abs(float(lyapunov_exponent(geometric("klimontovich"), at=0.0).value) - 0.28) < 1e-14


def test_pitchfork_thresholds(reference):
    a_d, _, a_1, a_2 = reference["pitchfork_thresholds"]["value"]

    def pitchfork(a):
        return SDE(
            lambda t, y, p, xp: (p.a * y[0] - y[0] ** 3,),
            lambda t, y, p, xp: (0.2**0.5 * y[0],),
            params={"a": a},
            convention="stratonovich",
        )

    assert abs(float(lyapunov_exponent(pitchfork(a_d), at=0.0).value)) < 1e-14
    for p, a in ((1, a_1), (2, a_2)):
        assert abs(float(moment_lyapunov_exponent(pitchfork(a), p, at=0.0)[0])) < 1e-14


@pytest.mark.slow
def test_simulation_agrees_within_its_error(reference):
    exact = reference["lyap_osc_z0.05_s0.5"]["value"]
    settings = {"at": (0.0, 0.0), "method": "simulation", "seed": 3, "dt": 0.02, "duration": 400.0}
    result = lyapunov_exponent(oscillator(), **settings)
    # 4 standard errors: false alarm 6e-5 for a normal mean, about 2e-4 with 63 degrees of freedom
    assert abs(float(result.value) - exact) < 4 * float(result.stderr)
    assert float(result.stderr) < 0.003
    assert float(lyapunov_exponent(oscillator(), **settings).value) == float(result.value)
    # negative control: other noise is rejected (exponent differs by 0.03, more than 4 standard errors)
    other = float(lyapunov_exponent(oscillator(s=0.9), at=(0.0, 0.0)).value)
    assert abs(float(result.value) - other) > 4 * float(result.stderr)


@pytest.mark.slow
def test_cloning_agrees_within_its_error(reference):
    exact = reference["mle_osc_p_z0.05_s0.5"]["value"][1]
    found = moment_lyapunov_exponent(
        oscillator(), 1.0, at=(0, 0), method="simulation", seed=5, dt=0.02, duration=40.0, paths=2000
    )
    # ten populations: 5 standard errors, false alarm 7e-4 (t with 9 degrees of freedom)
    assert abs(float(found[0]) - exact) < 5 * float(found.stderr[0])


TURNING = np.array([[-0.5, 1.0, 0.0], [-1.0, -0.5, 0.5], [0.0, -0.8, -1.0]])
KICKS = np.array(
    [
        [[0.0, 0.9, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.9, 0.0, 0.4], [0.0, 0.7, 0.0]],
    ]
)
"""Three dimensions, two noises that do not commute, both of trace zero."""


def isotropic(d, s):
    """All entries of the matrix noise independent: exponents s^2 (d - 2 k)/2, k = 1 ... d (Newman 1986)."""
    return s * np.eye(d * d).reshape(d * d, d, d)


@pytest.mark.slow
def test_simulation_agrees_with_the_spectral_method_in_two_dimensions():
    drift, noises = linearised(oscillator(0.2, 0.9), (0.0, 0.0))
    exact = float(lyapunov_exponent(oscillator(0.2, 0.9), at=(0, 0)).value)
    result = linear_lyapunov_exponent(drift, noises, seed=2, dt=0.1, duration=1000.0, paths=128, count=2)
    # 4.5 standard errors (false alarm 2e-5 with 127 degrees of freedom) and the bias, known to 4.5 of its own
    reach = 4.5 * float(result.stderr) + abs(float(result.bias)) + 4.5 * float(result.bias_stderr)
    assert abs(float(result.value) - exact) < reach
    assert reach < 0.02
    # Liouville: no matrix B_k has a trace, so that areas shrink at the trace of the drift on every path
    assert float(result.exponent.sum()) == pytest.approx(np.trace(drift), abs=1e-10)
    # the binding function gives the same simulation
    same = lyapunov_exponent(
        oscillator(0.2, 0.9), at=(0, 0), method="simulation", seed=2, dt=0.1, duration=1000.0, paths=128
    )
    assert float(same.value) == float(result.value)


def test_the_whole_spectrum_of_isotropic_noise():
    result = linear_lyapunov_exponent(
        np.zeros((3, 3)), isotropic(3, 0.5), seed=1, dt=0.05, duration=400.0, paths=96, count=3
    )
    exact = 0.25 * np.array([0.5, -0.5, -1.5])
    slack = abs(float(result.bias)) + 4.5 * float(result.bias_stderr)
    # 4.5 standard errors: false alarm 2e-5 each
    assert (np.abs(result.exponent - exact) < 4.5 * result.exponent_stderr + slack).all()
    # negative control: the Stratonovich reading adds s^2/2 to each
    assert (np.abs(result.exponent - exact - 0.125) > 4.5 * result.exponent_stderr + slack).all()


def test_a_hundred_dimensions():
    # One frame diagonalises drift and noise, so that the rates are a_i - s_i^2/2 without bias from the steps.
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    a, s = -0.5 * np.arange(100.0), np.full(100, 0.3)
    drift, noise = frame @ np.diag(a) @ frame.T, frame @ np.diag(s) @ frame.T
    result = linear_lyapunov_exponent(
        drift, noise[None], seed=1, dt=0.05, duration=20.0, burn_in=10.0, paths=32, count=2
    )
    # 5 standard errors: false alarm 2e-5 with 31 degrees of freedom; a start that is forgotten as exp(-0.5 t)
    # leaves exp(-5)/10
    reach = 5 * result.exponent_stderr + 1e-3
    assert (np.abs(result.exponent - (a - s**2 / 2)[:2]) < reach).all()
    assert float(reach.max()) < 0.2
    assert abs(float(result.bias)) < 1e-10


def split_second_moment(drift, noises, dt):
    """Lambda(2) of the scheme itself: the exact second-moment matrix of a pair of its steps."""
    identity = np.eye(len(drift))

    def lifted(matrix):
        return np.kron(matrix, identity) + np.kron(identity, matrix)

    move: Any = expm(lifted(drift - 0.5 * sum(b @ b for b in noises)) * dt)
    kicks = [expm(0.5 * dt * lifted(b) @ lifted(b)) for b in noises]
    pair = np.linalg.multi_dot([move, *kicks, move, *kicks[::-1]])
    return math.log(np.abs(np.linalg.eigvals(pair)).max()) / (2 * dt)


@pytest.mark.slow
def test_the_steps_have_weak_order_two_and_the_kernel_takes_them():
    exact = second_moment_exponent(TURNING, KICKS)
    errors = [split_second_moment(TURNING, KICKS, dt) - exact for dt in (0.1, 0.05)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.02)
    # At a step so long that its bias shows, the kernel has the scheme's own exponent (5 standard errors: false
    # alarm 2e-4 with 15 degrees of freedom; clones bias it by `bias`), and not the exact one.
    dt = 0.8
    found = linear_moment_lyapunov_exponent(TURNING, KICKS, 2, seed=3, dt=dt, duration=400.0, paths=16384)
    stderr = float(found.stderr[0])
    own = split_second_moment(TURNING, KICKS, dt)
    assert abs(float(found[0]) - own) < 5 * stderr + abs(float(found.bias[0]))
    assert abs(float(found[0]) - exact) > 10 * stderr


def test_the_bias_of_the_steps_is_seen_and_reported():
    settings = {"seed": 2, "duration": 2000.0, "paths": 256}
    with pytest.warns(AccuracyWarning, match="change the exponent"):
        coarse = linear_lyapunov_exponent(TURNING, KICKS, dt=0.8, **settings)
    fine = linear_lyapunov_exponent(TURNING, KICKS, dt=0.1, **settings)
    # the estimate knows the bias up to the next order, here a half of it at this very long step
    change = float(coarse.value - fine.value)
    spread = 4.5 * math.hypot(float(coarse.stderr), float(fine.stderr))
    assert abs(change - float(coarse.bias)) < spread + 0.5 * abs(float(coarse.bias))
    assert abs(float(coarse.bias)) > 10 * float(coarse.bias_stderr)
    assert abs(float(fine.bias)) < 4.5 * float(fine.bias_stderr) + abs(float(coarse.bias)) / 32


@pytest.mark.slow
@pytest.mark.parametrize("p", [-1.0, 1.0, 2.0, 4.0])
def test_cloning_agrees_with_the_spectral_method(p):
    drift, noises = linearised(oscillator(), (0.0, 0.0))
    exact = float(moment_lyapunov_exponent(oscillator(), p, at=(0, 0))[0])
    found = linear_moment_lyapunov_exponent(drift, noises, p, seed=4, dt=0.05, duration=100.0, paths=8192)
    stderr, bias = float(found.stderr[0]), float(found.bias[0])
    # 5 standard errors: false alarm 2e-4 with 15 degrees of freedom; the bias of the clones, which is halved
    # by doubling them, is at most the estimate and 3 of its standard errors
    assert abs(float(found[0]) - exact) < 5 * stderr + abs(bias) + 3 * float(found.bias_stderr[0])
    assert stderr < 0.003


@pytest.mark.parametrize("p", [-1.0, 1.0, 3.0])
def test_cloning_in_three_dimensions(p):
    # isotropic noise: log|y| is a Brownian motion with drift, Lambda(p) = s^2 (p (d - 2) + p^2)/2
    found = linear_moment_lyapunov_exponent(
        np.zeros((3, 3)), isotropic(3, 0.5), p, seed=2, dt=0.05, duration=40.0, paths=8192
    )
    exact = 0.125 * (p + p * p)
    stderr = float(found.stderr[0])
    assert abs(float(found[0]) - exact) < 5 * stderr + abs(float(found.bias[0])) + 3 * float(
        found.bias_stderr[0]
    )
    assert stderr < 0.01


def test_second_moments_in_three_dimensions():
    exact = second_moment_exponent(TURNING, KICKS)
    found = linear_moment_lyapunov_exponent(TURNING, KICKS, 2, seed=3, dt=0.1, duration=100.0, paths=8192)
    steps = abs(split_second_moment(TURNING, KICKS, 0.1) - exact)
    reach = 5 * float(found.stderr[0]) + abs(float(found.bias[0])) + steps
    assert abs(float(found[0]) - exact) < reach
    assert abs(float(found[0]) - second_moment_exponent(TURNING, 1.2 * KICKS)) > reach  # negative control


def test_too_few_clones_are_reported():
    # dy = diag(0.6, 0.6, 0.6, 0.6) y dW independent: with p = 6 one clone in a thousand carries the moment
    with pytest.warns(AccuracyWarning, match="number of clones"):
        linear_moment_lyapunov_exponent(
            np.zeros((2, 2)), isotropic(2, 0.9), 6, seed=1, dt=0.05, duration=60.0, paths=16 * 64
        )


def test_the_same_bits_for_any_number_of_threads(monkeypatch):
    path = {"seed": 5, "dt": 0.1, "duration": 40.0, "paths": 100}
    one = linear_lyapunov_exponent(TURNING, KICKS, threads=1, count=3, **path)
    clones = {"seed": 5, "dt": 0.1, "duration": 20.0, "paths": 1024}
    first = linear_moment_lyapunov_exponent(TURNING, KICKS, [1, 2], threads=1, **clones)
    monkeypatch.setattr("solvers.linear_growth._WORK", 2e5)  # other legs, too
    assert one.identical(linear_lyapunov_exponent(TURNING, KICKS, threads=3, count=3, **path))
    assert first.identical(linear_moment_lyapunov_exponent(TURNING, KICKS, [1, 2], threads=3, **clones))
    other = linear_lyapunov_exponent(TURNING, KICKS, count=3, **{**path, "seed": 6})
    assert float(other.value) != float(one.value)


def test_a_start_that_is_not_forgotten_is_reported():
    slow = np.diag([0.0, -0.05])
    weak = 1e-3 * np.array([[[0.0, 1.0], [1.0, 0.0]]])
    with pytest.warns(AccuracyWarning, match="between the halves"):
        linear_lyapunov_exponent(slow, weak, seed=1, dt=0.1, duration=20.0, burn_in=0.0, paths=200)


def test_noise_free_and_decoupled_models_have_closed_forms():
    still = SDE(
        lambda t, y, p, xp: (y[1], -y[0] - 0.2 * y[1]),
        lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[1]),
        names=("x", "v"),
        convention="ito",
    )
    assert abs(float(lyapunov_exponent(still, at=(0, 0)).value) + 0.1) < 1e-12
    apart = SDE(
        lambda t, y, p, xp: (-y[0], 0.2 * y[1]),
        lambda t, y, p, xp: (0.3 * y[0], 0.4 * y[1]),
        names=("x", "y"),
        convention="ito",
    )
    assert abs(float(lyapunov_exponent(apart, at=(0, 0)).value) - 0.12) < 1e-12
    assert abs(float(moment_lyapunov_exponent(apart, 2, at=(0, 0))[0]) - 0.56) < 1e-12


def test_unusable_input_is_refused():
    sde = oscillator()
    additive = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    for call, words in [
        (lambda: lyapunov_exponent(sde, at=(1.0, 0.0)), "no fixed point"),
        (lambda: lyapunov_exponent(additive, at=0.0), "additive noise"),
        (lambda: lyapunov_exponent(sde, at=0.0), "2 finite numbers"),
        (lambda: lyapunov_exponent(sde, at=(0, 0), method="guess"), "method='guess'"),
        (lambda: lyapunov_exponent(sde, at=(0, 0), method="simulation"), "seed"),
        (lambda: moment_lyapunov_exponent(sde, [np.nan], at=(0, 0)), "finite"),
        (lambda: lyapunov_exponent(sde, at=(0, 0), count=3), "count=3 must lie"),
        (lambda: linear_lyapunov_exponent(TURNING, KICKS, seed=1, count=4), "count=4 must lie"),
        (lambda: linear_lyapunov_exponent(TURNING, KICKS, seed=1, burn_in=3000.0), "burn_in=3000"),
        (lambda: linear_lyapunov_exponent(TURNING, KICKS, seed=1, paths=10), "paths=10"),
        (lambda: linear_lyapunov_exponent(TURNING, KICKS, seed=1, dt=50.0), "dt=50 is too large for a noise"),
        (lambda: linear_lyapunov_exponent(TURNING, KICKS[0], seed=1), r"noises \(3, 3\)"),
        (lambda: linear_lyapunov_exponent([[np.inf]], [[[1.0]]], seed=1), "nan or infinity"),
        (
            lambda: linear_moment_lyapunov_exponent(TURNING, KICKS, 2, seed=1, populations=2),
            "populations=2",
        ),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()


def test_almost_invariant_directions_are_no_obstacle():
    # a saddle with noise that hardly turns: the exponent is that of the drift up to the noise squared, 1e-14
    saddle = SDE(
        lambda t, y, p, xp: (y[0] + 1e-9 * y[1], -y[1]),
        lambda t, y, p, xp: (1e-7 * y[1], 1e-7 * y[0]),
        names=("x", "y"),
        convention="ito",
    )
    result = lyapunov_exponent(saddle, at=(0, 0))
    assert abs(float(result.value) - 1) < 1e-11
    assert float(result.error) < 1e-9


def test_a_stiff_drift_is_exact_at_any_step():
    stiff = SDE(lambda t, y, p, xp: (-1000.0 * y[0],), lambda t, y, p, xp: (0.1 * y[0],), convention="ito")
    # dt times the rate is 10: the exponential of the drift is exact. log y = (-1000 - 0.005) t + 0.1 W.
    result = lyapunov_exponent(stiff, at=0.0, method="simulation", seed=1, duration=1.0)
    assert abs(float(result.value) + 1000.005) < 4.5 * float(result.stderr)
    assert float(result.stderr) == pytest.approx(0.1 / math.sqrt(0.9 * 64), rel=0.4)  # known to 9 percent


NO_POINT: Any = "origin"
NO_REAL: Any = 1j
NO_MOMENT: Any = "two"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lyapunov_exponent(3, at=0), "sde is a int"),
        (lambda: moment_lyapunov_exponent("a", 1, at=0), "sde is a str"),
        (lambda: lyapunov_exponent(geometric(), at=NO_POINT), "at='origin'"),
        (lambda: lyapunov_exponent(geometric(), at=NO_REAL), "at=1j"),
        (lambda: moment_lyapunov_exponent(geometric(), NO_MOMENT, at=0), "p='two'"),
    ],
)
def test_arguments_of_another_kind_are_refused(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()
