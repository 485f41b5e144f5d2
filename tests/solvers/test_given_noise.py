"""Given increments: Brownian paths coarsened with their integrals, and shapes refused."""

import numpy as np
import pytest

from solvers import wiener
from solvers.errors import InvalidInput
from solvers.given_noise import coarsen_integrals, drive
from tests import problems


def test_coarse_integrals_are_those_of_the_fine_path():
    """A fine path that is linear between its points: dW and int W ds by hand, and by the coarse numbers."""
    fine = wiener.increments(8, 50, 12, 4, dt=0.25)
    coarse = coarsen_integrals(fine, 4)
    np.testing.assert_allclose(coarse[..., :2], wiener.coarsen(fine, 4)[..., :2], rtol=1e-13)
    h, steps = 0.25, fine.reshape(50, 3, 4, 4)
    w = np.concatenate([np.zeros((50, 3, 1, 2)), np.cumsum(steps[..., :2], axis=2)], axis=2)
    inside = h / 2 * (steps[..., :2] + steps[..., 2:] / np.sqrt(3))
    integral = (h * w[:, :, :-1] + inside).sum(axis=2)
    there = 4 * h / 2 * (coarse[..., :2] + coarse[..., 2:] / np.sqrt(3))
    np.testing.assert_allclose(there, integral, rtol=1e-12, atol=1e-14)


def test_coarse_integrals_have_the_covariance_of_a_step():
    """Var U = dt and Cov(U, dW) = 0 within 4 standard errors."""
    coarse = coarsen_integrals(wiener.increments(9, 20_000, 8, 2, dt=0.125), 8)[:, 0]
    n = len(coarse)
    assert abs(coarse[:, 1].var() - 1.0) < 4 * np.sqrt(2 / n)
    assert abs((coarse[:, 0] * coarse[:, 1]).mean()) < 4 / np.sqrt(n)
    with pytest.raises(InvalidInput, match="3 numbers a step"):
        coarsen_integrals(np.zeros((1, 2, 3)), 2)


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
