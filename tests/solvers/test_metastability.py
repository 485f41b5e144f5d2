"""Metastable sets by PCCA+."""

import numpy as np
import pytest
from scipy.linalg import expm

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TransferOperator,
    committor,
    eigenmodes,
    from_potential,
    metastable_sets,
    reaction_rate,
    stationary_density,
)
from tests.operators import double_well

CIRCLE = 2 * np.pi


def three_wells(D):
    """Two deep wells at (-1, 0) and (1, 0), a shallow one near (0, 5/3)."""

    def potential(t, y, p, xp):
        x, z = y
        hill = 3 * xp.exp(-x * x - (z - 1 / 3) ** 2) - 3 * xp.exp(-x * x - (z - 5 / 3) ** 2)
        wells = -5 * xp.exp(-((x - 1) ** 2) - z * z) - 5 * xp.exp(-((x + 1) ** 2) - z * z)
        return hill + wells + 0.2 * x**4 + 0.2 * (z - 1 / 3) ** 4

    return from_potential(
        potential,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D), xp.sqrt(2 * p.D)),
        params={"D": D},
        names=("x", "y"),
        convention="ito",
    )


def turning_wells():
    """Three wells on a ring, left more easily one way: the slow modes are a complex pair."""
    sde = SDE(
        lambda t, y, p, xp: (0.5 - xp.sin(3 * y[0]),),
        lambda t, y, p, xp: (0.5,),
        convention="ito",
    )
    return FokkerPlanck(sde, Grid.uniform(x=(0, CIRCLE, 120)), boundary="periodic")


def _checked(result, operator):
    """Invariants of any result: memberships, weights, rates, eigenvalues."""
    n, grid = result.sizes["set"], operator.grid
    chi = result.membership.values.reshape(n, -1)
    w = (stationary_density(operator).values * grid.volumes).ravel()
    assert chi.min() >= 0
    np.testing.assert_allclose(chi.sum(axis=0), 1, rtol=1e-12)
    # the optimisation leaves violations of 1e-6 at most, which are cut off
    np.testing.assert_allclose(chi @ w, result.weight, atol=2e-6)
    np.testing.assert_allclose(float(result.crispness), np.mean((chi**2 @ w) / (chi @ w)), atol=2e-6)
    assert np.all(np.diff(result.weight) <= 1e-6)
    return chi, w


def test_two_sets_of_a_double_well_are_its_committor():
    fp = FokkerPlanck(double_well(0.05), Grid.uniform(x=(-2, 2, 200)))
    result = metastable_sets(fp, 2)
    _checked(result, fp)
    gap = float(eigenmodes(fp, 2).gap)
    np.testing.assert_allclose(result.rates, gap / 2 * np.array([[-1, 1], [1, -1]]), rtol=1e-9)
    np.testing.assert_allclose(result.weight, 0.5, rtol=1e-9)
    assert float(result.crispness) > 0.97
    # set 0 lies left; committor and slow mode differ by gap times relaxation time, 1e-3 over 1
    q = committor(fp, lambda x: x < -1, lambda x: x > 1)
    assert float(np.abs(result.membership.sel(set=1) - q).max()) < 5e-3
    np.testing.assert_array_equal(result.assignment, (fp.grid.centers["x"] > 0).astype(int))


def test_three_sets_in_the_plane():
    fp = FokkerPlanck(three_wells(0.6), Grid.uniform(x=(-2, 2, 24), y=(-1.2, 2.2, 20)))
    modes = eigenmodes(fp, 4)
    result = metastable_sets(fp, 3, modes=modes)
    chi, _ = _checked(result, fp)
    rates = result.rates.values
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvals(rates).real), np.sort(modes.eigenvalue[:3]), atol=1e-12
    )
    np.testing.assert_allclose(rates.sum(axis=1), 0, atol=1e-12)
    assert (rates - np.diag(np.diag(rates))).min() >= 0
    # detailed balance of the coarse chain
    flow = result.weight.values[:, None] * rates
    np.testing.assert_allclose(flow, flow.T, atol=1e-7)
    # an invariant subspace: the chain moves memberships as the coarse chain does
    moved = (fp.adjoint @ chi.T).T
    np.testing.assert_allclose(moved, rates.T @ chi, atol=1e-4)
    # deeptime 0.4.5's PCCA+ on expm(0.5 L) of this grid: weights 0.48028, 0.48026, 0.03946, crispness 0.763397;
    # its optimiser stops at a step of 1e-4, ours at a slightly crisper point
    np.testing.assert_allclose(result.weight, [0.48027, 0.48027, 0.03946], atol=5e-5)
    assert 0.763397 < float(result.crispness) < 0.76343
    centre = [result.assignment.sel(x=x, y=y, method="nearest") for x, y in ((-1, 0), (1, 0), (0, 1.7))]
    assert [int(c) for c in centre] == [0, 1, 2]
    assert float(metastable_sets(fp, 2).crispness) > float(result.crispness) > 0.7


def test_a_dominant_cycle_has_three_sets_and_a_direction():
    fp = turning_wells()
    with pytest.raises(InvalidInput, match=r"complex pair .* use n=3"):
        metastable_sets(fp, 2)
    result = metastable_sets(fp, 3)
    _checked(result, fp)
    # pygpcca 1.0.4 on expm(L) of this grid: crispness 0.806496, coarse transitions 0.9428, 0.0625, -0.0052
    assert 0.806496 < float(result.crispness) < 0.80652
    step = expm(result.rates.values)
    np.testing.assert_allclose(np.sort(step.ravel())[-3:], 0.9428, atol=1e-4)
    np.testing.assert_allclose([step[0, 1], step[1, 2], step[2, 0]], 0.0625, atol=1e-4)
    np.testing.assert_allclose(result.weight, 1 / 3, rtol=1e-4)


def test_unequal_wells_exchange_at_the_reaction_rates():
    tilted = from_potential(
        lambda t, y, p, xp: y[0] ** 4 / 4 - y[0] ** 2 / 2 + 0.1 * y[0],
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
        params={"D": 0.03},
        convention="ito",
    )
    fp = FokkerPlanck(tilted, Grid.uniform(x=(-2, 2, 400)))
    result = metastable_sets(fp, 2)
    reaction = reaction_rate(fp, lambda x: x < -0.9, lambda x: x > 0.8)
    # the rates are those of one time scale up to a few times gap / (next eigenvalue) = 1.2e-3
    np.testing.assert_allclose(result.rates[0, 1] * reaction.source_residence, 1, rtol=5e-3)
    np.testing.assert_allclose(result.rates[1, 0] * reaction.target_residence, 1, rtol=5e-3)
    assert float(result.weight[0]) > 0.99


def test_a_period_two_map_alternates_between_its_sets():
    # x -> -1.2 x + 0.2 x^3 in the mean: a 2-cycle at +-1 with noise
    flip = SDE(
        lambda t, y, p, xp: (-2.2 * y[0] + 0.2 * y[0] ** 3,),
        lambda t, y, p, xp: (0.12,),
        convention="ito",
    )
    operator = TransferOperator(flip, Grid.uniform(x=(-1.8, 1.8, 180)), step=1.0)
    result = metastable_sets(operator, 2)
    _checked(result, operator)
    slow = float(np.real(eigenmodes(operator, 2).eigenvalue[1]))
    assert slow < -0.8
    expected = 0.5 * np.array([[1 + slow, 1 - slow], [1 - slow, 1 + slow]])
    np.testing.assert_allclose(result.transition, expected, atol=1e-9)
    assert "rates" not in result


def test_many_cells_cost_little():
    fp = FokkerPlanck(three_wells(0.6), Grid.uniform(x=(-2, 2, 120), y=(-1.2, 2.2, 100)))
    result = metastable_sets(fp, 3)
    np.testing.assert_allclose(result.weight, [0.4803, 0.4803, 0.0394], atol=2e-3)


def test_unusable_input_is_refused():
    line = Grid.uniform(x=(-2, 2, 40))
    fp = FokkerPlanck(double_well(0.2), line)
    walled = FokkerPlanck(double_well(0.2), line, boundary="absorbing")
    still = SDE(lambda t, y, p, xp: (y[0] - y[0] ** 3,), lambda t, y, p, xp: (0.5 * y[0],), convention="ito")
    parts = FokkerPlanck(still, Grid.uniform(x=(-3, 3, 400)))
    assert eigenmodes(parts, 3).attrs["zero_modes"] == 2
    for call, words in [
        (lambda: metastable_sets(fp.chain, 2), "Chain"),
        (lambda: metastable_sets(fp, 1), "n=1 sets"),
        (lambda: metastable_sets(fp, 2.0), "n=2.0 sets"),
        (lambda: metastable_sets(walled, 2), "escape_rate"),
        (lambda: metastable_sets(fp, 2, modes=fp), "FokkerPlanck"),
        (lambda: metastable_sets(fp, 3, modes=eigenmodes(fp, 2)), "hold 2 modes"),
        (lambda: metastable_sets(parts, 2), "2 parts"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
