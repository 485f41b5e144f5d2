"""Commands that show results: plot, report."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eos_sde.cli.model_options import SEED
from eos_sde.cli.result_files import PICTURES, check_file, read_result
from eos_sde.cli.terminal import JSON, command_line, progress_bars
from solvers.errors import InvalidInput
from solvers.whole_files import write_whole

app = typer.Typer()
FILES = Annotated[
    list[Path],
    typer.Argument(help="Results of other commands: NetCDF files or Zarr stores.", show_default=False),
]


@app.command()
def plot(
    files: FILES,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the figure: .png, .svg or .pdf. (default: the first file's name, .png)"),
    ] = None,
    value: Annotated[str | None, typer.Option(help="Variable of a sweep. (default: its first)")] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(help="Axis of a sweep: one for lines, two for a phase diagram. (default: chosen)"),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Where an axis of a sweep that is not drawn is fixed."),
    ] = None,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Draw what a result holds: a spectrum, an ensemble, thresholds, a sweep, a replay, a campaign and so on.

    A sweep may be followed by threshold curves along its axes. Example: eos-sde plot sweep.zarr --value sharpness
    --over eta --over batch --out phase.svg
    """
    from eos_sde import plots
    from eos_sde.dataset_figures import figures_of, kind_of

    if not files[0].name:
        raise InvalidInput(f"{files[0]} is no result; give a NetCDF file or a Zarr store")
    path = files[0].with_suffix(".png") if out is None else out
    _check(seed, path, PICTURES)
    fixed = _fixed(at)
    datasets = [read_result(file) for file in files]
    with progress_bars() as advance:
        figures = figures_of(datasets, value=value, over=over, at=fixed)
        written = {}
        for done, (name, figure) in enumerate(figures.items()):
            advance("figures", done / len(figures))
            where = path if not name else path.with_name(f"{path.stem}-{name}{path.suffix}")
            plots.save(figure, where)
            written[name or "figure"] = str(where)
    kinds = [kind_of(dataset) for dataset in datasets]
    if as_json:
        sys.stdout.write(json.dumps({"kinds": kinds, "files": written}, indent=1) + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for kind, where in zip(kinds, files, strict=True):
        console.print(f"{where}: {kind}", soft_wrap=True)
    for where in written.values():
        console.print(f"figure: {where}", soft_wrap=True)


@app.command()
def report(
    files: FILES,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "Results of eos-sde",
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Write one web page that shows results with their figures, tables and provenance, and needs no network.

    Example: eos-sde report replay/replay.nc flip.nc sweep.zarr --out report.html
    """
    from eos_sde.report_page import html_report

    _check(seed, out, (".html", ".htm"))
    datasets = {str(file): read_result(file) for file in files}
    with progress_bars() as advance:
        page = html_report(
            datasets,
            title=title,
            command=command_line.get(),
            progress=lambda fraction: advance("sections", fraction),
        )
    write_whole(out, page.encode())
    if as_json:
        sys.stdout.write(
            json.dumps({"files": {"page": str(out)}, "bytes": len(page.encode())}, indent=1) + "\n"
        )
        return
    sys.stdout.write(f"page: {out}\n")


def _check(seed: int, out: Path, endings: tuple[str, ...]) -> None:
    if not 0 <= seed < 2**64:
        raise InvalidInput(f"seed={seed} must be at least 0 and below 2^64")
    check_file("--out", out, endings)


def _fixed(at: list[str] | None) -> dict[str, str]:
    fixed = {}
    for text in at or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InvalidInput(f"--at {text}: write NAME=VALUE")
        fixed[name.strip()] = value.strip()
    return fixed
