"""Classification of small images by fully connected and convolutional networks, and what other image tasks share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.datasets import load_dataset
from eos_sde.bridge.networks import Network, convolutional, mlp
from eos_sde.bridge.recipes import Problem, Recipe, check_activation, check_counts, recipe
from solvers.errors import InvalidInput

OUTPUTS = ("one-hot", "scalar", "parity")

_COMMON = {
    "activation": "tanh",
    "outputs": "one-hot",
    "smoothing": 0.0,
    "channels": 0,
    "centre": False,
    "test_examples": None,
    "source": "subset",
}


def _image_recipe(dataset: str, *, large: Mapping[str, Any], **small: Any) -> Recipe:
    return recipe(lambda chosen: _classify(dataset, chosen), {**_COMMON, **small}, large)


RECIPES = {
    "fashion-mlp": _image_recipe(
        "fashion",
        examples=1000,
        hidden=(24, 24),
        pool=2,
        eta=0.1,
        large={"examples": 5000, "hidden": (256, 256), "pool": 1},
    ),
    "digits-mlp": _image_recipe(
        "digits",
        examples=1000,
        hidden=(32, 32),
        pool=1,
        eta=0.2,
        large={"examples": 1500, "hidden": (256, 256)},
    ),
    "fashion-cnn": _image_recipe(
        "fashion",
        examples=500,
        channels=6,
        hidden=(24,),
        pool=2,
        eta=0.1,
        large={"examples": 5000, "channels": 32, "hidden": (128,), "pool": 1},
    ),
}


def _classify(dataset: str, chosen: Mapping[str, Any]) -> Problem:
    check_classifier(chosen)
    check_counts(chosen, "channels", least=0)
    if chosen["outputs"] not in OUTPUTS:
        raise InvalidInput(f"outputs={chosen['outputs']!r} is not known: choose one of {', '.join(OUTPUTS)}")
    if chosen["loss"] == "cross-entropy" and chosen["outputs"] == "scalar":
        raise InvalidInput(
            "loss='cross-entropy' needs outputs='one-hot' or 'parity': a single output has no softmax"
        )
    data = load_dataset(dataset, source=chosen["source"])
    if data.x_train.shape[1] % chosen["pool"]:
        raise InvalidInput(f"pool={chosen['pool']} must divide the image size {data.x_train.shape[1]}")
    test_examples = len(data.y_test) if chosen["test_examples"] is None else chosen["test_examples"]
    images, labels = data.balanced(chosen["examples"])
    test_images, test_labels = data.balanced(test_examples, "test")
    x, x_test = pooled(images, chosen["pool"]), pooled(test_images, chosen["pool"])
    mean = x.mean(axis=0) if chosen["centre"] else 0.0
    classes, smoothing = len(data.classes), chosen["smoothing"]
    y, y_test = (_targets(one, chosen["outputs"], classes, smoothing) for one in (labels, test_labels))
    network = _network(images.shape[1] // chosen["pool"], y.shape[1], chosen)
    return Problem(network, x - mean, y, x_test - mean, y_test, data.source, data.licence)


def check_classifier(chosen: Mapping[str, Any]) -> None:
    """Refuse what no classifier of images can have.

    Parameters
    ----------
    chosen : mapping
        Complete settings, with ``activation``, ``examples``, ``test_examples``, ``pool`` and ``smoothing``.

    Raises
    ------
    InvalidInput
        Naming the first setting that is wrong.
    """
    check_activation(chosen)
    check_counts(chosen, "examples", "pool")
    if chosen["test_examples"] is not None:
        check_counts(chosen, "test_examples")
    if not 0 <= chosen["smoothing"] < 1:
        raise InvalidInput(f"smoothing={chosen['smoothing']!r} must lie in [0, 1)")
    if chosen["smoothing"] and chosen["loss"] != "cross-entropy":
        raise InvalidInput(f"smoothing={chosen['smoothing']} is for loss='cross-entropy': leave it out")


def pooled(images: NDArray[np.floating], pool: int) -> NDArray[np.floating]:
    """Means over squares of pixels, flattened.

    Parameters
    ----------
    images : ndarray
        Shape (n, height, width) or (n, height, width, 3).
    pool : int
        Side of a square, a divisor of both.

    Returns
    -------
    ndarray
        Shape (n, inputs).
    """
    n, height, width, *colours = images.shape
    squares = images.reshape(n, height // pool, pool, width // pool, pool, *colours).mean(axis=(2, 4))
    return squares.reshape(n, -1)


def one_hot(labels: NDArray[np.int64], classes: int, smoothing: float) -> NDArray[np.float64]:
    """Target probabilities (1 - s) one-hot + s/c.

    Parameters
    ----------
    labels : ndarray
        Shape (n,).
    classes : int
        c.
    smoothing : float
        s, from 0 to below 1.

    Returns
    -------
    ndarray
        Shape (n, c).
    """
    return (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes


def _network(side: int, outputs: int, chosen: Mapping[str, Any]) -> Network:
    layers, activation = (*chosen["hidden"], outputs), chosen["activation"]
    if chosen["channels"]:
        return convolutional(side, chosen["channels"], layers, activation)
    return mlp((side**2, *layers), activation)


def _targets(labels: NDArray[np.int64], outputs: str, classes: int, smoothing: float) -> NDArray[np.float64]:
    if outputs == "scalar":
        return np.where(labels % 2 == 0, 1.0, -1.0)[:, None]
    if outputs == "parity":
        labels, classes = labels % 2, 2
    return one_hot(labels, classes, smoothing)
