"""Training runs and comparisons of rules for people: tables, what they say in words, JSON, and the figure."""

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rich import box
from rich.table import Table

from eos_sde.plots import COLOURS, GREY
from eos_sde.report import number
from eos_sde.trials.judgement import METRICS

_LEVEL = 0.05
_MORE = (
    "#56B4E9",
    "#E69F00",
    "#8C564B",
    "#000000",
    "#7F7F7F",
    "#882255",
)  # beyond the four colours of the other figures
_COLUMNS = (
    ("steps_to_target", "steps to target"),
    ("gradients_to_target", "gradients to target"),
    ("seconds_to_target", "seconds to target"),
    ("best_validation_loss", "best validation loss"),
    ("end_validation_loss", "at the end"),
    ("test_accuracy", "test accuracy"),
    ("test_nll", "NLL"),
    ("test_brier", "Brier"),
    ("test_ece", "ECE"),
    ("final_sharpness", "sharpness"),
)


def comparison_as_table(found: xr.Dataset) -> Table:
    """A row for each rule; valid Markdown when printed.

    Parameters
    ----------
    found : Dataset
        From `trials.compare`.

    Returns
    -------
    Table
        Means over the seeds with half the width of the 95 % interval; in brackets the ratio to the reference, of what
        is compared by ratios, and a star where Holm's p is below 0.05.
    """
    shown = Table(box=box.MARKDOWN)
    for heading in ("rule", "knob", "diverged", "reached", *(text for _, text in _COLUMNS)):
        shown.add_column(heading, no_wrap=True)
    seeds = found.sizes["seed"]
    for rule in found["rule"].values:
        row = found.sel(rule=rule)
        knob = (
            f"{row['knob_name'].item()} = {row['knob'].item():.3g}{' (end)' if row['at_edge'].item() else ''}"
        )
        counts = (f"{row[name].item()}/{seeds}" for name in ("diverged_runs", "reached_runs"))
        shown.add_row(str(rule), knob, *counts, *(_entry(row, name) for name, _ in _COLUMNS))
    return shown


def _entry(row: xr.Dataset, name: str) -> str:
    mean, high = (row[f"{name}_{part}"].item() for part in ("mean", "high"))
    if not math.isfinite(mean):
        return "-"
    text = number(mean, high - mean)
    if METRICS[name].versus == "ratio" and math.isfinite(row[f"{name}_versus"].item()):
        text += f" ({row[f'{name}_versus'].item():.2f}{_star(row, name)})"
    elif METRICS[name].versus:
        text += _star(row, name)
    return text


def _star(row: xr.Dataset, name: str) -> str:
    return "*" if row[f"{name}_p_holm"].item() < _LEVEL else ""


def comparison_in_words(found: xr.Dataset) -> str:
    """What was asked, what differs from the reference by more than chance, and what failed.

    Parameters
    ----------
    found : Dataset
        From `trials.compare`.

    Returns
    -------
    str
        A line for the budget, one for the target, one for each metric that is compared, for each rule that starts from
        earlier weights, and for each whose runs diverged, missed the target, or whose knob was best at an end of its
        grid.
    """
    attrs, seeds = found.attrs, found.sizes["seed"]
    reference = attrs["reference"]
    aim = "steps to the target" if attrs["tune_for"] == "steps" else "validation loss at the end"
    lines = [
        f"Tuned alike: {attrs['budget']}, neighbours a factor {attrs['ratio']:g} apart, for the least {aim}; judged on "
        f"{seeds} other seeds.",
        f"Target: validation {attrs['target_kind']} {attrs['target']:.4g}. Differences are paired by the seed against "
        f"{reference}; p after Holm over {found.sizes['rule'] - 1} rules.",
    ]
    for name, metric in METRICS.items():
        if not metric.versus:
            continue
        told = []
        for rule in found["rule"].values:
            row = found.sel(rule=rule)
            if row[f"{name}_p_holm"].item() < _LEVEL:
                told.append(f"{rule} {_versus(row, name, metric.versus)}")
        what = "; ".join(told) or "no rule differs from the reference by more than chance"
        lines.append(f"{metric.long_name}: {what}.")
    lines += [f"{rule} {words}." for rule, words in json.loads(attrs.get("starts", "{}")).items()]
    for rule in found["rule"].values:
        row = found.sel(rule=rule)
        diverged, reached = row["diverged_runs"].item(), row["reached_runs"].item()
        said = [f"{diverged} of {seeds} runs diverged"] if diverged else []
        said += [f"{seeds - reached} of {seeds} did not reach the target"] if reached < seeds else []
        said += ["its knob was best at an end of the grid"] if row["at_edge"].item() else []
        if said:
            lines.append(f"{rule}: {', '.join(said)}.")
    return "\n".join(lines)


def _versus(row: xr.Dataset, name: str, kind: str) -> str:
    value, low, high = (row[f"{name}_{part}"].item() for part in ("versus", "versus_low", "versus_high"))
    sign = "" if kind == "ratio" else "+"
    unit = "times " if kind == "ratio" else ""
    p = row[f"{name}_p_holm"].item()
    return f"{unit}{value:{sign}.3g} (95 % {low:{sign}.3g} to {high:{sign}.3g}, p = {p:.2g})"


def as_json(dataset: xr.Dataset, /, **files: str) -> str:
    """Everything but arrays over steps, weights and bins, as JSON.

    Parameters
    ----------
    dataset : Dataset
        From `trials.train` or `trials.compare`.
    **files : str
        What was written where.

    Returns
    -------
    str
        Numbers that do not exist are null.
    """
    long = {"step", "weight", "bin"}
    values = {
        str(name): _plain(values.values)
        for name, values in dataset.variables.items()
        if not long & set(values.dims)
    }
    if "seed" not in dataset.dims:
        values["last"] = {
            str(name): _plain(one.values[-1])
            for name, one in dataset.data_vars.items()
            if one.dims == ("step",)
        } | {"step": int(dataset["step"][-1])}
    attrs = {str(key): _plain(value) for key, value in dataset.attrs.items()}
    return json.dumps({**attrs, "files": files, **values}, indent=1)


def _plain(value: Any) -> Any:
    if np.ndim(value):
        return [_plain(one) for one in value]
    one = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return None if isinstance(one, float) and not math.isfinite(one) else one


def run_as_table(run: xr.Dataset, *, rows: int = 10) -> Table:
    """Some rows of a run's log.

    Parameters
    ----------
    run : Dataset
        From `trials.train`.
    rows : int
        About how many.

    Returns
    -------
    Table
        Valid Markdown when printed.
    """
    columns = (
        "epoch", "train_loss", "validation_loss", "validation_accuracy", "learning_rate", "sharpness",
        "gradient_equivalents", "seconds",
    )  # fmt: skip
    shown = Table(box=box.MARKDOWN)
    for heading in ("step", *columns):
        shown.add_column(heading.replace("_", " "), no_wrap=True)
    count = run.sizes["step"]
    for i in np.unique(np.linspace(0, count - 1, min(rows, count)).round().astype(int)):
        at = run.isel(step=i)
        shown.add_row(str(at["step"].item()), *(number(at[name].item(), None) for name in columns))
    return shown


def run_in_words(run: xr.Dataset) -> str:
    """How a run ended, in a line or two.

    Parameters
    ----------
    run : Dataset
        From `trials.train`.

    Returns
    -------
    str
        Test scores that exist; where the curvature came from.
    """
    if run["diverged"].item():
        return f"diverged: seen at step {run['step'].values[-1]}"
    words = {
        "test_loss": "test loss", "test_accuracy": "accuracy", "test_nll": "NLL", "test_brier": "Brier",
        "test_ece": "ECE", "final_sharpness": "sharpness",
    }  # fmt: skip
    told = [f"{text} {run[name].item():.4g}" for name, text in words.items() if np.isfinite(run[name].item())]
    said = ", ".join(told)
    if "curvature_of" in run.attrs:
        said += f"; the rule's curvature is that of {run.attrs['curvature_of']}"
    if "start" in run.attrs:
        said += f"; {run.attrs['start']}"
    return f"{said}; energy: {run.attrs['energy']}"


def comparison_figure(found: xr.Dataset) -> Figure:
    """Validation loss over steps and over gradient-equivalents, ratios to the reference, and calibration.

    Parameters
    ----------
    found : Dataset
        From `trials.compare`.

    Returns
    -------
    Figure
        Lines are geometric means over the seeds, bands two standard errors of the logarithm; bars 95 % intervals of
        paired ratios.
    """
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    (steps, spent), (ratios, ends) = figure.subplots(2, 2)
    for i, rule in enumerate(found["rule"].values):
        row, colour = found.sel(rule=rule), _colour(i)
        losses, price = (row[f"{name}_path"].values for name in ("validation_loss", "gradient_equivalents"))
        _curve(steps, found["step"].values, losses, colour, str(rule))
        if np.isfinite(price).all():
            _curve(spent, price.mean(axis=0), losses, colour, str(rule))
    for axis, label in ((steps, "updates"), (spent, "gradient-equivalents")):
        axis.set_xlabel(label, fontsize=9)
        axis.set_ylabel("validation loss", fontsize=9)
        axis.set_yscale("log")
        _plain_numbers(axis.yaxis, (1, 2, 3, 5))
        if found.attrs["target_kind"] == "loss":
            axis.axhline(found.attrs["target"], color=GREY, ls=":", lw=1)
    steps.legend(fontsize=8, frameon=False, ncols=2)
    _forest(ratios, found, "steps_to_target", "updates to the target, over the reference's")
    _forest(ends, found, "final_sharpness", "sharpness at the end, over the reference's")
    for axis in (steps, spent, ratios, ends):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _colour(number: int) -> str:
    palette = (*COLOURS, *_MORE)
    return palette[number % len(palette)]


def _plain_numbers(line: Axis, within: tuple[float, ...]) -> None:
    """Label a logarithmic axis at these multiples of the powers of ten, without exponents."""
    line.set_major_locator(LogLocator(subs=within))
    line.set_major_formatter(StrMethodFormatter("{x:g}"))
    line.set_minor_formatter(NullFormatter())


def _curve(axis: Axes, at: Any, values: Any, colour: str, label: str) -> None:
    there = np.isfinite(values).all(axis=0)
    if not there.any():
        return
    logs = np.log(np.maximum(values[:, there], 1e-12))
    mean, error = logs.mean(axis=0), logs.std(axis=0, ddof=1) / math.sqrt(len(logs))
    axis.plot(at[there], np.exp(mean), color=colour, lw=1.2, label=label)
    axis.fill_between(
        at[there], np.exp(mean - 2 * error), np.exp(mean + 2 * error), color=colour, alpha=0.12, lw=0
    )


def _forest(axis: Axes, found: xr.Dataset, name: str, label: str) -> None:
    rules = [str(rule) for rule in found["rule"].values]
    for i, rule in enumerate(rules):
        row = found.sel(rule=rule)
        value, low, high = (row[f"{name}_{part}"].item() for part in ("versus", "versus_low", "versus_high"))
        if math.isfinite(value):
            axis.plot([low, high], [i, i], color=_colour(i), lw=1.5)
            axis.plot([value], [i], "o", color=_colour(i), ms=5)
        else:
            axis.text(1.0, i, " not reached, or diverged, by a seed", fontsize=7, va="center", color=GREY)
    axis.axvline(1.0, color=GREY, ls=":", lw=1)
    axis.set_xscale("log")
    _plain_numbers(axis.xaxis, (1, 1.5, 2, 3, 5, 7))
    axis.set_yticks(range(len(rules)), rules, fontsize=8)
    axis.set_ylim(len(rules) - 0.5, -0.5)
    axis.set_xlabel(label, fontsize=9)
