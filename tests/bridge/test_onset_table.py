"""The table of onsets: cells resumed bit for bit, failures told, intervals and verdicts as defined."""

import json

import numpy as np
import pytest
import xarray as xr

from eos_sde.bridge import onset_grid
from eos_sde.bridge.onset_grid import LOSSES, NETWORKS, Effort, onset_table, summarise_onsets
from solvers.errors import ConvergenceFailure, InvalidInput

EFFORT = Effort(examples=6, populations=3, horizon=100, tolerance=0.2, typical_horizon=100, rtol=0.1)
CHOICE = {"networks": ["digits-tanh"], "batch_sizes": [2, 6], "seeds": [0], "effort": EFFORT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onsets")


@pytest.fixture(scope="module")
def table(folder):
    return onset_table(folder / "cells", **CHOICE)


@pytest.mark.slow
def test_cells_hold_prediction_and_measurement(table):
    assert dict(table.sizes) == {"network": 1, "loss": 2, "criterion": 1, "batch_size": 2, "seed": 1}
    descent = table.sel(batch_size=6)
    assert np.allclose(descent["predicted"], 2 / descent["sharpness"], rtol=1e-12)
    # a last bracket of 20 % locates the onset to 20 %/sqrt(12) = 6 %; 3 of that
    assert np.all(abs(table["ratio"] - 1) < 0.18)
    assert np.all(table["measured_stderr"] > 0)
    assert np.all(table["predicted"].sel(batch_size=2) < table["predicted"].sel(batch_size=6))
    assert all(table[name].attrs["units"] for name in ("predicted", "measured", "sharpness", "ratio"))


@pytest.mark.slow
def test_finished_cells_are_not_computed_again(folder, table, monkeypatch):
    def never(*args, **settings):
        raise AssertionError("computed again")

    monkeypatch.setattr(onset_grid, "measure_onset", never)
    fractions = []
    again = onset_table(folder / "cells", **CHOICE, progress=lambda _, fraction: fractions.append(fraction))
    assert again.identical(table)
    assert fractions == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.slow
def test_a_lost_cell_comes_back_with_the_same_bits(folder, table):
    lost = folder / "cells" / "digits-tanh_cross-entropy_mean-square_batch2_seed0.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    onset_table(folder / "cells", **CHOICE)
    assert json.loads(lost.read_text()) == before
    assert not [path for path in lost.parent.iterdir() if path.suffix != ".json"]


@pytest.mark.slow
def test_cells_of_other_settings_are_refused(folder, table):
    other = Effort(**{**EFFORT.__dict__, "horizon": 150})
    with pytest.raises(InvalidInput, match="made with other settings"):
        onset_table(folder / "cells", **(CHOICE | {"effort": other}))


def test_a_failure_is_told(tmp_path, monkeypatch):
    def fail(*args, **settings):
        raise ConvergenceFailure("the loss stopped at 1e-3")

    monkeypatch.setattr(onset_grid, "find_minimum", fail)
    table = onset_table(tmp_path, **CHOICE)
    assert np.all(table["verdict"] == "not measured")
    assert np.all(table["reason"] == "the loss stopped at 1e-3")
    assert np.all(np.isnan(table["ratio"]))


def made_up(ratio, stderr):
    """A table whose predictions are 2, exactly, on three seeds."""
    dims = ("network", "loss", "criterion", "batch_size", "seed")
    measured = 2 * np.reshape(ratio, (1, 1, 1, 1, 3))
    numbers = {
        "predicted": np.full_like(measured, 2.0), "predicted_stderr": np.zeros_like(measured),
        "measured": measured, "measured_stderr": 2 * np.reshape(stderr, (1, 1, 1, 1, 3)),
        "sharpness": np.full_like(measured, 0.5),
    }  # fmt: skip
    return onset_grid._compared(xr.Dataset({name: (dims, value) for name, value in numbers.items()}))


def test_verdicts_and_intervals():
    table = made_up([1.02, 1.04, 0.9], [0.001, 0.01, 0.01])
    assert list(table["verdict"].values.ravel()) == ["within 3 %", "within its error", "off"]
    assert np.allclose(table["ratio_low"].values.ravel(), [1.02 - 0.00196, 1.04 - 0.0196, 0.9 - 0.0196])
    assert np.allclose(table["ratio_high"] - table["ratio"], table["ratio"] - table["ratio_low"])
    assert made_up([np.nan, 1, 1], [0.01] * 3)["verdict"].values.ravel()[0] == "not measured"


def test_mean_over_seeds():
    close = summarise_onsets(made_up([1.0, 1.0, 1.0], [0.03, 0.0, 0.04]))
    assert np.isclose(close["ratio_stderr"].item(), 0.05 / 3)  # of the cells
    assert close["relative_to_edge"].item() == 0.5
    apart = summarise_onsets(made_up([0.95, 1.0, 1.05], [0.001] * 3))
    assert np.isclose(apart["ratio_stderr"].item(), 0.05 / np.sqrt(3))  # between seeds
    assert (close["within"].item(), apart["within"].item()) == (3, 1)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_networks_can_interpolate(network, loss):
    task = NETWORKS[network].load(loss, onset_grid.FULL.examples)
    assert task.n == 64
    assert task.n * (task.outputs - (loss == "cross-entropy")) < task.size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": ["resnet"]}, "network='resnet' is not known"),
        ({"losses": ["hinge"]}, "loss='hinge' is not known"),
        ({"criteria": ["median"]}, "criterion='median' is not known"),
        ({"batch_sizes": [7]}, "batch_size=7 must lie between 1 and 6"),
        ({"seeds": []}, "one or more different values"),
        ({"seeds": [1, 1]}, "one or more different values"),
        ({"seeds": [-1]}, "seed=-1 must be at least 0"),
    ],
)
def test_bad_input_is_refused(tmp_path, settings, message):
    with pytest.raises(InvalidInput, match=message):
        onset_table(tmp_path / "new", **(CHOICE | settings))
    assert not (tmp_path / "new").exists()
