"""Figures of the campaign: forecast lines under measured points for a task, and every cell on the diagonal."""

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from eos_sde.plots import COLOURS, GREY

_MARKERS = "osD^v<>"
_ROWS = (
    ("sharpness", "learning rate × sharpness"),
    ("loss", "mean training loss"),
    ("variance", "variance, first eigenvector"),
)


def campaign_task_figure(table: xr.Dataset, task: str, *, rule: str = "sgd") -> Figure:
    """A task over steps: forecast lines, measured points with standard errors, a colour per seed.

    Parameters
    ----------
    table : Dataset
        From `bridge.run_campaign`.
    task, rule : str
        Which cells; a column for each batch size that was run.

    Returns
    -------
    Figure
        Sharpness times learning rate, mean loss, and the variance along the top eigenvector of the checkpoint.
    """
    chosen = table.sel(task=task, rule=rule)
    run = chosen["measured_loss"].notnull().any(("seed", "step"))
    chosen = chosen.isel(batch=run.values) if run.any() else chosen
    figure = Figure(figsize=(max(5.5, 3.3 * chosen.sizes["batch"]), 7.2), layout="constrained")
    axes = figure.subplots(len(_ROWS), chosen.sizes["batch"], squeeze=False, sharex=True, sharey="row")
    for column, batch in enumerate(chosen["batch"].values):
        for (quantity, label), axis in zip(_ROWS, axes[:, column], strict=True):
            for i, seed in enumerate(chosen["seed"].values):
                _path(
                    axis,
                    chosen.sel(batch=batch, seed=seed),
                    quantity,
                    COLOURS[i % len(COLOURS)],
                    f"seed {seed}",
                )
            if column == 0:
                axis.set_ylabel(label, fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0, column].axhline(2, color=GREY, ls=":", lw=1)
        axes[0, column].set_title(f"batch {batch}", fontsize=10, loc="left")
        axes[-1, column].set_xlabel("steps since the checkpoint", fontsize=9)
    lines = [line for line in axes[0, 0].lines if str(line.get_label()).startswith("seed")]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=8, frameon=False)
    figure.suptitle(f"{task}, {rule}: forecast from one checkpoint (lines), then run (points)", fontsize=11)
    return figure


def _path(axis: Axes, cell: xr.Dataset, quantity: str, colour: str, label: str) -> None:
    scale = float(cell["eta"]) if quantity == "sharpness" else 1.0
    axis.plot(cell["step"], scale * cell[f"forecast_{quantity}"], color=colour, lw=1.8, label=label)
    axis.errorbar(cell["step"], scale * cell[f"measured_{quantity}"], scale * cell[f"measured_{quantity}_stderr"],
                  fmt=".", ms=5, lw=0.8, color=colour)  # fmt: skip


def campaign_figure(table: xr.Dataset) -> Figure:
    """Every cell, forecast against measured: learning rate times sharpness, and mean loss, over the last third.

    Parameters
    ----------
    table : Dataset
        From `bridge.run_campaign`.

    Returns
    -------
    Figure
        A colour per batch size, a marker per task, open for rules other than "gd" and "sgd"; bands of 5 and 10 %.
    """
    figure = Figure(figsize=(10.4, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    late = table.isel(step=table["step"].values > 2 * table.attrs["steps"] / 3)
    _diagonal(left, late, "sharpness", table["eta"])
    _diagonal(right, late, "loss", 1.0)
    left.set(xlabel="forecast learning rate × sharpness", ylabel="measured", xscale="log", yscale="log")
    right.set(xlabel="forecast mean loss", ylabel="measured", xscale="log", yscale="log")
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    right.legend(
        handles=_keys(table),
        fontsize=7.5,
        frameon=False,
        title="open: other rules than gd, sgd",
        title_fontsize=7.5,
    )
    done = int(np.isfinite(table["sharpness_ratio"]).sum())
    figure.suptitle(f"Forecast from a checkpoint against the run from it: {done} cells", fontsize=11)
    return figure


def _keys(table: xr.Dataset) -> list[Line2D]:
    """A marker for each task and a colour for each batch size."""
    return [
        *(
            Line2D([], [], ls="", ms=5, marker=_MARKERS[i % len(_MARKERS)], color=GREY, label=str(task))
            for i, task in enumerate(table["task"].values)
        ),
        *(
            Line2D([], [], lw=4, color=COLOURS[j % len(COLOURS)], label=f"batch {batch}")
            for j, batch in enumerate(table["batch"].values)
        ),
    ]


def _diagonal(axis: Axes, late: xr.Dataset, quantity: str, scale) -> None:
    forecast = (scale * late[f"forecast_{quantity}"]).mean("step", skipna=False)
    measured = (scale * late[f"measured_{quantity}"]).mean("step", skipna=False)
    error = scale * late[f"late_{quantity}_stderr"]
    both = np.concatenate([forecast.values.ravel(), measured.values.ravel()])
    both = both[np.isfinite(both)]
    low, high = (0.9 * both.min(), 1.1 * both.max()) if both.size else (0.1, 1.0)
    ends = np.geomspace(low, high, 60)
    for margin, alpha in ((0.10, 0.12), (0.05, 0.2)):
        axis.fill_between(ends, ends * (1 - margin), ends * (1 + margin), color=GREY, alpha=alpha, lw=0)
    axis.plot(ends, ends, color=GREY, lw=1)
    for i, task in enumerate(late["task"].values):
        for j, batch in enumerate(late["batch"].values):
            for rule in late["rule"].values:
                where = {"task": task, "batch": batch, "rule": rule}
                x, y, dy = (a.sel(where).values for a in (forecast, measured, error))
                colour, plain = COLOURS[j % len(COLOURS)], rule in ("gd", "sgd")
                if not np.isfinite(x).any():
                    continue
                axis.errorbar(x, y, dy, fmt=_MARKERS[i % len(_MARKERS)], ms=5, lw=1, color=colour,
                              mfc=colour if plain else "white")  # fmt: skip
    axis.set(xlim=(low, high), ylim=(low, high))
    axis.spines[["top", "right"]].set_visible(False)


def campaign_figures(table: xr.Dataset) -> dict[str, Figure]:
    """All figures of a campaign, by the name of their file.

    Parameters
    ----------
    table : Dataset
        From `bridge.run_campaign`.

    Returns
    -------
    dict
        "all", and one for each task and rule that was forecast.
    """
    figures = {"all": campaign_figure(table)}
    for task in table["task"].values:
        for rule in table["rule"].values:
            if not math.isnan(float(table["forecast_loss"].sel(task=task, rule=rule).mean())):
                figures[f"{task}-{rule}"] = campaign_task_figure(table, str(task), rule=str(rule))
    return figures
