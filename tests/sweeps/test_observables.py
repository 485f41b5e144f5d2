"""Registered observables against the solvers they call, points together against points alone, and closed forms."""

import numpy as np
import pytest

import eos_sde
from eos_sde.models import flip_normal_form
from eos_sde.sweeps.ensembles import ensemble
from eos_sde.sweeps.observables import OBSERVABLES
from eos_sde.thresholds import locate
from solvers import FokkerPlanck, Grid, eigenmodes, escape_rate
from solvers.errors import InvalidInput

FLIP = {"model": "flip-normal-form", "C": 1.0, "s": 0.1}
GRID = {"grid": {"A": [-0.8, 0.8, 60]}}
MU = {"mu": [-0.02, 0.03]}


def operators(boundary="reflecting"):
    grid = Grid.uniform(A=(-0.8, 0.8, 60))
    return [FokkerPlanck(flip_normal_form(mu, 1.0, 0.1), grid, boundary=boundary) for mu in MU["mu"]]


def test_spectra_and_rates_are_those_of_the_solvers(tmp_path):
    gap = eos_sde.sweep("gap", MU, settings=FLIP | GRID, store=tmp_path / "gap.zarr")
    assert gap.gap.values.tolist() == [float(eigenmodes(one, k=2).gap) for one in operators()]
    modes = eos_sde.sweep("spectrum", MU, settings=FLIP | GRID | {"k": 3}, store=tmp_path / "modes.zarr")
    np.testing.assert_array_equal(
        modes.eigenvalue_real, [eigenmodes(one, k=3).eigenvalue for one in operators()]
    )
    rate = eos_sde.sweep("escape-rate", MU, settings=FLIP | GRID, store=tmp_path / "rate.zarr")
    assert rate.rate.values.tolist() == [float(escape_rate(one).rate) for one in operators("absorbing")]


def test_moments_of_an_ornstein_uhlenbeck_process(tmp_path):
    """SME-1 on a quadratic: variance eta s^2/(2 h); 200 cells of width 0.04 sigma add width^2/12, under 2e-4 of it."""
    settings = {"model": "gradient-flow", "noise": 1.0, "curvature": 2.0, "grid": {"x": [-1.0, 1.0, 200]}}
    table = eos_sde.sweep("moments", {"eta": [0.1, 0.2]}, settings=settings, store=tmp_path / "s.zarr")
    expected = np.array([0.1, 0.2]) / 4
    np.testing.assert_allclose(table.variance.isel(component=0), expected + 0.01**2 / 12, rtol=1e-3)
    np.testing.assert_allclose(table["mean"], 0.0, atol=1e-12)


def test_exponents_have_their_closed_forms(tmp_path):
    settings = {"model": "flip-normal-form", "C": 1.0, "s": 0.0, "at": 0.0}
    top = eos_sde.sweep("lyapunov", MU, settings=settings, store=tmp_path / "top.zarr")
    np.testing.assert_allclose(top.value, MU["mu"], rtol=1e-12)
    moments = eos_sde.sweep(
        "moment-lyapunov", MU, settings=settings | {"p": [1.0, 2.0]}, store=tmp_path / "p.zarr"
    )
    np.testing.assert_allclose(moments.value, np.outer(MU["mu"], [1.0, 2.0]), rtol=1e-12)


def test_thresholds_are_those_of_locate(tmp_path):
    settings = {
        "model": "flip-normal-form",
        "C": 1.0,
        "over": "mu",
        "bracket": [-0.1, 0.2],
        "criterion": "gap",
    }
    table = eos_sde.sweep("threshold", {"s": [0.1]}, settings=settings | GRID, store=tmp_path / "s.zarr")
    grid = Grid.uniform(A=(-0.8, 0.8, 60))
    build = lambda mu: flip_normal_form(mu, 1.0, 0.1)  # noqa: E731
    known = locate(build, bracket=(-0.1, 0.2), criterion="gap", grid=grid)
    assert float(table.value[0]) == known.value
    assert float(table.stderr[0]) == known.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::solvers.AccuracyWarning")
def test_ensembles_together_have_the_bits_of_each_alone(tmp_path):
    """At eta 0.1 and curvature 25 the map multiplies by -1.5: beyond doubles after 1751 steps, and it alone says so."""
    common = {
        "model": "quadratic-map",
        "noise": 0.1,
        "y0": 1.0,
        "steps": 1800,
        "paths": 40,
        "save_at": [0, 9, 1800],
    }
    axes = {"eta": [0.1, 0.05], "curvature": [1.0, 2.0, 25.0], "seed": [0, 1]}
    table = eos_sde.sweep("ensemble", axes, settings=common, store=tmp_path / "s.zarr").load()
    assert table["mean"].dims == ("eta", "curvature", "seed", "step", "component")
    for eta, curvature in ((0.1, 1.0), (0.05, 25.0), (0.1, 25.0)):
        with np.errstate(all="ignore"):
            alone = ensemble(**common, eta=eta, curvature=curvature, seed=1)
        here = table.sel(eta=eta, curvature=curvature, seed=1)
        np.testing.assert_array_equal(here["mean"], alone["mean"])
        np.testing.assert_array_equal(here["variance"], alone["variance"])
    diverged = table["diverged"] > 0
    assert diverged.values.sum() == 2
    assert (table["warning"] != "").values.tolist() == diverged.values.tolist()
    assert str(table["warning"].sel(eta=0.1, curvature=25.0, seed=0).values).startswith(
        "AccuracyWarning: 40 of 40 paths"
    )


def test_a_followed_line_is_the_unit_of_work(tmp_path):
    settings = FLIP | GRID | {"k": 3, "follow": "mu"}
    axes = {"mu": [0.0, 0.02, 0.04], "s": [0.1, 0.2]}
    del settings["s"]
    table = eos_sde.sweep("spectrum", axes, settings=settings, store=tmp_path / "s.zarr")
    free = {key: value for key, value in settings.items() if key != "follow"}
    plain = eos_sde.sweep("spectrum", axes, settings=free, store=tmp_path / "plain.zarr")
    np.testing.assert_allclose(
        table.eigenvalue_real, plain.eigenvalue_real, rtol=1e-9, atol=1e-12
    )  # no mode crosses here
    with pytest.raises(InvalidInput, match="cannot become longer"):
        eos_sde.sweep(
            "spectrum", axes | {"mu": [0.0, 0.02, 0.04, 0.06]}, settings=settings, store=tmp_path / "s.zarr"
        )


@pytest.mark.parametrize("name", OBSERVABLES)
def test_every_observable_tells_what_it_lacks(name, tmp_path):
    with pytest.raises(InvalidInput, match=r"missing|needs"):
        eos_sde.sweep(name, {"mu": [0.0]}, settings={}, store=tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_plateau_of_a_task(tmp_path):
    settings = {
        "task": "digits-mlp",
        "task_settings": {"examples": 50, "hidden": [6], "pool": 2},
        "steps": 20,
    }
    more = {"warmup": 20, "repeats": 1}
    table = eos_sde.sweep(
        "plateau", {"batch_size": [4, 16]}, settings=settings | more, store=tmp_path / "s.zarr"
    )
    assert (table.status == 1).all()
    assert (table.sharpness > 0).all()
    assert (table.loss_stderr > 0).all()
