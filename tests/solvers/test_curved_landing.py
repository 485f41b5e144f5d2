"""Tabulated noise under coupled maps of the plane: areas of turned and bent cells, against clipping and quadrature."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate as si

from solvers import Grid, HistogramNoise, SampleNoise, TransferOperator, eigenmodes

# cells as wide as the image need no noise to be landed on: what the warning says of the model is of no concern here
pytestmark = pytest.mark.filterwarnings("ignore:cells are:solvers.errors.AccuracyWarning")

TURN = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
GRID = Grid.uniform(x=(-2, 2, 10), y=(-2, 2, 9))


def clipped(polygon, normal, offset):
    """The part of a convex polygon (n, 2) with normal . x <= offset (Sutherland and Hodgman)."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        da, db = normal @ a - offset, normal @ b - offset
        if da <= 0:
            kept.append(a)
        if da * db < 0:
            kept.append(a + (b - a) * da / (da - db))
    return np.array(kept).reshape(-1, 2)


def area(polygon):
    x, y = polygon.T
    return 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def areas(polygon, grid):
    """Shares of a convex polygon in the cells of a grid."""
    result = np.zeros(grid.shape)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            part = polygon
            for axis, k in ((0, i), (1, j)):
                edges, unit = grid.edges[grid.names[axis]], np.eye(2)[axis]
                part = clipped(part, unit, edges[k + 1])
                part = clipped(part, -unit, -edges[k]) if len(part) else part
                if len(part) < 3:
                    break
            result[i, j] = area(part) if len(part) >= 3 else 0.0
    return result / area(polygon)


def turned(x, y):
    return TURN[0, 0] * x + TURN[0, 1] * y, TURN[1, 0] * x + TURN[1, 1] * y


def corners(grid, i, j):
    x, y = grid.edges["x"][i : i + 2], grid.edges["y"][j : j + 2]
    return np.array([[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]]])


def column(operator, i, j):
    grid = operator.grid
    return operator.matrix[:, [i * grid.shape[1] + j]].toarray().reshape(grid.shape)


@pytest.mark.parametrize("cell", [(4, 4), (5, 3), (3, 6)])
def test_turned_cells_under_point_noise_are_clipped_squares(cell):
    table = np.array([[0.05, -0.1], [0.31, 0.22], [-0.4, 0.0]])
    operator = TransferOperator.of_map(turned, SampleNoise(table, [1, 2, 3]), GRID, allow_wall_mass=True)
    image = corners(GRID, *cell) @ TURN.T
    exact = sum(w / 6 * areas(image + shift, GRID) for w, shift in zip((1, 2, 3), table, strict=True))
    # both are exact: rounding only
    np.testing.assert_allclose(column(operator, *cell), exact, atol=1e-13)


def test_turned_cells_under_a_box_of_noise():
    operator = TransferOperator.of_map(
        turned, HistogramNoise(([-0.3, 0.25], [-0.1, 0.4]), [[1.0]]), GRID, allow_wall_mass=True
    )
    image, exact = corners(GRID, 5, 4) @ TURN.T, np.zeros(GRID.shape)
    # a box of noise is the mean over point noise: midpoints, whose error is (0.55 / 20)^2 / 24 times second derivatives
    # of areas, at most 2 sides / area = 2 * 0.6 / 0.18, twice
    shifts = [low + width * (np.arange(20) + 0.5) / 20 for low, width in ((-0.3, 0.55), (-0.1, 0.5))]
    for a in shifts[0]:
        for b in shifts[1]:
            exact += areas(image + np.array([a, b]), GRID) / 400
    np.testing.assert_allclose(column(operator, 5, 4), exact, atol=2 * (0.55 / 20) ** 2 / 24 * 13)


def test_bent_cells_against_quadrature():
    """Under x' = x + 0.9 sin y, y' = y + 0.4 sin x': for given y the targets are intervals of x', in closed form."""

    def bent(x, y):
        landed = x + 0.9 * np.sin(y)
        return landed, y + 0.4 * np.sin(landed)

    shift = np.array([0.03, -0.07])
    operator = TransferOperator.of_map(bent, SampleNoise([shift]), GRID, allow_wall_mass=True)
    worst = 0.0
    for cell in ((4, 4), (4, 7)):  # the last holds y = pi/2, where x' turns
        (x0, x1), (y0, y1) = (GRID.edges[n][k : k + 2] for n, k in zip("xy", cell, strict=True))
        found = column(operator, *cell)
        for i in range(GRID.shape[0]):
            for j in range(GRID.shape[1]):
                if found[i, j] == 0:
                    continue

                def length(y, i=i, j=j, x0=x0, x1=x1):
                    low = max(x0 + 0.9 * np.sin(y), GRID.edges["x"][i] - shift[0])
                    high = min(x1 + 0.9 * np.sin(y), GRID.edges["x"][i + 1] - shift[0])
                    sines = (GRID.edges["y"][[j, j + 1]] - shift[1] - y) / 0.4
                    low = max(low, np.arcsin(np.clip(sines[0], -1, 1)))  # x' stays within pi/2
                    high = min(high, np.arcsin(np.clip(sines[1], -1, 1)))
                    return max(high - low, 0.0)

                points = np.linspace(y0, y1, 9)
                exact = sum(
                    si.quad(length, a, b, epsabs=1e-13, epsrel=1e-13, limit=400)[0]
                    for a, b in pairwise(points)
                ) / ((x1 - x0) * (y1 - y0))
                worst = max(worst, abs(exact - found[i, j]))
        assert abs(found.sum() - 1) < 1e-13
    # polynomials of degree 5 on cells of 0.4: 0.9 (0.2)^6 / (720 * 32) = 3e-9 of a length of 0.4, and the rules' 5e-9
    assert worst < 2e-8


def test_eigenvalues_of_a_coupled_affine_map_do_not_depend_on_the_cells():
    """Boxes as wide as cells make steps smooth: Ulam's method keeps the eigenvalues of moments to rounding."""
    linear = np.array([[0.6, 0.3], [-0.2, 0.7]])
    width = 6 / 40
    noise = HistogramNoise(
        (width * np.array([-2.0, 0.0, 2.0]), width * np.array([-2.0, 2.0])), [[1.0], [1.0]]
    )
    operator = TransferOperator.of_map(
        lambda x, y: (linear[0, 0] * x + linear[0, 1] * y, linear[1, 0] * x + linear[1, 1] * y),
        noise,
        Grid.uniform(x=(-3, 3, 40), y=(-3, 3, 40)),
    )
    found = eigenmodes(operator, 3).eigenvalue.values[1:3]
    # uniform noise of whole cells: means of cells' centres follow the means of the points exactly, and so does the
    # first moment, in all of the support, which the walls do not cut
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(np.linalg.eigvals(linear)), atol=1e-10)
