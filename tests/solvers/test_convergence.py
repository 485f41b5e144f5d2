"""Fitted orders contain the stated ones; a scheme aimed at the wrong convention does not converge.

Each interval is at 95 % (coverage found over 20 seeds on 13 of these problems: 249 of 260); the seeds are fixed,
so that a failure means a change of the numbers. An interval that contains the stated order must be narrow enough
to exclude the orders half a step away.
"""

import itertools
import math

import numpy as np
import pytest

from solvers import schemes
from solvers.convergence import estimate_order
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.given_noise import drive
from solvers.sde import SDE
from tests import problems

ITO = problems.geometric_brownian()
STRATONOVICH = problems.geometric_brownian(convention="stratonovich")
KLIMONTOVICH = problems.geometric_brownian(convention="klimontovich")
ADDITIVE = problems.additive()
ARCTANGENT = problems.arctangent()
CIRCLE = problems.circle()
CORRELATED = problems.correlated_geometric()
ROTATING = problems.rotating_noise()
WELL = problems.additive_well()
STEPS = (8, 16, 32, 64)
SLOW = pytest.mark.slow  # a second problem for an order that is fitted already

STRONG = [
    ("euler-maruyama", ITO, 0.5),
    pytest.param("euler-maruyama", CIRCLE, 0.5, marks=SLOW),
    ("euler-maruyama", ADDITIVE, 1.0),
    pytest.param("euler-maruyama", KLIMONTOVICH, 0.5, marks=SLOW),
    ("tamed-euler", ARCTANGENT, 0.5),
    pytest.param("tamed-euler", ADDITIVE, 1.0, marks=SLOW),
    ("implicit-euler", ITO, 0.5),
    pytest.param("implicit-euler", ADDITIVE, 1.0, marks=SLOW),
    ("milstein", ARCTANGENT, 1.0),
    ("milstein", CORRELATED, 1.0),
    pytest.param("milstein", KLIMONTOVICH, 1.0, marks=SLOW),
    ("platen", ITO, 1.0),
    pytest.param("platen", CORRELATED, 1.0, marks=SLOW),
    pytest.param("heun", STRATONOVICH, 1.0, marks=SLOW),
    pytest.param("heun", CIRCLE, 1.0, marks=SLOW),
    ("heun", KLIMONTOVICH, 1.0),
    ("sriw1", ARCTANGENT, 1.5),
    pytest.param("sriw1", CIRCLE, 1.5, marks=SLOW),
]

REFINED = [
    ("euler-maruyama", ROTATING, STEPS, 0.5),
    ("heun", ROTATING, (32, 64, 128, 256), 0.5),
    pytest.param("milstein", ARCTANGENT, STEPS, 1.0, marks=SLOW),
    ("sra1", WELL, STEPS, 1.5),
]


def square(y):
    return y[0] ** 2


WEAK = [
    ("euler-maruyama", ITO, None, 1.0),
    pytest.param("euler-maruyama", KLIMONTOVICH, None, 1.0, marks=SLOW),
    ("tamed-euler", ITO, None, 1.0),
    ("implicit-euler", ITO, None, 1.0),
    ("milstein", ITO, square, 1.0),
    ("platen", ARCTANGENT, square, 1.0),
    ("heun", STRATONOVICH, None, 1.0),
    ("weak-euler", ARCTANGENT, square, 1.0),
    pytest.param("weak-euler", CORRELATED, square, 1.0, marks=SLOW),
    ("sra1", ADDITIVE, square, 2.0),
    pytest.param("sriw1", ARCTANGENT, square, 1.5, marks=SLOW),
    pytest.param("weak-platen", ITO, None, 2.0, marks=SLOW),
    ("weak-platen", ARCTANGENT, square, 2.0),
    pytest.param("weak-platen", CIRCLE, square, 2.0, marks=SLOW),
]


FINER = {"paths": 50_000, "steps": (32, 64, 128, 256)}
"""For an error with a zero near n = 4, so that larger steps show no power law."""


def _contains(result, order):
    return float(result.order_low) <= order <= float(result.order_high)


def _found(result, order):
    assert result.attrs["stated_order"] == order
    assert _contains(result, order), (float(result.order_low), float(result.order_high))
    assert not _contains(result, order - 0.5)
    assert not _contains(result, order + 0.5)


def test_every_scheme_is_fitted():
    strong, weak = (
        {getattr(case, "values", case)[0] for case in cases} for cases in (STRONG + REFINED, WEAK)
    )
    assert weak == set(schemes.SCHEMES)
    assert strong == {name for name, scheme in schemes.SCHEMES.items() if scheme.strong is not None}


@pytest.mark.parametrize(("scheme", "problem", "order"), STRONG)
def test_strong_order(scheme, problem, order):
    result = estimate_order(
        problem.sde, scheme=scheme, y0=problem.y0, exact=problem.exact, steps=STEPS, paths=2000, seed=1
    )
    _found(result, order)


@pytest.mark.parametrize(("scheme", "problem", "steps", "order"), REFINED)
def test_strong_order_against_a_fine_path(scheme, problem, steps, order):
    result = estimate_order(problem.sde, scheme=scheme, y0=problem.y0, steps=steps, paths=1000, seed=2)
    _found(result, order)


@pytest.mark.parametrize(("scheme", "problem", "observable", "order"), WEAK)
def test_weak_order(scheme, problem, observable, order):
    result = estimate_order(
        problem.sde,
        scheme=scheme,
        kind="weak",
        y0=problem.y0,
        exact=problem.exact,
        observable=observable,
        **(FINER if scheme == "sriw1" else {"paths": 20_000}),
    )
    _found(result, order)


def _second_moments(scheme, steps, areas=1.0):
    """E X X^T of `ROTATING` at t = 1 under a scheme, without sampling.

    A step is linear in the state, Y = M Y, so that E kron(M, M) over all values of its numbers carries the
    second moments; the linear maps are read off the scheme itself at the unit vectors.
    """
    h = 1.0 / steps
    two = [(sign * h**0.5, 0.5) for sign in (-1, 1)]
    three = [(sign * (3 * h) ** 0.5, weight) for sign, weight in ((-1, 1 / 6), (0, 2 / 3), (1, 1 / 6))]
    draws = schemes.stepper(schemes.find(scheme), ROTATING.sde).draws
    numbers = [three] * draws.three_point + [two] * draws.two_point
    combinations = list(itertools.product(*numbers))
    dw = np.array([[value for value, _ in row] for row in combinations])[:, None, :]
    dw[:, :, draws.three_point :] *= areas if draws.three_point else 1.0
    weights = np.array([math.prod(weight for _, weight in row) for row in combinations])
    maps = np.stack(
        [
            drive(ROTATING.sde, unit, dw, dt=h, scheme=scheme, every_step=False).values[:, 0]
            for unit in np.eye(2)
        ],
        axis=2,
    )
    carried = sum(w * np.kron(m, m) for w, m in zip(weights, maps, strict=True))
    return np.linalg.matrix_power(carried, steps) @ np.outer(ROTATING.y0, ROTATING.y0).ravel()


@pytest.mark.parametrize(
    ("scheme", "areas", "order"),
    [("weak-euler", 1.0, 1.0), ("weak-platen", 1.0, 2.0), ("weak-platen", 0.0, 1.0)],
)
def test_weak_order_of_noise_that_does_not_commute(scheme, areas, order):
    """Exact errors of all second moments. Negative control: without the two-point areas order 2 is lost.

    The order between h and h/2 is q + c h + O(h^2); extrapolated, 2 q(h/2) - q(h), it errs by O(h^2): below
    0.02 at h = 1/64 where c is of order 1 (0.6 at most, by the run without areas).
    """
    truth = ROTATING.variance(1.0).ravel()
    errors = np.array([np.abs(_second_moments(scheme, n, areas) - truth) for n in (128, 256, 512)])
    between = np.log2(errors[:-1] / errors[1:])
    np.testing.assert_allclose(2 * between[1] - between[0], order, atol=0.03)


def test_weak_order_two_of_additive_noise_with_nonlinear_drift():
    result = estimate_order(
        WELL.sde,
        scheme="sra1",
        kind="weak",
        y0=WELL.y0,
        observable=square,
        steps=(8, 16, 32, 64),
        paths=8000,
    )
    _found(result, 2.0)


def test_heun_does_not_converge_to_the_ito_solution():
    """Negative control: the same coefficients, the wrong reading."""
    result = estimate_order(
        STRATONOVICH.sde, scheme="heun", y0=1.0, exact=ITO.exact, steps=STEPS, paths=1000, seed=1
    )
    assert float(result.order_high) < 0.05
    np.testing.assert_allclose(result.error[-1], result.error[0], rtol=0.1)


@pytest.mark.parametrize("scheme", ["euler-maruyama", "weak-euler"])
def test_the_reduced_noise_has_the_mean_of_the_plain_one(scheme):
    """E X_h = (1 + mu h)^n exactly, against 4 standard errors at four steps: false alarm 2.5e-4."""
    result = estimate_order(
        ITO.sde, scheme=scheme, kind="weak", y0=1.0, exact=ITO.exact, steps=(1, 2, 4, 8), paths=4000, seed=5
    )
    n = np.array([1, 2, 4, 8])
    error = np.abs((1 + 0.5 / n) ** n - np.exp(0.5))
    assert (np.abs(result.error - error) <= 4 * result.stderr + 1e-12).all()


def test_an_unresolved_weak_error_is_said_to_be_so():
    with pytest.warns(AccuracyWarning, match="more paths or larger steps"):
        estimate_order(
            CIRCLE.sde,
            scheme="euler-maruyama",
            kind="weak",
            y0=CIRCLE.y0,
            exact=CIRCLE.exact,
            observable=square,
            paths=400,
            steps=STEPS,
        )


def test_an_error_that_changes_its_sign_is_said_to_do_so():
    """Euler's x = (1 - 1/n)^n lies below 1/e; (x - 0.3)^2 is above its limit at n = 1 and below from n = 2."""
    still = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    with pytest.warns(AccuracyWarning, match="changes its sign"):
        estimate_order(
            still,
            scheme="euler-maruyama",
            kind="weak",
            observable=lambda y: (y[0] - 0.3) ** 2,
            expected=(np.exp(-1) - 0.3) ** 2,
            steps=(1, 2, 4, 8),
            paths=40,
        )


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
        ({"scheme": "weak-euler"}, "'weak-euler' follows no Brownian path"),
        ({"scheme": "weak-euler", "kind": "weak"}, "give expected= or exact="),
        ({"expected": 1.0}, "expected=1.0 is for kind='weak'"),
        ({"scheme": "sra1"}, "only for additive noise"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        estimate_order(ITO.sde, **{"scheme": "euler-maruyama", **arguments})
