"""Spectral exponents: harmonics in two and three dimensions, moment equations, invariant subspaces, roots."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import cumulative_simpson, simpson

from solvers import (
    SDE,
    AccuracyWarning,
    ConvergenceFailure,
    InvalidInput,
    linear_lyapunov_exponent,
    linear_moment_lyapunov_exponent,
    lyapunov_exponent,
    moment_lyapunov_exponent,
    principal_pair,
    stability_index,
    stability_threshold,
)
from solvers.angular_harmonics import tilted_generator
from solvers.angular_spectrum import GrowthRates, second_moment_exponent
from solvers.even_moments import even_moment_exponent, moment_equations
from solvers.invariant_subspaces import irreducible_blocks
from solvers.principal_pair import Direction

TURNING = np.array([[-0.5, 1.0, 0.0], [-1.0, -0.5, 0.5], [0.0, -0.8, -1.0]])
KICKS = np.array(
    [
        [[0.0, 0.9, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.9, 0.0, 0.4], [0.0, 0.7, 0.0]],
    ]
)
"""Three dimensions, two noises that do not commute."""


def oscillator_matrices(zeta, s):
    return np.array([[0.0, 1.0], [-1.0, -2 * zeta]]), np.array([[[0.0, 0.0], [-s, 0.0]]])


def oscillator(zeta, s=0.5):
    return SDE(
        lambda t, y, p, xp: (y[1], -y[0] - 2 * p.zeta * y[1]),
        lambda t, y, p, xp: (0.0 * y[0], -p.s * y[0]),
        params={"zeta": zeta, "s": s},
        names=("x", "v"),
        convention="ito",
    )


def linear(drift, noises):
    """An SDE with these matrices."""
    rows = tuple(map(tuple, np.asarray(drift, dtype=float).tolist()))
    kicks = tuple(tuple(map(tuple, b)) for b in np.asarray(noises, dtype=float).tolist())

    def product(matrix, y):
        return tuple(sum(m * v for m, v in zip(row, y, strict=True)) for row in matrix)

    def diffusion(t, y, p, xp):
        columns = [product(b, y) for b in kicks]
        return tuple(tuple(column[i] for column in columns) for i in range(len(rows)))

    return SDE(
        lambda t, y, p, xp: product(rows, y),
        diffusion,
        names=("x", "y", "z")[: len(rows)],
        convention="ito",
        noise="general",
    )


def random_system(seed, d, m, size=0.6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(d, d)), size * rng.normal(size=(m, d, d))


def furstenberg_khasminskii(drift, noises, points=4001):
    """The exponent in two dimensions by quadrature alone, for noise that turns every direction.

    The angle is a diffusion with generator s f'' + b f'; its density solves (s p)' = b p - J, hence
    p = exp(I)/s (c - J int exp(-I)) with I = int b/s, and periodicity fixes J.
    """
    phi = np.linspace(0, np.pi, points)
    u, v = np.array([np.cos(phi), np.sin(phi)]), np.array([-np.sin(phi), np.cos(phi)])

    def form(left, matrix, right):
        return np.einsum("ij,ik,kj->j", left, matrix, right)

    alpha = np.array([form(u, b, u) for b in noises])
    h = np.array([form(v, b, u) for b in noises])
    spread = 0.5 * np.sum(h**2, axis=0)
    turn = form(v, drift, u) - np.sum(alpha * h, axis=0)
    radial = form(u, drift, u) + 0.5 * np.sum(h**2 - alpha**2, axis=0)
    potential = cumulative_simpson(turn / spread, x=phi, initial=0)
    inner = cumulative_simpson(np.exp(-potential), x=phi, initial=0)
    flux = (1 - np.exp(-potential[-1])) / inner[-1]
    density = np.exp(potential) / spread * (1 - flux * inner)
    return float(simpson(radial * density, x=phi) / simpson(density, x=phi))


@pytest.mark.parametrize(("d", "p"), [(2, 2), (2, 6), (3, 2), (3, 4), (3, 6)])
def test_the_generator_acts_as_the_sde_does_on_homogeneous_functions(d, p):
    # For even p the harmonics up to degree p are the homogeneous polynomials of degree p on the sphere, so that all
    # eigenvalues must be those of the moment equations in monomials: derivation against derivation.
    drift, noises = random_system(d + p, d, 3)
    harmonics = np.linalg.eigvals(tilted_generator(drift, noises, p // 2).at(p).toarray())
    monomials = np.linalg.eigvals(moment_equations(drift, noises, p).toarray())
    distance = np.abs(harmonics[:, None] - monomials[None, :])
    scale = np.abs(monomials).max()
    # rounding, amplified by the condition of the eigenvalues (measured: up to 1e3)
    assert distance.min(axis=0).max() < 1e-11 * scale
    assert distance.min(axis=1).max() < 1e-11 * scale
    if p == 2:
        assert abs(monomials.real.max() - second_moment_exponent(drift, noises)) < 1e-11 * scale


@pytest.mark.parametrize("d", [2, 3])
def test_even_moments_come_out_of_the_truncated_series_too(d):
    drift, noises = random_system(5, d, 3)
    direction = Direction(drift, noises)
    for p in (2, 4):
        found = direction.moment(p)
        exact = even_moment_exponent(drift, noises, p)
        # the truncated space contains the exact one: rounding only
        assert abs(found.value - exact) < 1e-11 * abs(exact)
        assert abs(direction.even_moment(p) - exact) < 1e-11 * abs(exact)


def test_the_exponent_is_the_furstenberg_khasminskii_integral():
    for seed in range(3):
        drift, noises = random_system(seed, 2, 3)
        found = GrowthRates(drift, noises).exponent()
        # Simpson's rule with 4000 intervals: h^4 / 180 times fourth derivatives of a few thousand
        assert abs(found.value - furstenberg_khasminskii(drift, noises)) < 1e-8
        assert found.error < 1e-9


def test_isotropic_noise_in_three_dimensions():
    # all entries independent: exponents s^2 (d - 2 k)/2 (Newman 1986), Lambda(p) = s^2 (p (d - 2) + p^2)/2
    s = 0.5
    rates = GrowthRates(np.zeros((3, 3)), s * np.eye(9).reshape(9, 3, 3))
    found = rates.exponents()
    np.testing.assert_allclose([r.value for r in found], s**2 * np.array([0.5, -0.5, -1.5]), atol=1e-13)
    assert abs(found[0].slope - s**2) < 1e-13
    for p in (-3.0, -1.0, 0.3, 1.0, 2.0, 5.0):
        assert abs(rates.moment(p).value - s**2 * (p + p * p) / 2) < 1e-12


@pytest.mark.slow
def test_three_exponents_agree_with_simulation():
    exact = lyapunov_exponent(linear(TURNING, KICKS), at=(0, 0, 0), count=3)
    found = linear_lyapunov_exponent(TURNING, KICKS, seed=4, dt=0.05, duration=400.0, paths=96, count=3)
    slack = abs(float(found.bias)) + 4.5 * float(found.bias_stderr)
    # 4.5 standard errors, three exponents: false alarm 6e-5 with 95 degrees of freedom
    reach = 4.5 * found.exponent_stderr.values + slack
    assert (np.abs(found.exponent.values - exact.exponent.values) < reach).all()
    assert reach.max() < 0.06
    other = lyapunov_exponent(linear(TURNING, 1.4 * KICKS), at=(0, 0, 0), count=3)  # negative control
    assert (np.abs(found.exponent.values - other.exponent.values) > reach).any()
    # the variance of log|y| per time, from the spread of the paths; known to 15 percent from 96, five of those
    spread = float(found.stderr) ** 2 * 96 * 360
    assert abs(spread / float(exact.variance) - 1) < 0.75


@pytest.mark.parametrize("p", [-1.0, 1.0, 3.0])
@pytest.mark.slow
def test_moments_in_three_dimensions_agree_with_cloning(p):
    exact = float(moment_lyapunov_exponent(linear(TURNING, KICKS), p, at=(0, 0, 0))[0])
    found = linear_moment_lyapunov_exponent(TURNING, KICKS, p, seed=6, dt=0.05, duration=40.0, paths=8192)
    # 5 standard errors of 16 populations: false alarm 2e-4; clones bias by the estimate and 3 of its errors;
    # steps by order dt^2, at most (measured for p = 2 in test_lyapunov) 1e-3
    reach = 5 * float(found.stderr[0]) + abs(float(found.bias[0])) + 3 * float(found.bias_stderr[0]) + 1e-3
    assert abs(float(found[0]) - exact) < reach
    assert reach < 0.04 * (2 + p) ** 2


def test_convergence_is_faster_than_any_power():
    drift, noises = random_system(3, 3, 9, size=0.5)
    exact = Direction(drift, noises).moment(1.0).value
    errors = []
    for harmonics in (2, 4, 8):
        matrix = tilted_generator(drift, noises, harmonics).at(1.0).toarray()
        errors.append(abs(np.linalg.eigvals(matrix).real.max() - exact))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert orders[1] > orders[0] > 3


@pytest.mark.parametrize("s", [1e-1, 1e-3, 1e-5, 1e-7])
def test_weak_noise_on_a_focus_keeps_relative_accuracy(s):
    # undamped oscillator: exponent s^2/8 (1 + O(s^2)), variance the same, Lambda(p) = s^2 p (p + 2)/16; averaging
    rates = GrowthRates(*oscillator_matrices(0.0, s))
    reach = 0.2 * s**2 + 1e-13
    top = rates.exponent()
    assert abs(top.value / (s**2 / 8) - 1) < reach
    assert abs(top.slope / (s**2 / 8) - 1) < reach
    for p in (-1.0, 1.0, 2.0, 3.5):
        assert abs(rates.moment(p).value / (s**2 * p * (p + 2) / 16) - 1) < 4 * reach


@pytest.mark.parametrize("s", [1e-2, 1e-4, 1e-6])
def test_weak_noise_on_a_saddle(s):
    # log|y| grows at 1 + O(s^4): with one noise that couples both ways the second-order term of Lambda'(0) is
    # sum_k b12 b21/... of the top eigenvalue: perturbation of the drift's simple eigenvalue gives 0 in Ito
    noises = s * np.array([[[0.0, 1.0], [1.0, 0.0]]])
    found = GrowthRates(np.diag([1.0, -1.0]), noises).exponent()
    assert abs(found.value - 1) < s**2 + 1e-11
    exact = second_moment_exponent(np.diag([1.0, -1.0]), noises)
    assert abs(GrowthRates(np.diag([1.0, -1.0]), noises).moment(2).value - exact) < 1e-14 * 4


@pytest.mark.parametrize("s", [1.0, 1e-2, 1e-4])
def test_a_scalar_multiple_of_the_noise_is_a_change_of_time(s):
    # A -> c A, B -> sqrt(c) B multiplies all exponents by c: relative accuracy over the whole range
    drift, noises = random_system(11, 3, 9, 0.4)
    one = GrowthRates(drift, noises)
    other = GrowthRates(s**2 * drift, s * noises)
    assert abs(other.exponent().value / (s**2 * one.exponent().value) - 1) < 1e-9
    assert abs(other.moment(1.0).value / (s**2 * one.moment(1.0).value) - 1) < 1e-9


def test_exponents_do_not_depend_on_coordinates():
    drift, noises = random_system(2, 3, 9, 0.4)
    frame = np.array([[1.0, 30.0, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.01]])
    inverse = np.linalg.inv(frame)
    one, other = GrowthRates(drift, noises), GrowthRates(inverse @ drift @ frame, inverse @ noises @ frame)
    assert abs(one.exponent().value - other.exponent().value) < 1e-8
    assert abs(one.moment(-0.7).value - other.moment(-0.7).value) < 1e-8


def test_commuting_matrices_in_closed_form():
    # one frame diagonalises all, over the complex numbers: log of each component is a Brownian motion with drift
    rng = np.random.default_rng(8)
    frame = rng.normal(size=(3, 3))

    def block(a, b, c):
        return frame @ np.array([[a, -b, 0], [b, a, 0], [0, 0, c]]) @ np.linalg.inv(frame)

    drift, noise = block(-0.2, 1.3, -0.1), block(0.4, 0.7, 0.5)[None]
    pair, single = -0.2 - 0.5 * (0.4**2 - 0.7**2), -0.1 - 0.5 * 0.5**2
    rates = GrowthRates(drift, noise)
    values = sorted([pair, pair, single], reverse=True)
    np.testing.assert_allclose([r.value for r in rates.exponents()], values, atol=1e-10)
    for p in (0.5, 1.0, 2.0, 3.0):
        exact = max(p * pair + 0.5 * p**2 * 0.4**2, p * single + 0.5 * p**2 * 0.5**2)
        assert abs(rates.moment(p).value - exact) < 1e-10
    with pytest.raises(InvalidInput, match="negative moments depend on the start"):
        rates.moment(-1.0)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (lambda t: (np.triu(t[0]), [np.triu(t[1])]), [1, 1, 1]),
        (lambda t: (t[0], [np.eye(3)]), None),
        (lambda t: (t[0], [t[1]]), [3]),
        (lambda t: (np.triu(t[0], 1), [np.triu(t[1], 1)]), [1, 1, 1]),  # nilpotent
        (lambda t: (np.block([[t[0][:2, :2], t[1][:2, :1]], [np.zeros((1, 2)), 1.0]]), [np.eye(3)]), None),
    ],
)
def test_invariant_subspaces_are_found_in_any_frame(make, sizes):
    rng = np.random.default_rng(5)
    drift, noises = make(rng.normal(size=(3, 3, 3)))
    frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    noises = np.array(noises)
    blocks = irreducible_blocks(frame @ drift @ frame.T, frame @ noises @ frame.T)
    found = sorted(len(a) for a, _ in blocks)
    if sizes is None:  # a multiple of the identity: the drift's own real blocks
        pairs = int(np.sum(np.linalg.eigvals(drift).imag > 0))
        sizes = [1] * (3 - 2 * pairs) + [2] * pairs
    assert found == sorted(sizes)
    rates = np.concatenate([np.linalg.eigvals(a) for a, _ in blocks])
    # a triple eigenvalue of a nilpotent matrix is rounded by its cube root
    reach = 1e-4 if np.abs(np.linalg.eigvals(drift)).max() < 1e-12 else 1e-10
    np.testing.assert_allclose(np.sort(rates.real), np.sort(np.linalg.eigvals(drift).real), atol=reach)


def symmetric_square(drift, noises):
    """The linear SDE of (x^2, x v, v^2)."""

    def lift(matrix):
        (a, b), (c, d) = matrix
        return np.array([[2 * a, 2 * b, 0], [c, a + d, b], [0, 2 * c, 2 * d]])

    stratonovich = drift - 0.5 * np.sum(noises @ noises, axis=0)
    lifted = np.array([lift(b) for b in noises])
    return lift(stratonovich) + 0.5 * np.sum(lifted @ lifted, axis=0), lifted


def test_a_singular_density_is_refused_or_its_error_is_honest(monkeypatch):
    # The squares live on a cone: three dimensions, no invariant subspace, but a density on a curve. Every
    # Lambda(p) is Lambda(2 p) of the oscillator, even ones exactly. Fewer harmonics save time.
    monkeypatch.setitem(principal_pair._HARMONICS, 3, (4, 8, 12, 18, 27, 40))
    plane = GrowthRates(*oscillator_matrices(0.05, 0.5))
    lifted = GrowthRates(*symmetric_square(*oscillator_matrices(0.05, 0.5)))
    assert abs(lifted.moment(2).value - plane.moment(4).value) < 1e-13
    with pytest.raises(ConvergenceFailure, match="density is singular"):
        lifted.exponent()
    found = lifted.moment(3.0)
    assert 1e-9 < found.error < 1e-3
    assert abs(found.value - plane.moment(6).value) < found.error
    sde = linear(*symmetric_square(*oscillator_matrices(0.05, 0.5)))
    with pytest.warns(AccuracyWarning, match="is known to about"):
        moment_lyapunov_exponent(sde, 1.0, at=(0, 0, 0))


@pytest.mark.slow
def test_one_noise_in_three_dimensions():
    """A single noise of full rank spreads the direction only by its commutators with the drift: slow series."""
    rng = np.random.default_rng(11)
    drift, noises = rng.normal(size=(3, 3)), 0.6 * rng.normal(size=(1, 3, 3))
    found = GrowthRates(drift, noises).exponent()
    assert found.error < 1e-8
    run = linear_lyapunov_exponent(drift, noises, seed=1)
    # false alarms: 6e-5; the bias of the steps is 8e-5, beside a standard error of 2e-3
    assert abs(found.value - float(run.value)) < 4 * float(run.stderr) + 2 * abs(float(run.bias))
    # for even p the moment equations close: exact, and Lambda(p) is convex with that slope at 0
    assert found.value < GrowthRates(drift, noises).moment(2).value / 2


def test_four_coupled_dimensions_have_even_moments_only():
    drift, noises = random_system(1, 4, 2)
    rates = GrowthRates(drift, noises)
    assert abs(rates.moment(2).value - second_moment_exponent(drift, noises)) < 1e-11
    # Lyapunov's inequality for the closed equations of order four
    assert rates.moment(4).value >= 2 * rates.moment(2).value
    with pytest.raises(InvalidInput, match="of 4 coupled dimensions"):
        rates.exponent()
    with pytest.raises(InvalidInput, match="Lambda\\(3\\) of 4 coupled"):
        rates.moment(3)
    with pytest.raises(InvalidInput, match="more than 1500"):
        even_moment_exponent(*random_system(1, 8, 1), 8)
    with pytest.raises(InvalidInput, match="p=3 is not an even number"):
        even_moment_exponent(drift, noises, 3)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.floats(0.3, 1.0))
def test_moment_exponents_are_convex_and_vanish_at_zero(seed, d, size):
    drift, noises = random_system(seed, d, d * d, size)
    rates = GrowthRates(drift, noises)
    p = np.array([-1.0, -0.5, 0.0, 1e-3, 1.0, 2.0, 3.0])
    found = [rates.moment(q) for q in p]
    values = np.array([f.value for f in found])
    assert values[2] == 0
    slopes = np.diff(values) / np.diff(p)
    error = max(f.error for f in found) + 1e-12 * np.abs(values).max()
    assert (np.diff(slopes) > -4 * error / 1e-3).all()
    top = rates.exponent()
    assert slopes[1] <= top.value + error < slopes[2] + 4 * error / 1e-3
    # the tangent at 0: Lambda(p) = value p + variance p^2/2 + O(p^3)
    assert abs(values[3] / 1e-3 - top.value - 0.5e-3 * top.slope) < 1e-5 * (np.abs(values).max() + 1)


def test_the_stability_index_is_a_zero_of_the_moment_exponent():
    for zeta, sign in ((0.05, 1.0), (0.02, -1.0)):
        sde = oscillator(zeta)
        found = stability_index(sde, at=(0, 0))
        assert float(found.value) * sign > 0
        assert abs(float(moment_lyapunov_exponent(sde, float(found.value), at=(0, 0))[0])) < 1e-12
        assert found.attrs["evaluations"] <= 8
    geometric = SDE(lambda t, y, p, xp: (0.1 * y[0],), lambda t, y, p, xp: (0.6 * y[0],), convention="ito")
    assert abs(float(stability_index(geometric, at=0).value) - (1 - 0.2 / 0.36)) < 1e-12
    # noise that only turns: |y| decays at a fixed rate, all moments do
    turning = linear(np.array([[-0.625, 1.0], [-1.0, -0.625]]), np.array([[[0.0, 0.5], [-0.5, 0.0]]]))
    with pytest.raises(InvalidInput, match="does not cross 0 again"):
        stability_index(turning, at=(0, 0))


@pytest.mark.slow
def test_thresholds_in_a_parameter():
    # mean-square stability of the oscillator: 2 zeta = s^2/2, exactly
    found = stability_threshold(oscillator, (0.01, 0.3), at=(0.0, 0.0), p=2)
    assert abs(float(found.value) - 0.0625) < 1e-10
    assert found.attrs["evaluations"] <= 10
    almost_sure = stability_threshold(oscillator, (0.01, 0.3), at=lambda value: (0.0, 0.0))
    assert float(almost_sure.value) < 0.0625
    assert abs(float(lyapunov_exponent(oscillator(float(almost_sure.value)), at=(0, 0)).value)) < 1e-10
    assert abs(float(almost_sure.slope) + 1) < 0.01  # damping shifts the exponent by -zeta, to leading order
    # three dimensions: adding a multiple of the identity shifts the exponent by it
    drift, noises = random_system(2, 3, 9, 0.4)
    exact = GrowthRates(drift, noises).moment(1.0).value
    shifted = stability_threshold(
        lambda a: linear(drift + a * np.eye(3), noises), (-5.0, 1.0), at=(0, 0, 0), p=1, tolerance=1e-8
    )
    assert abs(float(shifted.value) + exact) < 1e-7


NO_BRACKET: Any = 3
NO_MODEL: Any = "model"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stability_threshold(oscillator, (0.1, 0.3), at=(0, 0), p=2), "does not cross 0 in bracket"),
        (lambda: stability_threshold(oscillator, (0.3, 0.1), at=(0, 0)), "low < high"),
        (lambda: stability_threshold(oscillator, NO_BRACKET, at=(0, 0)), "bracket=3"),
        (lambda: stability_threshold(NO_MODEL, (0, 1), at=(0, 0)), "build='model'"),
        (lambda: stability_threshold(oscillator, (0, 1), at=(0, 0), p=math.nan), "p=nan"),
        (lambda: stability_threshold(oscillator, (0, 1), at=(0, 0), tolerance=2.0), "tolerance=2"),
    ],
)
def test_unusable_input_is_refused(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()


def test_results_say_what_they_are():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = linear(*random_system(2, 3, 9, 0.4))
        result = lyapunov_exponent(model, at=(0, 0, 0), count=2)
        moments = moment_lyapunov_exponent(model, [1.0, 2.0], at=(0, 0, 0))
        index = stability_index(oscillator(0.05), at=(0, 0))
    for name in ("value", "stderr", "error", "variance", "exponent", "exponent_error"):
        assert result[name].attrs["units"] == "1/time", name
    assert moments.coords["error"].attrs["long_name"]
    assert index.value.attrs["units"] == "1"
    assert "versions" in result.attrs
