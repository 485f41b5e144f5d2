"""Stationary autocorrelation and power spectrum."""

import numpy as np
import pytest
from scipy.linalg import expm

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eigenmodes,
    power_spectrum,
    stationary_autocorrelation,
    stationary_density,
)
from tests.operators import double_well, ornstein_uhlenbeck, rotating_ou, tilted_cosine

TIMES = [0.0, 0.02, 0.3, 1.0, 3.0]
FREQUENCIES = [0.0, 1e-6, 0.3, 1.0, 4.0]


def rotation(w):
    return SDE(
        lambda t, y, p, xp: (-y[0] - p.w * y[1], p.w * y[0] - y[1]),
        lambda t, y, p, xp: (1.0, 1.0),
        params={"w": w},
        names=("x", "y"),
        convention="ito",
    )


@pytest.mark.parametrize("method", ["solve", "modes"])
def test_ornstein_uhlenbeck_positions_and_squares(method):
    rate, D = 1.5, 0.4
    t, w = np.array(TIMES), np.array(FREQUENCIES)
    variance = D / rate
    # x decays with the rate, x^2 with twice the rate and variance 2 var^2; the scheme is second order in h
    for observable, decay, size in (
        (lambda x: x, rate, variance),
        (lambda x: x**2, 2 * rate, 2 * variance**2),
    ):
        errors = []
        for n in (200, 400):
            fp = FokkerPlanck(ornstein_uhlenbeck(rate, D), Grid.uniform(x=(-4, 4, n)))
            found = stationary_autocorrelation(fp, observable, t, method=method)
            spectrum = power_spectrum(fp, observable, w, method=method)
            lorentzian = 2 * decay * size / (decay**2 + w**2)
            errors.append(
                [
                    np.abs(found.autocovariance.values / size - np.exp(-decay * t)).max(),
                    np.abs(spectrum.power.values / lorentzian - 1).max(),
                ]
            )
            np.testing.assert_allclose(float(found.variance), size, rtol=1e-9)
            np.testing.assert_allclose(found.autocovariance[0], float(found.variance), rtol=1e-9)
        assert np.max(errors[1]) < 1e-3
        np.testing.assert_allclose(np.divide(*errors), 4, rtol=0.05)
    if method == "modes":
        assert abs(float(found.truncated)) < 1e-9
        np.testing.assert_allclose(np.real(found.amplitude), [0, 0, 1, *[0] * 7], atol=1e-4)


def test_the_plane_turns_the_correlation_of_an_irreversible_process():
    # C_xx = var e^-t cos(w t); its spectrum peaks at w
    turn, t = 4.0, np.array(TIMES)
    w = np.array([0.0, 2.0, 4.0, 8.0])
    exact = 0.5 * np.exp(-t) * np.cos(turn * t)
    power = 0.5 * (1 / (1 + (w - turn) ** 2) + 1 / (1 + (w + turn) ** 2))
    errors = []
    for n in (60, 90):
        fp = FokkerPlanck(rotation(turn), Grid.uniform(x=(-3, 3, n), y=(-3, 3, n)))
        found = stationary_autocorrelation(fp, lambda x, y: x, t)
        spectrum = power_spectrum(fp, lambda x, y: x, w)
        errors.append(
            [np.abs(found.autocovariance.values - exact).max(), np.abs(spectrum.power / power - 1).max()]
        )
    assert np.max(errors[1]) < 0.02
    np.testing.assert_allclose(np.divide(*errors), 2.25, rtol=0.1)
    # x is not in one mode only once the discrete generator is looked at: the modes leave what they say
    modes = stationary_autocorrelation(fp, lambda x, y: x, t, method="modes", k=3)
    assert 0 < float(modes.truncated) < 1e-3
    np.testing.assert_allclose(modes.autocorrelation, found.autocorrelation, atol=2 * float(modes.truncated))


@pytest.mark.parametrize(
    ("sde", "grid", "boundary"),
    [
        (double_well(0.1), Grid.uniform(x=(-2, 2, 60)), "reflecting"),
        (tilted_cosine(), Grid.uniform(x=(0, 2 * np.pi, 60)), "periodic"),
        (rotating_ou(), Grid.uniform(x=(-3.5, 3.5, 14), y=(-4, 4, 14)), "reflecting"),
    ],
    ids=["wells", "ring", "plane"],
)
def test_solves_agree_with_dense_linear_algebra(sde, grid, boundary):
    fp = FokkerPlanck(sde, grid, boundary=boundary)
    f = np.random.default_rng(2).standard_normal(grid.shape)
    found = stationary_autocorrelation(fp, f, TIMES, tol=1e-10)
    spectrum = power_spectrum(fp, f, FREQUENCIES)
    dense = fp.generator.toarray()
    m = np.linalg.svd(dense)[2][-1]
    m /= m.sum()
    g = f.ravel() - f.ravel() @ m
    exact = [g @ expm(t * dense) @ (m * g) for t in TIMES]
    # tol, and the rounding of expm
    np.testing.assert_allclose(found.autocovariance, exact, atol=1e-8 * exact[0])
    system = dense - np.outer(m, np.ones(grid.size))  # the stationary state moved to -1, which g does not see
    power = [
        2 * np.real(g @ np.linalg.solve(1j * w * np.eye(grid.size) - system, m * g)) for w in FREQUENCIES
    ]
    np.testing.assert_allclose(spectrum.power, power, rtol=1e-7)


def test_slow_jumps_dominate_the_spectrum_of_deep_wells():
    fp = FokkerPlanck(double_well(0.02, potential=True), Grid.uniform(x=(-2, 2, 300)))
    gap = float(eigenmodes(fp, 2).gap)
    assert gap < 1e-5
    found = stationary_autocorrelation(fp, lambda x: x, [1 / gap])
    # a random telegraph between the wells; the share 1 - amplitude relaxes within them
    modes = stationary_autocorrelation(fp, lambda x: x, [1 / gap], method="modes", k=4)
    share = float(modes.amplitude[1])
    assert 0.98 < share < 1
    np.testing.assert_allclose(found.autocorrelation, share * np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(modes.autocorrelation, share * np.exp(-1), rtol=1e-9)
    power = power_spectrum(fp, lambda x: x, [0.0, gap])
    # rounding of the solve: eps |L| / gap = 1e-16 * 1e3 / 1e-6
    np.testing.assert_allclose(
        power.power, 2 * share * float(power.variance) / gap / np.array([1, 2]), rtol=1e-5
    )


def test_observables_may_be_arrays():
    fp = FokkerPlanck(ornstein_uhlenbeck(1.0, 0.5), Grid.uniform(x=(-4, 4, 100)))
    x = stationary_density(fp).x
    given = [stationary_autocorrelation(fp, f, [0.5]) for f in (lambda x: x, x.values, x)]
    assert float(given[0].autocovariance[0]) == float(given[1].autocovariance[0])
    assert float(given[0].autocovariance[0]) == float(given[2].autocovariance[0])
    assert given[0].time.attrs["units"] == "time"
    assert power_spectrum(fp, x, [1.0]).power.attrs["units"] == "time"


def test_unusable_input_is_refused():
    fp = FokkerPlanck(ornstein_uhlenbeck(1.0, 0.5), Grid.uniform(x=(-4, 4, 50)))
    walled = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-2, 2, 40)), boundary="absorbing")
    for call, words in [
        (lambda: stationary_autocorrelation(fp.chain, lambda x: x, [1.0]), "Chain"),
        (lambda: stationary_autocorrelation(fp, lambda x: x, [-1.0]), "contain -1"),
        (lambda: stationary_autocorrelation(fp, lambda x: x, []), r"times=\[\]"),
        (lambda: stationary_autocorrelation(fp, lambda x: x, "now"), "times='now'"),
        (lambda: stationary_autocorrelation(fp, lambda x: x, [1.0], method="fft"), "'solve' or 'modes'"),
        (lambda: stationary_autocorrelation(fp, lambda x: x, [1.0], method="modes", k=1), "k=1 modes"),
        (lambda: stationary_autocorrelation(fp, lambda x: x, [1.0], tol=0), "tol=0"),
        (lambda: stationary_autocorrelation(fp, lambda x: 1.0, [1.0]), "does not vary"),
        (lambda: stationary_autocorrelation(fp, lambda x, y: x, [1.0]), r"observable does not take \(x\)"),
        (lambda: stationary_autocorrelation(fp, lambda x: 1j * x, [1.0]), "complex128"),
        (lambda: stationary_autocorrelation(fp, np.ones(3), [1.0]), r"observable has shape \(3,\)"),
        (lambda: power_spectrum(fp, lambda x: x, [np.nan]), "frequencies="),
        (lambda: power_spectrum(walled, lambda x: x, [1.0]), "absorbing wall"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
