"""A dataset as rows of a table, whatever it holds, with a heading and units for each column."""

import json
import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from eos_sde import model_tables, report
from eos_sde.dataset_figures import kind_of

_MOST_DIGITS, _FINEST = 5, 8


class Column(NamedTuple):
    """A column of a table: its heading, units, texts of the cells, and whether they are numbers."""

    heading: str
    units: str
    cells: list[str]
    numeric: bool


def rows_of(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The rows that tell what a dataset says.

    Parameters
    ----------
    dataset : Dataset
        Of any kind that `dataset_figures.kind_of` knows.

    Returns
    -------
    list of dict
        Plain values by name, the same names in each row; of a sweep a row per point, without variables over fewer axes.
    """
    kind = kind_of(dataset)
    if kind == "threshold":
        return [_threshold_row(row) for row in model_tables.threshold_records(dataset)["rows"]]
    if kind == "spectrum" and "parameters" in dataset.attrs:
        return model_tables.spectrum_records(dataset)["rows"]
    if kind == "simulation" and {"parameters", "start"} <= set(dataset.attrs):
        return model_tables.ensemble_records(dataset)["rows"]
    if kind == "replay":
        return report.rows(dataset)
    if kind == "onsets":
        return json.loads(report.onsets_as_json(dataset))["rows"]
    if kind in {"campaign", "implicit bias"}:
        return json.loads(report.cells_as_json(dataset))["rows"]
    return _points(dataset)


def _threshold_row(row: dict[str, Any]) -> dict[str, Any]:
    """A threshold with its neighbours beside it, without what is the same in all rows."""
    last = ("threshold", "stderr", "closed_form", "evaluations", "reason")
    left_out = (*last, "method", "closed_form_method")
    return {name: value for name, value in row.items() if name not in left_out} | {
        name: row[name] for name in last
    }


def _points(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """A row per point of the axes that most variables share."""
    shapes = [tuple(map(str, variable.dims)) for variable in dataset.data_vars.values() if variable.dims]
    if not shapes:
        return [
            {str(name): variable.item() for name, variable in dataset.data_vars.items() if variable.size == 1}
        ]
    dims = max(dict.fromkeys(shapes), key=lambda shape: (shapes.count(shape), len(shape)))
    names = [
        name for name, variable in dataset.data_vars.items() if set(map(str, variable.dims)) == set(dims)
    ]
    labels = [dataset[dim].values for dim in dims]
    tables = {str(name): dataset[name].transpose(*dims).values for name in names}
    return [
        {
            dim: label[i].item() if hasattr(label[i], "item") else label[i]
            for dim, label, i in zip(dims, labels, index, strict=True)
        }
        | {name: _plain(table[index]) for name, table in tables.items()}
        for index in np.ndindex(*(dataset.sizes[dim] for dim in dims))
    ]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def columns_of(rows: list[dict[str, Any]], dataset: xr.Dataset) -> list[Column]:
    """Rows as columns of text whose decimal points stand under each other when aligned to the right.

    Parameters
    ----------
    rows : list of dict
        From `rows_of`, or some of them.
    dataset : Dataset
        From which units are read.

    Returns
    -------
    list of Column
        Columns without any value are left out.
    """
    columns = []
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if all(value is None or value == "" for value in values):
            continue
        units = str(dataset[name].attrs.get("units", "")) if name in dataset.variables else ""
        units = "" if units in {"1", "see units"} else units  # a table of mixed units has a column of them
        if all(
            value is None or (isinstance(value, (int, float, complex)) and not isinstance(value, bool))
            for value in values
        ):
            columns.append(Column(name, units, _aligned(values), True))
        else:
            texts = ["" if value is None else str(value) for value in values]
            columns.append(Column(name, units, texts, False))
    return columns


def _aligned(values: list[Any]) -> list[str]:
    if any(isinstance(value, complex) for value in values):
        return ["-" if value is None else f"{value:.5g}" for value in values]
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if all(isinstance(value, int) or value is None for value in values) or not sizes:
        return [
            "-" if v is None or not math.isfinite(v) else f"{v:g}" if isinstance(v, float) else str(v)
            for v in values
        ]
    decimals = max(0, _MOST_DIGITS - 1 - math.floor(math.log10(max(sizes))))
    few = max(sizes) >= 10**7 or decimals > _FINEST or min(sizes) < 10 ** (1 - decimals)
    form = ".4e" if few else f".{decimals}f"
    if not few and all(float(f"{size:.0f}") == size for size in sizes):
        form = ".0f"
    return [
        "-" if v is None or not math.isfinite(v) else "0" if few and v == 0 else format(v, form)
        for v in values
    ]
