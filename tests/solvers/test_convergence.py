"""Fitted orders contain the stated ones; a scheme aimed at the wrong convention does not converge.

Each interval is at 95 % (coverage found over 20 seeds on these problems: 19 or 20); the seeds are fixed, so
that a failure means a change of the numbers.
"""

import numpy as np
import pytest

from solvers.convergence import estimate_order
from solvers.errors import AccuracyWarning, InvalidInput
from tests import problems

ITO = problems.geometric_brownian()
STRATONOVICH = problems.geometric_brownian(convention="stratonovich")
STEPS = (8, 16, 32, 64)


def _contains(result, order):
    return float(result.order_low) <= order <= float(result.order_high)


@pytest.mark.parametrize(
    ("problem", "scheme", "order"),
    [
        (ITO, "euler-maruyama", 0.5),
        (problems.arctangent(), "euler-maruyama", 0.5),
        (problems.circle(), "euler-maruyama", 0.5),
        (problems.additive(), "euler-maruyama", 1.0),
        (STRATONOVICH, "heun", 1.0),
        (problems.circle(), "heun", 1.0),
    ],
)
def test_strong_order(problem, scheme, order):
    result = estimate_order(
        problem.sde, scheme=scheme, y0=problem.y0, exact=problem.exact, steps=STEPS, paths=2000, seed=1
    )
    assert _contains(result, order)
    assert float(result.order_high - result.order_low) < 0.35
    assert order in {result.attrs["stated_order"], result.attrs["stated_order_special"]}


@pytest.mark.parametrize(("problem", "scheme"), [(ITO, "euler-maruyama"), (STRATONOVICH, "heun")])
def test_weak_order_is_one(problem, scheme):
    result = estimate_order(
        problem.sde, scheme=scheme, kind="weak", y0=1.0, exact=problem.exact, steps=(4, 8, 16, 32), paths=8000
    )
    assert _contains(result, 1.0)
    assert float(result.order_high - result.order_low) < 0.7


def test_a_fine_path_replaces_the_exact_solution():
    result = estimate_order(ITO.sde, scheme="euler-maruyama", y0=1.0, steps=STEPS, paths=1000, seed=2)
    assert _contains(result, 0.5)
    assert not _contains(result, 1.0)


def test_heun_does_not_converge_to_the_ito_solution():
    """Negative control: the same coefficients, the wrong reading."""
    result = estimate_order(
        STRATONOVICH.sde, scheme="heun", y0=1.0, exact=ITO.exact, steps=STEPS, paths=1000, seed=1
    )
    assert float(result.order_high) < 0.05
    np.testing.assert_allclose(result.error[-1], result.error[0], rtol=0.1)


def test_an_unresolved_weak_error_is_said_to_be_so():
    with pytest.warns(AccuracyWarning, match="more paths or larger steps"):
        estimate_order(ITO.sde, scheme="euler-maruyama", kind="weak", exact=ITO.exact, paths=40, steps=STEPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mean"}, "kind='mean'"),
        ({"paths": 10}, "paths=10"),
        ({"steps": (4, 8, 12)}, "steps"),
        ({"steps": (4, 8, 16, 24)}, "steps"),
        ({"scheme": "rk4"}, "available"),
        ({"t1": 0.0}, "t1=0"),
        ({"level": 1.0}, "level"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        estimate_order(ITO.sde, **{"scheme": "euler-maruyama", **arguments})
