"""The picture of CAEO's stability map: regions, the boundary with its band, and what runs showed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from eos_sde.thresholds.caeo_regimes import REGIMES
from solvers.errors import InvalidInput

_REGIONS = {  # colour, words in the region
    "stable": ("#CDE8D9", "STABLE\nsharpness stays"),
    "runaway": ("#F6CFC0", "RUNAWAY\nsharpness climbs"),
    "diverging": ("#B9A6C9", "DIVERGES"),
    "outside": ("#DDDDDD", "no runaway;\nmodel ends"),
    "uncapped": ("#E6EFF8", "as SGD\n(no cap)"),
}
_WIDE = 4.0  # words against their height
_AXES = {"batch_size": "batch size", "eta_base": "base learning rate"}


def stability_figure(
    stability: xr.Dataset,
    *,
    measured: Mapping[float, tuple[float, float, float]] | None = None,
    title: str = "",
) -> Figure:
    """Regions of CAEO over batch size and margin, and over base rate and margin where the map has several rates.

    Parameters
    ----------
    stability : Dataset
        From `thresholds.caeo_stability_map` or `bridge.forecast_caeo_stability`, with several margins.
    measured : mapping, optional
        Batch size -> (boundary, low, high) that runs showed; drawn on the first panel.
    title : str
        Of the page.

    Returns
    -------
    Figure
        To be saved or shown.

    Raises
    ------
    InvalidInput
        If the map has a single margin.
    """
    if stability.sizes["delta"] < 2:
        raise InvalidInput("the map has one margin: give delta several, so that there is a region to draw")
    panels = [name for name in _AXES if stability.sizes[name] > 1] or ["batch_size"]
    figure = Figure(figsize=(6.4 * len(panels), 5.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        other = next(key for key in _AXES if key != name)
        middle = stability.sizes[other] // 2
        if other == "eta_base" and "eta" in stability.attrs:
            middle = int(np.argmin(np.abs(stability["eta_base"].values - stability.attrs["eta"])))
        part = stability.isel({other: middle})
        _regions(axis, part, name)
        _boundary(axis, part, name)
        if measured and name == "batch_size":
            _points(axis, measured)
        axis.set_xlabel(_AXES[name])
        axis.set_ylabel("margin δ   (learning rate ≤ (2 − δ)/sharpness)")
        axis.set_title(f"{_AXES[other]} {float(part[other]):g}", fontsize=10, loc="left")
    drawn = figure.axes[0].get_legend_handles_labels()
    figure.legend(*drawn, fontsize=8, loc="outside lower center", ncols=len(panels) + 1, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _edges(values: NDArray) -> NDArray:
    """Edges of cells around increasing values, midway in the logarithm where all are positive."""
    log = bool(np.all(values > 0))
    x = np.log(values) if log else values.astype(float)
    if x.size == 1:
        edges = np.array([x[0] - 0.5, x[0] + 0.5])
    else:
        middle = 0.5 * (x[1:] + x[:-1])
        edges = np.concatenate([[x[0] - (middle[0] - x[0])], middle, [x[-1] + (x[-1] - middle[-1])]])
    return np.exp(edges) if log else edges


def _regions(axis: Axes, part: xr.Dataset, name: str) -> None:
    x, y = part[name].values.astype(float), part["delta"].values
    regime = part["regime"].transpose("delta", name).values
    colours = ListedColormap([_REGIONS[label][0] for label in REGIMES])
    axis.pcolormesh(
        _edges(x), _edges(y), regime, cmap=colours, vmin=-0.5, vmax=len(REGIMES) - 0.5, rasterized=True
    )
    axis.set_xscale("log")
    axis.set_xticks(x if x.size < 9 else x[:: x.size // 6])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    if y.min() > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
    across, up = _positions(axis, x), _positions(axis, y, vertical=True)
    for index, label in enumerate(REGIMES):
        cells = np.argwhere(regime == index)
        if len(cells) < 0.03 * regime.size:
            continue
        inside = [_room(regime == index, across, up, row, column) for row, column in cells]
        row, column = cells[int(np.argmax(inside))]
        place = float(across[column]), float(up[row])
        axis.text(*place, _REGIONS[label][1], transform=axis.transAxes, ha="center", va="center", fontsize=9,
                  fontweight="bold", color="#333333")  # fmt: skip


def _room(region: NDArray, across: NDArray, up: NDArray, row: int, column: int) -> float:
    """Room for words about a cell: to the nearest cell outside the region or the border; words are wide, not high."""
    x, y = across[column], up[row]
    rows, columns = np.nonzero(~region)
    away = np.hypot((across[columns] - x) / _WIDE, up[rows] - y).min(initial=1.0)
    # beside the text the border and the next region count, above and below it whatever room is left
    return float(min(away, x / _WIDE, (1 - x) / _WIDE) + 0.5 * min(away, y, 1 - y))


def _positions(axis: Axes, values: NDArray, *, vertical: bool = False) -> NDArray:
    """Values as shares of the axis."""
    low, high = axis.get_ylim() if vertical else axis.get_xlim()
    if (axis.get_yscale() if vertical else axis.get_xscale()) == "log":
        values, low, high = np.log(values), np.log(low), np.log(high)
    return (values - low) / (high - low)


def _boundary(axis: Axes, part: xr.Dataset, name: str) -> None:
    x = part[name].values.astype(float)
    limits: Any = axis.get_ylim()
    known = np.isfinite(part["delta_escape"].values) & (part["delta_escape"].values > 0)
    value, error = part["delta_escape"].values[known], part["delta_escape_stderr"].values[known]
    axis.fill_between(x[known], np.maximum(value - 2 * error, limits[0]), value + 2 * error, color="#B04A2F",
                      alpha=0.22, lw=0, label="its error, ± 2 s.e.")  # fmt: skip
    axis.plot(
        x[known], value, "-", color="#B04A2F", lw=2.2, label="predicted boundary: one escape per training run"
    )
    fold = part["delta_c"].values
    axis.plot(x, np.where(np.isfinite(fold), fold, np.nan), "--", color="#555555", lw=1.1,
              label="onset of the averaged model: no well left")  # fmt: skip
    axis.set_ylim(limits)


def _points(axis: Axes, measured: Mapping[float, tuple[float, float, float]]) -> None:
    x = np.array(list(measured), float)
    value, low, high = np.array(list(measured.values()), float).T
    axis.errorbar(x, value, [value - low, high - value], fmt="ko", ms=6, capsize=4, lw=1.6, zorder=5,
                  label="measured on the network, 95 %")  # fmt: skip
