"""Commands that list what there is: tasks, models."""

import json
import sys

import typer

from eos_sde.cli.terminal import JSON

app = typer.Typer()


@app.command()
def tasks(as_json: JSON = False) -> None:
    """List the tasks: network, weights, examples, loss, learning rate, data and licence."""
    from eos_sde import bridge

    _list({name: bridge.describe_task(name) for name in bridge.tasks()}, as_json)


@app.command()
def models(as_json: JSON = False) -> None:
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
