"""Tables of thresholds, spectra and ensembles of models, for people and for machines."""

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from eos_sde.report import number
from eos_sde.thresholds.spectrum_curves import rates_of

_ROWS = 12


def _table(title: str, headings: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _facts(dataset: xr.Dataset) -> dict[str, Any]:
    """Attributes as plain values, those in JSON unpacked."""
    packed = ("parameters", "bracket", "box", "boundary", "cells", "start")
    return {
        str(key): json.loads(value) if key in packed and str(value)[:1] in "[{" else value
        for key, value in dataset.attrs.items()
    }


def _named(dataset: xr.Dataset) -> str:
    given = json.loads(dataset.attrs["parameters"])
    return ", ".join([dataset.attrs["model"], *(f"{name} = {value:g}" for name, value in given.items())])


def threshold_records(dataset: xr.Dataset) -> dict[str, Any]:
    """The facts, and a row for each threshold.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.threshold_curve`.

    Returns
    -------
    dict
        The attributes, and "rows".
    """
    along = dataset.attrs["along"]
    flat = dataset if along else dataset.expand_dims("one")
    names = [*([along] if along else []), *dataset.data_vars]
    rows = [{name: flat[name].values[i].item() for name in names} for i in range(flat["threshold"].size)]
    return {**_facts(dataset), "rows": rows}


def threshold_table(dataset: xr.Dataset) -> Group:
    """A threshold with its method and closed form, or a curve of them.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.threshold_curve`.

    Returns
    -------
    Group
        For a terminal.
    """
    facts = dataset.attrs
    records = threshold_records(dataset)["rows"]
    title = f"{_named(dataset)}: {facts['over']} at which {facts['meaning']}"
    if facts["along"]:
        table = _table("", (facts["along"], f"threshold in {facts['over']}", "closed form", "difference"))
        for row in records:
            told = number(row["threshold"], row["stderr"])
            table.add_row(f"{row[facts['along']]:.6g}", told, *_known(row))
        notes = [
            Text(f"{facts['along']} = {row[facts['along']]:.6g}: {row['reason']}")
            for row in records
            if row["reason"]
        ]
        return Group(Text(title, style="bold"), table, *notes)
    (row,) = records
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(
        "threshold", Text(f"{facts['over']} = {_value(row['threshold'], row['stderr'])}", style="bold")
    )
    table.add_row("method", Text(row["method"]))
    if facts["source"]:
        table.add_row("source", Text(facts["source"]))
    formula, difference = _known(row)
    if formula != "-":
        table.add_row(
            "closed form", Text(f"{formula}   ({row['closed_form_method']}; difference {difference})")
        )
    return Group(Text(title, style="bold"), table)


def _value(value: float, error: float) -> str:
    """A value with its error; close to 0 the error decides how many digits are shown."""
    return number(value, error) if abs(value) > error or not error else f"{value:.2g} ± {error:.2g}"


def _known(row: dict[str, Any]) -> tuple[str, str]:
    known, found = row["closed_form"], row["threshold"]
    if known is None or not math.isfinite(known):
        return "-", "-"
    if not math.isfinite(found):
        return f"{known:.6g}", "-"
    return f"{known:.6g}", f"{found - known:+.1g}"


def spectrum_records(dataset: xr.Dataset) -> dict[str, Any]:
    """The facts, the gap, and a row for each mode.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.model_spectrum`.

    Returns
    -------
    dict
        The attributes, "gap" in 1/time, and "rows": eigenvalue (real and imaginary part), decay rate, period,
        residual.
    """
    rates, turning = rates_of(dataset)
    rows = [
        {
            "mode": i,
            "eigenvalue_real": complex(value).real,
            "eigenvalue_imaginary": complex(value).imag,
            "decay_rate": float(rates[i]),
            "period": 2 * math.pi / float(turning[i]) if turning[i] > 0 else math.nan,
            "residual": float(dataset["residual"].values[i]),
        }
        for i, value in enumerate(dataset["eigenvalue"].values)
    ]
    return {**_facts(dataset), "gap": float(dataset["gap"]), "rows": rows}


def spectrum_table(dataset: xr.Dataset) -> Group:
    """Eigenvalues with residuals, and the gap.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.model_spectrum`.

    Returns
    -------
    Group
        For a terminal.
    """
    records = spectrum_records(dataset)
    table = _table("", ("mode", "eigenvalue", "decay rate", "decay time", "period", "residual"))
    for row in records["rows"]:
        real, imaginary, rate = row["eigenvalue_real"], row["eigenvalue_imaginary"], row["decay_rate"]
        told = (
            f"{real:.6g}"
            if imaginary == 0
            else f"{real:.6g} {'-' if imaginary < 0 else '+'} {abs(imaginary):.6g}i"
        )
        table.add_row(
            str(row["mode"]), told, f"{rate:.6g}", f"{1 / rate:.4g}" if rate > 0 else "-",
            f"{row['period']:.4g}" if math.isfinite(row["period"]) else "-", f"{row['residual']:.1e}",
        )  # fmt: skip
    box_ = records["box"]
    cells = " x ".join(map(str, records["cells"]))
    axes = ", ".join(f"{name} from {low:.5g} to {high:.5g}" for name, (low, high) in box_.items())
    gap, doubt = records["gap"], records.get("gap_difference")
    known = "" if doubt is None else f"; on half as many cells an axis {100 * doubt:.2g} % off"
    return Group(
        Text(f"{_named(dataset)}: {dataset.attrs['operator']}", style="bold"),
        Text(f"{cells} cells, {axes}; {dataset.attrs['method']}"),
        table,
        Text(
            f"spectral gap {gap:.6g} per time: relaxation time {1 / gap:.5g}{known}"
            if gap > 0
            else f"spectral gap {gap:.6g}{known}"
        ),
    )


def spectra_records(dataset: xr.Dataset) -> dict[str, Any]:
    """The facts, and a row for each value of the parameter.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.spectrum_curve`.

    Returns
    -------
    dict
        The attributes, and "rows": the parameter, "gap", "decay_rates", "frequencies", "reason".
    """
    along = dataset.attrs["along"]
    rows = [
        {
            along: float(dataset[along][i]),
            "gap": float(dataset["gap"][i]),
            "decay_rates": dataset["decay_rate"].values[i].tolist(),
            "frequencies": dataset["frequency"].values[i].tolist(),
            "reason": str(dataset["reason"].values[i]),
        }
        for i in range(dataset.sizes[along])
    ]
    return {**_facts(dataset), "rows": rows}


def spectra_table(dataset: xr.Dataset) -> Group:
    """Gap and decay rates along a parameter.

    Parameters
    ----------
    dataset : Dataset
        From `thresholds.spectrum_curve`.

    Returns
    -------
    Group
        For a terminal.
    """
    along = dataset.attrs["along"]
    modes = range(1, dataset.sizes["mode"])
    table = _table("", (along, "gap", *(f"rate {mode}" for mode in modes)))
    rows = spectra_records(dataset)["rows"]
    for row in rows:
        numbers = [row["gap"], *(row["decay_rates"][mode] for mode in modes)]
        table.add_row(f"{row[along]:.6g}", *(f"{n:.5g}" if math.isfinite(n) else "-" for n in numbers))
    notes = [Text(f"{along} = {row[along]:.6g}: {row['reason']}") for row in rows if row["reason"]]
    return Group(Text(f"{_named(dataset)}: decay rates per time", style="bold"), table, *notes)


def ensemble_records(dataset: xr.Dataset) -> dict[str, Any]:
    """The facts, and statistics of every component at a dozen of the kept times, the end among them.

    Parameters
    ----------
    dataset : Dataset
        From `simulate_model`.

    Returns
    -------
    dict
        The attributes, "diverged" (paths), and "rows".
    """
    last = dataset.sizes["time"] - 1
    shown = sorted({round(last * k / (_ROWS - 1)) for k in range(_ROWS)})
    rows = []
    for component in dataset["component"].values:
        here = dataset.sel(component=component)
        for i in shown:
            row = {"component": str(component), "time": float(dataset["time"][i])}
            row |= {name: float(here[name][i]) for name in ("mean", "mean_stderr")}
            row["deviation"] = (
                math.sqrt(float(here["variance"][i])) if float(here["variance"][i]) >= 0 else math.nan
            )
            row |= {f"quantile_{q:g}": float(here["quantile"].sel(q=q)[i]) for q in dataset["q"].values}
            rows.append(row)
    return {**_facts(dataset), "diverged": int(np.sum(dataset["diverged"].values)), "rows": rows}


def ensemble_table(dataset: xr.Dataset) -> Group:
    """Means, deviations and quantiles over time.

    Parameters
    ----------
    dataset : Dataset
        From `simulate_model`.

    Returns
    -------
    Group
        For a terminal.
    """
    records = ensemble_records(dataset)
    levels = [f"{100 * q:g} %" for q in dataset["q"].values]
    table = _table("", ("component", "time", "mean", "deviation", *levels))
    for row in records["rows"]:
        quantiles = [f"{row[f'quantile_{q:g}']:.4g}" for q in dataset["q"].values]
        told = number(row["mean"], row["mean_stderr"]) if row["mean_stderr"] else f"{row['mean']:.5g}"
        table.add_row(row["component"], f"{row['time']:g}", told, f"{row['deviation']:.4g}", *quantiles)
    attrs = dataset.attrs
    lines = [f"{attrs['paths']} paths by {attrs['scheme']}, dt = {attrs['dt']:g}, seed {attrs['seed']}"]
    if records["diverged"]:
        lines.append(
            f"{records['diverged']} of {attrs['paths']} paths diverged; they are part of the statistics"
        )
    return Group(Text(_named(dataset), style="bold"), Text("; ".join(lines)), table)
