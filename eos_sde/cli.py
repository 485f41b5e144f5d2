"""The command line, `eos-sde`: replay, onsets, campaign, implicit-bias, tasks, models."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from typer.exceptions import TyperException

from solvers.errors import ConvergenceFailure, InvalidInput

app = typer.Typer(
    name="eos-sde",
    help="The edge of stability of stochastic training: continuous theory held against real networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130
_INTERRUPTION = "interrupted; what was finished is kept where the output goes"
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


@app.command()
def replay(
    task: Annotated[str, typer.Option(help="A task; see `eos-sde tasks`.")] = "fashion-mlp",
    rule: Annotated[str, typer.Option(help="gd, sgd or caeo: which experiments to run.")] = "caeo",
    eta: Annotated[float | None, typer.Option(help="Learning rate; the task's own by default.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size B; 8 B is used beside it.")] = 8,
    delta: Annotated[
        list[float] | None, typer.Option(help="Margin of CAEO; may be repeated. [0.1, 0.5]")
    ] = None,
    steps: Annotated[int, typer.Option(help="SGD steps to forecast after the checkpoint.")] = 500,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for replay.nc and replay.png.")] = Path("replay"),
    as_json: _JSON = False,
) -> None:
    """Train a real network and hold the continuous predictions against it: table, dataset, figure.

    Example: eos-sde replay --task digits-mlp --batch 16 --out digits
    """
    from eos_sde import bridge, plots, report

    dataset_path, figure_path = out / "replay.nc", out / "replay.png"
    _check_folder(out)

    with _progress() as advance:
        dataset = bridge.replay(
            task, rule, steps=steps, seed=seed, eta=eta, batch_size=batch,
            deltas=tuple(delta) if delta else (0.1, 0.5), progress=advance,
            keep=lambda dataset: _keep(dataset, dataset_path),
        )  # fmt: skip
    plots.save(plots.replay_figure(dataset), figure_path)
    if as_json:
        sys.stdout.write(report.as_json(dataset, dataset=str(dataset_path), figure=str(figure_path)) + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(dataset.attrs["description"])
    console.print(report.as_table(dataset))
    console.print(f"dataset: {dataset_path}\nfigure:  {figure_path}", soft_wrap=True)


@app.command()
def onsets(
    network: Annotated[list[str] | None, typer.Option(help="May be repeated; all four by default.")] = None,
    loss: Annotated[
        list[str] | None, typer.Option(help="half-squared-error or cross-entropy; both by default.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size; may be repeated. [1, 4, 16, 64]")
    ] = None,
    criterion: Annotated[
        list[str] | None, typer.Option(help="mean-square (default) or almost-sure; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    seed: Annotated[int, typer.Option(help="The first of them; the others follow.")] = 0,
    quick: Annotated[
        bool, typer.Option(help="16 examples and short measurements; batches 1, 4, 16.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for onsets.nc, onsets.png and the cells.")] = Path(
        "onsets"
    ),
    as_json: _JSON = False,
) -> None:
    """Predict at which learning rate SGD loses a trained minimum, and measure it: networks x losses x batches x seeds.

    Finished cells stay in the folder; the same command goes on where an interrupted one stopped. Example: eos-sde
    onsets --network digits-tanh --batch 1 --batch 4 --seeds 1
    """
    from eos_sde import bridge, plots, report
    from eos_sde.bridge.onset_grid import FULL, LOSSES, NETWORKS, QUICK

    _check_folder(out)
    if seeds < 1:
        raise InvalidInput(f"seeds={seeds} must be at least 1")
    if seed < 0:
        raise InvalidInput(f"seed={seed} must be at least 0")
    dataset_path, figure_path = out / "onsets.nc", out / "onsets.png"
    with _progress() as advance:
        table = bridge.onset_table(
            out / "cells",
            networks=network or tuple(NETWORKS),
            losses=loss or LOSSES,
            batch_sizes=batch or ((1, 4, 16) if quick else (1, 4, 16, 64)),
            criteria=criterion or ("mean-square",),
            seeds=range(seed, seed + seeds),
            effort=QUICK if quick else FULL,
            progress=advance,
        )
    _keep(table, dataset_path)
    plots.save(plots.onset_figure(table), figure_path)
    if as_json:
        sys.stdout.write(
            report.onsets_as_json(table, dataset=str(dataset_path), figure=str(figure_path)) + "\n"
        )
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print("Predicted threshold over 2/sharpness: measured onset over the predicted threshold.")
    console.print(report.onsets_as_table(bridge.summarise_onsets(table)))
    console.print(report.onsets_in_words(table), soft_wrap=True)
    console.print(f"dataset: {dataset_path}\nfigure:  {figure_path}", soft_wrap=True)


@app.command()
def campaign(
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated. (default: all that are small, without the transformer; quick: the two mlp)"
        ),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="May be repeated. (default: gd, sgd, sgdm, caeo; quick: sgd)")
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option(help="Batch size or all; may be repeated. [4, 16, 64, all]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many. [3; quick: 1]")] = None,
    seed: Annotated[int, typer.Option(help="The first of them; the others follow.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps to forecast. [200; quick: 60]")] = None,
    quick: Annotated[bool, typer.Option(help="Tiny networks, 100 examples, batches 4, 16, all.")] = False,
    out: Annotated[Path, typer.Option(help="The store; cells and figures go beside it.")] = Path(
        "campaign.zarr"
    ),
    as_json: _JSON = False,
) -> None:
    """Forecast training from checkpoints, run it, and compare: tasks x rules x batches x seeds.

    Finished cells stay beside the store; the same command goes on where an interrupted one stopped. Example: eos-sde
    campaign --quick --task digits-mlp --out digits.zarr
    """
    from eos_sde import bridge, campaign_plots, plots, report
    from eos_sde.bridge.campaign import NETWORKS, ON_REQUEST, QUICK

    _check_folder(out.parent)
    known = QUICK if quick else NETWORKS
    count = (1 if quick else 3) if seeds is None else seeds
    if count < 1:
        raise InvalidInput(f"seeds={count} must be at least 1")
    with _progress() as advance:
        table = bridge.run_campaign(
            out,
            tasks={name: {**ON_REQUEST, **known}.get(name, {}) for name in task or known},
            batch_sizes=batch or (("4", "16", "all") if quick else ("4", "16", "64", "all")),
            rules=rule or (("sgd",) if quick else ("gd", "sgd", "sgdm", "caeo")),
            seeds=range(seed, seed + count),
            steps=(60 if quick else 200) if steps is None else steps,
            replicas=4 if quick else 8,
            warmup=60 if quick else 100,
            progress=advance,
        )
    figures = {}
    for name, figure in campaign_plots.campaign_figures(table).items():
        figures[name] = str(out.with_name(f"{out.stem}-{name}.png"))
        plots.save(figure, figures[name])
    if as_json:
        sys.stdout.write(report.cells_as_json(table, store=str(out), **figures) + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print("Forecast over measured, last third of the steps, mean over the seeds.")
    console.print(report.campaign_as_table(table))
    console.print(report.campaign_in_words(table), soft_wrap=True)
    console.print(
        "\n".join([f"store:  {out}", *(f"figure: {path}" for path in figures.values())]), soft_wrap=True
    )


@app.command()
def implicit_bias(
    task: Annotated[str, typer.Option(help="A task; see `eos-sde tasks`.")] = "digits-mlp",
    rule: Annotated[
        list[str] | None, typer.Option(help="May be repeated. (default: gd, sgd, sgdm, caeo; quick: gd, sgd)")
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option(help="Batch size or all; may be repeated. [4, 32, all]")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 1,
    seed: Annotated[int, typer.Option(help="The first of them; the others follow.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="From the checkpoint to the end. [500; quick: 60]")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A tiny network on 100 examples, where the task is of images.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for implicit-bias.nc, .png and the cells.")] = Path(
        "implicit-bias"
    ),
    as_json: _JSON = False,
) -> None:
    """Where each rule ends at each batch size, forecast and run: sharpness, trace, losses, test accuracy.

    Finished cells stay in the folder; the same command goes on where an interrupted one stopped. Example: eos-sde
    implicit-bias --quick --task digits-mlp --out digits
    """
    from eos_sde import bridge, implicit_bias_report, plots, report
    from eos_sde.bridge.campaign import QUICK

    _check_folder(out)
    if seeds < 1:
        raise InvalidInput(f"seeds={seeds} must be at least 1")
    dataset_path, figure_path = out / "implicit-bias.nc", out / "implicit-bias.png"
    with _progress() as advance:
        table = bridge.implicit_bias_table(
            bridge.load_task(task, **(QUICK.get(task, {}) if quick else {})),
            rules=rule or (("gd", "sgd") if quick else ("gd", "sgd", "sgdm", "caeo")),
            batch_sizes=batch or ("4", "32", "all"),
            seeds=range(seed, seed + seeds),
            steps=(60 if quick else 500) if steps is None else steps,
            replicas=4 if quick else 6,
            window=20 if quick else 50,
            store=out / "cells",
            progress=advance,
        )
    _keep(table, dataset_path)
    plots.save(implicit_bias_report.implicit_bias_figure(table), figure_path)
    if as_json:
        sys.stdout.write(
            report.cells_as_json(table, dataset=str(dataset_path), figure=str(figure_path)) + "\n"
        )
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    implicit_bias_report.show(table, console)
    console.print(f"dataset: {dataset_path}\nfigure:  {figure_path}", soft_wrap=True)


@app.command()
def tasks(as_json: _JSON = False) -> None:
    """List the tasks: network, weights, examples, loss, learning rate, data and licence."""
    from eos_sde import bridge

    _list({name: bridge.describe_task(name) for name in bridge.tasks()}, as_json)


@app.command()
def models(as_json: _JSON = False) -> None:
    """List the models of training at the edge of stability."""
    from eos_sde.models import catalogue

    described = {
        name: f"{model.description} ({', '.join(model.parameters)})" for name, model in catalogue().items()
    }
    _list(described, as_json)


def _list(described: dict[str, str], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(described, indent=1) + "\n")
        return
    width = max(map(len, described))
    for name, text in described.items():
        sys.stdout.write(f"{name:{width}}  {text}\n")


def _keep(dataset: Any, path: Path) -> None:
    """Write a dataset whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    dataset.to_netcdf(partial, engine="h5netcdf")
    partial.replace(path)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before any work; make nothing yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InvalidInput(f"out={folder} cannot be written ({there} is no writable folder); choose another")


@contextmanager
def _progress():
    """A bar on a terminal's standard error, nothing in a pipe."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<13}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        bars: dict[str, Any] = {}

        def advance(name: str, fraction: float) -> None:
            if name not in bars:
                for earlier in bars.values():
                    bar.update(earlier, completed=1.0)
                bars[name] = bar.add_task(name, total=1.0)
            bar.update(bars[name], completed=fraction)

        yield advance
        for one in bars.values():
            bar.update(one, completed=1.0)


def _say(message: str) -> None:
    if message:
        sys.stderr.write(f"eos-sde: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Instead of the process's own.

    Returns
    -------
    int
        Exit status: 0; 1 if an iteration failed or 2 for bad input, with one sentence on standard error; 130 when
        interrupted.
    """
    show: Callable[..., None] = lambda message, *args, **kwargs: _say(str(message))  # noqa: ARG005, E731
    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            result = app(arguments, standalone_mode=False)
        except typer.Exit as leaving:
            if leaving.exit_code == _INTERRUPTED:  # typer's reading of Ctrl-C
                _say(_INTERRUPTION)
            return leaving.exit_code
        except InvalidInput as error:
            _say(str(error))
            return 2
        except ConvergenceFailure as error:
            _say(str(error))
            return 1
        except (KeyboardInterrupt, typer.Abort):
            _say(_INTERRUPTION)
            return _INTERRUPTED
        except TyperException as error:  # bad options and values, in typer's own words
            _say(error.format_message())
            return 2
    if result == _INTERRUPTED:
        _say(_INTERRUPTION)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
