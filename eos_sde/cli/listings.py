"""Commands that list what there is: tasks, models."""

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from eos_sde.cli.model_options import SEED, chosen_model, complete_model, complete_task, takes_data
from eos_sde.cli.terminal import JSON
from eos_sde.models.registry import Model, catalogue
from solvers.errors import InvalidInput

app = typer.Typer()


@app.command()
def tasks(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One of them, with its settings.", autocompletion=complete_task, show_default=False
        ),
    ] = None,
    seed: SEED = 0,  # noqa: ARG001 - every command takes it
    as_json: JSON = False,
) -> None:
    """List the tasks: network, weights, examples, loss, learning rate, data and licence.

    Example: eos-sde tasks digits-mlp
    """
    from eos_sde import bridge

    if name is not None and name not in bridge.tasks():
        raise InvalidInput(f"task={name!r} is not known: choose one of {', '.join(bridge.tasks())}")
    chosen = bridge.tasks() if name is None else (name,)
    if not as_json:
        described = {one: bridge.describe_task(one) for one in chosen}
        if name is None:
            _lines(described)
        else:
            _details(described[name], {"settings": _values(bridge.task_defaults(name))}, _task_example(name))
        return
    _print({one: {"description": bridge.describe_task(one), "settings": dict(bridge.task_defaults(one)),
                  "example": _task_example(one)} for one in chosen})  # fmt: skip


def _task_example(name: str) -> str:
    if takes_data(name):
        return f"eos-sde train --task {name} --data PATH --rule caeo --out {name}"
    return f"eos-sde campaign --quick --task {name} --out {name}.zarr"


@app.command()
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One of them, with its parameters.", autocompletion=complete_model, show_default=False
        ),
    ] = None,
    seed: SEED = 0,  # noqa: ARG001
    as_json: JSON = False,
) -> None:
    """List the models of training at the edge of stability, or tell one with its parameters and an example.

    Example: eos-sde models flip-normal-form
    """
    chosen = tuple(catalogue().values()) if name is None else (chosen_model(name),)
    if as_json:
        _print({model.name: _model(model) for model in chosen})
    elif name is None:
        _lines({model.name: f"{model.description} ({', '.join(model.parameters)})" for model in chosen})
    else:
        (model,) = chosen
        parts = {
            "parameters": {
                key: text + (f" (default: {model.defaults[key]:g})" if key in model.defaults else "")
                for key, text in model.parameters.items()
            },
            "components": {
                key: f"{text} (starts at {model.start[key]:g})" for key, text in model.components.items()
            },
            "about": {
                "one SGD step": f"is a time of {model.step}",
                "fixed point": "none" if model.fixed_point is None else _values_line(model.fixed_point),
                **({"growth rates": f"cross 0 in {' and '.join(model.growth)}"} if model.growth else {}),
                **({"remark": model.remark} if model.remark else {}),
            },
        }
        _details(f"{model.name}: {model.description}", parts, f"eos-sde {model.example}")


def _model(model: Model) -> dict[str, Any]:
    return {
        "description": model.description,
        "parameters": {
            key: {"meaning": text, "default": model.defaults.get(key), "required": key not in model.defaults}
            for key, text in model.parameters.items()
        },
        "components": {
            key: {"meaning": text, "start": model.start[key]} for key, text in model.components.items()
        },
        "step": model.step,
        "discrete": model.discrete,
        "fixed_point": None if model.fixed_point is None else dict(model.fixed_point),
        "growth_parameters": list(model.growth),
        "noise_parameters": list(model.kicks),
        "remark": model.remark,
        "example": f"eos-sde {model.example}",
    }


def _values(settings: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in settings.items()}


def _values_line(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} = {value:g}" for key, value in values.items())


def _print(described: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(described, indent=1, default=str) + "\n")


def _lines(described: Mapping[str, str]) -> None:
    width = max(map(len, described))
    for name, text in described.items():
        sys.stdout.write(f"{name:{width}}  {text}\n")


def _details(heading: str, parts: Mapping[str, Mapping[str, str]], example: str) -> None:
    lines = [heading]
    for title, entries in parts.items():
        width = max(map(len, entries))
        lines += [f"\n{title}:", *(f"  {key:{width}}  {text}" for key, text in entries.items())]
    sys.stdout.write("\n".join([*lines, f"\nexample:\n  {example}"]) + "\n")
