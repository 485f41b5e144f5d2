"""Figures of sweeps: phase diagrams over two axes, lines over one."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from eos_sde.model_plots import draw_threshold
from eos_sde.plots import COLOURS, GREY
from solvers.errors import InvalidInput

_BOOKKEEPING = (
    "status",
    "reason",
    "error",
    "attempts",
    "seconds",
    "elapsed",
    "finished",
    "worker",
    "evaluations",
)
_LINES = 12
_DECADES = 100.0


def sweep_figure(
    dataset: xr.Dataset,
    *,
    value: str | None = None,
    over: Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    curves: Sequence[xr.Dataset] = (),
) -> Figure:
    """A variable of a sweep: a phase diagram over two axes, or lines with error bars over one.

    Parameters
    ----------
    dataset : Dataset
        Whose dimensions are the axes of the sweep, with coordinates; variables with units and long names.
    value : str, optional
        Which variable; left out, the first over most axes that is of numbers, and no error or bookkeeping. Its errors
        are ``<value>_stderr``, if the dataset has them.
    over : sequence of str, optional
        One axis or two (across, up). Left out: both of two axes of at least three numbers each, else the longest axis
        of numbers; the others become colours.
    at : mapping, optional
        Values of axes that are not drawn (the nearest one of an axis of numbers).
    curves : sequence of Dataset
        From `thresholds.threshold_curve`, to be drawn into a phase diagram whose axes are theirs.

    Returns
    -------
    Figure
        Points without a result are grey in a phase diagram, and missing from lines.

    Raises
    ------
    InvalidInput
        If a name is unknown, there are no numbers, or an axis has to be fixed first.
    """
    name = _chosen_value(dataset, value, over or ())
    part = selected(dataset, at or {})
    values = part[name].squeeze(drop=True)
    if values.dtype.kind == "c":  # eigenvalues against a parameter
        values = values.real.rename(name).assign_attrs(
            part[name].attrs, long_name=f"real part of {_words(part[name])}"
        )
    across = _chosen_axes(values, over)
    if len(across) == 2:
        return _phase_diagram(part, values, across, curves)
    if curves:
        raise InvalidInput("threshold curves are drawn into a phase diagram; give over two axes")
    return _lines(part, name, values, across[0])


def _chosen_value(dataset: xr.Dataset, value: str | None, over: Sequence[str]) -> str:
    numbers = [
        str(name)
        for name, each in dataset.data_vars.items()
        if each.dtype.kind in "fiubc" and each.size > 1 and each.dims
    ]
    if value is not None:
        if value not in dataset.data_vars:
            raise InvalidInput(
                f"value={value!r} is no variable of the dataset; it has {', '.join(numbers) or 'none'}"
            )
        if value not in numbers:
            raise InvalidInput(
                f"value={value!r} is a variable without numbers to draw; choose {', '.join(numbers)}"
            )
        return value
    told = [
        name for name in numbers if not name.endswith("_stderr") and name not in (*_BOOKKEEPING, "stderr")
    ]
    if not told:
        raise InvalidInput("the dataset has no variable of numbers over an axis: there is nothing to draw")

    def fitness(name: str) -> tuple[bool, int, bool]:
        dims = dataset[name].dims
        return set(over) <= set(dims), len(dims), dataset[name].dtype.kind == "f"

    return max(told, key=fitness)  # the first of the best


def selected(dataset: xr.Dataset, at: Mapping[str, Any]) -> xr.Dataset:
    """A dataset with some axes fixed.

    Parameters
    ----------
    dataset : Dataset
        With coordinates.
    at : mapping
        Value of each axis to fix: a label of an axis of text, a number near one of an axis of numbers.

    Returns
    -------
    Dataset
        Without these axes, whose values stay as coordinates.

    Raises
    ------
    InvalidInput
        If an axis or a label does not exist.
    """
    for name, wanted in at.items():
        if name not in dataset.dims:
            raise InvalidInput(f"at {name}: the axes are {', '.join(map(str, dataset.dims))}")
        labels = dataset[name].values
        if labels.dtype.kind in "fiu":
            try:
                place = int(np.argmin(np.abs(labels - float(wanted))))
            except ValueError as error:
                raise InvalidInput(f"at {name}={wanted}: {name} is an axis of numbers; give one") from error
        else:
            known = [str(label) for label in labels]
            if str(wanted) not in known:
                raise InvalidInput(f"at {name}={wanted}: choose one of {', '.join(known)}")
            place = known.index(str(wanted))
        dataset = dataset.isel({name: place})
    return dataset


def _chosen_axes(values: xr.DataArray, over: Sequence[str] | None) -> list[str]:
    dims = [str(name) for name in values.dims]
    numeric = [name for name in dims if values[name].dtype.kind in "fiu"]
    if not dims:
        raise InvalidInput(f"{values.name} is a single number here: there is no axis to draw it over")
    if over:
        chosen = list(over)
        unknown = [name for name in chosen if name not in dims]
        if unknown:
            raise InvalidInput(f"over={unknown[0]!r} is no axis of {values.name}; it has {', '.join(dims)}")
        if len(chosen) > 2 or len(set(chosen)) < len(chosen):
            raise InvalidInput(f"over={', '.join(chosen)}: give one axis, or two different ones")
    elif len(numeric) == len(dims) == 2 and min(values.shape) > 2:
        chosen = dims
    else:
        chosen = [max(numeric or dims, key=lambda name: values.sizes[name])]
    if len(chosen) == 2:
        wrong = [name for name in chosen if name not in numeric]
        if wrong:
            raise InvalidInput(f"over={wrong[0]!r} is no axis of numbers; a phase diagram needs two")
        left = [name for name in dims if name not in chosen]
        if left:
            labels = ", ".join(f"{label}" for label in values[left[0]].values[:6])
            raise InvalidInput(
                f"{values.name} has the axis {left[0]} too; fix it with at {left[0]}=VALUE, of {labels}"
            )
    return chosen


def _words(array: xr.DataArray) -> str:
    return str(array.attrs.get("long_name", array.name))


def _label(array: xr.DataArray) -> str:
    units = array.attrs.get("units", "1")
    name, text = str(array.name), _words(array)
    if text in {"", f"parameter {name}"}:  # which says no more than the name
        text = name
    elif text != name:
        text = f"{name}: {text}"
    return text if units in {"1", ""} else f"{text} [{units}]"


def _geometric(values: np.ndarray) -> bool:
    """Whether an axis is one of equal ratios rather than of equal steps."""
    if values.size < 3 or not np.all(values > 0):
        return False
    ratios, steps = np.diff(np.log(values)), np.diff(values)
    return bool(np.ptp(ratios) / abs(ratios.mean()) < np.ptp(steps) / abs(steps.mean()) - 1e-6)


def _scale(axis: Axes, which: str, values: np.ndarray) -> None:
    if _geometric(values):
        getattr(axis, f"set_{which}scale")("log")
        if values.max() / values.min() < _DECADES:
            line = getattr(axis, f"{which}axis")
            line.set_major_formatter(ScalarFormatter())
            line.set_minor_formatter(NullFormatter())
            line.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif which == "x":
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # their labels stand apart


def _phase_diagram(
    part: xr.Dataset, values: xr.DataArray, over: list[str], curves: Sequence[xr.Dataset]
) -> Figure:
    across, up = over
    table = values.transpose(up, across).sortby([up, across])
    x, y, z = table[across].values.astype(float), table[up].values.astype(float), table.values.astype(float)
    figure = Figure(figsize=(6.6, 5.0), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("#DDDDDD")
    kept = z[np.isfinite(z)]
    if not kept.size:
        raise InvalidInput(f"{values.name} has no finite value here: there is nothing to draw")
    wide = kept.min() > 0 and kept.max() > _DECADES * kept.min()
    signed = kept.min() < 0 < kept.max()
    norm = LogNorm() if wide else CenteredNorm() if signed else None
    cmap = matplotlib.colormaps["RdBu_r" if signed else "viridis"].with_extremes(bad="#DDDDDD")
    mesh = axis.pcolormesh(
        x, y, np.ma.masked_invalid(z), shading="nearest", cmap=cmap, norm=norm, rasterized=True
    )
    figure.colorbar(mesh, ax=axis, label=_label(values))
    _scale(axis, "x", x)
    _scale(axis, "y", y)
    if min(z.shape) > 2 and np.ptp(kept) > 1e-12 * max(1.0, np.abs(kept).max()):
        levels = np.geomspace(kept.min(), kept.max(), 8)[1:-1] if wide else 6
        colour = "#444444" if signed else "white"
        lines = axis.contour(x, y, np.ma.masked_invalid(z), levels=levels, colors=colour, linewidths=0.8)
        axis.clabel(lines, fontsize=7, fmt="%.3g")
    drawn = _curves_inside(axis, part, across, up) + _curves_beside(axis, curves, across, up)
    if drawn:
        axis.legend(fontsize=8, framealpha=0.9, loc="upper right")
    axis.set(
        xlabel=_label(part[across]),
        ylabel=_label(part[up]),
        xlim=_ends(axis, "x", x),
        ylim=_ends(axis, "y", y),
    )
    axis.set_title(fixed_axes(part), fontsize=9, loc="left")
    missing = z.size - kept.size
    if missing:
        axis.set_title(
            f"grey: {missing} of {z.size} points without a result", fontsize=8, loc="right", color=GREY
        )
    return figure


def _ends(axis: Axes, which: str, values: np.ndarray) -> tuple[float, float]:
    """Outer edges of the cells about the values, as pcolormesh draws them, in the scale of the axis."""
    if values.size < 2:
        return getattr(axis, f"get_{which}lim")()
    first, last = 0.5 * (values[1] - values[0]), 0.5 * (values[-1] - values[-2])
    low, high = values[0] - first, values[-1] + last
    if getattr(axis, f"get_{which}scale")() == "log":
        low = max(low, values[0] / np.sqrt(values[1] / values[0]))
    return float(low), float(high)


def _curves_inside(axis: Axes, part: xr.Dataset, across: str, up: str) -> int:
    """Thresholds that the dataset itself holds: variables over one axis whose attribute "over" names the other."""
    number = 0
    for name, line in part.data_vars.items():
        other = {across: up, up: across}.get(str(line.dims[0])) if line.ndim == 1 else None
        if other is None or line.attrs.get("over") != other or line.dtype.kind not in "fiu":
            continue
        xy = (line[across], line) if line.dims == (across,) else (line, line[up])
        axis.plot(*xy, color=COLOURS[(number + 1) % len(COLOURS)], lw=2.2, label=_label(line) or str(name))
        number += 1
    return number


def _curves_beside(axis: Axes, curves: Sequence[xr.Dataset], across: str, up: str) -> int:
    for curve in curves:
        along, over = curve.attrs.get("along"), curve.attrs.get("over")
        if {along, over} != {across, up}:
            raise InvalidInput(
                f"the threshold curve is of {over} along {along or 'nothing'}; the axes here are {across} and {up}"
            )
        draw_threshold(axis, curve, turned=along == up, label=f"threshold: {curve.attrs['criterion']}")
    return len(curves)


def fixed_axes(part: xr.Dataset) -> str:
    """The axes that were fixed, and where.

    Parameters
    ----------
    part : Dataset
        From `selected`.

    Returns
    -------
    str
        For a title.
    """
    told = []
    for name, coordinate in part.coords.items():
        if coordinate.ndim == 0:
            label = coordinate.item()
            told.append(f"{name} = {label:.6g}" if isinstance(label, float) else f"{name} = {label}")
    return ", ".join(told)


def _lines(part: xr.Dataset, name: str, values: xr.DataArray, over: str) -> Figure:
    others = [str(dim) for dim in values.dims if dim != over]
    error = part.get(f"{name}_stderr", part.get("stderr"))
    if error is not None and set(error.squeeze(drop=True).dims) != set(values.dims):
        error = None
    series = values.stack(series=others).transpose("series", over) if others else values.expand_dims("series")
    if series.sizes["series"] > _LINES:
        longest = max(others, key=lambda dim: values.sizes[dim])
        raise InvalidInput(
            f"{series.sizes['series']} lines are too many to tell apart; fix an axis with at {longest}=VALUE, or draw "
            "over two"
        )
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    axis = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, series.sizes["series"]))
    missing = 0
    for i in range(series.sizes["series"]):
        where = {dim: series[dim].values[i] for dim in others}
        label = ", ".join(
            f"{dim} = {v:.4g}" if isinstance(v, float) else f"{dim} = {v}" for dim, v in where.items()
        )
        colour = COLOURS[i] if series.sizes["series"] <= len(COLOURS) else colours[i]
        text = values[over].values
        x = text.astype(float) if text.dtype.kind in "fiu" else np.arange(text.size)
        y = series.isel(series=i).values.astype(float)
        if not np.isfinite(y).any():  # no line, and no place in the legend
            missing += 1
            continue
        if error is None:
            axis.plot(x, y, "o-" if x.size < 60 else "-", ms=4, lw=1.2, color=colour, label=label)
        else:
            bars = error.squeeze(drop=True).sel(where).transpose(over).values
            axis.errorbar(x, y, np.where(np.isfinite(bars), bars, 0), fmt="o-", ms=4, lw=1.2, capsize=3, color=colour,
                          label=label)  # fmt: skip
        if text.dtype.kind not in "fiu":
            axis.set_xticks(x, [str(each) for each in text])
        else:
            _scale(axis, "x", x)
    kept = values.values[np.isfinite(values.values.astype(float))]
    if kept.size and kept.min() > 0 and kept.max() > _DECADES * kept.min():
        axis.set_yscale("log")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set(xlabel=_label(part[over]), ylabel=_label(values))
    axis.set_title(
        fixed_axes(part) + (" (bars: one standard error)" if error is not None else ""),
        fontsize=9,
        loc="left",
    )
    if missing:
        axis.set_title(
            f"{missing} of {series.sizes['series']} lines without a result",
            fontsize=8,
            loc="right",
            color=GREY,
        )
    if others and missing < series.sizes["series"]:
        axis.legend(fontsize=8, frameon=False)
    return figure
