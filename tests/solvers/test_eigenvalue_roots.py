"""Values of a parameter at which a decay rate takes a given value."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from solvers import (
    SDE,
    ConvergenceFailure,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TransferOperator,
    eigenmodes,
    eigenvalue_root,
    escape_rate,
)
from tests.operators import double_well, ornstein_uhlenbeck


def _ou(k):
    return FokkerPlanck(ornstein_uhlenbeck(k, 0.5), Grid.uniform(x=(-6, 6, 400)))


def _well(D):
    return FokkerPlanck(double_well(D, potential=True), Grid.uniform(x=(-2.2, 2.2, 400)))


def _narrow_well(D):
    return FokkerPlanck(double_well(D, potential=True), Grid.uniform(x=(-1.6, 1.6, 800)))


def _killed(D):
    return FokkerPlanck(ornstein_uhlenbeck(1, D), Grid.uniform(x=(-1, 1, 200)), boundary="absorbing")


def _quartic(mu):
    model = SDE(
        lambda t, y, p, xp: (p.mu * y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (0.1,),
        params={"mu": mu},
        convention="ito",
    )
    return FokkerPlanck(model, Grid.uniform(x=(-0.8, 0.8, 300)))


def _rates(operator, count):
    return -eigenmodes(operator, count).eigenvalue.values


CASES = {
    "gap": (_ou, (0.5, 3.0), 1.3, 1, lambda operator: _rates(operator, 2)[1], 4),
    "second mode": (_ou, (0.5, 3.0), 3.1, 2, lambda operator: _rates(operator, 3)[2], 4),
    "exponentially small": (_well, (0.01, 0.2), 1e-6, 1, lambda operator: _rates(operator, 2)[1], 7),
    "escape": (_killed, (0.05, 0.5), 1e-2, 0, lambda operator: float(escape_rate(operator).rate), 6),
    "ratio": (
        _quartic,
        (-0.1, 0.2),
        3.254225852436075,
        (2, 1),
        lambda operator: _rates(operator, 3)[2] / _rates(operator, 3)[1],
        6,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_roots_agree_with_bracketing_in_few_solves(name):
    build, bracket, target, mode, measure, most = CASES[name]
    tol = 1e-9
    found = eigenvalue_root(build, bracket, target=target, mode=mode, tol=tol)
    width = bracket[1] - bracket[0]
    evaluations = []

    def excess(value):
        evaluations.append(value)
        return np.log(measure(build(value)) / target)

    by_bracketing = brentq(excess, *bracket, xtol=tol * width)
    assert abs(float(found.root) - by_bracketing) <= 2 * tol * width
    assert float(found.error) <= tol * width
    assert found.attrs["eigen_solves"] == found.sizes["solve"] <= most < len(evaluations)
    assert bracket[0] <= float(found.root) <= bracket[1]


def test_the_marginal_quartic_well_is_the_onset_of_metastability():
    found = eigenvalue_root(_quartic, (-0.1, 0.2), target=3.254225852436075, mode=(2, 1))
    # mu = 0 exactly; the mean of mu h^2 / 12-like terms of the cells (5e-3 wide) moves it by about 1e-4
    assert abs(float(found.root)) < 2e-4


@pytest.mark.parametrize("target", [1e-14, 1e-30])
def test_rates_whose_slopes_are_rounding(target):
    """Eigenvectors are rounded by 1e-16: slopes of smaller rates are told by the rates, which keep their digits."""
    for settings in ({"mode": 1}, {"mode": 0, "absorbed": lambda x: x > 0.5}):
        found = eigenvalue_root(_narrow_well, (0.003, 0.05), target=target, **settings)
        root, tol = float(found.root), 1e-8 * 0.047
        assert float(found.error) <= tol
        assert found.sizes["solve"] <= 18
        operator = _narrow_well(root)
        if settings["mode"]:
            rate = float(eigenmodes(operator, 2).gap)
        else:
            rate = float(escape_rate(operator, target=settings["absorbed"]).rate)
        slope = 0.25 / root**2  # d log(rate) / dD of Arrhenius' law, up to a percent
        assert abs(math.log(rate / target)) <= 1.1 * slope * float(found.error) + 1e-9


def test_named_modes_and_absorbed_regions():
    """Names count from the slowest mode that decays; a region is removed as by `escape_rate`."""
    by_number = eigenvalue_root(_quartic, (-0.1, 0.2), target=3.5, mode=(2, 1))
    by_name = eigenvalue_root(_quartic, (-0.1, 0.2), target=3.5, mode="gap-ratio")
    assert float(by_name.root) == float(by_number.root)
    slowest = eigenvalue_root(_killed, (0.05, 0.5), target=1e-2, mode="gap")
    assert float(slowest.root) == float(eigenvalue_root(_killed, (0.05, 0.5), target=1e-2, mode=0).root)
    beyond = {"absorbed": lambda x: x > 0.313}  # between two centres
    found = eigenvalue_root(_well, (0.03, 0.2), target=1e-3, mode=0, **beyond)
    rate = escape_rate(_well(float(found.root)), target=beyond["absorbed"]).rate
    # a root to 1e-8 of 0.17, and d log(rate)/dD of about 0.25 / D^2 = 100
    assert float(rate) == pytest.approx(1e-3, rel=1e-6)
    # its slope is that of the killed operator
    step = 1e-5
    ends = [float(escape_rate(_well(0.1 + s), target=beyond["absorbed"]).rate) for s in (-step, step)]
    first = eigenvalue_root(_well, (0.1, 0.2), target=float(found.rate[0] * 0 + 2e-2), mode=0, **beyond)
    assert float(first.rate_derivative[0]) == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-5)


def test_negative_targets_are_eigenvalues_and_ends_count():
    by_rate = eigenvalue_root(_ou, (0.5, 3.0), target=1.3)
    by_eigenvalue = eigenvalue_root(_ou, (0.5, 3.0), target=-1.3)
    assert float(by_rate.root) == float(by_eigenvalue.root)
    end = float(_rates(_ou(0.5), 2)[1])
    at_end = eigenvalue_root(
        _ou, (0.5, 3.0), target=float(eigenvalue_root(_ou, (0.5, 3.0), target=1.3).rate[0])
    )
    assert float(at_end.root) == 0.5
    assert end == pytest.approx(0.5, rel=1e-2)


def test_transfer_operators():
    """X -> (1 - s k) x + noise decays at -log(1 - s k) / s per time, up to cells."""

    def build(k):
        model = SDE(
            lambda t, y, p, xp: (-p.k * y[0],), lambda t, y, p, xp: (0.5,), params={"k": k}, convention="ito"
        )
        return TransferOperator(model, Grid.uniform(x=(-4, 4, 160)), step=0.4)

    found = eigenvalue_root(build, (0.3, 1.5), target=1.0)
    exact = (1 - np.exp(-0.4)) / 0.4
    assert abs(float(found.root) - exact) < 3e-3
    assert found.sizes["solve"] <= 6


def test_kinks_are_bracketed():
    """The slowest of two independent rates min(a, 1): the derivative jumps at a = 1."""

    def build(a):
        model = SDE(
            lambda t, y, p, xp: (-p.a * y[0], -y[1]),
            lambda t, y, p, xp: (xp.sqrt(p.a), 1.0),
            params={"a": a},
            names=("x", "y"),
            convention="ito",
        )
        return FokkerPlanck(model, Grid.uniform(x=(-3, 3, 16), y=(-3, 3, 16)))

    found = eigenvalue_root(build, (0.2, 3.0), target=0.7, tol=1e-7)
    assert abs(_rates(build(float(found.root)), 2)[1] - 0.7) < 1e-6


def test_progress_is_told():
    seen = []
    eigenvalue_root(_ou, (0.5, 3.0), target=1.3, progress=seen.append)
    assert seen
    assert all(0 <= fraction <= 1 for fraction in seen)


def test_unusable_input_is_refused():
    for bracket, settings, words in [
        (
            (0.5, 1.0),
            {"target": 2.0},
            r"not cross 2 in bracket=\(0.5, 1.0\): it is 0.49\d+ at 0.5 and 0.99\d+ at 1",
        ),
        ((0.5, 1.0), {"target": 0.0}, "never crossed"),
        ((0.5, 1.0), {"target": -2.0, "mode": (2, 1)}, "or a ratio"),
        ((0.5, 1.0), {"target": np.inf}, "target=inf"),
        ((1.0, 0.5), {"target": 1.0}, "low < high"),
        (0.5, {"target": 1.0}, "bracket=0.5"),
        ((0.5, 1.0), {"target": 0.7, "mode": "slowest"}, "mode='slowest'"),
        ((0.5, 1.0), {"target": 0.7, "absorbed": 3}, "absorbed=3"),
        ((0.5, 1.0), {"target": 0.7, "mode": (1, 1)}, "a pair of different ones"),
        ((0.5, 1.0), {"target": 0.7, "mode": -1}, "number from 0"),
        ((0.5, 1.0), {"target": 0.7, "tol": 2.0}, "tol=2"),
        ((0.5, 1.0), {"target": 0.7, "max_solves": 1}, "max_solves=1"),
        ((0.5, 1.0), {"target": 0.7, "mode": 0}, "use mode=1"),
        ((0.5, 1.0), {"target": 0.7, "progress": 3}, "progress=3"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            eigenvalue_root(_ou, bracket, **settings)
    with pytest.raises(ConvergenceFailure, match="3 evaluations left the root between"):
        eigenvalue_root(_well, (0.01, 0.2), target=1e-6, max_solves=3)
