"""Predicted against measured, whatever was measured."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from eos_sde.plots import COLOURS, GREY
from eos_sde.sweep_plots import fixed_axes
from solvers.errors import InvalidInput


def agreement_figure(dataset: xr.Dataset) -> Figure:
    """Predicted against measured on the diagonal, a colour for each label of the shortest axis of text.

    Parameters
    ----------
    dataset : Dataset
        With ``predicted`` and ``measured`` over the same axes, and ``predicted_stderr``, ``measured_stderr`` if known.

    Returns
    -------
    Figure
        Bars of one standard error, and a band of 5 % about the diagonal.

    Raises
    ------
    InvalidInput
        If no point has both.
    """
    names = ("predicted", "measured", "predicted_stderr", "measured_stderr")
    table = xr.broadcast(
        *(dataset[name] if name in dataset else xr.zeros_like(dataset["measured"]) for name in names)
    )
    x, y, dx, dy = (array.astype(float) for array in table)
    both = np.isfinite(x.values) & np.isfinite(y.values)
    if not both.any():
        raise InvalidInput("no point of the dataset has both a predicted and a measured value")
    texts = [
        str(dim)
        for dim in x.dims
        if dim in dataset.coords and dataset[dim].dtype.kind in "UOT" and x.sizes[dim] > 1
    ]
    by = min(texts, key=lambda dim: x.sizes[dim], default=None)
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axis = figure.subplots()
    ends = np.array(
        [min(x.values[both].min(), y.values[both].min()), max(x.values[both].max(), y.values[both].max())]
    )
    log = ends[0] > 0 and ends[1] > 5 * ends[0]
    ends = (
        ends * np.array([0.9, 1.1])
        if log
        else ends + np.array([-0.06, 0.06]) * (np.ptp(ends) or abs(ends[0]) or 1.0)
    )
    line = np.geomspace(ends[0], ends[1], 50) if log else np.linspace(ends[0], ends[1], 50)
    axis.fill_between(
        line,
        line - 0.05 * np.abs(line),
        line + 0.05 * np.abs(line),
        color=GREY,
        alpha=0.2,
        lw=0,
        label="± 5 %",
    )
    axis.plot(line, line, color=GREY, lw=1)
    for i, label in enumerate(dataset[by].values if by else [None]):
        where = {} if label is None else {by: label}
        points = [array.sel(where).values.ravel() for array in (x, y, dy, dx)]
        points[2:] = [np.where(np.isfinite(bar), bar, 0) for bar in points[2:]]
        axis.errorbar(*points, fmt="osD^v<>"[i % 7], ms=4.5, lw=1, capsize=2, color=COLOURS[i % len(COLOURS)],
                      label=None if label is None else f"{by} = {label}")  # fmt: skip
    if log:
        axis.set(xscale="log", yscale="log")
    axis.set(xlabel="predicted", ylabel="measured", xlim=ends, ylim=ends)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(fixed_axes(dataset), fontsize=9, loc="left")
    return figure
