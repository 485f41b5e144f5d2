"""Fokker-Planck operators with coefficients that depend on time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TimeDependentFokkerPlanck,
    evolve,
    evolve_backward,
    from_potential,
    stationary_density,
)
from solvers.exponentials import Side
from solvers.time_dependence import CommutatorFreeSteps, chains
from tests.operators import double_well


def _swinging():
    """DX = -(1.2 + sin 3t) X dt + sqrt(1 + cos(2t) / 2) dW."""
    return SDE(
        lambda t, y, p, xp: (-y[0] * (1.2 + xp.sin(3 * t)),),
        lambda t, y, p, xp: (xp.sqrt(1.0 + 0.5 * xp.cos(2 * t)),),
        convention="ito",
    )


def _scheduled(rate):
    """The double well of D = 0.2 with time running at rate(t, xp): a learning rate that scales drift and D."""
    return SDE(
        lambda t, y, p, xp: ((y[0] - y[0] ** 3) * rate(t, xp),),
        lambda t, y, p, xp: (xp.sqrt(0.4 * rate(t, xp)),),
        convention="ito",
    )


def one_cell(grid, *index):
    density = np.zeros(grid.shape)
    density[index] = 1 / grid.volumes[index]
    return density


def test_moments_of_a_linear_process():
    """D mean = -a(t) mean, d variance = -2 a(t) variance + b(t): by quadrature; second order in the cells."""
    from scipy.integrate import solve_ivp

    def moments(t, m):
        a, b = 1.2 + np.sin(3 * t), 1 + 0.5 * np.cos(2 * t)
        return [-a * m[0], -2 * a * m[1] + b]

    errors = []
    for n in (150, 300):
        grid = Grid.uniform(x=(-6, 6, n))
        x = grid.centers["x"]
        start = np.exp(-((x - 2) ** 2) / (2 * 0.3**2))
        start /= (start * grid.volumes).sum()
        late = evolve(TimeDependentFokkerPlanck(_swinging(), grid), start, [0.5, 2.0], tol=1e-6)
        exact = solve_ivp(moments, (0, 2), [2.0, 0.09], t_eval=[0.5, 2.0], rtol=1e-10, atol=1e-12).y
        masses = late.values * grid.volumes
        mean = masses @ x
        variance = masses @ x**2 - mean**2
        errors.append(np.abs([mean - exact[0], variance - exact[1]]).max())
    assert errors[1] < 2e-3
    assert abs(errors[0] / errors[1] - 4) < 0.6


@pytest.mark.parametrize("smooth", [True, False])
def test_steps_have_order_four(smooth):
    """Also from one cell: fast modes do not reduce the order."""
    grid = Grid.uniform(x=(-6, 6, 120))
    fp = TimeDependentFokkerPlanck(_swinging(), grid)
    x = grid.centers["x"]
    start = np.exp(-((x - 2) ** 2) / 0.18) if smooth else one_cell(grid, 80)
    masses = start / start.sum()
    steps = CommutatorFreeSteps(chains(fp, 0.0), Side(False, True, True, np.ones(120)), 1e-11, "krylov")
    ends = []
    for count in (4, 8, 16, 64):
        state = masses
        for k in range(count):
            state = steps.step(state, k / count, 1 / count)
        ends.append(state)
    errors = [np.abs(end - ends[-1]).sum() for end in ends[:-1]]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # the reference is wrong by (16/64)^4 of the last error: orders are off by 0.006
    assert np.all(np.abs(orders - 4) < 0.2)
    assert steps.told()["reduced"] == 0


def test_a_common_rate_is_a_change_of_time():
    """Drift and D both times r(t): the density at the time integral of r, whatever r; here with a kink and a stop."""
    grid = Grid.uniform(x=(-2.5, 2.5, 100))
    fixed = FokkerPlanck(double_well(0.2), grid)
    for rate, passed in [
        (lambda t, xp: xp.maximum(1.0 - t, 0.0), 0.5),
        (lambda t, xp: xp.where(t < 1.0, 1.0, 0.1), 1.1),
        (lambda t, xp: 1.0 / (1.0 + t), np.log(3.0)),
    ]:
        late = evolve(TimeDependentFokkerPlanck(_scheduled(rate), grid), one_cell(grid, 30), [2.0], tol=1e-4)
        exact = expm(passed * fixed.generator.toarray()) @ (one_cell(grid, 30) * grid.volumes)
        # per step tol, and what halving towards a jump may leave of it once
        assert np.abs(late.values[0] * grid.volumes - exact).sum() < 1e-4 * (late.attrs["steps"] + 1)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 29), st.floats(0.1, 10), st.floats(0, 5), st.sampled_from(["krylov", "uniformization"]))
def test_positive_and_conserving_at_every_schedule(cell, frequency, t0, method):
    fp = TimeDependentFokkerPlanck(
        _scheduled(lambda t, xp: 0.02 + xp.where(xp.sin(frequency * t) > 0, 1.0, 0.0)),
        Grid.uniform(x=(-2.5, 2.5, 30)),
    )
    late = evolve(fp, one_cell(fp.grid, cell), [t0, t0 + 0.1, t0 + 0.3], t0=t0, tol=1e-2, method=method)
    assert late.values.min() >= 0
    np.testing.assert_allclose((late.values * fp.grid.volumes).sum(axis=1), 1, rtol=1e-13)


def test_expectations_are_dual_to_densities():
    grid = Grid.uniform(x=(-4, 4, 60))
    fp = TimeDependentFokkerPlanck(_swinging(), grid, boundary={"x": ("absorbing", "reflecting")})
    start, times, x = one_cell(grid, 20), [0.3, 1.4], grid.centers["x"]
    forward = evolve(fp, start, times, t0=0.3, tol=1e-5)
    backward = evolve_backward(fp, np.sin, times, t0=0.3, tol=1e-5)
    there = forward.values @ (np.sin(x) * grid.volumes)
    back = backward.values @ (start * grid.volumes)
    # per step tol of the mass, and tol of the range 2
    steps = forward.attrs["steps"] + 2 * backward.attrs["steps"]
    np.testing.assert_allclose(there, back, rtol=0, atol=1e-5 * steps)
    # a frozen schedule, or one run the wrong way, would differ
    frozen = evolve(fp.at(0.3), start, [1.1]).values[0] @ (np.sin(x) * grid.volumes)
    assert abs(frozen - there[1]) > 10 * 1e-5 * steps
    assert backward.values.max() <= np.sin(x).max()
    assert backward.values.min() >= np.sin(x).min()


def test_output_times_do_not_shorten_steps():
    fp = TimeDependentFokkerPlanck(_swinging(), Grid.uniform(x=(-5, 5, 60)))
    start = one_cell(fp.grid, 20)
    few = evolve(fp, start, [1.5], tol=1e-5)
    many = evolve(fp, start, np.linspace(0.1, 1.5, 15), tol=1e-5)
    assert many.attrs["steps"] == few.attrs["steps"]
    np.testing.assert_array_equal(many.values[-1], few.values[-1])
    fine = evolve(fp, start, [float(many.time[7])], tol=1e-7)
    assert np.abs(many.values[7] - fine.values[0]).sum() * fp.grid.widths["x"][0] < 1e-5 * many.attrs["steps"]


def test_at_is_the_operator_of_one_time():
    model = from_potential(
        lambda t, y, p, xp: p.k * (1 + t) * y[0] ** 2 / 2,
        lambda t, y, p, xp: (xp.sqrt(2.0 * p.D),),
        params={"k": 1.0, "D": 0.5},
        convention="klimontovich",
    )
    grid = Grid.uniform(x=(-5, 5, 200))
    now = TimeDependentFokkerPlanck(model, grid).at(2.0)
    density = stationary_density(now)
    # a potential keeps its exact weights: U = 3 x^2 / 2 at t = 2
    weights = np.exp(-1.5 * grid.centers["x"] ** 2 / 0.5)
    np.testing.assert_allclose(
        density.values, weights / (weights * grid.volumes).sum(), rtol=1e-9, atol=1e-300
    )
    assert now.sde.convention == "klimontovich"


def test_general_noise_in_another_convention():
    model = SDE(
        lambda t, y, p, xp: (-y[0] * (1 + t), -y[1]),
        lambda t, y, p, xp: ((1.0 + 0.1 * t, 0.0), (0.3 * xp.sin(y[0]) / (1 + t), 1.0)),
        names=("x", "y"),
        convention="stratonovich",
        noise="general",
    )
    fp = TimeDependentFokkerPlanck(model, Grid.uniform(x=(-4, 4, 16), y=(-4, 4, 16)))
    late = evolve(fp, one_cell(fp.grid, 3, 4), [0.2], tol=1e-3)
    assert late.attrs["convention"] == "stratonovich"
    np.testing.assert_allclose(float((late[0] * fp.grid.volumes).sum()), 1, rtol=1e-12)


def test_unusable_input_is_refused():
    grid = Grid.uniform(x=(-2, 2, 20))
    with pytest.raises(InvalidInput, match=r"depends on time.*or use TimeDependentFokkerPlanck"):
        FokkerPlanck(_swinging(), grid)
    with pytest.raises(InvalidInput, match="sde is a str"):
        TimeDependentFokkerPlanck("model", grid)
    outwards = SDE(lambda t, y, p, xp: ((t - 0.5) * y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    with pytest.raises(InvalidInput, match="misses the mass"):
        evolve(TimeDependentFokkerPlanck(outwards, grid), np.ones(20), [2.0])
    broken = SDE(lambda t, y, p, xp: (-y[0] / (t - 5.0),), lambda t, y, p, xp: (1.0,), convention="ito")
    with pytest.raises(InvalidInput, match="drift of x is"):
        TimeDependentFokkerPlanck(broken, grid).at(np.nan)
