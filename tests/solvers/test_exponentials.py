"""Exponentials of generators: the parts, each against what it should be."""

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import ive

from solvers import SDE, ConvergenceFailure, FokkerPlanck, Grid
from solvers.exponential_choice import chosen
from solvers.exponentials import Krylov, Side, Uniformization, _expm, _poisson, _poisson_reach
from solvers.implicit_steps import _FOURTH, _THIRD, GAMMA, ImplicitSteps, stage_weights
from solvers.resolvents import Resolvents
from tests.operators import brownian_square, double_well, tilted_cosine


@pytest.mark.parametrize(("weights", "order"), [(_FOURTH, 4), (_THIRD, 3)])
def test_step_has_its_order_and_is_l_stable(weights, order):
    def stability(z):
        return sum(c * (1 - GAMMA * z) ** -k for k, c in enumerate(weights, start=1))

    errors = [abs(stability(z) - np.exp(z)) for z in (-0.2, -0.1)]
    assert abs(np.log2(errors[0] / errors[1]) - (order + 1)) < 0.3
    # L-stable: bounded by 1 on the imaginary axis (hence in the half plane), and 0 at infinity
    assert np.abs(stability(1j * np.logspace(-3, 4, 4000))).max() <= 1 + 1e-12
    assert abs(stability(-1e12)) < 1e-10


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_solutions_inside_a_step_have_its_order(share):
    weights = stage_weights(5, share)

    def error(z):
        return abs(sum(c * (1 - GAMMA * z) ** -k for k, c in enumerate(weights, start=1)) - np.exp(share * z))

    # more near shares at which the leading term vanishes
    assert np.log2(error(-0.2) / error(-0.1)) > 4.7


def test_small_exponentials():
    """Against SciPy, whose own error is also about eps times the norm."""
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    matrix = -(rotation * np.logspace(-3, 4, 12)) @ rotation.T + np.triu(rng.standard_normal((12, 12)), 1)
    times = np.array([1e-6, 0.01, 1.0])
    for time, found in zip(times, _expm(times[:, None, None] * matrix), strict=True):
        np.testing.assert_allclose(found, expm(time * matrix), rtol=0, atol=1e2 * 2e-16 * 1e4)


@pytest.mark.parametrize("mean", [0.0, 0.3, 40.0, 1e5])
def test_poisson_weights_leave_out_what_they_may(mean):
    from scipy.stats import poisson

    low, high = _poisson_reach(mean, 1e-9)
    weights = _poisson(mean, low, high)
    assert abs(weights.sum() - 1) < 1e-13
    assert poisson.cdf(low - 1, mean) + poisson.sf(high, mean) <= 1e-9
    # logarithms of size mean log(mean) are rounded by eps of it
    np.testing.assert_allclose(weights, poisson.pmf(np.arange(low, high + 1), mean), rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("method", [Krylov, ImplicitSteps, Uniformization])
def test_random_walk_in_closed_form(method):
    """Rate r to each side: masses exp(-2 r t) I_n(2 r t), as long as no wall is felt."""
    still = SDE(lambda t, y, p, xp: (0.0 * y[0],), lambda t, y, p, xp: (2.0**0.5,), convention="ito")
    fp = FokkerPlanck(still, Grid.uniform(x=(-1, 1, 201)))
    start = np.zeros(201)
    start[100] = 1.0
    rate = 1 / fp.grid.widths["x"][0] ** 2
    times = np.array([1e-5, 1e-3, 5e-3])
    solver = method(fp.chain, Side(False, True, True, np.ones(201)), 1e-9)
    for time, found in zip(times, solver(start, times), strict=True):
        exact = ive(np.abs(np.arange(201) - 100), 2 * rate * time)
        # tol per step; at 5e-3 the walls are 10 standard deviations away
        assert np.abs(found - exact).sum() < 1e-9 * (10 + solver.told().get("steps", 1))
        assert found.min() >= 0
        assert abs(found.sum() - 1) < 1e-14


def test_krylov_cuts_intervals_that_rotate_too_often():
    fast = SDE(lambda t, y, p, xp: (5.0 + 0 * y[0],), lambda t, y, p, xp: (0.1,), convention="ito")
    fp = FokkerPlanck(fast, Grid.uniform(x=(0, 2 * np.pi, 200)), boundary="periodic")
    start = np.zeros(200)
    start[50] = 1.0
    solver = Krylov(fp.chain, Side(False, True, True, np.ones(200)), 1e-7)
    times = np.array([0.3, 3.0])
    for time, found in zip(times, solver(start, times), strict=True):
        exact = expm(time * fp.generator.toarray()) @ start
        assert np.abs(found - exact).sum() < 1e-7 * solver.told()["intervals"]
    assert solver.told()["intervals"] > 2


@pytest.mark.parametrize("method", [Krylov, ImplicitSteps])
def test_what_cannot_be_reached_is_told(method, monkeypatch):
    fp = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, 2 * np.pi, 60)), boundary="periodic")
    monkeypatch.setattr(f"{method.__module__}.SMALLEST", 0.5)
    monkeypatch.setattr("solvers.exponentials._LAST", 6)
    start = np.zeros(60)
    start[5] = 1.0
    with pytest.raises(ConvergenceFailure, match="larger tol"):
        method(fp.chain, Side(False, True, True, np.ones(60)), 1e-14)(start, np.array([1.0]))


@pytest.mark.parametrize("transposed", [False, True])
def test_resolvents(transposed):
    line = FokkerPlanck(
        double_well(0.2), Grid.uniform(x=(-2, 2, 50)), boundary={"x": ("absorbing", "reflecting")}
    )
    plane = FokkerPlanck(brownian_square(), Grid.uniform(x=(0, 1, 8), y=(0, 1, 7)))
    for fp in (line, plane):
        x = np.random.default_rng(2).random(fp.grid.size)
        resolvents = Resolvents(fp.chain, transposed)
        matrix = fp.generator.toarray().T if transposed else fp.generator.toarray()
        found = resolvents(0.3)(x)
        np.testing.assert_allclose(found - 0.3 * matrix @ found, x, rtol=1e-11)
        assert found.min() > 0
        for g in (0.1, 0.3, 0.2, 0.3):
            resolvents(g)
        assert resolvents.factorisations == 3


def test_choice_of_method_follows_the_costs():
    line = FokkerPlanck(double_well(0.2), Grid.uniform(x=(-2, 2, 50))).chain
    assert chosen(line, 1, 1e-6, "auto")[0] == "krylov"
    plane = FokkerPlanck(brownian_square(), Grid.uniform(x=(0, 1, 30), y=(0, 1, 30))).chain
    assert chosen(plane, 2, 1e-6, "auto")[0] == "uniformization"
    assert chosen(plane, 2, 1e4, "auto")[0] == "krylov"
    assert "products" in chosen(plane, 2, 1e4, "auto")[1]
    assert chosen(plane, 2, 1e4, "implicit") == ("implicit", "as asked")
