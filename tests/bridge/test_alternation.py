"""Phase flips of the alternating process: the arcsine law, kernels on a grid, counts of simulated paths."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge.alternation import PhaseChain, count_flips, gaussian_flip_rate, sign_change_rate
from solvers import Grid, TransferOperator, eigenmodes
from solvers.errors import InvalidInput


def autoregressive(contraction, paths=2000, steps=400, seed=0):
    """Stationary x+ = contraction x + noise of unit variance."""
    rng = np.random.default_rng(seed)
    x = np.empty((paths, steps))
    x[:, 0] = rng.standard_normal(paths)
    for k in range(1, steps):
        x[:, k] = contraction * x[:, k - 1] + math.sqrt(1 - contraction**2) * rng.standard_normal(paths)
    return x


@pytest.mark.parametrize("eta_h", [0.4, 1.0, 1.7, 1.95])
def test_flips_of_the_linear_map(eta_h):
    """Counts of 2000 paths against the arcsine law and the kernel; 4 standard errors, false alarm 6e-5 each."""
    x = autoregressive(1 - eta_h)
    steps = x.shape[1] - 1
    for level, expected in (
        (0.0, sign_change_rate(eta_h - 1)),
        (1.0, gaussian_flip_rate(eta_h - 1, 1.0, steps=steps)),
    ):
        rates = count_flips(x, level) / steps
        error = rates.std(ddof=1) / math.sqrt(len(x))
        assert abs(rates.mean() - expected) < 4 * error
        wrong = sign_change_rate(1 - eta_h)  # the rate of x itself, not of (-1)^k x
        if eta_h != 1:
            assert abs(rates.mean() - wrong) > 4 * error


def test_the_kernel_has_the_arcsine_law_as_its_limit():
    for rho in (-0.9, 0.0, 0.5, 0.95):
        errors = [gaussian_flip_rate(rho, 0.0, cells=cells) - sign_change_rate(rho) for cells in (100, 200)]
        assert abs(errors[1]) < 2e-3
        assert abs(errors[1]) < 0.5 * abs(errors[0]) + 1e-9
    assert sign_change_rate(1.0) == 0
    assert sign_change_rate(-1.0) == 1
    assert gaussian_flip_rate(0.9, 1.0) < gaussian_flip_rate(0.9, 0.0)


def test_counts_by_hand():
    x = np.array([[1.0, -2.0, 0.5, 0.3, -0.1, 3.0, -3.0]])
    # (-1)^k x: 1, 2, 0.5, -0.3, -0.1, -3, -3
    assert count_flips(x, 0.0) == [1]
    assert count_flips(x, 1.0) == [1]  # at the sixth, not the fourth
    assert count_flips(x, 5.0) == [0]
    assert_allclose(count_flips(-x, 1.0), [1])
    wiggle = np.array([[1.0, 0.2, 1.0, 0.2, 1.0]])  # 1, -0.2, 1, -0.2, 1
    assert count_flips(wiggle, 0.0) == [4]
    assert count_flips(wiggle, 0.5) == [0]


def test_flips_between_the_points_of_a_two_cycle():
    """Beyond the flip the phase is metastable: it flips at half the rate -log|second eigenvalue| of the kernel.

    The less noise, the better: what turns back before it reaches the level becomes rare.
    """
    grid = Grid.uniform(x=(-0.9, 0.9, 300))
    centres, off = grid.centers["x"], []
    for noise in (0.12, 0.07):  # the cycle is at +- sqrt(0.2)
        operator = TransferOperator.of_map(lambda x: x - (2.2 * x - x**3), noise, grid, allow_wall_mass=True)
        kernel = operator.matrix.toarray()
        second = float(np.real(eigenmodes(operator, 2)["eigenvalue"].values[1]))
        assert second < -0.95  # alternates, and slowly forgets
        chain = PhaseChain(np.full(300, 1 / 300), centres, 0.006)
        rates = [chain.step(kernel, centres, 0.3) for _ in range(4000)]
        off.append(rates[-1] / (-0.5 * math.log(-second)) - 1)
    assert abs(off[1]) < 0.03 < abs(off[0])


def test_bad_input():
    for call in (lambda: sign_change_rate(1.5), lambda: gaussian_flip_rate(1.0, 0.0)):
        with pytest.raises(InvalidInput, match="correlation"):
            call()
