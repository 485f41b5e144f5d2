"""Masked language modelling: windows of a text with some tokens hidden, and what stood there."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.batches import stream
from eos_sde.bridge.encoders import masked_language_model
from eos_sde.bridge.networks import Network
from eos_sde.bridge.readers.plain_text import BYTES, Tokens, text_tokens
from eos_sde.bridge.recipes import Problem, check_activation, check_counts, given_path, recipe
from solvers.errors import InvalidInput

_TRAINING_SHARE = 0.9
_MASKS = 5  # a stream of its own
_HIDDEN, _REPLACED = 0.8, 0.9
"""Of the tokens that are asked for, 80 % become the mask, 10 % another token, 10 % stay (Devlin et al.,
arXiv:1810.04805)."""
_NEEDS = "a text file or a folder of .txt files, such as articles of the PubMed Central open-access subset"
_LICENCE = "of the articles; the text is yours"


def masked_windows(
    text: Tokens, part: slice, examples: int, context: int, asked: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Windows evenly spread over a part of a text, with tokens hidden at as many places of each.

    The choice is made once: a window is masked alike in every epoch, as in the first BERT, so that the training loss is
    a mean over examples that do not change.

    Parameters
    ----------
    text : Tokens
        Where from.
    part : slice
        Of its tokens.
    examples, context : int
        Windows, and T, the tokens in each.
    asked : int
        m, places of a window whose token is to be told.
    seed : int
        Of the places and of what is put there.

    Returns
    -------
    (ndarray, ndarray)
        Tokens and then places in ascending order, (examples, T + m); the tokens that stood there, (examples, m); int32.

    Raises
    ------
    InvalidInput
        If there are not so many windows, or a window has not so many places.
    """
    tokens = text.tokens[part]
    starts = len(tokens) - context + 1
    if not 1 <= examples <= starts:
        raise InvalidInput(
            f"examples={examples} windows of context={context} must lie between 1 and the {max(starts, 0)} starts in "
            f"{len(tokens)} tokens of {text.source}"
        )
    windows = tokens[(np.arange(examples) * starts // examples)[:, None] + np.arange(context)]
    drawn = stream(seed, _MASKS, int(part.start or 0)).random_raw(examples * (context + 2 * asked))
    order, fate, other = np.split(drawn.reshape(examples, -1), [context, context + asked], axis=1)
    places = np.sort(np.argsort(order, axis=1, kind="stable")[:, :asked], axis=1)
    truth = np.take_along_axis(windows, places, axis=1)
    plain = np.setdiff1d(np.arange(text.vocabulary), text.special).astype(np.int32)
    chance = (fate >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
    random = plain[other % np.uint64(len(plain))]
    seen = np.where(chance < _HIDDEN, np.int32(text.mask), np.where(chance < _REPLACED, random, truth))
    shown = windows.copy()
    np.put_along_axis(shown, places, seen, axis=1)
    return np.concatenate([shown, places.astype(np.int32)], axis=1), truth


def _model(chosen: Mapping[str, Any]) -> Problem:
    _check(chosen)
    path = given_path("pubmed-bert", chosen, _NEEDS)
    text = text_tokens(path, vocabulary=chosen["vocabulary"], limit=chosen["bytes"])
    network = _network(chosen, text.vocabulary)
    split, context = int(_TRAINING_SHARE * len(text.tokens)), chosen["context"]
    asked = _asked(chosen)
    parts = (slice(0, split), chosen["examples"]), (slice(split, len(text.tokens)), chosen["test_examples"])
    (x, y), (x_test, y_test) = (
        masked_windows(text, part, examples, context, asked, chosen["mask_seed"]) for part, examples in parts
    )
    return Problem(network, x, y, x_test, y_test, text.source, _LICENCE)


def _asked(chosen: Mapping[str, Any]) -> int:
    return max(1, round(chosen["masked"] * chosen["context"]))


def _check(chosen: Mapping[str, Any]) -> None:
    check_activation(chosen)
    check_counts(chosen, "examples", "test_examples", "context", "width", "heads", "blocks", "bytes")
    check_counts(chosen, "mask_seed", least=0)
    if not isinstance(chosen["masked"], float) or not 0 < chosen["masked"] < 1:
        raise InvalidInput(f"masked={chosen['masked']!r} must lie between 0 and 1: BERT has 0.15")


def _network(chosen: Mapping[str, Any], vocabulary: int) -> Network:
    shape = {key: chosen[key] for key in ("context", "width", "heads", "blocks", "activation")}
    return masked_language_model(vocabulary=vocabulary, **shape)


def _preview(chosen: Mapping[str, Any]) -> tuple[Network, str]:
    examples, context = chosen["examples"], chosen["context"]
    return _network(
        chosen, BYTES + 1
    ), f"{examples} examples, windows of {context} bytes, {_asked(chosen)} masked"


RECIPES = {
    "pubmed-bert": recipe(
        _model,
        {
            "loss": "cross-entropy",
            "examples": 256,
            "test_examples": 64,
            "context": 32,
            "masked": 0.15,
            "mask_seed": 0,
            "width": 32,
            "heads": 2,
            "blocks": 2,
            "activation": "gelu",
            "vocabulary": None,
            "bytes": 2**20,
            "path": None,
            "eta": 0.3,
        },
        {
            "examples": 16384,
            "test_examples": 1024,
            "context": 128,
            "width": 256,
            "heads": 4,
            "blocks": 4,
            "bytes": 2**26,
        },
        preview=_preview,
        needs=f"path=... to {_NEEDS}",
    )
}
