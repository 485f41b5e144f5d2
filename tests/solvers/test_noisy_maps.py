"""Transfer operators of maps: Gaussian, correlated and tabulated noise, and the limit of small steps."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg as sl
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import (
    GaussianNoise,
    Grid,
    HistogramNoise,
    InvalidInput,
    SampleNoise,
    TransferOperator,
    eigenmodes,
    escape_rate,
    stationary_density,
)
from tests.operators import discrete_ou, double_well, rotating_ou
from tests.orders import assert_order

TABLE = 0.3 * np.random.default_rng(0).normal(size=150)
COUNTS, BINS = np.histogram(TABLE, 17)
PAIRS = np.random.default_rng(1).normal(size=(60, 2)) @ np.array([[0.2, 0.1], [0.0, 0.15]])


@pytest.mark.parametrize("a", [0.8, -0.8])
@pytest.mark.parametrize(
    "noise",
    [
        0.3,
        GaussianNoise(0.09),
        pytest.param(HistogramNoise([-0.5, 0.5], [1.0]), marks=pytest.mark.slow),
        HistogramNoise(BINS, COUNTS),
        SampleNoise(TABLE),
    ],
)
def test_autoregression_has_the_eigenvalues_of_its_slope(noise, a):
    # x -> a x + noise maps polynomials of degree n to such, with leading coefficient a^n; so does spreading over
    # cells. What remains is quadrature and the mass beyond the walls, over four deviations away in the table's tail.
    operator = TransferOperator.of_map(lambda x: a * x, noise, Grid.uniform(x=(-4, 4, 400)))
    np.testing.assert_allclose(np.asarray(operator.matrix.sum(axis=0)).ravel(), 1, atol=1e-13)
    values = eigenmodes(operator, k=4).eigenvalue.values
    np.testing.assert_allclose(values, a ** np.arange(4), atol=1e-8)


def test_a_map_is_the_euler_step_it_copies():
    grid = Grid.uniform(x=(-1.5, 1.5, 100))
    step = TransferOperator(discrete_ou(0.3), grid, step=0.3)
    same = TransferOperator.of_map(lambda x: 0.7 * x, lambda x: 0.15 + 0.0 * x, grid, step=0.3)
    # 0.5 sqrt(0.3) sqrt(0.3) = 0.15
    np.testing.assert_allclose(same.matrix.toarray(), step.matrix.toarray(), atol=1e-14)
    assert float(eigenmodes(same, 2).gap) == pytest.approx(float(eigenmodes(step, 2).gap), rel=1e-12)


def circle_eigenvalues(function, deviation, pieces, nodes=60):
    """Independent truth: Nystroem's method on Gauss-Legendre nodes between the kinks, wrapped normal kernel."""
    abscissae, weights = np.polynomial.legendre.leggauss(nodes)
    x = np.concatenate([0.5 * (a + b) + 0.5 * (b - a) * abscissae for a, b in pieces])
    w = np.concatenate([0.5 * (b - a) * weights for a, b in pieces])
    gap = x[:, None] - function(x)[None, :]
    kernel = sum(np.exp(-0.5 * ((gap + k) / deviation) ** 2) for k in range(-3, 4))
    values = np.linalg.eigvals(kernel / (deviation * np.sqrt(2 * np.pi)) * w[None, :])
    return values[np.argsort(-np.abs(values))]


@pytest.mark.parametrize("deviation", [0.05, 0.15])
def test_a_noisy_tent_map_against_quadrature(deviation):
    def tent(x):
        return 0.1 + 0.9 * (1 - np.abs(2 * x - 1))  # asymmetric on the circle, kink on an edge

    exact = circle_eigenvalues(tent, deviation, [(0, 0.5), (0.5, 1)])[:3]
    found = []
    for cells in (128, 256):
        operator = TransferOperator.of_map(
            tent, deviation, Grid.uniform(x=(0, 1, cells)), boundary="periodic"
        )
        values = np.linalg.eigvals(operator.matrix.toarray())
        found.append(values[np.argsort(-np.abs(values))][:3])
    coarse, fine = (np.abs(values - exact) for values in found)
    # Ulam's method is of second order in the cell ...
    assert (coarse[1:] > 1e-7).all()
    np.testing.assert_allclose(np.log2(coarse[1:] / fine[1:]), 2, atol=0.05)
    # ... and Richardson's extrapolation of fourth: (h / deviation)^4 = 4e-5 at most
    np.testing.assert_allclose((4 * found[1] - found[0]) / 3, exact, atol=3e-7)


def test_the_doubling_map_forgets_in_one_step_per_harmonic():
    # on the circle x -> 2 x + noise maps e^(2 pi i n x) to a multiple of e^(4 pi i n x): 1 is the only eigenvalue
    grid = Grid.uniform(x=(0, 1, 64))
    operator = TransferOperator.of_map(lambda x: 2 * x, 0.1, grid, boundary="periodic")
    np.testing.assert_allclose(stationary_density(operator), 1, rtol=1e-12)
    matrix = operator.matrix.toarray()
    start = np.zeros(64)
    start[10] = 1
    # after k steps the first harmonic is that of wave number 2^k, times a normal characteristic function
    for _ in range(4):
        start = matrix @ start
    # which is 2 exp(-2 pi^2 0.1^2 (1 + 4 + 16 + 64)) beside 1, and cells average out another fifth
    left = 2 * np.exp(-2 * np.pi**2 * 0.01 * 85)
    assert 0.5 * left < 64 * np.abs(start - 1 / 64).max() < left
    # without noise and with jumps on an edge: Ulam's matrix in closed form
    still = TransferOperator.of_map(lambda x: np.mod(2 * x, 1), SampleNoise([0.0]), grid).matrix.toarray()
    exact = np.zeros((64, 64))
    for j in range(64):
        exact[[2 * j % 64, (2 * j + 1) % 64], j] = 0.5
    # the image of a cell, 1/32 wide, ends on edges to some eps: 16 of them, beside that width
    np.testing.assert_allclose(still, exact, rtol=0, atol=16 * np.finfo(float).eps * 32)


def test_the_quartic_loss_beyond_the_edge_against_direct_simulation():
    # SGD on h x^2/2 - x^4/4 with eta h = 2.2 (beyond the edge: a two-cycle at x^2 = 1/2), gradient noise of a table
    eta, h = 0.4, 5.5
    table = np.random.default_rng(5).standard_t(4, size=40)
    table = 0.2 * (table - table.mean())

    def step(x):
        return x - eta * (h * x - x**3)

    def moments(cells):
        operator = TransferOperator.of_map(step, SampleNoise(-eta * table), Grid.uniform(x=(-2.2, 2.2, cells)),
                                           allow_wall_mass=True)  # fmt: skip
        masses = (stationary_density(operator) * operator.grid.volumes).values
        x = operator.grid.centers["x"]
        return np.array([masses @ x**2, masses @ x**4, masses @ np.abs(x), masses @ (x * step(x))])

    coarse, fine = moments(300), moments(600)
    exact = (4 * fine - coarse) / 3
    rng = np.random.default_rng(6)
    x = rng.normal(size=200_000) * 0.3
    for _ in range(150):
        x = step(x) - eta * rng.choice(table, size=x.size)
    samples = np.array([x**2, x**4, np.abs(x), x * step(x)])
    stderr = samples.std(axis=1) / np.sqrt(x.size)
    # 4.5 standard errors, four means: false alarm 3e-5; cells: a third of their last change remains at most
    reach = 4.5 * stderr + np.abs(fine - coarse) / 3
    assert (np.abs(samples.mean(axis=1) - exact) < reach).all()
    # negative control: noise of 1.3 times the deviation
    gaussian = TransferOperator.of_map(
        step, 1.3 * eta * table.std(), Grid.uniform(x=(-2.2, 2.2, 600)), allow_wall_mass=True
    )
    masses = (stationary_density(gaussian) * gaussian.grid.volumes).values
    x = gaussian.grid.centers["x"]
    assert (np.abs(np.array([masses @ x**2, masses @ x**4]) - exact[:2]) > reach[:2]).any()


LINEAR = np.array([[0.6, 0.3], [-0.2, 0.7]])


def turned(x, y):
    return LINEAR[0, 0] * x + LINEAR[0, 1] * y, LINEAR[1, 0] * x + LINEAR[1, 1] * y


@pytest.mark.parametrize(
    "correlation", [0.0, *(pytest.param(r, marks=pytest.mark.slow) for r in (0.6, -0.9))]
)
def test_correlated_noise_in_the_plane(correlation):
    covariance = np.array([[0.09, correlation * 0.06], [correlation * 0.06, 0.04]])
    grid = Grid.uniform(x=(-2.4, 2.4, 32), y=(-2.4, 2.4, 30))
    operator = TransferOperator.of_map(turned, GaussianNoise(covariance), grid)
    modes = eigenmodes(operator, 3)
    np.testing.assert_allclose(modes.eigenvalue.values[1:3], np.linalg.eigvals(LINEAR), atol=1e-5)
    masses = (stationary_density(operator) * grid.volumes).values.ravel()
    points = np.array([c.ravel() for c in grid.coords()])
    found = (points * masses) @ points.T
    # centres follow the same map; cells spread by h^2/12 before and after it
    cell = np.diag([(grid.widths[n][0]) ** 2 / 12 for n in grid.names])
    exact = sl.solve_discrete_lyapunov(LINEAR, covariance + cell + LINEAR @ cell @ LINEAR.T)
    np.testing.assert_allclose(found, exact, atol=1e-4 * exact.max())  # the walls are five deviations away
    without = sl.solve_discrete_lyapunov(
        LINEAR, np.diag(np.diag(covariance)) + cell + LINEAR @ cell @ LINEAR.T
    )
    assert (np.abs(found - without).max() > 1e-2) == (correlation != 0)  # negative control


@pytest.mark.slow
def test_an_euler_step_with_correlated_noise():
    step = 0.2
    operator = TransferOperator(rotating_ou(), Grid.uniform(x=(-6, 6, 40), y=(-6, 6, 40)), step=step)
    exact = np.linalg.eigvals(np.eye(2) - step * np.array([[1, 2], [-2, 1]]))
    found = eigenmodes(operator, 3).eigenvalue.values[1:3]
    np.testing.assert_allclose(np.sort(found.imag), np.sort(exact.imag), atol=1e-5)  # walls: 6 deviations
    np.testing.assert_allclose(found.real, exact.real, atol=1e-5)


# coarse cells are told of, and are what is measured
@pytest.mark.filterwarnings("ignore:cells are:solvers.errors.AccuracyWarning")
@pytest.mark.parametrize(
    "noise",
    [
        SampleNoise(PAIRS),
        (SampleNoise(PAIRS[:, 0]), HistogramNoise([-0.3, 0.1, 0.5], [1.0, 2.0])),
        HistogramNoise((np.linspace(-0.5, 0.5, 4), np.linspace(-0.4, 0.4, 3)), np.arange(6.0).reshape(3, 2)),
    ],
)
@pytest.mark.slow
def test_tabulated_noise_in_the_plane(noise):
    errors, sizes = [], (20, 24, 28, 34, 40, 46)
    for n in sizes:
        operator = TransferOperator.of_map(turned, noise, Grid.uniform(x=(-3, 3, n), y=(-3, 3, n - 2)))
        np.testing.assert_allclose(np.asarray(operator.matrix.sum(axis=0)).ravel(), 1, atol=1e-13)
        found = eigenmodes(operator, 3).eigenvalue.values[1:3]
        errors.append(np.abs(found - np.linalg.eigvals(LINEAR)).max())
    # Averages over cells keep linear functions: errors come from ripples of a table that alias with the cells, more or
    # less as they fall. Averaging before and after a step damps a ripple of wave number k like 1 / (k h)^2 each time.
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] < -2


@pytest.mark.slow
def test_components_of_one_coordinate_each_give_products():
    noise = HistogramNoise(BINS, COUNTS)
    lines = [TransferOperator.of_map(lambda x: 0.7 * x, noise, Grid.uniform(x=(-2, 2, 20))),
             TransferOperator.of_map(lambda y: -0.4 * y, SampleNoise(TABLE), Grid.uniform(y=(-2, 2, 18)))]  # fmt: skip
    both = TransferOperator.of_map(
        lambda x, y: (0.7 * x, -0.4 * y),
        (noise, SampleNoise(TABLE)),
        Grid.uniform(x=(-2, 2, 20), y=(-2, 2, 18)),
    )
    product = np.kron(lines[0].matrix.toarray(), lines[1].matrix.toarray())
    np.testing.assert_allclose(both.matrix.toarray(), product, atol=1e-12)


def test_noise_wider_than_the_circle_wraps_all_the_way():
    grid = Grid.uniform(x=(0, 1, 50))
    for noise in (3.0, HistogramNoise([-2.5, 2.5], [1.0])):
        operator = TransferOperator.of_map(lambda x: x, noise, grid, boundary="periodic")
        # a normal of deviation 3 on a circle of length 1 is uniform to exp(-2 pi^2 9)
        np.testing.assert_allclose(operator.matrix.toarray(), 1 / 50, rtol=1e-12)


def test_escape_under_uniform_noise_in_closed_form():
    # from anywhere in [0, 1] uniform noise on [-1, 1] leaves with probability 1/2
    operator = TransferOperator.of_map(
        lambda x: x, HistogramNoise([-1, 1], [1]), Grid.uniform(x=(0, 1, 40)), boundary="absorbing", step=0.5
    )
    assert float(escape_rate(operator).rate) == pytest.approx(np.log(2) / 0.5, rel=1e-12)


# a table may be narrower than a cell, which is told and changes nothing here
@pytest.mark.filterwarnings("ignore:cells are:solvers.errors.AccuracyWarning")
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=1, max_size=6),
    st.sampled_from(["reflecting", "absorbing", "periodic"]),
    st.booleans(),
)
def test_random_maps_with_tables_are_stochastic(c, table, wall, binned):
    noise = (
        HistogramNoise(np.linspace(-1, 1, len(table) + 1), np.abs(table) + 0.1)
        if binned
        else SampleNoise(table)
    )
    matrix = TransferOperator.of_map(
        lambda x: c[0] + c[1] * x + c[2] * np.sin(3 * x), noise, Grid.uniform(x=(-1, 1, 23)), boundary=wall,
        allow_wall_mass=True,
    ).matrix  # fmt: skip
    sums = np.asarray(matrix.sum(axis=0)).ravel()
    assert matrix.nnz == 0 or matrix.data.min() >= 0
    if wall == "absorbing":
        assert matrix.nnz == 0 or sums.max() < 1 + 1e-13
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-13)


def test_small_steps_meet_the_fokker_planck_operator():
    sde = double_well(0.5)
    box = (-3.2, 3.2)
    exact = 0.4229446453977572  # of the reference values

    def rate(step, cells):
        return float(eigenmodes(TransferOperator(sde, Grid.uniform(x=(*box, cells)), step=step), 2).gap)

    # Richardson in the cell size: of second order, beside a noise of deviation sqrt(step)
    column = np.array([(4 * rate(step, 800) - rate(step, 400)) / 3 for step in (0.08, 0.04, 0.02, 0.01)])
    # weak order one, and an expansion in whole powers of the step: each extrapolation takes one away
    for power in (1, 2, 3):
        off = np.abs(column - exact)
        assert abs(np.log2(off[-2] / off[-1]) - power) < 0.5  # nearest to that power among the whole numbers
        last, column = column[-1], (2**power * column[1:] - column[:-1]) / (2**power - 1)
    assert abs(column[-1] - exact) < abs(column[-1] - last)  # the last correction bounds what is left
    # the operators themselves: (M - 1)/step x^2 = L x^2 + step a^2 with L x^2 = 2 x a + 2 D exactly, but for the
    # spreading over cells before and after the step, which is of second order
    errors, step = [], 0.02
    for cells in (200, 400, 800):
        grid = Grid.uniform(x=(*box, cells))
        x = grid.centers["x"]
        a = x - x**3
        moved = (TransferOperator(sde, grid, step=step).matrix.T @ x**2 - x**2) / step
        errors.append(np.abs(moved - (2 * x * a + 1.0 + step * a**2))[np.abs(x) < 1.5].max())
    assert_order(errors, (200, 400, 800), 2)


NO_MAP: Any = 0.5
NO_NOISE: Any = "white"
LINE = Grid.uniform(x=(-1, 1, 20))
PLANE = Grid.uniform(x=(-1, 1, 8), y=(-1, 1, 8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TransferOperator.of_map(NO_MAP, 0.1, LINE), "map=0.5 is not callable"),
        (lambda: TransferOperator.of_map(lambda x: x, NO_NOISE, LINE), "noise='white'"),
        (lambda: TransferOperator.of_map(lambda x: x, -0.1, LINE), "standard deviations >= 0"),
        (lambda: TransferOperator.of_map(lambda x: x, lambda x: x, LINE), "negative standard deviation"),
        (lambda: TransferOperator.of_map(lambda x: (x, x), 0.1, LINE), "map returns 2 components"),
        (lambda: TransferOperator.of_map(lambda x: x[:3], 0.1, LINE), "shape of its arguments"),
        (lambda: TransferOperator.of_map(lambda x: x / 0.0, 0.1, LINE), "is not finite"),
        (lambda: TransferOperator.of_map(lambda x, y: (x, y), (0.1,), PLANE), "noise has 1 components"),
        (
            lambda: TransferOperator.of_map(lambda x, y: (x, y), SampleNoise(TABLE), PLANE),
            "noise has 1 components",
        ),
        (
            lambda: TransferOperator.of_map(lambda x, y: (x, y), (SampleNoise(TABLE), 0.1), PLANE),
            "beside a table",
        ),
        (lambda: TransferOperator.of_map(lambda x: x, 0.1, LINE, step=0), "step=0"),
        (lambda: TransferOperator.of_map(lambda x: 3 + x, 0.1, LINE), "misses the mass"),
        (lambda: GaussianNoise([[1.0, 2.0], [2.0, 1.0]]), "positive semidefinite"),
        (lambda: GaussianNoise([1.0, 2.0]), "covariance="),
        (lambda: HistogramNoise([0, 1, 2], [1.0]), "give one for each"),
        (lambda: HistogramNoise([1, 0], [1.0]), "not finite and increasing"),
        (lambda: HistogramNoise([0, 1], [0.0]), "all 0"),
        (lambda: SampleNoise([np.nan]), "table contains nan"),
        (lambda: SampleNoise(np.zeros((0, 2))), "table has shape"),
        (lambda: SampleNoise([1.0, 2.0], [1.0]), "weights have shape"),
        (lambda: SampleNoise([1.0], [0.0]), "weights are all 0"),
        (
            lambda: TransferOperator.of_map(
                lambda x, y: (0.5 * x, 0.5 * y), GaussianNoise(0.25 * np.ones((2, 2))), PLANE
            ),
            "lies along a line",
        ),
    ],
)
def test_unusable_input_is_refused(call, words):
    with np.errstate(all="ignore"), pytest.raises(InvalidInput, match=words):
        call()
