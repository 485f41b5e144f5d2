"""Results as one web page that needs nothing else: figures, tables, provenance, in light and dark."""

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from eos_sde import implicit_bias_report, report
from eos_sde.dataset_figures import figures_of, kind_of
from eos_sde.dataset_rows import columns_of, rows_of
from solvers.errors import InvalidInput
from solvers.provenance import provenance

_ROWS = 200
_HEAVY = 1_500_000  # bytes from which a drawing is embedded as pixels
_CAPTIONS = {
    "threshold": "The threshold along a second parameter, with its error and the closed form where there is one.",
    "spectra": "Decay rates of the slowest modes against a parameter.",
    "spectrum": "Eigenvalues of the slowest modes, the density, and the mode that decays last.",
    "simulation": "The ensemble over time, and where its paths are at the end.",
    "replay": "Theory as lines, the network as points, a panel for each experiment.",
    "onsets": "Predicted against measured onsets, and their ratio by batch size with 95 % intervals.",
    "campaign": "Every cell, forecast against measured, with bands of 5 and 10 %.",
    "implicit bias": "Where each rule ends at each batch size, forecast and run.",
    "stability map": "Regions of CAEO over its margin, and the predicted boundary with its error.",
    "sweep": "The first variable of the sweep; `eos-sde plot` draws the others.",
}
_WORDS: dict[str, Callable[[xr.Dataset], str]] = {
    "onsets": report.onsets_in_words,
    "campaign": report.campaign_in_words,
    "implicit bias": implicit_bias_report.implicit_bias_in_words,
}


def html_report(
    datasets: Mapping[str, xr.Dataset],
    *,
    title: str = "Results of eos-sde",
    command: str = "",
    progress: Callable[[float], Any] | None = None,
) -> str:
    """One page with a section for each dataset: what it says, its figures, its table, what made it.

    Parameters
    ----------
    datasets : mapping of str to Dataset
        By name; of any kind that `dataset_figures.kind_of` knows.
    title : str
        Heading of the page.
    command : str
        What wrote it, for the record.
    progress : callable, optional
        Called with the finished fraction.

    Returns
    -------
    str
        HTML without a script and without a reference to anything outside; the same datasets give the same page.

    Raises
    ------
    InvalidInput
        If there is no dataset.
    """
    if not datasets:
        raise InvalidInput("there is no dataset to report; give at least one")
    sections = []
    for done, (name, dataset) in enumerate(datasets.items()):
        sections.append(_section(done + 1, name, dataset))
        if progress is not None:
            progress((done + 1) / len(datasets))
    page = Environment(
        loader=PackageLoader("eos_sde", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")  # fmt: skip
    return page.render(title=title, command=command, sections=sections, versions=provenance())


def _section(number: int, name: str, dataset: xr.Dataset) -> dict[str, Any]:
    kind = kind_of(dataset)
    rows = rows_of(dataset)
    try:
        drawn, silence = figures_of([dataset]), ""
    except InvalidInput as error:  # a single threshold has no figure: said on the page
        drawn, silence = {}, str(error)
    return {
        "number": number,
        "name": name,
        "kind": kind,
        "subject": str(dataset.attrs.get("description") or dataset.attrs.get("model") or ""),
        "words": _WORDS[kind](dataset).split("\n") if kind in _WORDS else [],
        "figures": [
            {"caption": key or _CAPTIONS.get(kind, kind), "uri": _embedded(figure)}
            for key, figure in drawn.items()
        ],
        "silence": silence,
        "columns": columns_of(rows[:_ROWS], dataset),
        "rows": len(rows),
        "shown": min(len(rows), _ROWS),
        "attributes": {str(key): str(value) for key, value in dataset.attrs.items()},
        "variables": [
            {
                "name": str(key),
                "dims": ", ".join(f"{dim} ({variable.sizes[dim]})" for dim in variable.dims) or "one value",
                "units": str(variable.attrs.get("units", "")),
                "meaning": str(variable.attrs.get("long_name", "")),
            }
            for key, variable in dataset.variables.items()
        ],
    }


def _embedded(figure: Figure) -> str:
    """A figure as a data URI: as a drawing, or as pixels where that is smaller by far."""
    page = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "eos-sde"}):
        figure.savefig(page, format="svg", metadata={"Date": None}, dpi=130)
    kind = "svg+xml"
    if page.tell() > _HEAVY:
        page, kind = io.BytesIO(), "png"
        figure.savefig(page, format="png", dpi=130)
    return f"data:image/{kind};base64,{base64.b64encode(page.getvalue()).decode()}"
