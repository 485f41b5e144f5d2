"""The complementarity problem of the critical modes: its conditions, closed forms, a grid, and refusals."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge.critical_modes import complementary_covariance
from solvers.errors import ConvergenceFailure, InvalidInput


def problem(m, seed, size=40):
    """A gap of either sign and the Gram tensor of random third derivatives, each of any scale."""
    rng = np.random.default_rng(seed)
    turning = rng.standard_normal((m, m, size)) * 10.0 ** rng.uniform(-3, 3)
    turning += turning.transpose(1, 0, 2)
    gap = rng.standard_normal((m, m)) - rng.uniform(0, 3) * np.eye(m)
    return (gap + gap.T) * 10.0 ** rng.uniform(-3, 3), np.einsum("ija,kla->ijkl", turning, turning)


def conditions(gap, response, x):
    """Least eigenvalues of X and S, and <X, S>, with A and B scaled to norm 1; and the scaled norm of X."""
    a, b = np.linalg.norm(gap), np.linalg.norm(response)
    slack = (gap + np.einsum("ijkl,kl->ij", response, x)) / a
    x = x * b / a
    return np.linalg.eigvalsh(x)[0], np.linalg.eigvalsh(slack)[0], np.sum(x * slack), np.linalg.norm(x)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8])
def test_conditions_of_complementarity(m):
    active = 0
    for seed in range(20):
        gap, response = problem(m, seed)
        x = complementary_covariance(gap, response)
        least, slack, product, size = conditions(gap, response, x)
        assert min(least, slack, -abs(product)) > -1e-8 * max(1.0, size)
        assert_allclose(x, x.T, atol=0)
        active += size > 0.01
        if size > 0.01:  # the negative control: neither more nor less meets the conditions
            for factor in (0.99, 1.01):
                _, low, excess, _ = conditions(gap, response, factor * x)
                assert low < -1e-6 or excess > 1e-6
    assert active > 5


@pytest.mark.parametrize("gap", [-2.0, -1e-6, 0.0, 3.0])
@pytest.mark.parametrize("response", [1e-4, 7.0])
def test_one_mode_in_closed_form(gap, response):
    x = complementary_covariance([[gap]], [[[[response]]]])
    assert_allclose(x, [[max(0.0, -gap) / response]], rtol=1e-8, atol=0)


def test_uncoupled_modes_in_closed_form():
    """B[X]_ij = b_i delta_ij X_ii + c X_ij off the diagonal: each mode has its own max(0, -a)/b."""
    a, b = np.array([-1.0, 0.5, -2.0]), np.array([0.5, 1.0, 4.0])
    response = np.zeros((3, 3, 3, 3))
    for i in range(3):
        for j in range(3):
            response[i, j, i, j] += 0.5 * (b[i] if i == j else 3.0)
            response[i, j, j, i] += 0.5 * (b[i] if i == j else 3.0)
    x = complementary_covariance(np.diag(a), response)
    assert_allclose(x, np.diag(np.maximum(0, -a) / b), rtol=0, atol=1e-7)


def test_two_modes_against_a_grid():
    """The minimum of f(X) = <X, B[X]>/2 + <A, X> over a dense grid of positive matrices, refined about its best point.

    The conditions to t bound f(X) - min f by <X, S> + t tr X* <= (1 + tr X*) t, and B's least eigenvalue b then
    |X - X*| by the root of 2 (1 + tr X*) t/b.
    """
    ranks = []
    for seed in range(8):
        gap, response = problem(2, seed)
        gap, response = gap / np.linalg.norm(gap), response / np.linalg.norm(response)

        def cost(x, gap=gap, response=response):
            image = np.einsum("ijkl,kl...->ij...", response, x)
            return np.einsum("ij...,ij...->...", x, 0.5 * image) + np.einsum("ij,ij...->...", gap, x)

        def positive(p, q, r):  # L L' covers the positive matrices and no other
            return np.array([[p * p, p * q], [p * q, q * q + r * r]])

        centre, width = np.zeros(3), 6.0
        for _ in range(60):
            mesh = np.meshgrid(*(c + width * np.linspace(-1, 1, 21) for c in centre), indexing="ij")
            best = np.argmin(cost(positive(*mesh)))
            centre, width = np.array([axis.ravel()[best] for axis in mesh]), 0.7 * width
        truth = positive(*centre)
        x = complementary_covariance(gap, response)
        assert np.all(np.abs(centre) < 6.0)
        excess = 1e-8 * (1 + np.trace(truth)) * max(1.0, np.linalg.norm(x))
        assert abs(cost(x) - cost(truth)) < excess
        stiffness = np.linalg.eigvalsh(response.reshape(4, 4))[
            1
        ]  # the first is that of antisymmetric matrices, 0
        assert np.linalg.norm(x - truth) < np.sqrt(2 * excess / stiffness)
        ranks.append(int(np.sum(np.linalg.eigvalsh(truth) > 1e-5)))
    assert {1, 2} <= set(ranks)


def test_an_open_gap_needs_no_oscillation():
    _, response = problem(3, 0)
    assert_allclose(complementary_covariance(np.diag([0.0, 1.0, 2.0]), response), 0.0, atol=0)


def test_a_gap_that_no_oscillation_opens():
    with pytest.raises(ConvergenceFailure, match="the response is zero and the gap negative"):
        complementary_covariance([[-1.0]], np.zeros((1, 1, 1, 1)))
    response = np.zeros((2, 2, 2, 2))
    response[0, 0, 0, 0] = 1.0  # nothing acts on the second mode
    with pytest.raises(ConvergenceFailure, match=r"no oscillation opens the gap .* for 2 critical modes"):
        complementary_covariance(-np.eye(2), response)


@pytest.mark.parametrize(
    ("gap", "response", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2, 2, 2)), r"shapes \(m, m\) and \(m, m, m, m\), got \(2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), r"got \(2, 2\) and \(2, 2\)"),
        (0.0, np.zeros((1, 1, 1, 1)), r"got \(\) and"),
        (np.zeros((0, 0)), np.zeros((0, 0, 0, 0)), r"got \(0, 0\)"),
        ([[np.nan]], np.ones((1, 1, 1, 1)), "gap and response must be finite"),
    ],
)
def test_refusals(gap, response, message):
    with pytest.raises(InvalidInput, match=message):
        complementary_covariance(gap, response)
