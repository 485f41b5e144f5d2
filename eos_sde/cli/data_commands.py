"""Commands on the user's data: check-images."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from eos_sde.cli.terminal import JSON, progress_bars

app = typer.Typer()
_SHOWN = 10  # broken images that are told in words


@app.command()
def check_images(
    path: Annotated[
        Path, typer.Argument(help="Folder of class folders or of TFRecord files.", show_default=False)
    ],
    classes: Annotated[
        int | None, typer.Option(help="How many; needed for TFRecord files, which do not tell.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Read every image of a set once: what is broken, images of each class, mean and spread of the colours.

    Ends with status 1 if an image is broken. Example: eos-sde check-images imagenet --classes 1000
    """
    from eos_sde.bridge.image_folder_tasks import open_images
    from eos_sde.bridge.readers.survey import survey

    parts = open_images(path, classes=classes)
    with progress_bars() as advance:
        found = [
            survey(part, progress=lambda fraction, name=name: advance(name, fraction))
            for part, name in zip(parts, ("training", "test"), strict=True)
        ]
    broken = [sentence for one in found for sentence in one.broken]
    if as_json:
        document: dict[str, Any] = {
            name: {
                "source": one.source,
                "classes": len(one.counts),
                "counts": one.counts.tolist(),
                "mean": one.mean.tolist() if one.counts.any() else None,
                "spread": one.spread.tolist() if one.counts.any() else None,
                "broken": list(one.broken),
            }
            for one, name in zip(found, ("training", "test"), strict=True)
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        for one in found:
            sys.stdout.write(
                f"{one.source}: {one.counts.sum()} whole images of {len(one.counts)} classes "
                f"({one.counts.min()} to {one.counts.max()} of each), {len(one.broken)} broken; "
                f"mean {_colours(one.mean)}, spread {_colours(one.spread)}\n"
            )
        for sentence in broken[:_SHOWN]:
            sys.stdout.write(f"  {sentence}\n")
        if len(broken) > _SHOWN:
            sys.stdout.write(f"  and {len(broken) - _SHOWN} more: --json names all\n")
    if broken:
        raise typer.Exit(1)


def _colours(values: Any) -> str:
    return " ".join(f"{value:.3f}" for value in values)
