"""Masses that correlated normal noise puts into cells: tables, series and error functions, to the tails."""

import numpy as np
import pytest
from scipy.special import ndtr

from solvers import SDE, GaussianNoise, Grid, TransferOperator, eigenmodes
from solvers.axes import uniform_axis

COVARIANCE = np.array([[0.09, 0.048], [0.048, 0.06]])
CENTRE = (0.13, -0.21)


def kernel(grid):
    return TransferOperator.of_map(
        lambda x, y: (0.5 * x + CENTRE[0], 0.4 * y - 0.3 * x + CENTRE[1]), GaussianNoise(COVARIANCE), grid
    ).matrix.toarray()


def varying_kernel(grid):
    """The same from noise that varies with the place, by 1e-13 of it."""
    a, b = np.linalg.cholesky(COVARIANCE)[[0, 1], 0]
    c = np.linalg.cholesky(COVARIANCE)[1, 1]
    sde = SDE(
        lambda t, y, p, xp: (-0.5 * y[0] + CENTRE[0], -0.6 * y[1] - 0.3 * y[0] + CENTRE[1]),
        lambda t, y, p, xp: ((a, 0.0), (b, c * (1 + 1e-13 * y[0]))),
        names=("x", "y"),
        convention="ito",
        noise="general",
    )
    return TransferOperator(sde, grid, step=1.0).matrix.toarray()


@pytest.mark.slow
def test_tables_series_and_error_functions_agree():
    equal = Grid.uniform(x=(-2, 2, 30), y=(-2, 2, 34))
    uneven = uniform_axis(-2, 2, 34)
    uneven[1:-1:2] += 1e-6  # neither table nor series
    table, series = kernel(equal), varying_kernel(equal)
    functions = kernel(Grid(x=equal.edges["x"], y=uneven))
    # cells are 0.6 deviations wide (given x): six rows are off by (0.6 z / 128)^6 / 200 of a mass, the tails as
    # differences of error functions by 1e-16 / (0.6 z), and the variation of the noise is 1e-13 z^2
    seen = series > 1e-14
    assert (~seen).sum() > 1000
    np.testing.assert_allclose(table[seen], series[seen], rtol=2e-11)
    np.testing.assert_allclose(table[~seen], series[~seen], atol=1e-17)
    # edges moved by 1e-6 change masses by that over the width of a cell, or z over a deviation
    np.testing.assert_allclose(functions[seen], series[seen], rtol=2 * 1e-6 * (1 / 0.11 + 8 / 0.18))
    np.testing.assert_allclose(table.sum(axis=0), 1, atol=1e-14)


@pytest.mark.filterwarnings("ignore:cells are:solvers.errors.AccuracyWarning")
@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])
def test_rectangles_against_quadrature(width):
    """From a single point: rectangles of the bivariate normal law, by 200 Gauss-Legendre nodes in each."""
    sd = np.sqrt(COVARIANCE[0, 0])
    count = 2 * round(1.5 / (width * sd))
    half = 0.5 * count * width * sd
    grid = Grid.uniform(x=(-half, half, count), y=(-half, half, count))
    found = TransferOperator.of_map(
        lambda x, y: (0.0 * x + CENTRE[0], 0.0 * y + CENTRE[1]),
        GaussianNoise(COVARIANCE),
        grid,
        boundary="absorbing",
    )
    column = found.matrix[:, [0]].toarray().reshape(count, count)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    rest = np.sqrt(COVARIANCE[1, 1] - slope * COVARIANCE[0, 1])
    edges = grid.edges["x"]
    exact = np.empty((count, count))
    for i in range(count):
        x = 0.5 * (edges[i] + edges[i + 1]) + 0.5 * (edges[i + 1] - edges[i]) * nodes - CENTRE[0]
        density = np.exp(-0.5 * (x / sd) ** 2) / (sd * np.sqrt(2 * np.pi)) * weights * 0.5 * width * sd
        below = ndtr((edges[:, None] - CENTRE[1] - slope * x) / rest)
        exact[i] = np.diff(below @ density)
    # 3 + 2 w nodes for cells of w deviations, given the other axis: below 1e-7 as for sources
    np.testing.assert_allclose(column, exact, atol=1e-7)
    assert column.sum() + found.loss[0] == pytest.approx(1, abs=1e-14)


def test_eigenvalues_of_a_turning_map_with_strong_correlation():
    linear = np.array([[0.6, 0.3], [-0.2, 0.7]])
    operator = TransferOperator.of_map(
        lambda x, y: (linear[0, 0] * x + linear[0, 1] * y, linear[1, 0] * x + linear[1, 1] * y),
        GaussianNoise([[0.09, -0.054], [-0.054, 0.04]]),
        Grid.uniform(x=(-2.4, 2.4, 40), y=(-2.4, 2.4, 40)),
    )
    found = eigenmodes(operator, 3).eigenvalue.values[1:3]
    # spreading by cells leaves them alone; walls are six deviations away, quadrature is below 1e-7
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(np.linalg.eigvals(linear)), atol=1e-6)
