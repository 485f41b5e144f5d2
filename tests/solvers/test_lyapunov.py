"""Lyapunov and moment Lyapunov exponents."""

import numpy as np
import pytest

from solvers import SDE, ConvergenceFailure, InvalidInput, lyapunov_exponent, moment_lyapunov_exponent
from solvers.lyapunov import _angular_generator, _principal, linearisation, second_moment_exponent

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


def test_second_moment_matrix_agrees_with_the_angular_generator():
    drift, noises = linearisation(oscillator(0.2, 0.9), (0.0, 0.0))
    spectral = _principal(_angular_generator(drift, noises, 2.0, 64))
    assert abs(spectral - second_moment_exponent(drift, noises)) < 1e-9


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


def test_cloning_agrees_within_its_error(reference):
    exact = reference["mle_osc_p_z0.05_s0.5"]["value"][1]
    found = moment_lyapunov_exponent(
        oscillator(), 1.0, at=(0, 0), method="simulation", seed=5, dt=0.02, duration=40.0, paths=2000
    )
    # ten populations: 5 standard errors, false alarm 7e-4 (t with 9 degrees of freedom)
    assert abs(float(found[0]) - exact) < 5 * float(found.stderr[0])


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
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()


def test_unsettled_series_is_not_returned():
    with pytest.raises(ConvergenceFailure, match="finite volumes give"):
        # almost invariant directions: a saddle with noise that hardly turns
        lyapunov_exponent(
            SDE(
                lambda t, y, p, xp: (y[0] + 1e-9 * y[1], -y[1]),
                lambda t, y, p, xp: (1e-7 * y[1], 1e-7 * y[0]),
                names=("x", "y"),
                convention="ito",
            ),
            at=(0, 0),
        )


def test_a_step_too_large_for_the_drift_is_refused():
    stiff = SDE(
        lambda t, y, p, xp: (p.mu * y[0],),
        lambda t, y, p, xp: (0.1 * y[0],),
        params={"mu": -1000.0},
        convention="ito",
    )
    settings = {"at": 0.0, "method": "simulation", "seed": 1, "duration": 1.0}
    words = r"dt=0.01 is too large .* eigenvalue -1000.* the largest stable dt is 0.002785"
    with pytest.raises(InvalidInput, match=words):
        lyapunov_exponent(stiff, dt=0.01, **settings)
    with pytest.raises(InvalidInput, match=words):
        moment_lyapunov_exponent(stiff, 1.0, dt=0.01, **settings)
    # inside: the truncated exponential at mu dt = -0.5 is off by 0.5^5/120 relative, over 0.5: 0.05 percent
    value = float(lyapunov_exponent(stiff, dt=0.0005, **settings).value)
    assert abs(value / -1000 - 1) < 2e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lyapunov_exponent(3, at=0), "sde is a int"),
        (lambda: moment_lyapunov_exponent("a", 1, at=0), "sde is a str"),
        (lambda: lyapunov_exponent(geometric(), at="origin"), "at='origin'"),
        (lambda: lyapunov_exponent(geometric(), at=1j), "at=1j"),
        (lambda: moment_lyapunov_exponent(geometric(), "two", at=0), "p='two'"),
    ],
)
def test_arguments_of_another_kind_are_refused(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()
