"""Commands of the bridge's experiments: replay, onsets, campaign, implicit-bias."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eos_sde.cli.completions import (
    complete_forecast_rule,
    complete_loss,
    complete_network,
    complete_replayed_rule,
)
from eos_sde.cli.model_options import DATA, complete_task, with_data
from eos_sde.cli.result_files import write_result
from eos_sde.cli.terminal import JSON, check_folder, progress_bars
from solvers.errors import InvalidInput

app = typer.Typer()
_CIFAR = "cifar-resnet"  # the task whose images the user has


@app.command()
def replay(
    task: Annotated[
        str, typer.Option(help="A task; see `eos-sde tasks`.", autocompletion=complete_task)
    ] = "fashion-mlp",
    rule: Annotated[
        str,
        typer.Option(
            help="gd, sgd or caeo: which experiments to run.", autocompletion=complete_replayed_rule
        ),
    ] = "caeo",
    eta: Annotated[float | None, typer.Option(help="Learning rate; the task's own by default.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size B; 8 B is used beside it.")] = 8,
    delta: Annotated[
        list[float] | None, typer.Option(help="Margin of CAEO; may be repeated. [0.1, 0.5]")
    ] = None,
    steps: Annotated[int, typer.Option(help="SGD steps to forecast after the checkpoint.")] = 500,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for replay.nc and replay.png.")] = Path("replay"),
    as_json: JSON = False,
) -> None:
    """Train a real network and hold the continuous predictions against it: table, dataset, figure.

    Example: eos-sde replay --task digits-mlp --batch 16 --out digits
    """
    from eos_sde import bridge, plots, report

    dataset_path, figure_path = out / "replay.nc", out / "replay.png"
    check_folder(out)

    with progress_bars() as advance:
        dataset = bridge.replay(
            task, rule, steps=steps, seed=seed, eta=eta, batch_size=batch,
            deltas=tuple(delta) if delta else (0.1, 0.5), progress=advance,
            keep=lambda dataset: write_result(dataset, dataset_path),
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
    network: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated; all four by default.", autocompletion=complete_network),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="half-squared-error or cross-entropy; both by default.", autocompletion=complete_loss
        ),
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
    as_json: JSON = False,
) -> None:
    """Predict at which learning rate SGD loses a trained minimum, and measure it: networks x losses x batches x seeds.

    Finished cells stay in the folder; the same command goes on where an interrupted one stopped. Example: eos-sde
    onsets --network digits-tanh --batch 1 --batch 4 --seeds 1
    """
    from eos_sde import bridge, plots, report
    from eos_sde.bridge.onset_grid import FULL, LOSSES, NETWORKS, QUICK

    check_folder(out)
    if seeds < 1:
        raise InvalidInput(f"seeds={seeds} must be at least 1")
    if seed < 0:
        raise InvalidInput(f"seed={seed} must be at least 0")
    dataset_path, figure_path = out / "onsets.nc", out / "onsets.png"
    with progress_bars() as advance:
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
    write_result(table, dataset_path)
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
            help="May be repeated. (default: all that are small, without the transformer; quick: the two mlp)",
            autocompletion=complete_task,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated. (default: gd, sgd, sgdm, caeo; quick: sgd)",
            autocompletion=complete_forecast_rule,
        ),
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option(help="Batch size or all; may be repeated. [4, 16, 64, all]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many. [3; quick: 1]")] = None,
    seed: Annotated[int, typer.Option(help="The first of them; the others follow.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps to forecast. [200; quick: 60]")] = None,
    quick: Annotated[bool, typer.Option(help="Tiny networks, 100 examples, batches 4, 16, all.")] = False,
    data: DATA = None,
    cifar: Annotated[
        Path | None,
        typer.Option(help="Official files of CIFAR-10 or an npz: adds the task cifar-resnet."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The store; cells and figures go beside it.")] = Path(
        "campaign.zarr"
    ),
    as_json: JSON = False,
) -> None:
    """Forecast training from checkpoints, run it, and compare: tasks x rules x batches x seeds.

    Finished cells stay beside the store; the same command goes on where an interrupted one stopped. Example: eos-sde
    campaign --quick --task digits-mlp --out digits.zarr
    """
    from eos_sde import bridge, campaign_plots, plots, report
    from eos_sde.bridge.campaign import NETWORKS, QUICK

    check_folder(out.parent)
    known = QUICK if quick else NETWORKS
    count = (1 if quick else 3) if seeds is None else seeds
    if count < 1:
        raise InvalidInput(f"seeds={count} must be at least 1")
    with progress_bars() as advance:
        table = bridge.run_campaign(
            out,
            tasks=_networks(task, known, cifar, data),
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


def _networks(
    names: list[str] | None, known: Mapping[str, Mapping[str, Any]], cifar: Path | None, data: Path | None
) -> dict[str, Mapping[str, Any]]:
    """The networks of a campaign with their settings; the data of some are the user's."""
    from eos_sde.bridge.campaign import ON_REQUEST

    chosen = list(names or known)
    if cifar is not None and names is None:
        chosen.append(_CIFAR)
    settings = {**ON_REQUEST, **known}
    found = {name: settings.get(name, {}) for name in chosen}
    if _CIFAR in found and cifar is not None:
        found[_CIFAR] = {**found[_CIFAR], "path": str(cifar)}
    if data is not None:
        if names is None or len(names) > 1:
            raise InvalidInput(f"data={data} is for one task, named by --task: its data are there")
        found[names[0]] = with_data(names[0], dict(found[names[0]]), data)
    return found


@app.command()
def implicit_bias(
    task: Annotated[
        str, typer.Option(help="A task; see `eos-sde tasks`.", autocompletion=complete_task)
    ] = "digits-mlp",
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated. (default: gd, sgd, sgdm, caeo; quick: gd, sgd)",
            autocompletion=complete_forecast_rule,
        ),
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
    as_json: JSON = False,
) -> None:
    """Where each rule ends at each batch size, forecast and run: sharpness, trace, losses, test accuracy.

    Finished cells stay in the folder; the same command goes on where an interrupted one stopped. Example: eos-sde
    implicit-bias --quick --task digits-mlp --out digits
    """
    from eos_sde import bridge, implicit_bias_report, plots, report
    from eos_sde.bridge.campaign import QUICK

    check_folder(out)
    if seeds < 1:
        raise InvalidInput(f"seeds={seeds} must be at least 1")
    dataset_path, figure_path = out / "implicit-bias.nc", out / "implicit-bias.png"
    with progress_bars() as advance:
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
    write_result(table, dataset_path)
    plots.save(implicit_bias_report.implicit_bias_figure(table), figure_path)
    if as_json:
        sys.stdout.write(
            report.cells_as_json(table, dataset=str(dataset_path), figure=str(figure_path)) + "\n"
        )
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    implicit_bias_report.show(table, console)
    console.print(f"dataset: {dataset_path}\nfigure:  {figure_path}", soft_wrap=True)
