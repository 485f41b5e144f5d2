"""The picture of CAEO's stability map: what it draws is what the map says."""

import numpy as np
import pytest

from eos_sde import thresholds
from eos_sde.stability_plots import stability_figure
from eos_sde.thresholds.caeo_regimes import REGIMES
from solvers import InvalidInput

GIVEN = {
    "alpha": 1.0, "beta": 100.0, "per_example_variance": 6.0, "examples": 1000, "sharpness": 18.0, "horizon": 300,
    "batch_size": [8, 32, 128], "alpha_stderr": 0.1,
}  # fmt: skip


def test_regions_boundary_and_points():
    table = thresholds.caeo_stability_map(**GIVEN, delta=np.geomspace(0.005, 1.0, 8), eta_base=[0.1])
    axis = stability_figure(table, measured={32: (0.05, 0.04, 0.06)}, title="which margin is safe?").axes[0]
    words = " ".join(text.get_text() for text in axis.texts)
    assert "STABLE" in words
    assert "RUNAWAY" in words
    assert "DIVERGES" not in words  # no such region
    colours = axis.collections[0].get_array().ravel()
    assert np.array_equal(colours, table["regime"].values[..., 0].ravel())
    lines = {line.get_label(): line.get_xydata() for line in axis.lines}
    boundary = next(xy for label, xy in lines.items() if label.startswith("predicted boundary"))
    np.testing.assert_allclose(boundary[:, 1], table["delta_escape"].values[:, 0])
    labels = axis.get_legend_handles_labels()[1]
    assert "measured on the network, 95 %" in labels
    # the words of a region stand in it
    for text in axis.texts:
        x, y = axis.transData.inverted().transform(axis.transAxes.transform(text.get_position()))
        near = table.sel(delta=y, batch_size=round(x), method="nearest")["regime"]
        kind = {"STABLE": "stable", "RUNAWAY": "runaway"}.get(text.get_text().split("\n")[0])
        if kind:
            assert REGIMES[int(near.values.ravel()[0])] == kind


def test_a_panel_for_each_axis():
    table = thresholds.caeo_stability_map(**GIVEN, delta=[-0.5, 0.1, 0.5], eta_base=[0.05, 0.1])
    figure = stability_figure(table)
    assert [axis.get_xlabel() for axis in figure.axes] == ["batch size", "base learning rate"]
    assert figure.axes[0].get_yscale() == "linear"  # margins of both signs


def test_one_margin_is_refused():
    table = thresholds.caeo_stability_map(**GIVEN, delta=[0.1], eta_base=[0.1])
    with pytest.raises(InvalidInput, match="one margin"):
        stability_figure(table)
