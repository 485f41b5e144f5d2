"""simulate(): sweeps, continued runs, checkpoints, fast normals, divergence times."""

import numpy as np
import pytest
import xarray as xr

from solvers import SDE, AccuracyWarning, Grid, InvalidInput, simulate
from tests import problems

OU = problems.ornstein_uhlenbeck()
SETTINGS = {"dt": 0.01, "paths": 2600, "seed": 5}


def test_a_sweep_has_the_bits_of_single_runs():
    ks, ss = [0.5, 1.5], [0.2, 0.9, 1.0]
    swept = simulate(OU.sde, 2.0, t1=0.2, sweep={"k": ks, "s": ss}, threads=2, **SETTINGS)
    assert swept["mean"].dims == ("k", "s", "time", "component")
    np.testing.assert_array_equal(swept["s"], ss)
    for k in ks:
        for s in ss:
            alone = simulate(OU.sde.replace(k=k, s=s), 2.0, t1=0.2, **SETTINGS)
            at = swept.sel(k=k, s=s)
            for name in ("mean", "variance", "final"):
                np.testing.assert_array_equal(at[name], alone[name])


def test_a_sweep_compiles_once():
    from solvers.kernels import advancing

    simulate(OU.sde, 2.0, t1=0.2, sweep={"k": [1.0]}, **SETTINGS)
    made = advancing.cache_info().misses
    simulate(OU.sde, 2.0, t1=0.2, sweep={"k": [0.3, 0.4]}, **SETTINGS)
    assert advancing.cache_info().misses == made


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, "give a mapping"),
        ([1.0], "give a mapping"),
        ({"w": [1.0]}, "'w' does not exist"),
        ({"k": [1.0, np.nan]}, "sweep of 'k'"),
        ({"k": ["a"]}, "sweep of 'k'"),
    ],
)
def test_bad_sweeps_are_refused(sweep, message):
    with pytest.raises(InvalidInput, match=message):
        simulate(OU.sde, 2.0, t1=0.2, sweep=sweep, **SETTINGS)


@pytest.mark.parametrize("resolution", [32, 53])
@pytest.mark.parametrize("split", [0.07, 0.1])  # odd and even numbers of steps
def test_a_continued_run_is_the_whole_run(resolution, split):
    whole = simulate(OU.sde, 2.0, t1=0.3, resolution=resolution, **SETTINGS)
    first = simulate(OU.sde, 2.0, t1=split, resolution=resolution, **SETTINGS)
    second = simulate(OU.sde, first, t1=0.3, resolution=resolution, **SETTINGS)
    joined = xr.concat([first[["mean", "variance"]], second[["mean", "variance"]]], "time")
    np.testing.assert_array_equal(joined["mean"], whole["mean"])
    np.testing.assert_array_equal(joined["variance"], whole["variance"])
    np.testing.assert_array_equal(second["final"], whole["final"])
    np.testing.assert_allclose(joined["time"], whole["time"], rtol=1e-15)


def test_a_continued_run_has_quantiles():
    settings = SETTINGS | {"quantiles": (0.1, 0.5), "save_at": [0.3]}
    whole = simulate(OU.sde, 2.0, t1=0.3, **settings)
    second = simulate(OU.sde, simulate(OU.sde, 2.0, t1=0.2, **SETTINGS), t1=0.3, **settings)
    np.testing.assert_array_equal(second["quantile"], whole["quantile"])


def test_a_stop_condition_new_in_a_continued_run_holds_at_its_start_too():
    settings = SETTINGS | {"dt": 0.01}
    first = simulate(OU.sde, 2.0, t1=0.5, **settings)
    second = simulate(OU.sde, first, t1=0.6, stop=lambda t, y, p, xp: y[0] > 0.9, **settings)
    beyond = first["final"].values[:, 0] > 0.9
    assert 0 < beyond.sum() < beyond.size
    np.testing.assert_array_equal(second["exit_time"].values[beyond], 0.5)
    np.testing.assert_array_equal(second["final"].values[beyond], first["final"].values[beyond])
    assert (second["exit_time"].values[~beyond] > 0.5).any()


def test_a_continued_run_keeps_exits_and_divergence():
    # Ito: x -> x + x^3 dt blows up, slowly enough that some paths do so in either half.
    sde = SDE(lambda t, y, p, xp: (y[0] ** 3,), lambda t, y, p, xp: (1.0,), convention="ito")
    arguments = {"dt": 0.05, "paths": 600, "seed": 1, "stop": lambda t, y, p, xp: y[0] < -1.5}
    with pytest.warns(AccuracyWarning):
        whole = simulate(sde, 0.5, t1=3.0, **arguments)
    with pytest.warns(AccuracyWarning):
        first = simulate(sde, 0.5, t1=1.5, **arguments)
    with pytest.warns(AccuracyWarning):
        second = simulate(sde, first, t1=3.0, **arguments)
    assert 0 < first["diverged"].sum() < second["diverged"].sum()
    assert 0 < first["exited"].sum() < second["exited"].sum()
    for name in ("diverged", "exit_time", "exited", "final"):
        np.testing.assert_array_equal(second[name], whole[name])
    np.testing.assert_allclose(second["divergence_time"], whole["divergence_time"], rtol=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "seed is '6'"),
        ({"paths": 1200}, "paths is 1200"),
        ({"dt": 0.02}, "dt is 0.02"),
        ({"scheme": "milstein"}, "scheme is 'milstein'"),
        ({"resolution": 53}, "resolution is 53"),
        ({"t1": 0.1}, "t1=0.1 is not later"),
    ],
)
def test_a_run_is_continued_by_its_own_arguments(changes, message):
    first = simulate(OU.sde, 2.0, t1=0.1, **SETTINGS)
    with pytest.raises(InvalidInput, match=message):
        simulate(OU.sde, first, **({"t1": 0.2} | SETTINGS | changes))


def _stop_after(limit):
    calls = []

    def progress(fraction):
        calls.append(fraction)
        if fraction > limit:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    from solvers import checkpoint, running

    monkeypatch.setattr(checkpoint, "_INTERVAL", 0.0)  # write after every part
    file = tmp_path / "run.npz"
    arguments = SETTINGS | {
        "t1": 0.2,
        "chunk": 1024,
        "histogram": Grid.uniform(x=(-4, 4, 20)),
        "save_paths": True,
        "stop": lambda t, y, p, xp: y[0] < 1.0,
    }
    whole = simulate(OU.sde, 2.0, **arguments)
    with pytest.raises(KeyboardInterrupt):
        simulate(OU.sde, 2.0, checkpoint=file, progress=_stop_after(0.3), threads=1, **arguments)
    assert file.exists()
    assert not list(tmp_path.glob("*.part"))
    worked = []
    work = running.Run.work
    monkeypatch.setattr(
        running.Run, "work", lambda run, first, *rest: worked.append(first) or work(run, first, *rest)
    )
    resumed = simulate(OU.sde, 2.0, checkpoint=file, threads=1, **arguments)
    assert worked == [1024, 2048]  # the first part was not done again
    xr.testing.assert_identical(resumed.drop_attrs(), whole.drop_attrs())
    again = simulate(OU.sde, 2.0, checkpoint=file, threads=1, **arguments)
    assert worked == [1024, 2048]  # nothing was left to do
    xr.testing.assert_identical(again, resumed)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run.npz"
    simulate(OU.sde, 2.0, t1=0.1, checkpoint=file, **SETTINGS)
    with pytest.raises(InvalidInput, match="another model or other arguments"):
        simulate(OU.sde.replace(k=1.4), 2.0, t1=0.1, checkpoint=file, **SETTINGS)
    changed = SDE(
        lambda t, y, p, xp: (-p.k * y[0] + 0.1,),
        lambda t, y, p, xp: (p.s,),
        params={"k": 1.5, "s": 0.9},
        convention="ito",
    )
    with pytest.raises(InvalidInput, match="another model or other arguments"):
        simulate(changed, 2.0, t1=0.1, checkpoint=file, **SETTINGS)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(InvalidInput, match="cannot be read"):
        simulate(OU.sde, 2.0, t1=0.1, checkpoint=file, **SETTINGS)
    with pytest.raises(InvalidInput, match="there is no folder"):
        simulate(OU.sde, 2.0, t1=0.1, checkpoint=tmp_path / "nowhere" / "run.npz", **SETTINGS)


def test_every_kth_step_and_the_end_are_saved():
    full = simulate(OU.sde, 2.0, t1=0.11, **SETTINGS)
    some = simulate(OU.sde, 2.0, t1=0.11, save_every=4, **SETTINGS)
    np.testing.assert_allclose(some["time"], [0.0, 0.04, 0.08, 0.11])
    np.testing.assert_array_equal(some["mean"], full["mean"].sel(time=some["time"], method="nearest"))
    with pytest.raises(InvalidInput, match="save_every"):
        simulate(OU.sde, 2.0, t1=0.11, save_every=0, **SETTINGS)
    with pytest.raises(InvalidInput, match="give one of them"):
        simulate(OU.sde, 2.0, t1=0.11, save_every=2, save_at=[0.1], **SETTINGS)


def test_the_time_of_divergence_is_told_for_each_path():
    sde = SDE(lambda t, y, p, xp: (y[0] ** 3,), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    start = np.zeros((700, 1))
    start[[3, 600], 0] = 2.0, 3.0
    with pytest.warns(AccuracyWarning, match="2 of 700 paths diverged"):
        result = simulate(sde, start, t1=2.0, dt=0.1, paths=700, seed=0)
    np.testing.assert_array_equal(np.flatnonzero(result["diverged"]), [3, 600])
    for path in (3, 600):  # the same recursion by hand
        x, step = float(start[path, 0]), 0
        with np.errstate(over="ignore"):
            while np.isfinite(x):
                x, step = x + 0.1 * np.float64(x) ** 3, step + 1
        assert result["divergence_time"][path] == pytest.approx(0.1 * step)
    assert np.isnan(result["divergence_time"][0])


def test_a_progress_bar_is_drawn_and_other_values_refused():
    simulate(OU.sde, 2.0, t1=0.1, progress=True, **SETTINGS)
    with pytest.raises(InvalidInput, match="progress='yes'"):
        simulate(OU.sde, 2.0, t1=0.1, progress="yes", **SETTINGS)


def test_ten_million_paths_take_memory_for_their_ends_only(monkeypatch):
    """17 bytes a path: the end (8), the step of divergence (8) and a flag (1); no coordinate, no exits."""
    from solvers import memory

    asked = []
    monkeypatch.setattr(memory, "require", lambda size, what, remedy: asked.append(size))
    result = simulate(OU.sde, 2.0, t1=0.1, dt=0.1, paths=10_000_000, seed=1, save_at=[0.1])
    assert asked[0] == 170_000_000
    assert sum(v.nbytes for v in result.data_vars.values()) < 1.0e8
