"""Plain text as tokens: one file or a folder of articles, as bytes or as the word pieces of a vocabulary."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidInput

BYTES = 256
"""Values of a byte; as many tokens and one more, the mask, make the vocabulary of bytes."""
_MASK_WORD = "[MASK]"
_BETWEEN = b"\n"
_BINARY = b"\x00"
_ENDINGS = (".txt", ".txt.gz")


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as numbers.

    Attributes
    ----------
    tokens : ndarray
        int32, read-only.
    vocabulary : int
        How many different tokens there can be, the mask among them.
    mask : int
        The token that hides another.
    special : tuple of int
        Tokens that never stand for a piece of text: the mask, and of a vocabulary all in brackets.
    source : str
        For people.
    """

    tokens: NDArray[np.int32]
    vocabulary: int
    mask: int
    special: tuple[int, ...]
    source: str


def read_text(path: Path, limit: int) -> bytes:
    """The first bytes of a text, checked to be UTF-8.

    Parameters
    ----------
    path : Path
        A text file, gzipped or not, or a folder: then its ``.txt`` and ``.txt.gz`` files, also in folders below, in the
        order of their paths, with a line break between them. No more files are opened than are needed.
    limit : int
        Bytes to be read at most; a character that it cuts is left out.

    Returns
    -------
    bytes
        UTF-8.

    Raises
    ------
    InvalidInput
        If there is none, or one is no UTF-8 text or a broken gzip file.
    """
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*.txt*") if file.name.endswith(_ENDINGS) and file.is_file()
        )
        if not files:
            raise InvalidInput(
                f"path={path} holds no {' or '.join(_ENDINGS)} file: give a text or a folder of texts"
            )
    elif path.is_file():
        files = [path]
    else:
        raise InvalidInput(f"path={path} does not exist: give a text file or a folder of them")
    parts, left = [], limit
    for file in files:
        if left <= 0:
            break
        raw = _start(file, left)
        parts.append(_checked(file, raw, left))
        left -= len(raw) + len(_BETWEEN)
    text = _BETWEEN.join(parts)
    if not text.strip():
        raise InvalidInput(f"{files[0]} is empty: give a text")
    return text


def _start(file: Path, size: int) -> bytes:
    try:
        if file.name.endswith(".gz"):
            with gzip.open(file) as stream:
                return stream.read(size)
        with file.open("rb") as stream:
            return stream.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidInput(
            f"{file} is a broken gzip file or cannot be read ({error}): get it anew"
        ) from error


def _checked(file: Path, raw: bytes, limit: int) -> bytes:
    if (at := raw.find(_BINARY)) >= 0:
        raise InvalidInput(f"{file} has a zero at byte {at}: it is no text")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(raw) == limit and len(raw) - error.start < 4:  # the limit cut a character
            return raw[: error.start]
        raise InvalidInput(
            f"{file} is no UTF-8 text at byte {error.start} ({error.reason}): convert it"
        ) from error
    return raw


def text_tokens(path: str | Path, *, vocabulary: str | Path | None = None, limit: int) -> Tokens:
    """A text as tokens.

    Parameters
    ----------
    path : str or Path
        See `read_text`.
    vocabulary : str or Path, optional
        A ``vocab.txt`` of BERT, one word piece in a line with ``[UNK]`` and ``[MASK]`` among them; text is made lower
        case, as the uncased models do, and cut by the tokenizers library (Hugging Face). If left out, tokens are the
        bytes of UTF-8, and token 256 is the mask.
    limit : int
        Bytes of text to be read at most.

    Returns
    -------
    Tokens
        In the order of the text.

    Raises
    ------
    InvalidInput
        As `read_text`; if the vocabulary is missing or lacks a token; if the library is not installed.
    """
    given = None if vocabulary is None else Path(vocabulary).absolute()
    return _tokens(Path(path).absolute(), given, limit)


@lru_cache(maxsize=1)
def _tokens(path: Path, vocabulary: Path | None, limit: int) -> Tokens:
    raw = read_text(path, limit)
    if vocabulary is None:
        tokens = np.frombuffer(raw, np.uint8).astype(np.int32)
        made = Tokens(tokens, BYTES + 1, BYTES, (BYTES,), f"the text {path.name}, as bytes")
    else:
        made = _word_pieces(raw.decode("utf-8"), path, vocabulary)
    made.tokens.setflags(write=False)
    return made


def _word_pieces(text: str, path: Path, vocabulary: Path) -> Tokens:
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError as error:
        raise InvalidInput(
            f"vocabulary={vocabulary} needs the library tokenizers: pip install 'eos-sde[word-pieces]', "
            "or leave it out for bytes"
        ) from error
    if not vocabulary.is_file():
        raise InvalidInput(
            f"vocabulary={vocabulary} does not exist: give a vocab.txt of BERT, or leave it out for bytes"
        )
    try:
        pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{vocabulary} is no UTF-8 text at byte {error.start}: give a vocab.txt of BERT"
        ) from error
    for needed in ("[UNK]", _MASK_WORD):
        if needed not in pieces:
            raise InvalidInput(f"{vocabulary} has no line {needed}: give a vocab.txt of BERT")
    if len(set(pieces)) < len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise InvalidInput(f"{vocabulary} has {twice!r} twice: give a vocab.txt of BERT")
    numbers = {piece: number for number, piece in enumerate(pieces)}
    bracketed = [k for piece, k in numbers.items() if len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"]
    tokenizer = BertWordPieceTokenizer(numbers, lowercase=True)
    found = [
        encoding.ids for encoding in tokenizer.encode_batch(list(_lines(text)), add_special_tokens=False)
    ]
    return Tokens(
        np.array([token for line in found for token in line], np.int32),
        len(pieces),
        numbers[_MASK_WORD],
        tuple(bracketed),
        f"the text {path.name}, in the {len(pieces)} word pieces of {vocabulary.name}",
    )


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.strip())
