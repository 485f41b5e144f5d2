"""Classification of drawn characters, Chars74k, by a small convolutional network."""

from collections.abc import Mapping
from typing import Any

from eos_sde.bridge.image_tasks import check_classifier, one_hot
from eos_sde.bridge.networks import Network, convolutional
from eos_sde.bridge.readers.chars74k import WHERE, characters_of, load_chars74k
from eos_sde.bridge.recipes import Problem, check_counts, given_path, recipe

_LICENCE = (
    "research use; T. de Campos, B. R. Babu and M. Varma, Character Recognition in Natural Images (2009)"
)
_NEEDS = f"the official folder or archive from {WHERE}, or its strokes as JSON"


def _classify(chosen: Mapping[str, Any]) -> Problem:
    network = _network(chosen)
    drawings = load_chars74k(given_path("chars74k-cnn", chosen, _NEEDS), form=chosen["form"])
    drawings = drawings.only(chosen["characters"])
    side, tested = chosen["side"], chosen["test_examples"]
    if tested is None:
        tested = len(drawings.part("test"))
    images, labels = drawings.chosen("train", chosen["examples"], side)
    test_images, test_labels = drawings.chosen("test", tested, side)
    mean, spread = images.mean(), images.std()  # over all pixels: some of those at the edge never vary
    x, x_test = ((one - mean) / spread for one in (images, test_images))
    y, y_test = (one_hot(one, len(drawings.characters), chosen["smoothing"]) for one in (labels, test_labels))
    return Problem(
        network, x.reshape(len(x), -1), y, x_test.reshape(len(x_test), -1), y_test, drawings.source, _LICENCE
    )


def _network(chosen: Mapping[str, Any]) -> Network:
    check_classifier({"pool": 1, **chosen})
    check_counts(chosen, "channels")
    check_counts(chosen, "side", least=8)
    layers = (*chosen["hidden"], len(characters_of(chosen["characters"])))
    return convolutional(chosen["side"], chosen["channels"], layers, chosen["activation"])


def _preview(chosen: Mapping[str, Any]) -> tuple[Network, str]:
    return _network(chosen), f"{chosen['examples']} examples of Chars74k"


RECIPES = {
    "chars74k-cnn": recipe(
        _classify,
        {
            "loss": "cross-entropy",
            "examples": 310,
            "test_examples": 310,
            "side": 16,
            "channels": 8,
            "hidden": (48,),
            "activation": "gelu",
            "smoothing": 0.0,
            "form": "auto",
            "characters": "all",
            "path": None,
            "eta": 0.2,
        },
        {"examples": 2790, "test_examples": 620, "side": 32, "channels": 32, "hidden": (256,)},
        preview=_preview,
        needs=f"path=... to {_NEEDS}",
    )
}
