"""Roots of functions of one parameter: brackets, refusals, and the number of evaluations."""

import math
from dataclasses import replace

import pytest

from solvers import ConvergenceFailure, InvalidInput
from solvers.root_search import Point, Quantity, checked_bracket, root_by_slopes, root_by_values

RATE = Quantity("the rate", 2.0)


def arrhenius(barrier=0.25, prefactor=0.4, target=1e-4):
    """log(prefactor exp(-barrier / D) / target): its root is barrier / log(prefactor / target)."""
    seen = []

    def at(value):
        seen.append(value)
        rate = prefactor * math.exp(-barrier / value)
        return Point(value, math.log(rate / target), rate, barrier / value**2)

    return at, seen, barrier / math.log(prefactor / target)


@pytest.mark.parametrize(("bracket", "most"), [((0.02, 0.2), 6), ((0.005, 1.0), 12)])
def test_slopes_find_exponential_roots_in_few_steps(bracket, most):
    at, seen, root = arrhenius()
    found = root_by_slopes(at, bracket, RATE, tol=1e-10)
    width = bracket[1] - bracket[0]
    assert abs(found.value - root) <= max(found.error, 1e-15)
    assert found.error <= 1e-10 * width
    by_slopes = len(seen)
    assert [p.value for p in found.points] == seen
    assert by_slopes <= most  # over a factor of 200 most of them bisect
    at, seen, _ = arrhenius()
    plain = root_by_values(at, bracket, RATE, tol=1e-10)
    assert abs(plain.value - root) <= plain.error
    assert by_slopes < len(seen) == len(set(seen))


def test_a_wrong_or_missing_slope_only_costs_time():
    for slope in (0.0, -1.0, math.nan, 1e9):
        found = root_by_slopes(
            lambda v, slope=slope: Point(v, v**3 - 0.3, v, slope), (-2.0, 1.0), RATE, tol=1e-9, most=80
        )
        assert abs(found.value - 0.3 ** (1 / 3)) <= 1e-9 * 3


def test_missing_slopes_are_secants():
    """Without slopes it is a secant method, whose last step, not an interpolation, tells the error."""
    at, seen, root = arrhenius()
    found = root_by_slopes(lambda v: replace(at(v), slope=math.nan), (0.02, 0.2), RATE, tol=1e-10)
    assert abs(found.value - root) <= max(found.error, 1e-15)
    assert found.error <= 1e-10 * 0.18
    assert len(seen) <= 14


def test_a_jump_is_bracketed():
    found = root_by_slopes(
        lambda v: Point(v, 1.0 if v > 0.3 else -1.0, v, 0.0), (0.0, 1.0), RATE, tol=1e-6, most=60
    )
    assert abs(found.value - 0.3) <= found.error <= 1e-6


def test_an_uncertain_function_is_not_searched_beyond_its_error():
    """Y = v - 1/3 known to 1e-2: a search to 1e-12 would cost more, and be no better."""
    seen = []

    def at(value):
        seen.append(value)
        return Point(value, math.sinh(3 * (value - 1 / 3)), value, error=1e-2)

    found = root_by_values(at, (0.0, 1.0), RATE, tol=1e-12)
    assert len(seen) <= 6
    assert abs(found.value - 1 / 3) <= found.error
    assert found.error == pytest.approx(1e-2 / 3, rel=0.1)  # over the slope, 3
    assert found.slope == pytest.approx(3.0, rel=0.1)


def test_roots_on_the_ends():
    for search in (root_by_slopes, root_by_values):
        assert search(lambda v: Point(v, v, v, 1.0), (0.0, 1.0), RATE, tol=1e-9).value == 0.0
        assert search(lambda v: Point(v, v - 1, v, 1.0), (0.0, 1.0), RATE, tol=1e-9).value == 1.0


@pytest.mark.parametrize(
    "bracket",
    [3, None, "ab", (1.0,), (1.0, 2.0, 3.0), (2.0, 1.0), (1.0, 1.0), (0.0, math.nan), (-math.inf, 0.0)],
)
def test_unusable_brackets_are_refused_in_one_sentence(bracket):
    with pytest.raises(
        InvalidInput, match=r"^bracket=.*; give a pair of finite numbers \(low, high\) with low < high$"
    ):
        checked_bracket(bracket)


def test_what_does_not_cross_is_told_with_both_values():
    for search in (root_by_slopes, root_by_values):
        with pytest.raises(
            InvalidInput, match=r"the rate does not cross 2 in bracket=\(0.0, 1.0\): it is 3 at 0 and"
        ):
            search(lambda v: Point(v, v + 1, v + 3, 1.0), (0.0, 1.0), RATE, tol=1e-9)
        with pytest.raises(InvalidInput, match="nan at 1"):
            search(
                lambda v: Point(v, -1.0 if v < 1 else math.nan, v if v < 1 else math.nan),
                (0.0, 1.0),
                RATE,
                tol=1e-9,
            )


def test_giving_up():
    with pytest.raises(ConvergenceFailure, match="4 evaluations left the root between 0 and"):
        root_by_slopes(lambda v: Point(v, (v - 0.7) ** 9, v, math.nan), (0.0, 1.0), RATE, tol=1e-9, most=4)
