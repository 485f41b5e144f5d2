"""Thresholds located on models against closed forms and reference values."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from eos_sde import models, thresholds
from eos_sde.models import maps
from eos_sde.thresholds import locate
from solvers import SDE, Grid, InvalidInput


def pitchfork(a, convention="stratonovich"):
    return SDE(
        lambda t, y, p, xp: (p.a * y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (p.s * y[0],),
        params={"a": a, "s": math.sqrt(0.2)},
        convention=convention,
    )


def oscillator(s):
    """The reference file's noisy oscillator, damping 0.05."""
    return SDE(
        lambda t, y, p, xp: (y[1], -y[0] - 0.1 * y[1]),
        lambda t, y, p, xp: (0.0 * y[0], -p.s * y[0]),
        params={"s": s},
        names=("x", "v"),
        convention="ito",
    )


def double_well(diffusion):
    return SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (xp.sqrt(2.0 * p.D),),
        params={"D": diffusion},
        convention="ito",
    )


@pytest.mark.parametrize("convention", ["ito", "stratonovich", "klimontovich"])
def test_pitchfork_exponents_in_each_convention(reference, convention):
    s = math.sqrt(reference["pitchfork_thresholds"]["parameters"]["s2"])
    settings = {"bracket": (-0.55, 0.35), "at": 0.0}
    almost_sure = locate(lambda a: pitchfork(a, convention), criterion="almost_sure", **settings)
    expected = float(thresholds.pitchfork_d_bifurcation(s, convention=convention))
    assert abs(float(almost_sure) - expected) <= almost_sure.stderr
    for p in (1, 2):
        moment = locate(lambda a: pitchfork(a, convention), criterion="moment", p=p, **settings)
        expected = float(thresholds.pitchfork_moment(s, p=p, convention=convention))
        assert abs(float(moment) - expected) <= moment.stderr
        assert moment.criterion == f"moment({p})"
    if convention == "stratonovich":
        assert float(almost_sure) == pytest.approx(reference["pitchfork_thresholds"]["value"][0], abs=1e-5)
        assert float(moment) == pytest.approx(reference["pitchfork_thresholds"]["value"][3], abs=1e-5)


def test_geometric_brownian_motion_in_its_noise():
    # mu - s^2/2 = 0; E|x|^0.4 at the p* of the reference grows from there on: 0.1 = s^2 (1 - p)/2.
    def build(s):
        return SDE(
            lambda t, y, p, xp: (0.1 * y[0],),
            lambda t, y, p, xp: (p.s * y[0],),
            params={"s": s},
            convention="ito",
        )

    almost_sure = locate(build, bracket=(0.1, 1.0), criterion="almost_sure", at=[0.0])
    assert float(almost_sure) == pytest.approx(math.sqrt(0.2), abs=1e-5)
    stable = locate(build, bracket=(0.3, 1.0), criterion="moment", at=0.0, p=4 / 9)
    assert float(stable) == pytest.approx(0.6, abs=1e-5)


def test_noisy_oscillator():
    mean_square = locate(oscillator, bracket=(0.2, 1.0), criterion="moment", at=(0.0, 0.0))
    assert float(mean_square) == pytest.approx(math.sqrt(4 * 0.05), abs=1e-5)  # s^2 = 4 zeta

    def exponent(s, zeta=0.05):  # the quadrature of the reference file
        def weight(t):
            return math.exp(-(t**3 / 6 + 2 * (1 - zeta**2) * t) / s**2)

        above = quad(lambda r: 2 * r**2 * weight(r * r), 0, 3)[0]  # t = r^2 removes the root at 0
        below = quad(lambda r: 2 * weight(r * r), 0, 3)[0]
        return -zeta + 0.5 * above / below

    almost_sure = locate(oscillator, bracket=(0.2, 1.0), criterion="almost_sure", at=lambda s: (0.0, 0.0))
    assert float(almost_sure) == pytest.approx(brentq(exponent, 0.2, 1.0), abs=1e-5)
    assert float(almost_sure) > float(mean_square)


@pytest.mark.slow
def test_simulated_exponent_carries_its_sampling_error():
    settings = {"at": 0.0, "method": "simulation", "seed": 1, "duration": 50.0, "dt": 0.05}
    result = locate(pitchfork, bracket=(-0.4, 0.3), criterion="almost_sure", tolerance=1e-3, **settings)
    # Truth 0 with a false-alarm rate of 6e-5; expected error sqrt(s^2/(0.9 duration paths)) = 0.0083.
    assert abs(float(result)) < 4 * result.stderr
    assert result.stderr == pytest.approx(math.sqrt(0.2 / (45 * 64)), rel=0.4)  # 64 paths know it to 9 %
    assert "sampling" in result.method


def test_onset_of_metastability_of_the_flip_is_at_the_edge():
    # The default ratio is that of mu = 0 exactly, whatever C and s.
    errors = []
    for cells in (100, 200):
        onset = locate(
            lambda mu: models.flip_normal_form(mu, 2.0, 0.2),
            bracket=(-0.3, 0.5),
            criterion="gap",
            grid=Grid.uniform(A=(-0.95, 0.95, cells)),
        )
        assert abs(float(onset)) <= 2 * onset.stderr
        errors.append(float(onset))
    assert abs(errors[1]) < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)  # second order in the cell size


def test_gap_level_and_a_grid_that_follows_the_parameter():
    # Harmonic: the gap is the rate itself.
    well = locate(
        lambda k: models.matched_linear(k, eta=1e-3, noise=20.0),
        bracket=(0.2, 3.0),
        criterion="gap",
        level=1.0,
        grid=lambda k: Grid.uniform(x=(-6 * 0.45 / math.sqrt(k), 6 * 0.45 / math.sqrt(k), 200)),
    )
    expected = (1 - math.exp(-1e-3)) / 1e-3  # where -log(1 - eta h)/eta = 1
    assert float(well) == pytest.approx(expected, abs=3 * well.stderr)
    assert well.stderr < 1e-2


def test_a_map_is_judged_by_its_transfer_operator():
    # The map x+ = (1 - h) x + noise has eigenvalues (1 - h)^n, hence the gap -log|1 - h|: 0.5 at
    # h = 1 + e^-1/2.
    beyond = locate(
        lambda h: maps.quadratic_map(1.0, h, 0.3),
        bracket=(1.2, 1.95),
        criterion="gap",
        level=0.5,
        tolerance=1e-4,
        grid=Grid.uniform(x=(-2.5, 2.5, 120)),
    )
    assert float(beyond) == pytest.approx(1 + math.exp(-0.5), abs=3 * beyond.stderr)
    assert beyond.stderr < 0.01


@pytest.mark.parametrize("how", ["wall", "target"])
def test_escape_reference(reference, how):
    item = reference["qsd_dw_left_D0.1"]
    settings = {"bracket": (0.05, 0.2), "criterion": "escape", "horizon": 1 / item["value"]}
    if how == "wall":
        grid, removal = Grid.uniform(x=(-3, 0.5, 200)), {"boundary": {"x": ("reflecting", "absorbing")}}
    else:
        grid, removal = Grid.uniform(x=(-3, 2.0, 300)), {"target": lambda x: x > 0.5}
    result = locate(double_well, grid=grid, **removal, **settings)
    assert float(result) == pytest.approx(item["parameters"]["D"], abs=2 * result.stderr)
    assert result.stderr < 1e-4
    assert result.criterion == "escape"


GRID = Grid.uniform(A=(-0.9, 0.9, 50))


def flip(mu):
    return models.flip_normal_form(mu, 1.0, 0.1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"criterion": "p_bifurcation"}, "criterion='p_bifurcation' is unknown"),
        ({"criterion": "gap"}, "needs the setting 'grid'"),
        ({"criterion": "escape", "grid": GRID}, "needs the setting 'horizon'"),
        ({"criterion": "gap", "grid": GRID, "horizon": 1.0}, "no setting 'horizon'"),
        ({"criterion": "gap", "grid": GRID, "level": 0.1, "ratio": 3.0}, "both given"),
        ({"criterion": "gap", "grid": GRID, "level": 0.0}, "level=0.0"),
        ({"criterion": "gap", "grid": GRID, "ratio": 0.5}, "ratio=0.5"),
        ({"criterion": "gap", "grid": GRID, "ratio": 0.0}, "ratio=0.0"),
        ({"criterion": "gap", "grid": (-1, 1, 10)}, "grid is a tuple"),
        ({"criterion": "escape", "grid": GRID, "horizon": -1.0}, "horizon=-1.0"),
        (
            {"criterion": "gap", "grid": GRID, "bracket": (-0.2, -0.1)},
            r"does not cross 3.25\d+ in bracket=\(-0.2, -0.1\)",
        ),
        ({"criterion": "gap", "grid": GRID, "bracket": (0.2, 0.1)}, "low < high"),
        ({"criterion": "gap", "grid": GRID, "bracket": (0.2, math.nan)}, r"bracket=\(0.2, nan\)"),
        ({"criterion": "gap", "grid": GRID, "bracket": 0.2}, "bracket=0.2"),
        ({"criterion": "gap", "grid": GRID, "tolerance": 0.0}, "tolerance=0.0"),
        ({"criterion": "gap", "grid": GRID, "tolerance": 2.0}, "tolerance=2"),
        ({"criterion": "gap", "grid": lambda mu: 3}, r"grid\(-0.1\) returned a int"),
        ({"criterion": "escape", "grid": GRID, "horizon": 1.0, "boundary": "reflecting"}, "nothing removes"),
        ({"criterion": "escape", "grid": GRID, "horizon": 1.0, "target": 3}, "absorbed=3"),
        ({"criterion": "density_shape", "grid": GRID, "bracket": (-0.1, -0.05)}, "1 modes at both ends"),
        ({"criterion": "density_shape", "grid": GRID, "horizon": 1.0}, "no setting 'horizon'"),
        ({"criterion": "moment", "at": 0.0, "p": 0}, "p=0.0"),
        ({"criterion": "almost_sure", "at": 0.0}, "fixed point|not 0"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        locate(flip, **{"bracket": (-0.1, 0.2), **arguments})


def test_exponents_need_a_model():
    with pytest.raises(
        InvalidInput, match="returned a float; criterion 'almost_sure' needs an SDE or a NoisyMap"
    ):
        locate(lambda h: h, bracket=(0.5, 2.5), criterion="almost_sure", at=0.0)


def test_no_sign_change_gives_both_ends():
    with pytest.raises(InvalidInput, match=r"is -0\.3 at -0\.3 and -0\.1 at -0\.1"):
        locate(pitchfork, bracket=(-0.3, -0.1), criterion="almost_sure", at=0.0)


def test_the_marginal_ratio_is_the_quartic_wells():
    # Schroedinger form of U = A^4/4 with unit diffusion on sinc points: V = A^6/4 - 3 A^2/2.
    n, reach = 80, 4.5
    h = 2 * reach / n
    x = -reach + h * (np.arange(n) + 0.5)
    i = np.subtract.outer(np.arange(n), np.arange(n))
    kinetic = np.where(i == 0, np.pi**2 / 3, 2.0 * (-1.0) ** i / np.where(i == 0, 1, i) ** 2) / h**2
    values = np.linalg.eigvalsh(kinetic + np.diag(x**6 / 4 - 1.5 * x**2))
    assert abs(values[0]) < 1e-11
    assert values[2] / values[1] == pytest.approx(thresholds.MARGINAL_RATIO, rel=1e-11)
