"""Chars74k, drawn and printed characters: the official folders or archive, or the strokes as JSON.

Label k of the 62 is folder ``Sample00k+1``: the digits, the capitals, the small letters. ``EnglishHnd`` has 55 drawings
of each, one by every writer: as images (``Img/Sample001/img001-001.png``, dark on light) and as trajectories of the pen
(``Trj``, ``img001_001.m``). ``EnglishFnt`` has images of 1016 fonts. The photographs of ``EnglishImg`` are folders of
classes like any others: see `class_folders`.
"""

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.datasets import balanced_rows
from eos_sde.bridge.readers.decoding import ink
from eos_sde.bridge.readers.strokes import Strokes, drawn, stroke_dictionary, trajectory
from solvers.errors import InvalidInput

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PARTS = {
    "all": CHARACTERS,
    "digits": CHARACTERS[:10],
    "letters": CHARACTERS[10:],
    "capitals": CHARACTERS[10:36],
    "small": CHARACTERS[36:],
}
"""Classes of a task that takes some of them, by name."""
FORMS = ("auto", "strokes", "images")
WHERE = "the Chars74k page of the University of Surrey (EnglishHnd.tgz)"
_FILE = re.compile(r"^img(\d{3})[-_](\d{3,5})\.(png|m)$")
_FOLDER = re.compile(r"^Sample(\d{3})$")
_TEST_SHARE = 2 / 11  # of each class, those of the last writers: 10 of 55
_ENDING = {"strokes": "m", "images": "png"}


def characters_of(part: str) -> str:
    """The characters of a part.

    Parameters
    ----------
    part : str
        One of `PARTS`.

    Returns
    -------
    str
        In the order of their classes.

    Raises
    ------
    InvalidInput
        For another name.
    """
    if part not in PARTS:
        raise InvalidInput(f"characters={part!r} is not known: choose one of {', '.join(PARTS)}")
    return PARTS[part]


@dataclass(frozen=True, eq=False)
class Drawings:
    """Drawn characters, each made an image when it is asked for.

    Attributes
    ----------
    labels, numbers : ndarray
        Class from 0, and number of the drawing in its class from 1 (of hand drawings, the writer); int64, sorted by
        class and number.
    images : tuple of callables
        From pixels along an edge to an image (side, side) in [0, 1], white on black.
    source : str
        For people.
    characters : str
        What the classes are.
    """

    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    images: tuple[Callable[[int], NDArray[np.float64]], ...]
    source: str
    characters: str = CHARACTERS

    def only(self, part: str) -> "Drawings":
        """Those of some of the characters, which are the classes then.

        Parameters
        ----------
        part : str
            One of `PARTS`.

        Returns
        -------
        Drawings
            Labels from 0 in the order of the part.

        Raises
        ------
        InvalidInput
            For another name, or if there is no drawing of them.
        """
        characters = characters_of(part)
        if characters == self.characters:
            return self
        places = np.array([characters.find(one) for one in self.characters])[self.labels]
        rows = np.flatnonzero(places >= 0)
        if not rows.size:
            raise InvalidInput(f"characters={part!r}: {self.source} has no drawing of {characters}")
        images = tuple(self.images[row] for row in rows)
        return Drawings(places[rows], self.numbers[rows], images, f"{self.source} ({part})", characters)

    def part(self, name: str) -> NDArray[np.int64]:
        """Places of the drawings of a part.

        Parameters
        ----------
        name : {"train", "test"}
            The last two elevenths of each class, by number (of 55 writers the last ten), test; the others train.

        Returns
        -------
        ndarray
            Places in `labels`, int64.
        """
        held = np.zeros(len(self.labels), bool)
        for label in np.unique(self.labels):
            rows = np.flatnonzero(self.labels == label)
            held[rows[len(rows) - max(1, round(_TEST_SHARE * len(rows))) :]] = True
        return np.flatnonzero(held if name == "test" else ~held)

    def chosen(self, part: str, examples: int, side: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """First drawings of a part taken class by class, as images.

        Parameters
        ----------
        part : {"train", "test"}
            Where from.
        examples : int
            How many.
        side : int
            Pixels along an edge.

        Returns
        -------
        (ndarray, ndarray)
            Shape (examples, side, side), in [0, 1]; labels (examples,).

        Raises
        ------
        InvalidInput
            If there are not so many, or one of them is broken.
        """
        rows = self.part(part)
        if not 1 <= examples <= len(rows):
            raise InvalidInput(
                f"examples={examples} must lie between 1 and {len(rows)}, the {part} drawings of {self.source}"
            )
        rows = rows[balanced_rows(self.labels[rows], len(self.characters), examples)]
        return np.stack([self.images[row](side) for row in rows]), self.labels[rows]


def load_chars74k(path: str | Path, *, form: str = "auto") -> Drawings:
    """Drawn characters from the official files, or strokes from JSON.

    Parameters
    ----------
    path : str or Path
        ``EnglishHnd.tgz`` or another tar archive, the folder that it unpacks to or one inside (found by the names of
        the files, ``img001-001.png`` and ``img001_001.m``), or a JSON file, gzipped or not: character to drawings, each
        a list of strokes, each a list of [x, y], y downwards.
    form : {"auto", "strokes", "images"}
        Which of the two an official folder is read as; "auto" takes the strokes where there are any.

    Returns
    -------
    Drawings
        In the order of classes and numbers.

    Raises
    ------
    InvalidInput
        If there are no such files there, or they hold something else.
    """
    if form not in FORMS:
        raise InvalidInput(f"form={form!r} is not known: choose one of {', '.join(FORMS)}")
    return _load(Path(path).absolute(), form)


@lru_cache(maxsize=1)
def _load(path: Path, form: str) -> Drawings:
    if path.is_dir():
        files = {
            str(file.relative_to(path)): file.read_bytes for file in path.rglob("img*") if file.is_file()
        }
        return _official(path, files, form)
    if not path.is_file():
        raise InvalidInput(f"path={path} does not exist: give Chars74k, from {WHERE}, or its strokes as JSON")
    if path.name.endswith((".json", ".json.gz")):
        if form == "images":
            raise InvalidInput(f"form='images' needs the official files, and path={path} holds strokes")
        return _from_dictionary(path)
    if not tarfile.is_tarfile(path):
        raise InvalidInput(f"path={path} is no folder, tar archive or JSON file: give Chars74k, from {WHERE}")
    return _official(path, dict(_members(path, form)), form)


def _members(path: Path, form: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Files of an archive, kept encoded; read in its order, since a compressed one cannot be gone back in."""
    wanted = [_ENDING[form]] if form in _ENDING else list(_ENDING.values())
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                match = _FILE.match(PurePosixPath(member.name).name)
                if member.isfile() and match and match[3] in wanted:
                    stream = archive.extractfile(member)
                    content = b"" if stream is None else stream.read()
                    yield member.name, lambda content=content: content
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InvalidInput(f"path={path} is a broken archive ({error}): get it anew from {WHERE}") from error


def _official(path: Path, files: dict[str, Callable[[], bytes]], form: str) -> Drawings:
    named = {name: match for name in files if (match := _FILE.match(PurePosixPath(name).name))}
    there = {kind: any(match[3] == end for match in named.values()) for kind, end in _ENDING.items()}
    kind = next((one for one in _ENDING if form in ("auto", one) and there[one]), None)
    if kind is None:
        wanted = {"strokes": "img001_001.m", "images": "img001-001.png"}
        words = wanted.get(form, " nor ".join(wanted.values()))
        raise InvalidInput(f"path={path} holds no file such as {words}: get Chars74k from {WHERE}")
    found: dict[tuple[int, int], str] = {}
    for name, match in sorted(named.items()):
        if match[3] != _ENDING[kind]:
            continue
        sample, number = int(match[1]), int(match[2])
        folder = _FOLDER.match(PurePosixPath(name).parent.name)
        if not 1 <= sample <= len(CHARACTERS) or (folder and int(folder[1]) != sample):
            raise InvalidInput(
                f"{name} in {path} must be of a sample from 001 to {len(CHARACTERS):03d}, in the folder of its sample"
            )
        if (sample, number) in found:
            raise InvalidInput(
                f"{path} holds both {found[sample, number]} and {name}: give the folder of one of them"
            )
        found[sample, number] = name
    keys = sorted(found)
    makers = [_maker(files[found[key]], f"{found[key]} in {path}", kind) for key in keys]
    return _drawings(keys, makers, f"Chars74k, {kind} of {path.name}")


def _from_dictionary(path: Path) -> Drawings:
    made = stroke_dictionary(path.read_bytes(), str(path))
    if unknown := sorted(set(made) - set(CHARACTERS)):
        raise InvalidInput(f"{path} has drawings of {unknown[0]!r}: Chars74k has {CHARACTERS}")
    if not any(made.values()):
        raise InvalidInput(f"{path} has no drawing")
    keys, makers = [], []
    for sample, character in enumerate(CHARACTERS, 1):
        for number, strokes in enumerate(made.get(character, []), 1):
            keys.append((sample, number))
            makers.append(_of_strokes(strokes))
    return _drawings(keys, makers, f"Chars74k, strokes of {path.name}")


def _of_strokes(strokes: Strokes) -> Callable[[int], NDArray[np.float64]]:
    return lambda side: drawn(strokes, side)


def _maker(read: Callable[[], bytes], where: str, kind: str) -> Callable[[int], NDArray[np.float64]]:
    if kind == "images":
        return lambda side: ink(read(), side, where)
    return lambda side: drawn(trajectory(read(), where), side)


def _drawings(keys: list[tuple[int, int]], makers: list[Callable], source: str) -> Drawings:
    samples, numbers = np.array(keys, np.int64).T
    return Drawings(samples - 1, numbers, tuple(makers), source)
