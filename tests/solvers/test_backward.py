"""Passage times, committors and stationary densities in three dimensions by multigrid, against elimination."""

import numpy as np
import pytest

from solvers import (
    SDE,
    ConvergenceFailure,
    FokkerPlanck,
    Grid,
    InvalidInput,
    committor,
    eigenmodes,
    from_potential,
    lattice_modes,
    lattice_operator,
    mean_first_passage_time,
    stationary_density,
)
from solvers.resolvents import Resolvents
from tests.operators import stirred_wells

pytestmark = pytest.mark.filterwarnings("ignore:cells along")


@pytest.fixture
def cycles_always(monkeypatch):
    monkeypatch.setattr(lattice_operator, "_LARGE", 100)


def wells(D, cells):
    sde = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + 0.2 * y[0] + y[1] ** 2 + 0.5 * y[2] ** 2,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * 3,
        params={"D": D},
        names=("x", "y", "z"),
        convention="ito",
    )
    return FokkerPlanck(sde, Grid.uniform(x=(-2, 2, cells), y=(-2.5, 2.5, cells - 1), z=(-3, 3, cells - 2)))


def turning(D, cells):
    """A linear drift A X with A = -1 plus a rotation: without detailed balance, stationary N(0, D)."""
    sde = SDE(
        lambda t, y, p, xp: (-y[0] - 2 * y[1], -y[1] + 2 * y[0] - y[2], -y[2] + y[1]),
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * 3,
        params={"D": D},
        names=("x", "y", "z"),
        convention="ito",
    )
    return FokkerPlanck(sde, Grid.uniform(x=(-3, 3, cells), y=(-3, 3, cells), z=(-3, 3, cells)))


def near(sign):
    return lambda x, y, z: (x - sign) ** 2 + y**2 + z**2 < 0.3


@pytest.mark.parametrize(
    ("operator", "D", "tol"), [(wells, 0.4, 1e-8), (wells, 0.08, 1e-7), (turning, 0.4, 1e-9)]
)
def test_times_and_committors_agree_with_elimination(operator, D, tol, monkeypatch):
    # elimination is exact to rounding; the iterations stop at 1e-12, divided by sqrt(pi) > 1e-6 of its largest
    # where there is detailed balance, and the slow time scale (up to 1e5 here) comes from an exact balance
    fp = operator(D, 13)
    times, split = mean_first_passage_time(fp, near(1)), committor(fp, near(-1), near(1))
    assert times.attrs["method"] == "elimination"
    monkeypatch.setattr(lattice_operator, "_LARGE", 100)
    by_cycles, split_by_cycles = mean_first_passage_time(fp, near(1)), committor(fp, near(-1), near(1))
    assert "multigrid" in by_cycles.attrs["method"]
    assert float(np.abs(by_cycles - times).max()) < tol * float(times.max())
    assert float(np.abs(split_by_cycles - split).max()) < tol
    assert float(by_cycles.min()) >= 0.0
    assert float(split_by_cycles.min()) >= 0.0


def test_stationary_density_without_detailed_balance(cycles_always):
    fp = turning(0.4, 36)
    density = stationary_density(fp)
    masses = (density.values * fp.grid.volumes).ravel()
    assert masses.min() >= 0.0
    assert masses.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.abs(fp.generator @ masses).sum() < 1e-11 * (fp.chain.outflow @ masses)
    # the exact density is a Gaussian of variance D; second order in h = 1/6 on the scale sqrt(D), and walls at
    # 4.7 standard deviations
    x, y, z = fp.grid.coords()
    exact = np.exp(-(x**2 + y**2 + z**2) / 0.8) / (0.8 * np.pi) ** 1.5
    assert np.abs(masses - (exact * fp.grid.volumes).ravel()).sum() < (1 / 6) ** 2 / 0.4


def test_resolvents_are_positive_and_keep_mass(cycles_always):
    fp = turning(0.4, 16)
    masses = np.zeros(fp.grid.size)
    masses[fp.grid.size // 3] = 1.0
    for g in (1e-3, 0.1, 10.0):
        after = Resolvents(fp.chain, False)(g)(masses)
        assert after.sum() == pytest.approx(1.0, abs=1e-9)
        assert after.min() > -1e-9
        np.testing.assert_allclose(after - g * (fp.generator @ after), masses, atol=1e-10 * (1 + g * 300))
        function = Resolvents(fp.chain, True)(g)(np.ones(fp.grid.size))
        np.testing.assert_allclose(function, 1.0, rtol=1e-8)  # rows of the inverse sum to one


@pytest.mark.parametrize(("operator", "D", "longest"), [(wells, 0.04, 1e12), (stirred_wells, 0.05, 1e7)])
def test_long_times_agree_with_elimination(operator, D, longest, monkeypatch):
    # the slowest mode is exact to rounding; functions solve their equations in the tails to 1e-6 at worst
    fp = operator(16, D) if operator is stirred_wells else operator(D, 16)
    times = mean_first_passage_time(fp, near(1))
    monkeypatch.setattr(lattice_operator, "_LARGE", 100)
    monkeypatch.setattr(lattice_modes, "_START", 1000)
    by_cycles = mean_first_passage_time(fp, near(1))
    assert "slowest mode" in by_cycles.attrs["method"]
    assert float(times.max()) > longest
    assert float(np.abs(by_cycles - times).max()) < 1e-6 * float(times.max())
    assert float(by_cycles.min()) >= 0.0


def test_a_committor_at_weak_noise_agrees_in_the_tails(monkeypatch):
    # as above; the tails hang on the scale of the bulk, whose balance they change
    fp = wells(0.02, 16)
    split = committor(fp, near(-1), near(1))
    monkeypatch.setattr(lattice_operator, "_LARGE", 100)
    assert float(np.abs(committor(fp, near(-1), near(1)) - split).max()) < 1e-6


def test_an_undetermined_time_is_refused(cycles_always):
    with pytest.raises(ConvergenceFailure, match="more noise"):
        mean_first_passage_time(wells(0.012, 16), near(1))


def test_a_factorisation_that_does_not_fit_is_refused(monkeypatch):
    from solvers import memory

    fp = turning(0.4, 24)
    monkeypatch.setattr(memory, "available", lambda: 5 * 10**7)
    with pytest.raises(InvalidInput, match=r"needs 0\.\d+ GB"):
        eigenmodes(fp, k=2)
