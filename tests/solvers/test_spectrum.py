"""Eigenmodes against values computed independently to high precision."""

import re
import warnings

import numpy as np
import pytest

from solvers import (
    SDE,
    AccuracyWarning,
    ConvergenceFailure,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TransferOperator,
    eigenmodes,
    from_potential,
    stationary_density,
)
from solvers.eigensolvers import Modes, generator_modes
from solvers.spectrum import verify
from tests.operators import (
    brownian_square,
    double_well,
    multiplicative,
    ornstein_uhlenbeck,
    rotating_ou,
    separable_wells,
    tilted_cosine,
)

REFLECT_ABSORB = {"x": ("reflecting", "absorbing")}
# name, model, box, boundary, reference key, zero modes; 2.25 % of the relative error at 400 cells is allowed
# to remain times 4 at 1500 (second order: (400/1500)^2 = 0.071)
ONE_DIMENSIONAL = [
    (double_well(0.5), (-4, 4), "reflecting", "dw1d_D0.5", 1),
    (double_well(0.1), (-3, 3), "reflecting", "dw1d_D0.1", 1),
    (double_well(0.1, potential=True), (-3, 3), "reflecting", "dw1d_D0.1", 1),
    (ornstein_uhlenbeck(1, 0.5), (-1, 1), "reflecting", "ou_reflecting_box", 1),
    (ornstein_uhlenbeck(1, 0.5), (-1, 1), "absorbing", "ou_qsd_absorbing", 0),
    (double_well(0.1), (-3, 0.5), REFLECT_ABSORB, "qsd_dw_left_D0.1", 0),
    (ornstein_uhlenbeck(0, 1), (0, 1), REFLECT_ABSORB, "bm_mixed", 0),
    (ornstein_uhlenbeck(1.5, 0.4), (-4, 4), "reflecting", "ou1d", 1),
    (multiplicative("ito"), (-4, 4), "reflecting", "mult_eig_ito", 1),
]


def inner_products(modes, grid):
    left = modes.left.values.reshape(modes.sizes["mode"], -1)
    right = modes.right.values.reshape(modes.sizes["mode"], -1)
    return (left * grid.volumes.ravel()) @ right.T


@pytest.mark.parametrize(("sde", "box", "boundary", "key", "zeros"), ONE_DIMENSIONAL)
def test_one_dimensional_spectra(reference, sde, box, boundary, key, zeros):
    exact = np.atleast_1d(reference[key]["value"])
    exact = exact[:4] if key == "ou1d" else exact  # the fifth entry is a variance
    errors = {}
    for n in (200, 400, 800, 1500):
        grid = Grid.uniform(x=(*box, n))
        modes = eigenmodes(FokkerPlanck(sde, grid, boundary=boundary), k=len(exact) + zeros)
        assert modes.eigenvalue.dtype == float
        if zeros:
            assert modes.eigenvalue.values[0] == 0
        errors[n] = np.abs(-modes.eigenvalue.values[zeros:] / exact - 1)
        assert abs(float(modes.gap) / exact[0] - 1) == errors[n][0]
        np.testing.assert_allclose(inner_products(modes, grid), np.eye(len(exact) + zeros), atol=1e-9)
    assert errors[400].max() < 1e-3
    assert errors[1500].max() < 1e-4
    # halving the cells divides the error by 4, up to the next order, where rounding (1e-11) does not hide it
    order = np.log2(errors[400] / errors[800])
    assert np.all(np.abs(order - 2) < 0.1)


def test_the_wrong_convention_is_rejected(reference):
    exact = np.array(reference["mult_eig_ito"]["value"])
    for convention in ("stratonovich", "klimontovich"):
        modes = eigenmodes(FokkerPlanck(multiplicative(convention), Grid.uniform(x=(-4.5, 4.5, 400))), k=5)
        assert np.abs(-modes.eigenvalue.values[1:] / exact - 1).max() > 0.1


def test_non_uniform_cells_keep_second_order(reference):
    exact = reference["dw1d_D0.1"]["value"][0]
    errors = []
    for n in (200, 400):
        s = np.linspace(-1, 1, n + 1)
        grid = Grid(x=3 * (0.5 * s + 0.5 * s**3))
        errors.append(abs(float(eigenmodes(FokkerPlanck(double_well(0.1), grid), k=2).gap) / exact - 1))
    assert errors[1] < 1e-3
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.15


def test_exponentially_small_gap_keeps_relative_accuracy():
    # Kramers with its first correction is good to 1e-4 here; the exact discrete value comes from the
    # committor form 1 / integral(e^U/D) of both wells, to which the gap tends as the barrier grows.
    gap = float(
        eigenmodes(FokkerPlanck(double_well(0.01, potential=True), Grid.uniform(x=(-2, 2, 1500))), k=2).gap
    )
    x = np.linspace(-2, 2, 400001)
    potential = x**4 / 4 - x**2 / 2
    weight = np.exp(-(potential + 0.25) / 0.01)
    half = x <= 0
    mass = np.trapezoid(weight[half], x[half])
    barrier = np.trapezoid(np.exp((potential[np.abs(x) < 1]) / 0.01), x[np.abs(x) < 1])
    # rate each way = D / (mass * barrier), shifted energies; gap = 2 rate; relative error gap / 1 and h^2
    expected = 2 * 0.01 * np.exp(-25) / (mass * barrier)
    assert 1e-12 < gap < 1e-11
    assert abs(gap / expected - 1) < 5e-4


def test_driven_circle_has_complex_modes(reference):
    exact = np.array([complex(v["re"], v["im"]) for v in reference["tilted_cos_eig_F0.7_D0.3"]["value"]])
    errors = {}
    for n in (80, 400, 1500):  # 80 cells: dense
        grid = Grid.uniform(x=(0, 2 * np.pi, n))
        modes = eigenmodes(FokkerPlanck(tilted_cosine(), grid, boundary="periodic"), k=7)
        values = modes.eigenvalue.values
        assert values[0] == 0
        assert np.iscomplexobj(values)
        np.testing.assert_allclose(values[2::2], np.conj(values[1::2]), rtol=1e-10)
        errors[n] = np.abs(values[1::2] / exact - 1)
        np.testing.assert_allclose(inner_products(modes, grid), np.eye(7), atol=1e-9)
    assert errors[400].max() < 1e-3
    assert errors[1500].max() < 1e-4
    assert np.all(np.abs(np.log(errors[80] / errors[400]) / np.log(5) - 2) < 0.1)


def test_complex_pairs_are_not_split():
    fp = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, 2 * np.pi, 200)), boundary="periodic")
    assert eigenmodes(fp, k=2).sizes["mode"] == 3
    assert eigenmodes(fp, k=3).sizes["mode"] == 3


@pytest.mark.slow
def test_two_dimensional_reversible_spectrum(reference):
    exact = np.array(reference["dw2d_sep_D0.2"]["value"])
    errors = []
    for n in (60, 120):
        fp = FokkerPlanck(separable_wells(), Grid.uniform(x=(-2.2, 2.2, n), y=(-2.5, 2.5, n)))
        assert fp.reversible
        modes = eigenmodes(fp, k=8)
        assert modes.eigenvalue.dtype == float
        errors.append(np.abs(-modes.eigenvalue.values[1:] / exact[1:] - 1))
    assert errors[1].max() < 1e-2
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.1)


@pytest.mark.slow
def test_two_dimensional_rotation_with_correlated_noise(reference):
    exact = np.array([complex(v["re"], v["im"]) for v in reference["ou2d_nonrev_eigs"]["value"]])
    order = np.lexsort((exact.imag, np.round(exact.real, 6)))
    errors = []
    for n in (45, 90):
        fp = FokkerPlanck(rotating_ou(), Grid.uniform(x=(-3.6, 3.6, n), y=(-3.8, 3.8, round(n * 1.18))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)  # the coarser grid
            values = eigenmodes(fp, k=6).eigenvalue.values
        near = [values[np.argmin(np.abs(values - v))] for v in exact[order]]
        errors.append(np.abs(np.array(near) - exact[order]) / np.abs(exact[order]))
    assert errors[1].max() < 2.5e-2
    assert errors[0].max() / errors[1].max() > 3


def test_fast_rotation_does_not_hide_slow_modes():
    # nearest to zero in modulus are -2, -4, ...; slowest are -1 +- 8i
    sde = SDE(
        lambda t, y, p, xp: (-y[0] - 8 * y[1], 8 * y[0] - y[1]),
        lambda t, y, p, xp: (1.0, 1.0),
        names=("x", "y"),
        convention="ito",
    )
    with pytest.warns(AccuracyWarning, match="too coarse"):
        modes = eigenmodes(FokkerPlanck(sde, Grid.uniform(x=(-4, 4, 50), y=(-4, 4, 50))), k=3)
    assert abs(modes.eigenvalue.values[1].imag) > 7.5


def test_degenerate_modes_are_all_found():
    fp = FokkerPlanck(brownian_square(), Grid.uniform(x=(0, 1, 24), y=(0, 1, 24)))
    values = -eigenmodes(fp, k=6, method="shift-invert").eigenvalue.values / np.pi**2
    np.testing.assert_allclose(values, [0, 1, 1, 2, 4, 4], rtol=0.01)


@pytest.mark.parametrize("k", [1, 4])
def test_methods_agree(k):
    fp = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-3, 3, 120)))
    results = [eigenmodes(fp, k, method=m) for m in ("tridiagonal", "shift-invert", "dense")]
    for other in results[1:]:
        np.testing.assert_allclose(other.eigenvalue, results[0].eigenvalue, rtol=1e-9)
        np.testing.assert_allclose(other.right, results[0].right, atol=1e-8)
        np.testing.assert_allclose(other.left, results[0].left, rtol=1e-6, atol=1e-8)


def test_left_eigenfunctions_are_clean_where_there_is_no_mass():
    # Hermite polynomials, on a box where the weight falls to e^-128
    fp = FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-8, 8, 800)))
    modes = eigenmodes(fp, k=3)
    x = fp.grid.centers["x"]
    slope = modes.left.values[1] / x
    # H_1 up to the second-order error, Peclet^2 / 12 = 0.009 at the far ends
    np.testing.assert_allclose(slope, slope[400], rtol=0.01)
    np.testing.assert_allclose(modes.left[0], 1, rtol=1e-14)


def test_results_repeat_bit_for_bit():
    fp = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, 2 * np.pi, 300)), boundary="periodic")
    assert eigenmodes(fp, 4).equals(eigenmodes(fp, 4))


def test_absorbed_irreversible_operator():
    sde = SDE(
        lambda t, y, p, xp: (-y[0] + y[1] * y[0], -y[1] + 0.3 * y[0]),
        lambda t, y, p, xp: (1.0, 1.0),
        names=("x", "y"),
        convention="ito",
    )
    fp = FokkerPlanck(sde, Grid.uniform(x=(-1, 1, 30), y=(-1, 1, 30)), boundary={"x": "absorbing"})
    modes = eigenmodes(fp, k=3)
    dense = np.linalg.eigvals(fp.generator.toarray())
    slowest = dense[np.argsort(-dense.real)][:3]
    np.testing.assert_allclose(modes.eigenvalue.values, slowest, rtol=1e-9)
    # mass balance: the decay rate is the loss of the quasi-stationary density
    masses = modes.right.values[0].real.ravel() * fp.grid.volumes.ravel()
    np.testing.assert_allclose(fp.chain.loss @ masses, float(modes.gap), rtol=1e-9)


def test_a_wrong_mode_is_not_returned():
    fp = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-3, 3, 120)))
    modes = generator_modes(fp.chain, 3, "auto", 1e-10)
    verify(modes, 1e-10, relative=False)
    modes.residual[1] = 1e-6
    with pytest.raises(ConvergenceFailure, match="mode 1"):
        verify(modes, 1e-10, relative=False)


def test_the_mode_that_fails_its_check_is_named():
    """Beside the largest residual, relative or absolute, which is within what rounding is allowed."""
    # An operator of norm 1e6 with eigenvalues 1e-9, 1e3 and 1e4: rounding is allowed 2000 eps 1e6 = 4.4e-7, so 3e-7 is
    # sound though it is 300 times the first; the others are allowed 10 tol of themselves, 1e-6 and 1e-5.
    values, residual = np.array([-1e-9, -1e3, -1e4]), np.array([3e-7, 3e-6, 2e-5])

    def modes(residual):
        return Modes(values, np.eye(3), np.eye(3), residual / 1e6, 0, 1e6, "dense")

    verify(modes(np.array([3e-7, 9e-7, 9e-6])), 1e-10, relative=False)
    # two fail: by three times and by twice what they are allowed
    with pytest.raises(ConvergenceFailure, match=r"mode 1 .*-1000.* has residual 3e-06, allowed 1e-06"):
        verify(modes(residual), 1e-10, relative=False)
    with pytest.raises(ConvergenceFailure, match=r"mode 2 .* has residual 2e-05, allowed 1e-05"):
        verify(modes(np.array([3e-7, 9e-7, 2e-5])), 1e-10, relative=False)
    with pytest.raises(ConvergenceFailure, match=r"mode 1 .* has residual nan"):
        verify(modes(np.array([3e-7, np.nan, 2e-5])), 1e-10, relative=False)


def test_coarse_cells_are_reported():
    with pytest.warns(AccuracyWarning, match="too coarse"):
        eigenmodes(FokkerPlanck(ornstein_uhlenbeck(1, 0.001), Grid.uniform(x=(-1, 1, 50))), k=2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda fp: eigenmodes(fp, 0), "k=0"),
        (lambda fp: eigenmodes(fp, 2, method="qr"), "method='qr'"),
        (lambda fp: eigenmodes(fp, 2, tol=1), "tol=1"),
        (lambda fp: eigenmodes(fp.generator), "csr_array"),
    ],
)
def test_unusable_input_is_refused(call, words):
    with pytest.raises(InvalidInput, match=words):
        call(FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-3, 3, 50))))


def test_transfer_operator_meets_the_generator():
    sde = double_well(0.2)
    grid = Grid.uniform(x=(-2.4, 2.4, 600))
    gap = float(eigenmodes(FokkerPlanck(sde, grid), 2).gap)
    # Euler-Maruyama has weak order 1: the difference halves with the step. The cells' own spreading,
    # h^2/6 = 1e-5 beside a noise of 0.4 step = 0.016, moves the gap by 1e-3 and the ratio by a tenth.
    off = [float(eigenmodes(TransferOperator(sde, grid, step=h), 2).gap) / gap - 1 for h in (0.08, 0.04)]
    assert abs(off[1]) < 0.05
    assert abs(off[0] / off[1] - 2) < 0.3
    assert stationary_density(TransferOperator(sde, grid, step=0.02)).sum() > 0


def test_a_cluster_of_tiny_eigenvalues_keeps_its_digits():
    # three equal wells: hopping between neighbours at one rate gives eigenvalues in the ratio 1 : 3
    sde = SDE(
        lambda t, y, p, xp: (-0.1 * np.pi * xp.sin(2 * np.pi * y[0]),),
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
        params={"D": 0.0015},
        convention="ito",
    )
    with pytest.warns(AccuracyWarning, match="eigenvalues are right, but these eigenvectors may be mixed"):
        values = -eigenmodes(FokkerPlanck(sde, Grid.uniform(x=(-1.5, 1.5, 600))), 4).eigenvalue.values
    assert values[1] < 1e-28
    np.testing.assert_allclose(values[2] / values[1], 3, rtol=1e-9)
    assert values[3] > 0.1


def test_an_eigenvalue_below_rounding_is_reported_with_the_number():
    fp = FokkerPlanck(separable_wells(0.015), Grid.uniform(x=(-1.6, 1.6, 80), y=(-0.5, 0.5, 24)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # the cells are coarse as well
        eigenmodes(fp, 2)
    texts = [str(w.message) for w in caught]
    assert any(re.match(r"the eigenvalue -?\d.*e-\d+ is below", text) for text in texts)


@pytest.mark.parametrize(
    ("D", "n", "k"),
    [(0.02, 100, 8), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((0.03, 100, 6), (0.02, 150, 9)))],
)
def test_equal_wells_and_the_barrier_between_them(D, n, k):
    """Modes twofold to all digits, beside one on the barrier whose mass is in the wells; sums of lines are exact."""

    def line(potential):
        model = from_potential(
            lambda t, y, p, xp: potential(y[0]),
            lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
            params={"D": D},
            names=("x",),
            convention="ito",
        )
        operator = FokkerPlanck(model, Grid.uniform(x=(-1.5, 1.5, n)))
        return eigenmodes(operator, 12, method="tridiagonal")["eigenvalue"].values

    along, across = line(lambda x: (x**2 - 1) ** 2), line(lambda y: y**2)
    exact = np.sort(np.add.outer(along, across).ravel())[::-1][:k]
    model = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * 2,
        params={"D": D},
        names=("x", "y"),
        convention="ito",
    )
    operator = FokkerPlanck(model, Grid.uniform(x=(-1.5, 1.5, n), y=(-1.5, 1.5, n)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)  # cells that are coarse for the weak noise
        modes = eigenmodes(operator, k)
    # Rounding of sums in an operator whose entries reach 1e3, and 1e-4 of the tiny one by its quotient.
    np.testing.assert_allclose(modes["eigenvalue"][2:], exact[2:], rtol=1e-9)
    np.testing.assert_allclose(modes["eigenvalue"][1], along[1], rtol=1e-4)
