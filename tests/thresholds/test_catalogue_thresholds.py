"""Thresholds of the catalogue, located against formulas and direct computations; what does not exist is refused."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from eos_sde.models import catalogue
from eos_sde.thresholds.catalogue_thresholds import CRITERIA, closed_form, refuse_unavailable
from eos_sde.thresholds.threshold_curves import threshold_curve
from solvers import Grid, InvalidInput

FLIP, LINEAR, RULE = (catalogue()[name] for name in ("flip-normal-form", "matched-linear", "quadratic-map"))


def _mean_square(eta):
    """E (1 - eta h)^2 - 1 with h of mean 4 and deviation 2."""
    return (1 - 4 * eta) ** 2 + 4 * eta**2 - 1


def _mean_log(eta):
    """E log|1 - eta h|, by quadrature on both sides of the singularity at h = 1/eta."""

    def density(z):
        return math.log(abs(1 - eta * (4 + 2 * z))) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    pole = (1 / eta - 4) / 2
    return sum(quad(density, *ends, limit=400)[0] for ends in ((-12, pole), (pole, 12)))


@pytest.mark.parametrize(
    ("model", "criterion", "over", "bracket", "parameters", "settings", "truth"),
    [
        (LINEAR, "almost_sure", "eta", (0.3, 0.9), {"curvature": 4.0, "noise": 0.1}, {}, 0.5),
        (LINEAR, "moment", "curvature", (3.0, 9.0), {"eta": 0.4, "noise": 0.0}, {}, 5.0),
        (RULE, "moment", "eta", (0.1, 0.9), {"curvature": 4.0, "noise": 0.1, "spread": 2.0}, {},
         brentq(_mean_square, 0.1, 0.9)),
        (RULE, "almost_sure", "eta", (0.3, 0.9), {"curvature": 4.0, "noise": 0.0, "spread": 2.0}, {},
         brentq(_mean_log, 0.4, 0.8)),
        (RULE, "moment", "spread", (0.1, 9.0), {"curvature": 4.0, "noise": 0.0, "eta": 0.2}, {},
         brentq(lambda c: 0.2**2 + 0.2**2 * c * c - 1, 0.1, 9.0)),
        # of dA = (mu A - A^3) dk + m A dW, m = 0.4: Ito's log A drifts by mu - m^2/2; E A^3 by 3 mu + 3 m^2
        (FLIP, "almost_sure", "mu", (-0.5, 0.5), {"C": 1.0, "s": 0.0, "m": 0.4}, {}, 0.08),
        (FLIP, "moment", "mu", (-0.5, 0.5), {"C": 1.0, "s": 0.0, "m": 0.4}, {"p": 3.0}, -0.16),
    ],
)  # fmt: skip
def test_located_formula_and_truth_agree(model, criterion, over, bracket, parameters, settings, truth):
    found = threshold_curve(model, parameters, over=over, bracket=bracket, criterion=criterion, **settings)
    # the search ends within 1e-6 of the bracket, and its error says so
    assert float(found["threshold"]) == pytest.approx(truth, abs=3e-6 * (bracket[1] - bracket[0]))
    assert float(found["closed_form"]) == pytest.approx(truth, rel=1e-7)
    assert float(found["stderr"]) < 1e-4
    assert found.attrs["over"] == over


def test_the_well_between_one_and_two():
    """The ratio of a quartic well is met at mu = 0 for any C and s; a coarse grid errs within its stated error."""
    found = threshold_curve(
        FLIP,
        {"C": 2.0, "s": 0.2},
        over="mu",
        bracket=(-0.3, 0.4),
        criterion="gap",
        grid=Grid.uniform(A=(-1.6, 1.6, 160)),
    )
    assert float(found["closed_form"]) == 0
    assert abs(float(found["threshold"])) < 3 * float(found["stderr"]) < 0.01


def test_a_curve_tells_where_it_has_no_point():
    """Thresholds at m^2/2 for m = 0.2, 0.6, 1: the last is outside the bracket, and the others are kept."""
    along = ("m", [0.2, 0.6, 1.0])
    steps = []
    found = threshold_curve(
        FLIP, {"C": 1.0, "s": 0.0}, over="mu", bracket=(-0.1, 0.4), criterion="almost_sure", along=along,
        progress=steps.append,
    )  # fmt: skip
    np.testing.assert_allclose(found["threshold"][:2], [0.02, 0.18], atol=2e-6)
    assert np.isnan(found["threshold"][2])
    assert np.isnan(found["closed_form"][2])
    assert "does not cross 0" in str(found["reason"][2].item())
    assert found["m"].attrs["long_name"] == FLIP.parameters["m"]
    assert steps == pytest.approx([1 / 3, 2 / 3, 1])
    with pytest.raises(InvalidInput, match="does not cross 0"):
        threshold_curve(
            FLIP, {"C": 1.0, "s": 0.0}, over="mu", bracket=(-0.1, -0.05), criterion="almost_sure", along=along
        )


@pytest.mark.parametrize(
    ("name", "criterion", "over", "parameters", "part"),
    [
        ("gradient-flow", "almost_sure", "eta", {"curvature": 3.0, "noise": 0.1}, "blind to the edge"),
        ("sme2", "moment", "eta", {"curvature": 3.0, "noise": 0.1}, "blind to the edge"),
        ("line-map", "almost_sure", "third", {"eta": 0.1, "curvature": 3.0}, "does not depend on third"),
        (
            "self-stabilization",
            "almost_sure",
            "eta",
            {"alpha": 1.0, "beta": 1.0},
            "centres at all parameters",
        ),
        ("catapult-map", "moment", "eta", {"width": 3.0}, "left beyond eta l = 2"),
        ("catapult-map", "gap", "eta", {"width": 3.0}, "it has no noise"),
        ("matched-linear", "gap", "eta", {"curvature": 3.0, "noise": 0.0}, "needs noise"),
        ("matched-linear", "gap", "eta", {"curvature": 3.0, "noise": 1.0}, "needs a level"),
        ("quadratic-map", "edge", "eta", {"curvature": 3.0, "noise": 1.0}, "criterion='edge' is unknown"),
        ("quadratic-map", "gap", "beta", {"curvature": 3.0, "noise": 1.0}, "no parameter 'beta' to vary"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name, criterion, over, parameters, part):
    model = catalogue()[name]
    with pytest.raises(InvalidInput, match=part):
        refuse_unavailable(model, criterion, over, {**model.defaults, **parameters})
    assert set(CRITERIA) == {"almost_sure", "moment", "gap", "escape", "density_shape"}


def test_arguments_of_a_curve():
    given = {"C": 1.0, "s": 0.1}
    for more, part in (
        ({"over": "s"}, "both given and varied"),
        ({"over": "mu", "along": ("C", [1.0])}, "C is both given and varied"),
        ({"over": "mu", "along": ("mu", [1.0])}, "at once"),
        ({"over": "mu", "along": ("zip", [1.0])}, "no parameter 'zip'"),
        ({"over": "mu", "criterion": "escape", "horizon": 10.0}, "needs a grid"),
        ({"over": "mu", "criterion": "almost_sure"}, "additive noise"),
    ):
        with pytest.raises(InvalidInput, match=part):
            threshold_curve(FLIP, given, **{"bracket": (-0.1, 0.1), "criterion": "gap"} | more)


def test_no_formula_where_none_is_known():
    given = {"curvature": 4.0, "noise": 0.1}
    assert closed_form(LINEAR, "gap", "eta", given, (0.1, 0.9), level=0.1) is None
    assert closed_form(LINEAR, "almost_sure", "eta", given, (0.6, 0.9)) is None  # 0.5 is outside
    assert closed_form(RULE, "moment", "eta", given | {"spread": 1.0}, (0.1, 0.9), p=3.0) is None
    assert closed_form(FLIP, "gap", "mu", {"C": -1.0, "s": 0.1, "m": 0.0}, (-1, 1)) is None
