"""Tables of the replay, of the onsets and of the campaign, for people and for machines."""

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_TITLES = {
    "minimum": "1. A trained minimum: the largest stable learning rate",
    "plateau": "2. Training: where sharpness and loss settle under SGD",
    "fluctuations": "3. Fluctuation along the top eigenvector",
    "metastability": "4. Metastability along the top eigenvector",
    "caeo": "5. CAEO: the path of sharpness and learning rate",
}
_COLOURS = {"agrees": "green", "close": "green", "within its error": "yellow", "off": "red"}


def rows(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The table of a replay as plain records; numbers that do not exist are None.

    Parameters
    ----------
    dataset : Dataset
        From `bridge.replay`.

    Returns
    -------
    list of dict
        With the keys experiment, quantity, model, units, predicted, predicted_stderr, measured,
        measured_stderr, verdict.
    """
    names = [name for name, variable in dataset.data_vars.items() if variable.dims == ("quantity",)]
    table = dataset[names]
    records = []
    for i in range(table.sizes["quantity"]):
        record = {name: table[name].values[i].item() for name in ("quantity", *names)}
        records.append({key: _finite(value) for key, value in record.items()})
    return records


def as_json(dataset: xr.Dataset, /, **files: str) -> str:
    """The table, the provenance and the names of the files written, as one JSON document."""
    return json.dumps({**_plain(dataset.attrs), "files": files, "rows": rows(dataset)}, indent=1)


def _plain(attrs: dict[str, Any]) -> dict[str, Any]:
    return {str(key): value.item() if hasattr(value, "item") else value for key, value in attrs.items()}


def as_table(dataset: xr.Dataset) -> Group:
    """The table for a terminal, one block per experiment, with what disagrees said plainly."""
    records = rows(dataset)
    blocks: list[Any] = []
    for experiment in dict.fromkeys(record["experiment"] for record in records):
        table = Table(
            title=_TITLES[experiment],
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE,
            pad_edge=False,
        )
        table.add_column("quantity and theory", overflow="fold")
        for heading in ("predicted", "measured", "difference", "verdict"):
            table.add_column(heading, justify="right", no_wrap=True)
        named = None
        for record in (r for r in records if r["experiment"] == experiment):
            if record["quantity"] != named:
                named = record["quantity"]
                table.add_row(
                    Text(_named(record)), "", concise(record["measured"], record["measured_stderr"])
                )
            table.add_row(
                Padding(Text(record["model"]), (0, 0, 0, 3)),
                concise(record["predicted"], record["predicted_stderr"]),
                "",
                _difference(record),
                Text(record["verdict"], style=_COLOURS.get(record["verdict"], "magenta")),
            )
        blocks.append(table)
    counts = {word: sum(r["verdict"] == word for r in records) for word in _COLOURS}
    blocks.append(
        f"Of {len(records)} comparisons, {counts['agrees']} agree within two standard errors of the measurement, "
        f"{counts['close']} more within 5 %, {counts['within its error']} only within the error of the calibration, "
        f"and {counts['off']} are off: there the theory named in the row fails on this network."
    )
    return Group(*blocks)


def onsets_as_table(summary: xr.Dataset) -> Table:
    """Predicted against measured onset, a row per network, loss and criterion; valid Markdown when printed plainly.

    Parameters
    ----------
    summary : Dataset
        From `bridge.summarise_onsets`.

    Returns
    -------
    Table
        For each batch size the predicted threshold over 2/sharpness, and the measured onset over the predicted
        threshold with its standard error in the last digits.
    """
    table = Table(box=box.MARKDOWN)
    batches = summary["batch_size"].values
    for heading in ("network", "loss", "criterion", *(f"batch {size}" for size in batches)):
        table.add_column(heading, no_wrap=True)
    for network in summary["network"].values:
        for loss in summary["loss"].values:
            for criterion in summary["criterion"].values:
                row = summary.sel(network=network, loss=loss, criterion=criterion)
                cells = [
                    f"{edge:.3f}: {concise(float(ratio), float(stderr))}"
                    for edge, ratio, stderr in zip(
                        row["relative_to_edge"].values,
                        row["ratio"].values,
                        row["ratio_stderr"].values,
                        strict=True,
                    )
                ]
                table.add_row(network, loss.replace("-", " "), criterion, *cells)
    return table


def onsets_in_words(table: xr.Dataset) -> str:
    """How many cells hold, and which fail.

    Parameters
    ----------
    table : Dataset
        From `bridge.onset_table`.

    Returns
    -------
    str
        A sentence, and a line for each cell that is off or was not measured.
    """
    flat = table.stack(cell=table["ratio"].dims)
    verdicts = list(flat["verdict"].values)
    margin = f"{100 * table.attrs['margin']:g} %"
    counts = {
        word: verdicts.count(word) for word in (f"within {margin}", "within its error", "off", "not measured")
    }
    lines = [
        f"Of {len(verdicts)} cells, {counts[f'within {margin}']} are within {margin}, "
        f"{counts['within its error']} more only within their 95 % interval, {counts['off']} are off, and "
        f"{counts['not measured']} were not measured."
    ]
    for i in np.flatnonzero(np.isin(verdicts, ["off", "not measured"])):
        cell = flat.isel(cell=i)
        name = ", ".join(str(cell[dim].item()) for dim in table["ratio"].dims)
        told = cell["reason"].item() or concise(cell["ratio"].item(), cell["ratio_stderr"].item())
        lines.append(f"{verdicts[i]}: {name}: {told}")
    return "\n".join(lines)


def onsets_as_json(table: xr.Dataset, /, **files: str) -> str:
    """All cells, the provenance and the names of the files written, as one JSON document."""
    frame = table.stack(cell=table["ratio"].dims)
    names = [*table["ratio"].dims, *table.data_vars]
    records = [
        {name: _finite(frame[name].values[i].item()) for name in names} for i in range(frame.sizes["cell"])
    ]
    return json.dumps({**_plain(table.attrs), "files": files, "rows": records}, indent=1)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _named(record: dict[str, Any]) -> str:
    return record["quantity"] if record["units"] == "1" else f"{record['quantity']} [{record['units']}]"


def _difference(record: dict[str, Any]) -> str:
    if record["predicted"] is None or not record["measured"]:
        return "-"
    return f"{100 * (record['predicted'] / record['measured'] - 1):+.1f} %"


def concise(value: float | None, stderr: float | None) -> str:
    """A value with its standard error in the last digits: 0.06135(34), 31.9(1.4), 8.86(52)e-4.

    Parameters
    ----------
    value, stderr : float or None
        None or NaN where they do not exist; an error of 0, or too small to show, is left out.

    Returns
    -------
    str
        For a table.
    """
    text = number(value, stderr)
    if " ± " not in text:
        return text
    body, _, power = text.removeprefix("(").partition(")")
    shown, error = body.split(" ± ")
    if float(error) < 1:
        error = error.replace(".", "").lstrip("0")
    return f"{shown}({error}){power}"


def number(value: float | None, stderr: float | None) -> str:
    """A value with its error, to two digits of the error: 0.4630 ± 0.0021; plainly where the error is 0 or unknown.

    Parameters
    ----------
    value, stderr : float or None
        None or NaN where they do not exist.

    Returns
    -------
    str
        For a table.
    """
    if value is None or not math.isfinite(value):
        return "-"
    if not stderr or not math.isfinite(stderr) or stderr < 1e-5 * abs(value):
        return f"{value:.5g}"
    exponent = math.floor(math.log10(max(abs(value), stderr)))
    scaled = -3 <= exponent < 5
    factor = 1.0 if scaled else 10.0**exponent
    digits = max(0, 1 - math.floor(math.log10(stderr / factor)))
    text = f"{value / factor:.{digits}f} ± {stderr / factor:.{digits}f}"
    return text if scaled else f"({text})e{exponent}"


def campaign_as_table(table: xr.Dataset) -> Table:
    """Forecast over measured, a row per task, rule and batch size; valid Markdown when printed plainly.

    Parameters
    ----------
    table : Dataset
        From `bridge.run_campaign`.

    Returns
    -------
    Table
        Means over the seeds of the ratios of the last third of the steps, and of the distance from the mean of the
        runs over the distance moved (in brackets what the sampling error of that mean alone gives).
    """
    shown = Table(box=box.MARKDOWN)
    for heading in ("task", "rule", "batch", "eta × sharpness", "mean loss", "variance", "distance / moved"):
        shown.add_column(heading, no_wrap=True)
    for task in table["task"].values:
        for rule in table["rule"].values:
            for batch in table["batch"].values:
                row = table.sel(task=task, rule=rule, batch=batch)
                ratios = [row[f"{name}_ratio"] for name in ("sharpness", "loss", "variance")]
                if not np.isfinite(ratios[0]).any():
                    continue
                told = [f"{float(r.mean()):.3f}" if np.isfinite(r).any() else "-" for r in ratios]
                far, least = (
                    float((row[name] / row["moved"]).mean()) for name in ("distance", "mean_stderr")
                )
                shown.add_row(str(task), str(rule), str(batch), *told, f"{far:.3f} ({least:.3f})")
    return shown


def campaign_in_words(table: xr.Dataset) -> str:
    """How many cells hold, and which do not.

    Parameters
    ----------
    table : Dataset
        From `bridge.run_campaign`.

    Returns
    -------
    str
        Two sentences, a third on how often the flow's own cautions were right where it gave any, and a line for each
        cell that is off, stopped or failed.
    """
    dims = table["status"].dims
    flat = table.stack(cell=dims)
    status = list(flat["status"].values)
    lines, off = [], np.zeros(flat.sizes["cell"], bool)
    known = np.isfinite(flat["sharpness_ratio"].values)
    compared = int(known.sum())
    for name, margin in (("sharpness", "sharpness_margin"), ("loss", "loss_margin")):
        allowed = table.attrs[margin]
        far = np.abs(flat[f"{name}_ratio"].values - 1)
        off |= far > allowed
        within = int((far <= allowed).sum())
        lines.append(
            f"{within} of {compared} forecasts of {'mean ' if name == 'loss' else ''}{name} are within "
            f"{100 * allowed:g} %."
        )
    told = flat["caution"].values != "" if "caution" in flat else np.zeros_like(known)
    if (told & known).any():
        lines.append(
            f"Against {(told & known).sum()} of them the flow itself gave a caution: {(told & off).sum()} of these "
            f"are off, and {(off & ~told).sum()} of the {(known & ~told).sum()} others."
        )
    for i in range(flat.sizes["cell"]):
        cell = flat.isel(cell=i)
        named = ", ".join(str(cell[dim].item()) for dim in dims)
        if status[i] in ("does not apply", "failed"):
            lines.append(f"{status[i]}: {named}: {cell['reason'].item()}")
        elif off[i]:
            sizes = ", ".join(
                f"{name} {100 * (float(cell[f'{name}_ratio']) - 1):+.1f} %" for name in ("sharpness", "loss")
            )
            caution = f" (it said: {cell['caution'].item()})" if told[i] else ""
            lines.append(f"off: {named}: {sizes}{caution}")
    return "\n".join(lines)


def cells_as_json(table: xr.Dataset, /, **files: str) -> str:
    """All cells of a table without their paths over steps, the provenance and the names of the files, as JSON."""
    dims = table["status"].dims
    flat = table[[name for name, values in table.data_vars.items() if "step" not in values.dims]].stack(
        cell=dims
    )
    names = [*dims, *flat.data_vars]
    records = [
        {str(name): _finite(flat[name].isel(cell=i).item()) for name in names}
        for i in range(flat.sizes["cell"])
    ]
    return json.dumps({**_plain(table.attrs), "files": files, "rows": records}, indent=1)
