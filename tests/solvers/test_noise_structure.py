"""Kinds of noise: how they are found, which schemes take them, and noise that vanishes."""

import numpy as np
import pytest

from solvers import schemes
from solvers.errors import InvalidInput
from solvers.given_noise import drive
from solvers.sde import SDE
from tests import problems


def _linear(a, b):
    """Two coupled components with diagonal noise of amplitudes a(y), b(y)."""
    return SDE(
        lambda t, y, p, xp: (-y[0] + xp.sin(y[1]), y[0] * y[1] - y[1] ** 3),
        lambda t, y, p, xp: (a(y), b(y)),
        names=("x", "z"),
        convention="ito",
    )


VANISHING = {
    "a square root at 0": (lambda t, y, p, xp: (1.0 - y[0],), lambda t, y, p, xp: (xp.sqrt(y[0]),), 0.0),
    "a root of the size at 0": (
        lambda t, y, p, xp: (-y[0],),
        lambda t, y, p, xp: (xp.sqrt(xp.abs(y[0])),),
        0.0,
    ),
    "a root cut off": (
        lambda t, y, p, xp: (0.1 - y[0],),
        lambda t, y, p, xp: (xp.sqrt(xp.maximum(y[0], 0.0)),),
        -0.1,
    ),
    "linear at 0": (lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (y[0],), 0.0),
    "the end of an interval": (
        lambda t, y, p, xp: (0.5 - y[0],),
        lambda t, y, p, xp: (xp.sqrt(y[0] * (1.0 - y[0])),),
        1.0,
    ),
}


@pytest.mark.parametrize("scheme", ["milstein", "platen"])
@pytest.mark.parametrize("case", list(VANISHING))
def test_noise_that_vanishes_breaks_no_step(scheme, case):
    """Milstein's b b' is taken as (b^2)'/2, which a root that vanishes leaves finite."""
    drift, diffusion, y0 = VANISHING[case]
    sde = SDE(drift, diffusion, convention="ito")
    small = np.full((1, 1, 1), 1e-4)
    end = drive(sde, y0, small, dt=0.01, scheme=scheme, every_step=False).values
    assert np.isfinite(end).all()


def test_an_infinite_product_of_noise_and_slope_is_not_hidden():
    """Noise |x|^0.3 has b b' infinite at 0: Milstein's step is not a number there, Euler's is."""
    sde = SDE(lambda t, y, p, xp: (1.0 - y[0],), lambda t, y, p, xp: (xp.abs(y[0]) ** 0.3,), convention="ito")
    step = np.full((1, 1, 1), 0.1)
    assert not np.isfinite(drive(sde, 0.0, step, dt=0.01, scheme="milstein", every_step=False)).any()
    assert np.isfinite(drive(sde, 0.0, step, dt=0.01, every_step=False)).all()


@pytest.mark.parametrize(
    ("sde", "kind"),
    [
        (problems.ornstein_uhlenbeck().sde, "additive"),
        (problems.additive().sde, "additive"),
        (problems.correlated_linear().sde, "additive"),
        (problems.arctangent().sde, "uncoupled"),
        (problems.circle().sde, "scalar"),
        (problems.correlated_geometric().sde, "commuting"),
        (problems.rotating_noise().sde, "general"),
        (_linear(lambda y: 0.3 * y[0], lambda y: 0.2 * y[1] ** 2), "uncoupled"),
        (_linear(lambda y: 0.3 * y[1], lambda y: 0.2), "general"),
        (_linear(lambda y: 0.3 * y[1], lambda y: 0.0), "commuting"),
        (_linear(lambda y: 0.3 * (y[0] + y[1]) - 0.3 * y[0] - 0.3 * y[1] + 1, lambda y: 0.2), "additive"),
    ],
)
def test_the_kind_of_noise_is_found(sde, kind):
    assert schemes.structure.verdict(sde).kind == kind


def test_the_kind_of_noise_follows_the_parameters():
    sde = SDE(
        lambda t, y, p, xp: (-y[0], -y[1]),
        lambda t, y, p, xp: (y[0] + p.c * y[1], y[1]),
        params={"c": 0.0},
        names=("x", "z"),
        convention="ito",
    )
    assert schemes.structure.verdict(sde).kind == "uncoupled"
    coupled = schemes.structure.verdict(sde.replace(c=0.5))
    assert coupled.kind == "general"
    assert coupled.conflict == "Wiener processes 0 and 1 do not commute in component 'x'"


def test_a_model_that_cannot_be_traced_is_judged_by_differences():
    def diffusion(t, y, p, xp):
        return (0.3 * xp.sqrt(1.0 + y[0] * y[0] * (1.0 if xp.sign(1.0) > 0 else float(y[0]))),)

    sde = SDE(lambda t, y, p, xp: (-y[0],), diffusion, convention="ito")
    assert schemes.structure.verdict(sde).kind == "uncoupled"


@pytest.mark.parametrize(
    ("scheme", "sde", "message"),
    [
        (
            "milstein",
            problems.rotating_noise().sde,
            "0 and 1 do not commute in component 'x'; use 'euler-mar",
        ),
        ("platen", problems.rotating_noise().sde, "only for .*commutative noise, but Wiener processes"),
        ("sra1", problems.arctangent().sde, "only for additive noise, but the amplitude .* depends on 'x'"),
        (
            "sriw1",
            problems.correlated_geometric().sde,
            "one Wiener process, but the amplitude of .*'milstein'",
        ),
    ],
)
def test_noise_that_a_scheme_cannot_treat_is_refused_with_the_reason(scheme, sde, message):
    with pytest.raises(InvalidInput, match=message):
        schemes.stepper(schemes.find(scheme), sde)


@pytest.mark.parametrize(
    ("problem", "name", "reason"),
    [
        (problems.ornstein_uhlenbeck(), "sra1", "does not depend on the state"),
        (problems.geometric_brownian(), "milstein", "strong order 1"),
        (problems.geometric_brownian(convention="klimontovich"), "milstein", "strong order 1"),
        (problems.geometric_brownian(convention="stratonovich"), "heun", "strong order 1 and weak 1"),
        (problems.rotating_noise(), "euler-maruyama", "do not commute"),
    ],
)
def test_auto_chooses_by_noise_and_convention_and_says_why(problem, name, reason):
    scheme, sentence = schemes.choose(problem.sde)
    assert scheme.name == name
    assert sentence.startswith(f"scheme='auto' chose {name!r}: ")
    assert reason in sentence
    assert schemes.find("auto", problem.sde) is scheme
