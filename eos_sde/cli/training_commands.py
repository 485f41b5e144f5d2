"""Commands that train and compare: train, compare."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eos_sde.cli.completions import complete_contender, complete_rule
from eos_sde.cli.model_options import DATA, complete_task, with_data
from eos_sde.cli.result_files import write_result
from eos_sde.cli.terminal import JSON, check_folder, progress_bars
from solvers.errors import InvalidInput

app = typer.Typer()
SETTING = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the task, as name=value; may be repeated; tuples as 32,32."),
]


@app.command()
def train(
    task: Annotated[
        str, typer.Option(help="A task; see `eos-sde tasks`.", autocompletion=complete_task)
    ] = "digits-mlp",
    data: DATA = None,
    settings: SETTING = None,
    rule: Annotated[
        str,
        typer.Option(
            help="sgd, sgdm, adamw, caeo, caeo-ss, l4, cdat, inverse-sharpness and others.",
            autocompletion=complete_rule,
        ),
    ] = "caeo",
    eta: Annotated[float | None, typer.Option(help="Learning rate; the task's own by default.")] = None,
    delta: Annotated[float, typer.Option(help="Margin of caeo and caeo-ss.")] = 0.1,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the rule, as name=value; may be repeated.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="constant or warmup-cosine.")] = "constant",
    batch: Annotated[int, typer.Option(help="Batch size.")] = 32,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training part. [20]")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates, in place of epochs.")] = None,
    validation: Annotated[float, typer.Option(help="Part of the training examples held out.")] = 0.2,
    every: Annotated[int, typer.Option(help="Updates between two rows of the log.")] = 10,
    curvature_every: Annotated[
        int, typer.Option(help="Rows between two measurements of the sharpness; 0: at the end.")
    ] = 5,
    probe: Annotated[
        int, typer.Option(help="Examples of a fixed batch for the rule's curvature; 0: each update's own.")
    ] = 0,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Updates between checkpoints. (default: ten in a run)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order of the data, estimators.")] = 0,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="An earlier run whose weights it starts from, where the layers fit."),
    ] = None,
    mesh: Annotated[
        str | None, typer.Option(help="Devices to spread over, as data=8 or data=4,model=2. (default: one)")
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One of several processes; found by JAX on SLURM and TPU.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="host:port of the first process, where JAX does not find it.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many there are.")] = None,
    process: Annotated[int | None, typer.Option(help="The number of this one, from 0.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Threads that read the images of a stream. (default: one for each core)"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for run.nc, log.jsonl and checkpoints.")] = Path("run"),
    as_json: JSON = False,
) -> None:
    """Train a network under a rule, with a log, checkpoints and test scores; a killed run goes on when called again.

    Example: eos-sde train --task digits-mlp --set loss=cross-entropy --rule caeo --eta 0.8 --epochs 20 --out run
    """
    from eos_sde import trial_report, trials
    from eos_sde.trials.trial import updates_of

    if distributed:
        if mesh is None:
            raise InvalidInput(
                "distributed needs mesh, the devices of all processes: for example --mesh data=8"
            )
        trials.join_cluster(coordinator, processes, process)
    elif coordinator is not None or processes is not None or process is not None:
        raise InvalidInput(
            "coordinator, processes and process are for --distributed: add it, or leave them out"
        )
    check_folder(out)
    if epochs is not None and steps is not None:
        raise InvalidInput(f"epochs={epochs:g} and steps={steps} say the same twice: give one")
    given: dict[str, Any] = {
        "eta": eta, "delta": delta, "options": _assignments("option", option), "schedule": schedule,
        "batch_size": batch, "validation": validation, "every": every, "curvature_every": curvature_every,
        "probe": probe, "seed": seed, "start": None if start is None else str(start),
        "task_settings": with_data(task, _assignments("set", settings), data),
    }  # fmt: skip
    if steps is None:
        trials.Trial(task, rule, steps=every, **{**given, "schedule": "constant"}).check()
        whole = updates_of(20 if epochs is None else epochs, trials.Trial(task, rule, steps=every, **given))
        steps = every * -(-whole // every)
    trial = trials.Trial(task, rule, steps=steps, **given)
    trial.check()
    between = checkpoint_every or every * max(1, steps // every // 10)
    with progress_bars() as advance:
        run = trials.train(
            trial, folder=out, checkpoint_every=between, mesh=mesh, workers=workers,
            progress=lambda done: advance("training", done / steps),
        )  # fmt: skip
    path = out / "run.nc"
    if as_json:
        sys.stdout.write(trial_report.as_json(run, dataset=str(path)) + "\n")
        return
    console = _console(160)
    console.print(f"{run.attrs['description']}; {rule}, batch {batch}, {steps} updates")
    console.print(trial_report.run_as_table(run))
    console.print(trial_report.run_in_words(run), soft_wrap=True)
    console.print(f"dataset: {path}", soft_wrap=True)


@app.command()
def compare(
    task: Annotated[
        str, typer.Option(help="A task; see `eos-sde tasks`.", autocompletion=complete_task)
    ] = "digits-mlp",
    data: DATA = None,
    settings: SETTING = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated; forms of a rule as caeo:estimator=hutchinson or caeo:delta=0,refresh=50; "
            "weights of another comparison's runs as sgdm:from=folder/caeo. "
            "(default: all that can be compared)",
            autocompletion=complete_contender,
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="The rule that others are compared with.", autocompletion=complete_contender)
    ] = "sgdm",
    seeds: Annotated[int, typer.Option(help="How many judge; at least 3.")] = 5,
    seed: Annotated[int, typer.Option(help="The first of those that tune; those that judge follow.")] = 0,
    tuning_seeds: Annotated[int, typer.Option(help="How many tune.")] = 3,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 32,
    epochs: Annotated[float, typer.Option(help="Of every run.")] = 40,
    rows: Annotated[int, typer.Option(help="Measurements of a run.")] = 50,
    points: Annotated[int, typer.Option(help="Values of each rule's knob that are tried; odd.")] = 7,
    ratio: Annotated[float, typer.Option(help="Of neighbouring values.")] = 2.0,
    tune_for: Annotated[
        str, typer.Option(help="loss (the least on validation examples) or steps (to target).")
    ] = "loss",
    target_loss: Annotated[float | None, typer.Option(help="Validation loss to reach.")] = None,
    target_accuracy: Annotated[float | None, typer.Option(help="Or accuracy.")] = None,
    target_perplexity: Annotated[float | None, typer.Option(help="Or perplexity.")] = None,
    probe: Annotated[
        int, typer.Option(help="Examples of a fixed batch for the curvature; 0: each update's own.")
    ] = 0,
    validation: Annotated[float, typer.Option(help="Part of the training examples held out.")] = 0.2,
    out: Annotated[Path, typer.Option(help="Folder for compare.nc, compare.png and the runs.")] = Path(
        "compare"
    ),
    as_json: JSON = False,
) -> None:
    """Tune rules by one budget and judge them on other seeds: steps to a target, cost, test scores, sharpness.

    Finished runs stay in the folder; the same command goes on where an interrupted one stopped. Example: eos-sde
    compare --task digits-mlp --set loss=cross-entropy --rule sgdm --rule caeo --out digits
    """
    from eos_sde import plots, trial_report, trials

    check_folder(out)
    targets = [
        trials.Target(kind, value)
        for kind, value in (
            ("loss", target_loss), ("accuracy", target_accuracy), ("perplexity", target_perplexity),
        )
        if value is not None
    ]  # fmt: skip
    if len(targets) > 1:
        raise InvalidInput(f"targets {targets[0].kind} and {targets[1].kind} are one too many: give one")
    with progress_bars() as advance:
        found = trials.compare(
            task, store=out, rules=rule or tuple(trials.CONTENDERS), reference=reference, seeds=seeds, seed=seed,
            tuning_seeds=tuning_seeds,
            epochs=epochs, batch_size=batch, rows=rows, points=points, ratio=ratio, tune_for=tune_for,
            target=targets[0] if targets else None, probe=probe, validation=validation,
            task_settings=with_data(task, _assignments("set", settings), data), progress=advance,
        )  # fmt: skip
    dataset_path, figure_path = out / "compare.nc", out / "compare.png"
    write_result(found, dataset_path)
    plots.save(trial_report.comparison_figure(found), figure_path)
    if as_json:
        sys.stdout.write(
            trial_report.as_json(found, dataset=str(dataset_path), figure=str(figure_path)) + "\n"
        )
        return
    console = _console(320)
    console.print(found.attrs["description"], soft_wrap=True)
    console.print(trial_report.comparison_as_table(found))
    console.print(trial_report.comparison_in_words(found), soft_wrap=True)
    console.print(f"dataset: {dataset_path}\nfigure:  {figure_path}", soft_wrap=True)


def _console(width: int) -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else width)


def _assignments(name: str, given: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in given or []:
        key, equals, value = one.partition("=")
        if not (key and equals and value):
            raise InvalidInput(f"{name}={one!r} must be name=value")
        found[key.replace("-", "_")] = _value(value)
    return found


def _value(text: str) -> Any:
    from eos_sde.trials.contenders import plain_value

    if "," in text:
        return tuple(plain_value(part) for part in text.split(",") if part)
    return plain_value(text)
