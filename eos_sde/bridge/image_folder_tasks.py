"""Classification of images in class folders or TFRecord files, as ImageNet's, by a small vision transformer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eos_sde.bridge.encoders import vision_transformer
from eos_sde.bridge.image_tasks import check_classifier, one_hot
from eos_sde.bridge.networks import Network
from eos_sde.bridge.readers.class_folders import class_folders
from eos_sde.bridge.readers.labelled import LabelledImages, first_rows, pixels
from eos_sde.bridge.readers.random_cuts import check_augmentation
from eos_sde.bridge.readers.record_images import holds_records, record_images
from eos_sde.bridge.recipes import Problem, check_counts, given_path, recipe
from eos_sde.bridge.streamed_images import ImageStream
from solvers.errors import InvalidInput

_NEEDS = (
    "a folder of images in class folders (in train and val, or by themselves) or of TFRecord files, "
    "as of ImageNet from https://image-net.org"
)
_LICENCE = "of the images' owners; ImageNet's terms allow research and teaching alone"
_PREVIEWED = 10  # classes of the network that is described without data


def open_images(path: str | Path, *, classes: int | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images of a folder, of whichever form it is.

    Parameters
    ----------
    path : str or Path
        See `readers.class_folders.class_folders` and `readers.record_images.record_images`.
    classes : int, optional
        How many; required of TFRecord files, which do not tell, and checked where folders do.

    Returns
    -------
    (LabelledImages, LabelledImages)
        Training and test images.

    Raises
    ------
    InvalidInput
        If there is no such folder, or as the readers.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise InvalidInput(f"path={folder} is no folder: give {_NEEDS}")
    if holds_records(folder):
        if classes is None:
            raise InvalidInput(
                f"path={folder} holds TFRecord files, which do not tell the classes: give classes=1000"
            )
        return record_images(folder, classes)
    training, testing = class_folders(folder)
    if classes not in (None, len(training.classes)):
        raise InvalidInput(f"classes={classes} and path={folder} has {len(training.classes)}: leave it out")
    return training, testing


def _classify(chosen: Mapping[str, Any]) -> Problem:
    _check(chosen)
    training, testing = open_images(given_path("imagefolder-vit", chosen, _NEEDS), classes=chosen["classes"])
    classes = len(training.classes)
    network = _network(chosen, classes)
    tested = len(testing) if chosen["test_examples"] is None else chosen["test_examples"]
    side = chosen["side"]
    rows = first_rows(training, chosen["examples"])
    images, labels = pixels(training, rows, side)
    test_images, test_labels = pixels(testing, first_rows(testing, tested), side)
    whole = [one.astype(np.float64) / 255 for one in (images, test_images)]
    mean, spread = whole[0].mean(axis=(0, 1, 2)), whole[0].std(axis=(0, 1, 2))
    spread = np.where(spread > 0, spread, 1.0)
    x, x_test = (((one - mean) / spread).reshape(len(one), -1) for one in whole)
    y, y_test = (one_hot(one, classes, chosen["smoothing"]) for one in (labels, test_labels))
    source, stream = training.source, None
    if chosen["stream"]:
        every = np.arange(len(training))
        augment = chosen["augment"]
        stream = ImageStream(training, rows, every, side, mean, spread, chosen["smoothing"], augment)
        shown = "" if augment == "none" else f", augmented by {augment}"
        source += f" (measured on; batches are streamed from all {len(training)}{shown})"
    return Problem(network, x, y, x_test, y_test, source, _LICENCE, stream)


def _check(chosen: Mapping[str, Any]) -> None:
    check_classifier({"pool": 1, **chosen})
    check_counts(chosen, "side", "patch", "width", "heads", "blocks")
    if not isinstance(chosen["stream"], bool):
        raise InvalidInput(f"stream={chosen['stream']!r} must be true or false")
    check_augmentation(chosen["augment"])
    if chosen["augment"] != "none" and not chosen["stream"]:
        raise InvalidInput(
            f"augment={chosen['augment']!r} is for batches that are streamed: give stream=true too, or augment=none"
        )
    if chosen["classes"] is not None:
        check_counts(chosen, "classes", least=2)


def _network(chosen: Mapping[str, Any], classes: int) -> Network:
    shape = {key: chosen[key] for key in ("side", "patch", "width", "heads", "blocks", "activation")}
    return vision_transformer(classes=classes, **shape)


def _preview(chosen: Mapping[str, Any]) -> tuple[Network, str]:
    return _network(chosen, _PREVIEWED), f"{chosen['examples']} examples of {_PREVIEWED} classes"


RECIPES = {
    "imagefolder-vit": recipe(
        _classify,
        {
            "loss": "cross-entropy",
            "examples": 200,
            "test_examples": None,
            "side": 32,
            "patch": 8,
            "width": 32,
            "heads": 2,
            "blocks": 2,
            "activation": "gelu",
            "smoothing": 0.0,
            "classes": None,
            "stream": False,
            "augment": "none",
            "path": None,
            "eta": 0.1,
        },
        {"examples": 20000, "test_examples": 2000, "side": 64, "width": 192, "heads": 3, "blocks": 12},
        preview=_preview,
        needs=f"path=... to {_NEEDS}",
        later=("augment",),
    )
}
