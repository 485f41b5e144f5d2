"""Figures of models of the catalogue: spectra and densities, ensembles over time, curves of thresholds."""

import json
import math
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from eos_sde.plots import COLOURS, GREY
from solvers.errors import InvalidInput

_WIDE_RANGE = 200.0
_SHOWN_PATHS = 12


def _page(panels: int, *, rows: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(5.2 * panels, 4.0 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, panels, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _told(axis: Axes, title: str, **labels: Any) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.set(**labels)


def _heading(figure: Figure, dataset: xr.Dataset, text: str = "") -> None:
    attrs = dataset.attrs
    if "model" not in attrs or "parameters" not in attrs:
        return
    try:
        given = json.loads(attrs["parameters"])
    except ValueError:
        given = {}
    named = ", ".join(f"{name} = {value:g}" for name, value in given.items())
    figure.suptitle(f"{attrs['model']}{text}\n{named}", fontsize=11)


def spectrum_figure(dataset: xr.Dataset) -> Figure:
    """Eigenvalues in the plane, or decay rates where all are real, beside the density and the slowest mode.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.model_spectrum` or `solvers.eigenmodes`, over one or two axes.

    Returns
    -------
    Figure
        To be saved or shown.

    Raises
    ------
    InvalidInput
        If there are more than two axes.
    """
    axes = [str(name) for name in dataset["right"].dims if name != "mode"]
    if len(axes) > 2:
        raise InvalidInput(f"the modes have the axes {', '.join(axes)}; a figure takes one or two")
    slow = min(int(dataset.attrs.get("zero_modes", 1)), dataset.sizes["mode"] - 1)
    figure, ((first, second, *rest),) = _page(1 + len(axes))
    transfer = str(dataset["eigenvalue"].attrs.get("units")) == "1" or "step" in dataset.attrs
    _eigenvalues(first, dataset["eigenvalue"].values, transfer=transfer)
    density = dataset["density"] if "density" in dataset else dataset["right"].isel(mode=0).real
    named = str(density.attrs.get("long_name", "density"))
    mode = dataset["right"].isel(mode=slow).real
    if len(axes) == 1:
        (name,) = axes
        second.fill_between(dataset[name], density, color=COLOURS[0], alpha=0.25, lw=0)
        second.plot(dataset[name], density, color=COLOURS[0], lw=2, label=named)
        second.plot(dataset[name], mode, color=COLOURS[1], lw=1.5, ls="--", label="slowest decaying mode")
        second.axhline(0, color=GREY, lw=0.6)
        second.legend(fontsize=8, frameon=False)
        second.margins(x=0)
        _told(second, "Where the process is, and what decays last", xlabel=name, ylabel="density")
    else:
        _plane(figure, second, density, axes, named)
        _plane(figure, rest[0], mode, axes, "slowest decaying mode", signed=True)
    _heading(figure, dataset, f": {dataset.attrs['operator']}" if "operator" in dataset.attrs else "")
    return figure


def spectra_figure(dataset: xr.Dataset) -> Figure:
    """Decay rates of the slowest modes against a parameter.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.spectrum_curve`.

    Returns
    -------
    Figure
        On a logarithmic scale where the rates span more than two decades; modes that turn are open.
    """
    along = dataset.attrs["along"]
    figure, ((axis,),) = _page(1)
    x, rates = dataset[along].values, dataset["decay_rate"].values
    count = dataset.sizes["mode"] - 1
    # the fastest is the highest line, and the first of the legend
    colours = (
        COLOURS if count <= len(COLOURS) else matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, count))
    )
    for mode in range(1, dataset.sizes["mode"]):
        colour = colours[mode - 1]
        axis.plot(x, rates[:, mode], lw=1.2, color=colour, label=f"mode {mode}")
        for turns in (False, True):
            here = (dataset["frequency"].values[:, mode] > 0) == turns
            axis.plot(x[here], rates[here, mode], "o", ms=4, color=colour, mfc="white" if turns else colour)
    kept = rates[:, 1:][np.isfinite(rates[:, 1:]) & (rates[:, 1:] > 0)]
    if kept.size and kept.max() > _WIDE_RANGE * kept.min():
        axis.set_yscale("log")
    axis.legend(fontsize=8, frameon=False, loc="best", reverse=True)
    _told(
        axis, "Decay rates of the slowest modes (open: they turn)", xlabel=along, ylabel="decay rate [1/time]"
    )
    _heading(figure, dataset)
    return figure


def _eigenvalues(axis: Axes, values: np.ndarray, *, transfer: bool) -> None:
    number = np.arange(values.size)
    if transfer:
        circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
        axis.plot(circle.real, circle.imag, color=GREY, lw=0.8)
        axis.set_aspect("equal")
        labels = {"xlabel": "real part", "ylabel": "imaginary part"}
        title = "Eigenvalues in the unit circle"
    elif np.any(np.abs(np.imag(values)) > 1e-12 * np.abs(values).max()):
        axis.axvline(0, color=GREY, lw=0.8)
        labels = {"xlabel": "real part [1/time]", "ylabel": "imaginary part [1/time]"}
        title = "Eigenvalues of the generator"
    else:
        rates = -np.real(values)
        kept = rates > 0
        axis.vlines(number[kept], 0, rates[kept], color=COLOURS[0], lw=2)
        axis.plot(number[kept], rates[kept], "o", color=COLOURS[0])
        if kept.any() and rates[kept].max() > _WIDE_RANGE * rates[kept].min():
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_xticks(number)
        _told(axis, "Decay rates of the slowest modes", xlabel="mode", ylabel="decay rate [1/time]")
        return
    axis.axhline(0, color=GREY, lw=0.8)
    axis.plot(np.real(values), np.imag(values), "o", color=COLOURS[0], ms=6)
    for i, value in enumerate(values):
        axis.annotate(
            str(i), (value.real, np.imag(value)), textcoords="offset points", xytext=(5, 5), fontsize=8
        )
    _told(axis, title, **labels)


def _plane(
    figure: Figure, axis: Axes, values: xr.DataArray, axes: list[str], title: str, *, signed: bool = False
) -> None:
    across, up = axes
    table = values.transpose(up, across)
    size = float(np.abs(table).max()) or 1.0
    look: dict[str, Any] = (
        {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, -size, size)} if signed else {"cmap": "Blues"}
    )
    mesh = axis.pcolormesh(table[across], table[up], table.values, shading="nearest", rasterized=True, **look)
    figure.colorbar(mesh, ax=axis, shrink=0.85)
    _told(axis, title, xlabel=across, ylabel=up)


def ensemble_figure(dataset: xr.Dataset) -> Figure:
    """Every component over time, as mean, median and the band between the outer quantiles, and where the paths end.

    Parameters
    ----------
    dataset : Dataset
        From `simulate_model` or `solvers.simulate`.

    Returns
    -------
    Figure
        A row for each component; single paths are drawn where they were kept.
    """
    names = [str(name) for name in dataset["component"].values]
    figure, axes = _page(2, rows=len(names))
    for (left, right), name in zip(axes, names, strict=True):
        here = dataset.sel(component=name)
        time = dataset["time"].values
        if "state" in here:
            shown = here["state"].isel(path=slice(_SHOWN_PATHS)).transpose("time", "path").values
            left.plot(time, shown, color=GREY, alpha=0.5, lw=0.6)
        counted = "density" in dataset and dataset["density"].dims == ("time", name)
        if counted:
            density = dataset["density"].values.T
            settled = density[
                :, density.shape[1] // 5 :
            ].max()  # a start in one point would outshine all that follows
            left.pcolormesh(time, dataset[name], density, shading="nearest", cmap="Blues", rasterized=True,
                            vmin=0, vmax=settled)  # fmt: skip
        _band(left, here, time, filled=not counted)
        if "mean" in here:
            left.plot(time, here["mean"], color=COLOURS[1], lw=1.5, ls="--", label="mean")
        left.legend(fontsize=8, framealpha=0.7, loc="upper right" if counted or "state" in here else "best")
        left.margins(x=0)
        _told(left, f"{name} over time", xlabel="time", ylabel=name)
        _ends(right, here["final"].values, name)
        _told(right, f"{name} at the end, t = {time[-1]:g}", xlabel=name, ylabel="density of the paths")
    _heading(figure, dataset, f", {dataset.sizes['path']} paths")
    return figure


def _band(axis: Axes, here: xr.Dataset, time: np.ndarray, *, filled: bool) -> None:
    if "quantile" in here:
        levels = here["q"].values
        low, high = here["quantile"].sel(q=levels.min()), here["quantile"].sel(q=levels.max())
        label = f"{100 * levels.min():g} to {100 * levels.max():g} % of the paths"
        if filled:
            axis.fill_between(time, low, high, color=COLOURS[0], alpha=0.25, lw=0, label=label)
        else:
            axis.plot(time, low, color=COLOURS[0], lw=1, ls=":", label=label)
            axis.plot(time, high, color=COLOURS[0], lw=1, ls=":")
        middle = here["quantile"].sel(q=0.5, method="nearest")
        axis.plot(time, middle, color=COLOURS[0], lw=2, label="median")
    elif "variance" in here and "mean" in here:
        deviation = np.sqrt(np.maximum(here["variance"], 0))
        axis.fill_between(time, here["mean"] - deviation, here["mean"] + deviation, color=COLOURS[0], alpha=0.25, lw=0,
                          label="mean ± deviation")  # fmt: skip


def _ends(axis: Axes, final: np.ndarray, name: str) -> None:
    kept = final[np.isfinite(final)]
    if kept.size and np.ptp(kept) > 1e-12 * max(1.0, float(np.abs(kept).max())):
        axis.hist(
            kept, bins=min(80, max(10, math.isqrt(kept.size))), density=True, color=COLOURS[0], alpha=0.6
        )
    elif kept.size:
        axis.axvline(kept[0], color=COLOURS[0], lw=2)
        axis.set_ylim(0, 1)
        axis.set_yticks([])
        axis.text(0.98, 0.92, f"all paths end at {name} = {kept[0]:.5g}", transform=axis.transAxes, ha="right",
                  bbox={"fc": "white", "ec": "none"})  # fmt: skip
    else:
        axis.text(0.5, 0.5, "all paths diverged", transform=axis.transAxes, ha="center")


def threshold_figure(dataset: xr.Dataset) -> Figure:
    """A threshold against a second parameter, with its error, and the closed form where there is one.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.threshold_curve`, along a second parameter.

    Returns
    -------
    Figure
        To be saved or shown.

    Raises
    ------
    InvalidInput
        If the dataset holds a single threshold.
    """
    along, over = dataset.attrs.get("along"), dataset.attrs["over"]
    if not along:
        raise InvalidInput(
            "the dataset holds a single threshold, of which there is nothing to draw; give --along"
        )
    figure, ((axis,),) = _page(1)
    draw_threshold(axis, dataset)
    axis.legend(fontsize=8, frameon=False)
    _told(axis, str(dataset.attrs["meaning"]), xlabel=along, ylabel=f"threshold in {over}")
    _heading(figure, dataset, f": {dataset.attrs['criterion']}")
    return figure


def draw_threshold(axis: Axes, dataset: xr.Dataset, *, turned: bool = False, label: str = "located") -> None:
    """A curve of thresholds on axes whose abscissa is the second parameter.

    Parameters
    ----------
    axis : Axes
        To be drawn on.
    dataset : Dataset
        From `thresholds.threshold_curve`.
    turned : bool
        The second parameter is the ordinate instead.
    label : str
        For the legend.
    """
    along = dataset[dataset.attrs["along"]].values
    known, found = dataset["closed_form"].values, dataset["threshold"].values
    bars = 2 * np.where(np.isfinite(dataset["stderr"].values), dataset["stderr"].values, 0)
    if np.isfinite(known).any():
        line = (known, along) if turned else (along, known)
        axis.plot(*line, color=COLOURS[1], lw=4, alpha=0.5, label="closed form")
    points = {"x": found, "y": along, "xerr": bars} if turned else {"x": along, "y": found, "yerr": bars}
    axis.errorbar(**points, fmt="o-", ms=4, lw=1.2, capsize=3, color=COLOURS[0], label=f"{label}, ± 2 s.e.")
