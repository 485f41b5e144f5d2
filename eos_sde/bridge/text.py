"""Character-level language modelling: the text that comes with the project, cut into windows."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.datasets import verified_bytes
from eos_sde.bridge.recipes import Problem, check_activation, check_counts, recipe
from eos_sde.bridge.transformer import causal_transformer
from solvers.errors import InvalidInput

_TRAINING_SHARE = 0.9


@dataclass(frozen=True)
class Text:
    """A text as numbers.

    Attributes
    ----------
    characters : str
        The vocabulary in order: token k is its k-th character.
    train, test : ndarray
        Tokens of the first 90 % and of the rest, int32, read-only.
    source, licence : str
        Where from and under which terms.
    """

    characters: str
    train: NDArray[np.int32]
    test: NDArray[np.int32]
    source: str
    licence: str

    def windows(
        self, examples: int, context: int, part: str = "train"
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Windows of the text, evenly spread over a part of it, and the characters that follow.

        Parameters
        ----------
        examples : int
            How many.
        context : int
            T, characters in a window.
        part : {"train", "test"}
            Where from.

        Returns
        -------
        (ndarray, ndarray)
            Tokens (examples, T), and those one place further on.

        Raises
        ------
        InvalidInput
            If there are not so many starts.
        """
        tokens = self.train if part == "train" else self.test
        starts = len(tokens) - context
        if not 1 <= examples <= starts:
            raise InvalidInput(
                f"examples={examples} windows of context={context} must lie between 1 and the "
                f"{max(starts, 0)} starts in the {part} text"
            )
        index = (np.arange(examples) * starts // examples)[:, None] + np.arange(context)
        return tokens[index], tokens[index + 1]


@lru_cache(maxsize=1)
def shakespeare() -> Text:
    """Tiny Shakespeare: 1.1 million characters of the plays, 65 of them different.

    Returns
    -------
    Text
        See ``data/README.md``.
    """
    raw = np.frombuffer(gzip.decompress(verified_bytes("tinyshakespeare.txt.gz")), np.uint8)
    alphabet, tokens = np.unique(raw, return_inverse=True)
    tokens = tokens.astype(np.int32)
    tokens.setflags(write=False)
    split = int(_TRAINING_SHARE * len(tokens))
    return Text(
        characters=bytes(alphabet).decode("ascii"),
        train=tokens[:split],
        test=tokens[split:],
        source="Tiny Shakespeare, 1.1 million characters as in char-rnn",
        licence="public domain",
    )


def _language(chosen: Mapping[str, Any]) -> Problem:
    check_activation(chosen)
    check_counts(chosen, "examples", "test_examples", "context", "width", "heads", "blocks")
    text = shakespeare()
    x, y = text.windows(chosen["examples"], chosen["context"])
    x_test, y_test = text.windows(chosen["test_examples"], chosen["context"], "test")
    shape = {key: chosen[key] for key in ("context", "width", "heads", "blocks", "activation")}
    network = causal_transformer(vocabulary=len(text.characters), **shape)
    return Problem(network, x, y, x_test, y_test, text.source, text.licence)


RECIPES = {
    "shakespeare-transformer": recipe(
        _language,
        {
            "loss": "cross-entropy",
            "examples": 128,
            "test_examples": 64,
            "context": 24,
            "width": 16,
            "heads": 2,
            "blocks": 2,
            "activation": "gelu",
            "eta": 0.3,
        },
        {
            "examples": 4096,
            "test_examples": 512,
            "context": 128,
            "width": 128,
            "heads": 4,
            "blocks": 4,
        },
    )
}
