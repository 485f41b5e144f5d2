"""The high-dimensional edge against the exact mean-square threshold, and its limits."""

import numpy as np
import pytest

from eos_sde import thresholds
from solvers import InvalidInput


def spectrum_of(jacobian):
    values = np.linalg.eigvalsh(jacobian.T @ jacobian / len(jacobian))
    return np.maximum(values, 0.0)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_it_is_the_exact_threshold_in_high_dimension(batch_size):
    """White rows: the relative gap falls as 1/n, to 0 in the limit; 4 standard errors over the draws of the rows."""
    draws = 12
    gaps = np.empty((2, draws))
    for k, n in enumerate((40, 160)):
        for seed in range(draws):
            jacobian = np.random.default_rng(seed).normal(size=(n, n // 2))
            exact = float(thresholds.sgd_mean_square(jacobian, batch_size=batch_size))
            edge = thresholds.stochastic_edge(spectrum_of(jacobian), examples=n, batch_size=batch_size)
            gaps[k, seed] = float(edge) / exact - 1
    mean, error = gaps.mean(axis=1), gaps.std(axis=1, ddof=1) / np.sqrt(draws)
    assert (mean > 0).all()
    # the next term of the expansion is of the order of the gap itself, relatively
    ratio = mean[0] / mean[1]
    assert abs(ratio - 4) < 4 * ratio * np.hypot(*(error / mean)) + 4 * mean[0]


def test_equal_eigenvalues_have_a_closed_form():
    """With m eigenvalues l: q m u/(2 - u) = 1 with q = 1/B - 1/n and u = eta l, so u = 2/(1 + q m)."""
    edge = thresholds.stochastic_edge(np.full(7, 3.0), examples=50, batch_size=4)
    q = 1 / 4 - 1 / 50
    assert float(edge) == pytest.approx(2 / (1 + 7 * q) / 3.0, rel=1e-13)
    norm = thresholds.noise_kernel_norm(np.full(7, 3.0), float(edge), examples=50, batch_size=4)
    assert norm == pytest.approx(1.0, rel=1e-12)
    assert thresholds.noise_kernel_norm([1.0, 3.0], 2 / 3, examples=50, batch_size=4) == np.inf


def test_the_full_batch_has_the_deterministic_edge():
    assert float(thresholds.stochastic_edge([0.0, 1.0, 4.0], examples=9, batch_size=9)) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 5, 1), "spectrum"),
        (([-1.0], 5, 1), "spectrum"),
        (([1.0], 0, 1), "examples"),
        (([1.0], 5, 6), "batch_size"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    spectrum, examples, batch_size = arguments
    with pytest.raises(InvalidInput, match=message):
        thresholds.stochastic_edge(spectrum, examples=examples, batch_size=batch_size)
