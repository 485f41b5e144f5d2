"""The command that plans the training of a large model: plan."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eos_sde.cli.completions import complete_hardware, complete_large_model, complete_planned_rule
from eos_sde.cli.result_files import ENDINGS, check_file, write_result
from eos_sde.cli.terminal import JSON, command_line, progress_bars

app = typer.Typer()


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="resnet-50, resnet-50-cifar, vit-h-14, bert-large or bert-xxl.",
            autocompletion=complete_large_model,
            show_default=False,
        ),
    ],
    mesh: Annotated[str, typer.Option(help="Devices, as data=8 or data=4,model=2.")] = "data=4,model=2",
    batch: Annotated[int, typer.Option(help="Examples of an update, over all devices.")] = 64,
    probe: Annotated[
        int | None, typer.Option(help="Of the batch for CAEO's curvature. (default: all)")
    ] = None,
    rule: Annotated[
        str, typer.Option(help="caeo, sgd or adamw.", autocompletion=complete_planned_rule)
    ] = "caeo",
    precision: Annotated[str, typer.Option(help="Of the arithmetic: bf16 or fp32.")] = "bf16",
    hardware: Annotated[
        str,
        typer.Option(help="h100, h200, a100, v5p or v5e: peak and memory.", autocompletion=complete_hardware),
    ] = "h100",
    peak: Annotated[float | None, typer.Option(help="Operations per second of a device, instead.")] = None,
    memory: Annotated[float | None, typer.Option(help="Bytes of a device, instead.")] = None,
    utilization: Annotated[float, typer.Option(help="Part of the peak that is assumed.")] = 0.4,
    topology: Annotated[
        str | None, typer.Option(help="Compile for this TPU, as v5p:2x2x2; needs libtpu, no TPU.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the plan: .nc (NetCDF) or .zarr.")] = None,
    as_json: JSON = False,
) -> None:
    """Compile the training step of a large model over a mesh, run nothing, and plan the run: memory, time, collectives.

    The devices are virtual; compilation takes minutes. Example: eos-sde plan vit-h-14 --mesh data=4,model=2 --batch 64
    """
    from eos_sde import large_models
    from eos_sde.large_models import report

    check_file("--out", out, ENDINGS)
    with progress_bars() as advance:
        found = large_models.plan_training(
            model, mesh=mesh, batch=batch, probe=probe, rule=rule, precision=precision, hardware=hardware, peak=peak,
            memory=memory, utilization=utilization, topology=topology,
            progress=lambda done: advance("compiling", done),
        )  # fmt: skip
    if out is not None:
        write_result(found.assign_attrs(command=command_line.get()), out)
    if as_json:
        sys.stdout.write(report.plan_as_json(found) + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(report.plan_as_table(found))
    console.print(report.plan_in_words(found), soft_wrap=True)
