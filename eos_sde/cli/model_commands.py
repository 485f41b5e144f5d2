"""Commands on the models of the catalogue: threshold, spectrum, simulate."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eos_sde.cli.model_options import (
    BOUNDARY,
    GRID,
    MODEL,
    PARAM,
    SEED,
    chosen_model,
    complete_criterion,
    complete_scheme,
    given_boundary,
    given_grid,
    named_numbers,
    span,
    start_of,
)
from eos_sde.cli.result_files import ENDINGS, PICTURES, check_file, write_result
from eos_sde.cli.terminal import JSON, command_line, progress_bars
from solvers.errors import InvalidInput

app = typer.Typer()

OUT = Annotated[Path | None, typer.Option(help="File for the dataset: .nc or .zarr. (default: none)")]
FIGURE = Annotated[Path | None, typer.Option(help="File for a figure: .png, .svg or .pdf. (default: none)")]


@app.command()
def threshold(
    model: MODEL,
    over: Annotated[
        str,
        typer.Option(metavar="NAME=LO:HI", help="The parameter and between which values its threshold lies."),
    ],
    param: PARAM = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="almost_sure, moment, gap, escape or density_shape.", autocompletion=complete_criterion
        ),
    ] = "almost_sure",
    along: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=LO:HI:COUNT", help="A second parameter: a curve of thresholds. (default: none)"
        ),
    ] = None,
    p: Annotated[float | None, typer.Option(help="Order of the moment. (moment; default: 2)")] = None,
    level: Annotated[float | None, typer.Option(help="Decay rate per time that the gap has. (gap)")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Second decay rate over the first. (gap; default: a quartic well's)")
    ] = None,
    horizon: Annotated[
        float | None, typer.Option(help="Training time, in the model's unit. (escape)")
    ] = None,
    grid: GRID = None,
    boundary: BOUNDARY = None,
    method: Annotated[
        str | None, typer.Option(help="spectral or simulation. (almost_sure, moment; default: spectral)")
    ] = None,
    paths: Annotated[int | None, typer.Option(help="Of a simulation.")] = None,
    duration: Annotated[float | None, typer.Option(help="Of a simulation, in the model's unit.")] = None,
    dt: Annotated[float | None, typer.Option(help="Step of a simulation.")] = None,
    tolerance: Annotated[float, typer.Option(help="Of the root, as a fraction of the bracket.")] = 1e-6,
    seed: SEED = 0,
    out: OUT = None,
    figure: FIGURE = None,
    as_json: JSON = False,
) -> None:
    """Locate the value of a parameter at which a model meets a stability criterion.

    Example: eos-sde threshold flip-normal-form --param C=1 --param s=0.1 --over mu=-0.1:0.2 --criterion gap
    """
    from eos_sde import model_plots, model_tables
    from eos_sde.thresholds.threshold_curves import threshold_curve

    chosen = chosen_model(model)
    wanted = criterion.replace("-", "_")
    varied = span("--over", over, counted=False)
    second = span("--along", along, counted=True) if along is not None else None
    _check_outputs(seed, out, figure)
    if figure is not None and second is None:
        raise InvalidInput("--figure draws a curve of thresholds; give --along NAME=LO:HI:COUNT too")
    names = tuple(chosen.components)
    settings: dict[str, Any] = {
        "p": p, "level": level, "ratio": ratio, "horizon": horizon, "method": method, "paths": paths,
        "duration": duration, "dt": dt, "grid": given_grid(grid, names),
        "boundary": given_boundary(boundary, names) if boundary else None,
    }  # fmt: skip
    settings = {key: value for key, value in settings.items() if value is not None}
    if method == "simulation":
        settings["seed"] = seed
    with progress_bars() as advance:
        advance("threshold", 0.0)
        table = threshold_curve(
            chosen,
            named_numbers("--param", param),
            over=varied.name,
            bracket=(varied.low, varied.high),
            criterion=wanted,
            along=(second.name, second.values()) if second is not None else None,
            progress=lambda fraction: advance("threshold", fraction),
            tolerance=tolerance,
            **settings,
        )
    table = table.assign_attrs(command=command_line.get())
    drawn = model_plots.threshold_figure(table) if figure is not None else None
    files = _written(table, out, drawn, figure)
    _say(model_tables.threshold_records(table), files, as_json, lambda: model_tables.threshold_table(table))


@app.command()
def spectrum(
    model: MODEL,
    param: PARAM = None,
    grid: GRID = None,
    boundary: BOUNDARY = None,
    along: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=LO:HI:COUNT",
            help="A parameter along which decay rates are followed. (default: none)",
        ),
    ] = None,
    modes: Annotated[int, typer.Option(help="How many.")] = 6,
    method: Annotated[
        str, typer.Option(help="auto, tridiagonal, shift-invert, davidson, arnoldi or dense.")
    ] = "auto",
    seed: SEED = 0,
    out: OUT = None,
    figure: FIGURE = None,
    as_json: JSON = False,
) -> None:
    """Slowest modes of a model's Fokker-Planck operator; of a map, leading modes of its transfer operator.

    Example: eos-sde spectrum flip-normal-form --param mu=0.1 --param C=1 --param s=0.05 --figure flip.png
    """
    from eos_sde import model_plots, model_tables
    from eos_sde.thresholds.model_spectra import model_spectrum
    from eos_sde.thresholds.spectrum_curves import spectrum_curve

    chosen = chosen_model(model)
    _check_outputs(seed, out, figure)
    names = tuple(chosen.components)
    given, walls = given_grid(grid, names), given_boundary(boundary, names)
    if along is not None:
        varied = span("--along", along, counted=True)
        with progress_bars() as advance:
            table = spectrum_curve(
                chosen, named_numbers("--param", param), along=(varied.name, varied.values()), grid=given,
                boundary=walls, modes=modes, method=method, progress=lambda fraction: advance("spectra", fraction),
            ).assign_attrs(command=command_line.get(), seed=seed)  # fmt: skip
        drawn = model_plots.spectra_figure(table) if figure is not None else None
        files = _written(table, out, drawn, figure)
        _say(model_tables.spectra_records(table), files, as_json, lambda: model_tables.spectra_table(table))
        return
    with progress_bars() as advance:
        table = model_spectrum(
            chosen, named_numbers("--param", param), grid=given, boundary=walls, modes=modes, method=method,
            progress=advance,
        ).assign_attrs(command=command_line.get(), seed=seed)  # fmt: skip
    drawn = model_plots.spectrum_figure(table) if figure is not None else None
    files = _written(table, out, drawn, figure)
    _say(model_tables.spectrum_records(table), files, as_json, lambda: model_tables.spectrum_table(table))


@app.command()
def simulate(
    model: MODEL,
    param: PARAM = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Start of a component; one option for each. (default: see models)"
        ),
    ] = None,
    t1: Annotated[
        float | None, typer.Option(help="End, in the model's time unit. (default: 100 SGD steps)")
    ] = None,
    dt: Annotated[
        float | None, typer.Option(help="Time step. (default: a tenth of an SGD step; a map has its own)")
    ] = None,
    paths: Annotated[int | None, typer.Option(help="How many. (default: 10000; without noise 1)")] = None,
    scheme: Annotated[
        str, typer.Option(help="auto, or a scheme of solvers.simulate.", autocompletion=complete_scheme)
    ] = "euler-maruyama",
    times: Annotated[int, typer.Option(help="How many times are kept, about.")] = 200,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LO:HI:CELLS", help="Axes of a histogram to keep. (default: none)"),
    ] = None,
    save_paths: Annotated[bool, typer.Option("--save-paths", help="Keep every path, too.")] = False,
    threads: Annotated[int | None, typer.Option(help="(default: all cores)")] = None,
    seed: SEED = 0,
    out: OUT = None,
    figure: FIGURE = None,
    as_json: JSON = False,
) -> None:
    """Simulate an ensemble of paths of a model: means, deviations and quantiles over time.

    Example: eos-sde simulate caeo-map --param eta_base=0.1 --param alpha=1 --param beta=2 --t1 400 --out caeo.nc
    """
    from eos_sde import model_plots, model_tables
    from eos_sde.model_ensembles import simulate_model

    chosen = chosen_model(model)
    _check_outputs(seed, out, figure)
    begin = start_of(chosen, start)
    with progress_bars() as advance:
        table = simulate_model(
            chosen, named_numbers("--param", param), start=begin, t1=t1, dt=dt, paths=paths, scheme=scheme, times=times,
            histogram=given_grid(grid, tuple(chosen.components)), save_paths=save_paths, threads=threads, seed=seed,
            progress=lambda fraction: advance("paths", fraction),
        ).assign_attrs(command=command_line.get())  # fmt: skip
    drawn = model_plots.ensemble_figure(table) if figure is not None else None
    files = _written(table, out, drawn, figure)
    _say(model_tables.ensemble_records(table), files, as_json, lambda: model_tables.ensemble_table(table))


def _check_outputs(seed: int, out: Path | None, figure: Path | None) -> None:
    if not 0 <= seed < 2**64:
        raise InvalidInput(f"seed={seed} must be at least 0 and below 2^64")
    check_file("--out", out, ENDINGS)
    check_file("--figure", figure, PICTURES)


def _written(table: Any, out: Path | None, drawn: Any, figure: Path | None) -> dict[str, str]:
    files = {}
    if out is not None:
        write_result(table, out)
        files["dataset"] = str(out)
    if figure is not None:
        from eos_sde import plots

        plots.save(drawn, figure)
        files["figure"] = str(figure)
    return files


def _say(records: dict[str, Any], files: dict[str, str], as_json: bool, table: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(_plain({**records, "files": files}), indent=1) + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table())
    for what, path in files.items():
        console.print(f"{what + ':':<9}{path}", soft_wrap=True)


def _plain(value: Any) -> Any:
    """Python's own types, and None for numbers that do not exist."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
