"""Large grids: fronts, twisted factorisations and block iterations against LAPACK, SuperLU and exact values."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sps

from solvers import SDE, AccuracyWarning, FokkerPlanck, Grid, InvalidInput, eigenmodes, nonreversible
from solvers.bidiagonal import line_values
from solvers.block_krylov import block_krylov
from solvers.factorisation import factor
from solvers.multifrontal import Factors
from solvers.nested_dissection import dissect
from solvers.twisted import line_modes
from tests.operators import double_well, ornstein_uhlenbeck, separable_wells
from tests.orders import assert_order


def shear_wells():
    return SDE(
        lambda t, y, p, xp: (-4 * y[0] * (y[0] ** 2 - 1) + y[1], -2 * y[1] - y[0]),
        lambda t, y, p, xp: (0.4**0.5, 0.4**0.5),
        names=("x", "y"),
        convention="ito",
    )


def wells(n):
    return FokkerPlanck(separable_wells(), Grid.uniform(x=(-2.2, 2.2, n), y=(-2.5, 2.5, n)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "wrapped"),
    [((70, 41), (False, False)), ((40, 30), (True, False)), ((9, 11, 8), (False, True, True))],
)
@pytest.mark.parametrize("columns", [1, 6])
def test_fronts_solve_both_systems(shape, wrapped, columns):
    rng = np.random.default_rng(1)
    n = int(np.prod(shape))
    cells = np.arange(n).reshape(shape)
    pairs = []
    for axis, around in enumerate(wrapped):
        a, b = cells, np.roll(cells, -1, axis)
        inside = [slice(None)] * len(shape)
        inside[axis] = slice(None) if around else slice(None, -1)
        pairs.append((a[tuple(inside)].ravel(), b[tuple(inside)].ravel()))
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    rates = sps.csr_array((rng.random(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(n, n))
    unsymmetric = sps.csr_array(sps.diags_array(rates.sum(axis=1) + 0.01) - rates)
    both = rates + rates.T
    symmetric = sps.csr_array(sps.diags_array(both.sum(axis=1) + 0.01) - both)
    dissection = dissect(shape, wrapped, None)
    np.testing.assert_array_equal(np.sort(dissection.order), np.arange(n))
    right = rng.standard_normal((n, columns))
    # backward stable: residuals are eps |A| |x| times a growth of at most the depth of the tree
    lu, cholesky = (Factors(m, dissection, symmetric=s) for m, s in ((unsymmetric, False), (symmetric, True)))
    for matrix, solution in (
        (unsymmetric, lu.solve(right)),
        (unsymmetric.T, lu.solve(right, "T")),
        (symmetric, cholesky.solve(right)),
    ):
        allowed = 100 * np.finfo(float).eps * abs(matrix).max() * np.abs(solution).max()
        assert np.abs(matrix @ solution - right).max() < max(allowed, 1e-13)


def test_a_dissection_of_another_grid_is_refused():
    matrix = sps.csr_array(
        5 * sps.eye_array(900) - sps.diags_array([np.ones(1), np.ones(1)], offsets=[899, -899])
    )
    with pytest.raises(ValueError, match="separates"):
        Factors(matrix, dissect((30, 30), (False, False), None), symmetric=True)


@pytest.mark.parametrize("symmetric", [True, False])
def test_block_krylov_finds_the_largest_values(symmetric):
    rng = np.random.default_rng(2)
    exact = 1.0 / np.arange(1, 301)
    turn = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    change = turn if symmetric else turn @ np.diag(1 + rng.random(300))
    matrix = change @ np.diag(exact) @ np.linalg.inv(change)
    found = block_krylov(lambda x: matrix @ x, rng.standard_normal((300, 8)), 5, 1e-11, symmetric=symmetric)
    np.testing.assert_allclose(found.values[:5], exact[:5], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("D", [0.1, 0.01])
def test_long_lines_keep_relative_accuracy(D):
    # at D = 0.01 the first eigenvalue is 6e-12 beside 0.97
    chain = FokkerPlanck(double_well(D), Grid.uniform(x=(-3, 3, 20000))).chain
    found = line_modes(chain, 5)
    assert found is not None
    # either sums squares over 20 000 faces: rounding of n eps = 4e-12 at most in each
    np.testing.assert_allclose(found[0], line_values(chain, 5), rtol=1e-11)
    weights = np.exp(chain.log_weights)
    gram = found[1].T @ (weights[:, None] * found[1])
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-10)


def test_absorbed_long_line_agrees_with_quadrature_of_its_spectrum(reference):
    exact = np.array(reference["ou_qsd_absorbing"]["value"])
    fp = FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-1, 1, 20000)), boundary="absorbing")
    # sin(k x) in cells of h decays too slowly by (k h)^2 / 12, k up to pi, and exponential fitting adds diffusion of
    # at most (x h / D)^2 / 12, x up to 1; cross terms between the two at most double the sum
    h = 1e-4
    np.testing.assert_allclose(
        -eigenmodes(fp, 2).eigenvalue, exact, rtol=2 * ((np.pi * h) ** 2 + (h / 0.5) ** 2) / 12
    )


def test_large_reversible_grids_agree_with_lanczos(reference):
    fp = wells(160)
    modes = eigenmodes(fp, 6, method="shift-invert", richardson=True)
    half = np.exp(0.5 * fp.chain.log_weights)
    left = modes.left.values.reshape(6, -1)
    # shift-invert by SuperLU, without blocks, coarse grids or fronts
    shift = 0.1
    lu = factor(sps.csc_array(fp.chain.matrix("symmetrised", shift).T), symmetric=True)
    for a in range(1, 6):
        psi = half * left[a]
        value = float(modes.eigenvalue[a])
        np.testing.assert_allclose(lu.solve(psi) * (shift - value), psi, atol=1e-9 * np.abs(psi).max())
    exact = np.array(reference["dw2d_sep_D0.2"]["value"])
    # the estimate leaves out the next order, which is what extrapolation by it misses: a sixteenth of what it missed on
    # cells of twice the width, up to still higher orders, an eighth on the safe side
    missed = (
        np.abs(-eigenmodes(wells(80), 6, richardson=True).eigenvalue_extrapolated.values[1:] - exact[1:6]) / 8
    )
    estimate = modes.eigenvalue_error.values[1:]
    error = np.abs(-modes.eigenvalue.values[1:] - exact[1:6])
    assert np.all(np.abs(error - estimate) < missed)
    assert np.all(np.abs(-modes.eigenvalue_extrapolated.values[1:] - exact[1:6]) < missed)
    assert np.all(missed < 0.1 * estimate)
    # clean where there is no mass: the first left function depends on x alone
    plane = modes.left.values[1]
    np.testing.assert_allclose(plane, np.broadcast_to(plane[:, 80:81], plane.shape), rtol=1e-5, atol=1e-7)


def test_blocks_of_vectors_agree_with_arnoldi_without_detailed_balance(monkeypatch):
    """The same 25 600 cells both ways: residuals of 1e-10 of eigenvalues that are well apart."""
    fp = FokkerPlanck(shear_wells(), Grid.uniform(x=(-2.2, 2.2, 160), y=(-2.5, 2.5, 160)))
    values = []
    for least in (nonreversible._BLOCKS, 20_000):
        monkeypatch.setattr(nonreversible, "_BLOCKS", least)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)
            modes = eigenmodes(fp, 5, method="shift-invert")
        values.append(modes.eigenvalue.values)
        left, right = (modes[v].values.reshape(len(values[-1]), -1) for v in ("left", "right"))
        np.testing.assert_allclose((left * fp.grid.volumes.ravel()) @ right.T, np.eye(len(left)), atol=1e-9)
        L = fp.generator
        for value, q in zip(values[-1], left, strict=True):
            # the tolerance of eigenmodes, relative to the operator's norm
            assert np.abs(L.T @ q - value * q).max() < 1e-10 * abs(L).sum(axis=0).max() * np.abs(q).max()
    np.testing.assert_allclose(values[1], values[0], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_richardson_errors_fall_with_the_square_of_the_cells(reference):
    one = np.array(reference["dw1d_D0.1"]["value"])
    two = np.array(reference["dw2d_sep_D0.2"]["value"])[1:6]
    for build, exact, sizes in (
        (lambda n: FokkerPlanck(double_well(0.1), Grid.uniform(x=(-3, 3, n))), one, (100, 200, 400)),
        (wells, two, (40, 80, 160)),
    ):
        estimates, actual, better = [], [], []
        for n in sizes:
            modes = eigenmodes(build(n), len(exact) + 1, richardson=True)
            estimates.append(modes.eigenvalue_error.values[1:])
            actual.append(np.abs(-modes.eigenvalue.values[1:] - exact))
            better.append(np.abs(-modes.eigenvalue_extrapolated.values[1:] - exact))
        assert_order(estimates, sizes, 2)
        assert_order(actual, sizes, 2)
        # what is left after extrapolation is of fourth order: nearest to 4 among the whole numbers
        assert np.all(np.abs(np.log2(better[1] / better[2]) - 4) < 0.5)
        # and it is all that parts the estimate from the error
        np.testing.assert_allclose(np.abs(estimates[2] - actual[2]), better[2], rtol=1e-6, atol=1e-13)


def test_richardson_refuses_cells_that_cannot_be_paired():
    fp = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-3, 3, 121)))
    with pytest.raises(InvalidInput, match="axis x has 121"):
        eigenmodes(fp, 2, richardson=True)


def test_the_choice_of_method_explains_itself():
    fp = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-3, 3, 120)))
    assert "tridiagonal" in eigenmodes(fp, 2).attrs["method_reason"]
    assert eigenmodes(fp, 2, method="dense").attrs["method_reason"] == "asked for"
