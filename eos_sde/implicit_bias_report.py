"""Where rules end, for people: the table, what it says in words, and the figure."""

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from eos_sde.plots import COLOURS, GREY
from eos_sde.report import concise

_PANELS = (
    ("sharpness", "sharpness"),
    ("trace", "trace of the Hessian"),
    ("test_loss", "test loss"),
    ("test_accuracy", "test accuracy"),
)
_SHOWN = ("sharpness", "trace", "loss", "test_loss", "test_accuracy")
_MARKERS = "osD^v<>"


def implicit_bias_as_table(table: xr.Dataset) -> Table:
    """Measured endpoints and how far forecasts are off, a row per rule and batch size; valid Markdown when printed.

    Parameters
    ----------
    table : Dataset
        From `bridge.implicit_bias_table`.

    Returns
    -------
    Table
        Means over the seeds at the mean weights of the runs, with the standard error in the last digits, and predicted
        over measured minus 1 (of the accuracy the difference, in points). Sharpness also at single iterates.
    """
    shown = Table(box=box.MARKDOWN)
    headings = ("sharpness", "of iterates", "trace", "training loss", "test loss", "test accuracy")
    for heading in ("rule", "batch", *headings):
        shown.add_column(heading, no_wrap=True)
    for rule in table["rule"].values:
        for batch in table["batch"].values:
            row = table.sel(rule=rule, batch=batch)
            if not np.isfinite(row["measured_loss"]).any():
                continue
            told = [_told(row, name) for name in _SHOWN]
            told.insert(1, _iterate(row))
            shown.add_row(str(rule), str(batch), *told)
    return shown


def show(table: xr.Dataset, console: Console | None = None) -> None:
    """Print the table and what it says in words.

    Parameters
    ----------
    table : Dataset
        From `bridge.implicit_bias_table`.
    console : Console, optional
        Where; standard output, as wide as the table, if left out.
    """
    console = Console(highlight=False, width=180) if console is None else console
    console.print(
        f"{table.attrs['description']}. Where runs end, at their mean weights, mean over the seeds "
        "(in brackets how far the forecast is off).",
        soft_wrap=True,
    )
    console.print(implicit_bias_as_table(table))
    console.print(implicit_bias_in_words(table), soft_wrap=True)


def _mean(row: xr.Dataset, name: str) -> tuple[float, float]:
    """Mean over the seeds that have it, with the error that the runs of each give; a forecast has none."""
    values = row[name].values
    errors = row[f"{name}_stderr"].values if f"{name}_stderr" in row else np.zeros_like(values)
    there = np.isfinite(values)
    if not there.any():
        return math.nan, math.nan
    return float(values[there].mean()), float(np.sqrt((errors[there] ** 2).sum()) / there.sum())


def _told(row: xr.Dataset, name: str) -> str:
    text = concise(*_mean(row, f"measured_{name}"))
    if name == "test_accuracy":
        off = 100 * (row[f"predicted_{name}"] - row[f"measured_{name}"])
    else:
        off = 100 * (row[f"{name}_ratio"] - 1)
    if not np.isfinite(off).any():
        return text
    return f"{text} ({float(off.mean()):+.1f}{'' if name == 'test_accuracy' else ' %'})"


def _iterate(row: xr.Dataset) -> str:
    text = concise(*_mean(row, "iterate_sharpness"))
    off = 100 * (row["predicted_iterate_sharpness"] / row["iterate_sharpness"] - 1)
    return f"{text} ({float(off.mean()):+.1f} %)" if np.isfinite(off).any() else text


def implicit_bias_in_words(table: xr.Dataset) -> str:
    """How many forecasts hold, whether flatter went with better here, and what failed.

    Parameters
    ----------
    table : Dataset
        From `bridge.implicit_bias_table`.

    Returns
    -------
    str
        A sentence for each quantity, one on rank correlations, and a line for each cell that is off, stopped or failed.
    """
    margin, lines = table.attrs["margin"], []
    for name in _SHOWN:
        ratio = table[f"{name}_ratio"].values
        compared = int(np.isfinite(ratio).sum())
        if compared:
            within = int((np.abs(ratio[np.isfinite(ratio)] - 1) <= margin).sum())
            lines.append(
                f"{within} of {compared} forecasts of the {name.replace('_', ' ')} are within {100 * margin:g} %."
            )
    lines += _correlations(table)
    flat = table.stack(cell=table["status"].dims)
    for i in range(flat.sizes["cell"]):
        cell = flat.isel(cell=i)
        named = ", ".join(str(cell[dim].item()) for dim in table["status"].dims)
        status = cell["status"].item()
        if status in ("does not apply", "failed"):
            lines.append(f"{status}: {named}: {cell['reason'].item()}")
            continue
        off = {name: float(cell[f"{name}_ratio"]) - 1 for name in _SHOWN}
        told = [f"{name.replace('_', ' ')} {100 * x:+.1f} %" for name, x in off.items() if abs(x) > margin]
        if told:
            lines.append(f"off: {named}: {', '.join(told)}")
    return "\n".join(lines)


def _correlations(table: xr.Dataset) -> list[str]:
    """Rank correlation of flatness, and of how far training came, with the test, within seeds."""
    lines = []
    gap = table["measured_test_loss"] - table["measured_loss"]
    tested = {
        "test accuracy": table["measured_test_accuracy"],
        "test loss": table["measured_test_loss"],
        "test loss minus the training loss": gap,
    }
    for word, y in tested.items():
        told = []
        for name, beside in (("sharpness", "sharpness"), ("trace", "trace"), ("loss", "training loss")):
            x = table[f"measured_{name}"]
            both = np.isfinite(x) & np.isfinite(y)
            a, b = ((q - q.where(both).mean(("rule", "batch"))).values[both.values] for q in (x, y))
            if a.size >= 4 and np.ptp(a) > 0 and np.ptp(b) > 0:
                told.append(f"{_rank_correlation(a, b):+.2f} with the {beside}")
        if told:
            lines.append(f"Over the cells the {word} has a rank correlation of {', '.join(told)}.")
    return lines


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def implicit_bias_figure(table: xr.Dataset) -> Figure:
    """Endpoints over the batch size, forecast and run, and test accuracy over sharpness.

    Parameters
    ----------
    table : Dataset
        From `bridge.implicit_bias_table`.

    Returns
    -------
    Figure
        A colour per rule, means over the seeds; open symbols and dashes: forecast; filled: the mean weights of the
        runs; small dots: single iterates. The last panel has a marker for each cell.
    """
    figure = Figure(figsize=(15.5, 7.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, (quantity, label) in zip(axes, _PANELS, strict=False):
        _over_batches(axis, table, quantity)
        axis.set_ylabel(label, fontsize=9)
    _scatter(axes[4], table, "test_accuracy")
    _scatter(axes[5], table, "test_loss")
    axes[0].legend(
        fontsize=8, frameon=False, title="filled: runs, open: forecast, dots: iterates", title_fontsize=8
    )
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Where rules end {table.attrs['steps']} steps after one checkpoint: {table.attrs['description']}",
        fontsize=11,
    )
    return figure


def _over_batches(axis: Axes, table: xr.Dataset, quantity: str) -> None:
    place = np.arange(table.sizes["batch"])
    for i, rule in enumerate(table["rule"].values):
        colour, row = COLOURS[i % len(COLOURS)], table.sel(rule=rule)
        values = np.array([_mean(row.isel(batch=k), f"measured_{quantity}") for k in place])
        iterates = np.array([_mean(row.isel(batch=k), f"iterate_{quantity}")[0] for k in place])
        predicted = [_mean(row.isel(batch=k), f"predicted_{quantity}")[0] for k in place]
        at = place + 0.06 * (i - 1.5)  # beside each other
        axis.errorbar(at, values[:, 0], values[:, 1], fmt="o", ms=5, color=colour, label=str(rule))
        axis.plot(at, predicted, "o--", ms=9, mfc="none", lw=1, color=colour)
        axis.plot(at, iterates, ".", ms=4, color=colour, alpha=0.5)
    axis.set_xticks(place, [str(b) for b in table["batch"].values])
    axis.set_xlabel("batch size", fontsize=9)


def _scatter(axis: Axes, table: xr.Dataset, quantity: str) -> None:
    for i, rule in enumerate(table["rule"].values):
        for j, batch in enumerate(table["batch"].values):
            cell = table.sel(rule=rule, batch=batch)
            axis.errorbar(
                cell["measured_sharpness"], cell[f"measured_{quantity}"], cell[f"measured_{quantity}_stderr"],
                fmt=_MARKERS[j % len(_MARKERS)], ms=5, lw=0.8, color=COLOURS[i % len(COLOURS)],
            )  # fmt: skip
    for j, batch in enumerate(table["batch"].values):
        axis.plot([], [], _MARKERS[j % len(_MARKERS)], ms=5, color=GREY, label=f"batch {batch}")
    axis.plot(table["start_sharpness"], table[f"start_{quantity}"], "*", ms=9, color=GREY, label="checkpoint")
    axis.set_xlabel("sharpness where the runs end", fontsize=9)
    axis.set_ylabel(quantity.replace("_", " "), fontsize=9)
    axis.legend(fontsize=8, frameon=False)
