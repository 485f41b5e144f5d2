"""Transfer operators: mass, exact discrete spectra, conventions."""

import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import (
    SDE,
    AccuracyWarning,
    Grid,
    InvalidInput,
    TransferOperator,
    eigenmodes,
    escape_rate,
    stationary_density,
)
from tests.operators import discrete_ou, multiplicative


@pytest.mark.parametrize(("step", "half", "first"), [(0.3, 1.5, 0), (1.5, 6.0, 4)])
def test_discrete_ornstein_uhlenbeck(reference, step, half, first):
    mu1, mu2, mu3, variance = reference["discrete_ou"]["value"][first : first + 4]
    grid = Grid.uniform(x=(-half, half, 400))
    transfer = TransferOperator(discrete_ou(step), grid, step=step)
    sums = np.asarray(transfer.matrix.sum(axis=0)).ravel()
    np.testing.assert_allclose(sums, 1, atol=1e-14)
    modes = eigenmodes(transfer, k=4)
    # spreading by the cells leaves Hermite eigenvalues alone; what remains is quadrature and truncation
    np.testing.assert_allclose(modes.eigenvalue, [1, mu1, mu2, mu3], atol=1e-6)
    np.testing.assert_allclose(float(modes.gap), -np.log(abs(mu1)) / step, rtol=1e-6)
    density = stationary_density(transfer)
    x, h = grid.centers["x"], grid.widths["x"][0]
    found = float((density * x**2 * grid.volumes).sum())
    # (1 + f'^2) h^2/12 per step, summed geometrically
    spread = (1 + mu1**2) * h**2 / 12 / (1 - mu1**2)
    assert abs(found - variance - spread) < 1e-3 * spread


def test_beyond_the_edge_the_phase_flips():
    transfer = TransferOperator(discrete_ou(1.5), Grid.uniform(x=(-6, 6, 200)), step=1.5)
    left = eigenmodes(transfer, k=2).left.values[1].real
    assert left[20] * left[180] < 0
    assert eigenmodes(transfer, k=2).eigenvalue.values[1].real < 0


def test_two_dimensional_kernel_is_the_product():
    step = 0.3
    sde = SDE(
        lambda t, y, p, xp: (-y[0], -2 * y[1]),
        lambda t, y, p, xp: (0.6, 0.8),
        names=("x", "y"),
        convention="ito",
    )
    transfer = TransferOperator(sde, Grid.uniform(x=(-2.3, 2.3, 40), y=(-2.3, 2.3, 34)), step=step)
    np.testing.assert_allclose(np.asarray(transfer.matrix.sum(axis=0)).ravel(), 1, atol=1e-13)
    values = eigenmodes(transfer, k=4).eigenvalue.values
    np.testing.assert_allclose(values, [1, 0.7, 0.49, 0.4], atol=2e-4)  # the box ends at 5 deviations


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.floats(0.5, 2),
    st.floats(0.1, 0.6),
    st.sampled_from(["reflecting", "absorbing", "periodic"]),
)
def test_random_kernels_are_stochastic(c, noise, step, wall):
    sde = SDE(
        lambda t, y, p, xp: (p[0] + p[1] * xp.sin(np.pi * y[0]) + p[2] * xp.cos(np.pi * y[0]),),
        lambda t, y, p, xp: (p[3] * (1 + 0.2 * xp.sin(np.pi * y[0])),),
        params=(*c, noise),
        convention="ito",
    )
    grid = Grid.uniform(x=(-1, 1, 25))
    matrix = TransferOperator(sde, grid, step=step, boundary=wall, allow_wall_mass=True).matrix
    sums = np.asarray(matrix.sum(axis=0)).ravel()
    assert matrix.data.min() >= 0
    if wall == "absorbing":
        assert sums.max() < 1
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-14)


def test_conventions_differ_as_their_ito_forms():
    grid = Grid.uniform(x=(-3, 3, 150))
    kernels = {
        c: TransferOperator(multiplicative(c), grid, step=0.1).matrix.toarray()
        for c in ("ito", "stratonovich")
    }
    again = TransferOperator(multiplicative("stratonovich").to("ito"), grid, step=0.1).matrix.toarray()
    np.testing.assert_allclose(kernels["stratonovich"], again, atol=1e-14)
    assert np.abs(kernels["ito"] - kernels["stratonovich"]).max() > 1e-3  # negative control


def test_escape_from_an_interval_is_the_decay_of_the_kernel():
    grid = Grid.uniform(x=(-0.5, 0.5, 200))
    transfer = TransferOperator(discrete_ou(0.3), grid, step=0.3, boundary="absorbing")
    result = escape_rate(transfer)
    dense = np.linalg.eigvals(transfer.matrix.toarray())
    np.testing.assert_allclose(float(result.rate), -np.log(np.abs(dense).max()) / 0.3, rtol=1e-9)
    np.testing.assert_allclose(float((result.quasi_stationary * grid.volumes).sum()), 1, rtol=1e-12)


def test_unusable_input_is_refused():
    grid = Grid.uniform(x=(-1, 1, 20))
    with pytest.raises(InvalidInput, match="step=0"):
        TransferOperator(discrete_ou(0.3), grid, step=0)
    with pytest.raises(InvalidInput, match="same names"):
        TransferOperator(discrete_ou(0.3), Grid.uniform(z=(-1, 1, 20)), step=0.1)
    with pytest.raises(InvalidInput, match="no stationary density"):
        stationary_density(TransferOperator(discrete_ou(0.3), grid, step=0.3, boundary="absorbing"))
    with pytest.warns(AccuracyWarning, match="as wide as the noise"):
        TransferOperator(discrete_ou(1e-3), grid, step=1e-3)


def test_a_grid_that_misses_the_mass_is_refused():
    ou = discrete_ou(0.3)
    for step in (0.3, 1e-3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)
            with pytest.raises(InvalidInput, match=r"misses the mass.*low wall x=3.*widen the grid below"):
                TransferOperator(ou, Grid.uniform(x=(3, 5, 100)), step=step)
    with pytest.raises(InvalidInput, match="high wall x=-3"):
        TransferOperator(ou, Grid.uniform(x=(-5, -3, 100)), step=0.3)
    TransferOperator(ou, Grid.uniform(x=(3, 5, 100)), step=0.3, allow_wall_mass=True)
    TransferOperator(ou, Grid.uniform(x=(3, 5, 100)), step=0.3, boundary="absorbing")


def test_an_unstable_map_is_refused_and_a_rare_excursion_is_not():
    with pytest.raises(InvalidInput, match=r"misses the mass: for 0.\d+ of the stationary mass"):
        TransferOperator(discrete_ou(2.5), Grid.uniform(x=(-4, 4, 200)), step=2.5)  # x -> -1.5 x
    # x - x^3 / 4 leads beyond the walls from |x| > 2.95, where there is hardly any mass
    cubic = SDE(lambda t, y, p, xp: (-(y[0] ** 3),), lambda t, y, p, xp: (0.8,), convention="ito")
    TransferOperator(cubic, Grid.uniform(x=(-3, 3, 200)), step=0.25)
    # a box with the drift inwards is a model
    TransferOperator(discrete_ou(0.3), Grid.uniform(x=(-0.5, 0.5, 100)), step=0.3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TransferOperator(3, Grid.uniform(x=(-1, 1, 9)), step=0.1), "sde is a int"),
        (lambda: TransferOperator(discrete_ou(0.3), 3, step=0.1), "grid is a int"),
    ],
)
def test_arguments_of_another_kind_are_refused(make, words):
    with pytest.raises(InvalidInput, match=words):
        make()


def test_the_warning_points_at_the_line_that_called():
    with pytest.warns(AccuracyWarning, match="as wide as the noise") as caught:
        TransferOperator(discrete_ou(1e-3), Grid.uniform(x=(-1, 1, 20)), step=1e-3)
    assert caught[0].filename == __file__


def test_sparse_and_dense_modes_agree():
    transfer = TransferOperator(discrete_ou(0.3), Grid.uniform(x=(-1.5, 1.5, 150)), step=0.3)
    sparse, dense = eigenmodes(transfer, 4), eigenmodes(transfer, 4, method="dense")
    assert (sparse.attrs["method"], dense.attrs["method"]) == ("arnoldi", "dense")
    np.testing.assert_allclose(sparse.eigenvalue, dense.eigenvalue, rtol=1e-10)
    np.testing.assert_allclose(sparse.right, dense.right, atol=1e-8)
    masses = np.abs(dense.right[0] * transfer.grid.volumes)
    np.testing.assert_allclose(masses * sparse.left, masses * dense.left, atol=1e-9)


def wells(tilt, noise):
    sde = SDE(lambda t, y, p, xp: (y[0] - y[0] ** 3 + tilt,), lambda t, y, p, xp: (noise,), convention="ito")
    return TransferOperator(sde, Grid.uniform(x=(-1.3, 1.35, 84)), step=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tilt", "noise", "size"), [(-0.01, 0.1, 1e-19), pytest.param(0.02, 0.2, 1e-6, marks=pytest.mark.slow)]
)
def test_a_gap_below_rounding_keeps_its_digits(tilt, noise, size):
    """Two wells that exchange exp(-barrier) per step, against the same matrix in 50 digits."""
    operator = wells(tilt, noise)
    modes = eigenmodes(operator, k=2)
    matrix, n = operator.matrix.toarray(), operator.grid.size
    with mpmath.workdps(50):
        # 1 - M^T, whose rows sum to 0, so that adding a constant row to all moves its eigenvalue 0 alone, to 1
        system = mpmath.matrix((-matrix.T).tolist())
        for j in range(n):
            system[j, j] = mpmath.fsum([mpmath.mpf(float(v)) for v in np.delete(matrix[:, j], j)])
        system += mpmath.ones(n) / n
        function = mpmath.matrix(np.sign(operator.grid.centers["x"]).tolist())
        for _ in range(
            4
        ):  # the other modes are 1e-2 away: a factor of 1e-3 a round at least, squared by the quotient
            grown = mpmath.lu_solve(system, function)
            gap = (function.T * function)[0] / (function.T * grown)[0]
            function = grown / mpmath.norm(grown, mpmath.inf)
        exact = float(gap)
    assert 0.01 * size < float(modes.gap) < 100 * size
    # sums and products of nonnegative numbers, n^2 roundings of 1e-16; inverse iteration settles to 1e-12
    assert float(modes.gap) == pytest.approx(-np.log1p(-exact) / operator.step, rel=1e-10)
    product = (modes.left.values @ (modes.right.values * operator.grid.volumes).T).real
    np.testing.assert_allclose(product, np.eye(2), atol=1e-10)
    masses = modes.right.values[0].real * operator.grid.volumes
    np.testing.assert_allclose(
        masses, (stationary_density(operator) * operator.grid.volumes).values, rtol=1e-10
    )
    assert float(eigenmodes(operator, k=1).gap) == float(modes.gap)


def test_gaps_below_rounding_that_cannot_be_told_apart_are_told():
    """Three wells: two slow modes below rounding."""
    sde = SDE(
        lambda t, y, p, xp: (-xp.sin(2 * np.pi * y[0]) / (2 * np.pi),),
        lambda t, y, p, xp: (0.03,),
        convention="ito",
    )
    operator = TransferOperator(sde, Grid.uniform(x=(-1.5, 1.5, 400)), step=0.1)
    with pytest.warns(AccuracyWarning, match="rounding of a stochastic matrix"):
        eigenmodes(operator, k=3)


def test_mass_may_peak_where_all_of_it_leaves_next():
    """The logistic map beyond its crisis piles mass at its critical value, which the next step sends over the wall.

    By power iteration on the dense matrix.
    """
    logistic = TransferOperator.of_map(
        lambda x: x - 3.1 * (x + x * x / 2), 0.0155, Grid.uniform(x=(-2, 1.2, 1000)), boundary="absorbing"
    )
    masses = np.full(1000, 1e-3)
    for _ in range(400):  # the second eigenvalue is 0.3 of the first
        landed = logistic.matrix @ masses
        survival, masses = landed.sum(), landed / landed.sum()
    found = escape_rate(logistic)
    assert float(found["rate"]) == pytest.approx(-np.log(survival), rel=1e-10)
    np.testing.assert_allclose(found["quasi_stationary"].values * 3.2e-3, masses, atol=1e-12)
