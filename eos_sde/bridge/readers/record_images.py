"""ImageNet and its like as TFRecord files of tf.train.Example, in shards."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eos_sde.bridge.readers.tf_example import features
from eos_sde.bridge.readers.tfrecord import RecordFile, record_file
from solvers.errors import InvalidInput

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_ENDINGS = (".tfrecord", ".tfrecords")
_FIELDS = (("image/encoded", "image/class/label", 1), ("image", "label", 0))
"""Image, label, and the label of the first class: of the conversions of TensorFlow's models, where 0 is kept for a
background that no image shows, and of TensorFlow Datasets."""


@dataclass(frozen=True, eq=False)
class RecordImages:
    """Images in TFRecord files; see `labelled.LabelledImages`.

    Attributes
    ----------
    files : tuple of RecordFile
        In the order of their names.
    ends : ndarray
        Examples up to the end of each file.
    classes : tuple of str
        "0", "1", ...; the records tell no more.
    source : str
        For people.
    """

    files: tuple[RecordFile, ...]
    ends: np.ndarray
    classes: tuple[str, ...]
    source: str

    labels = None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def encoded(self, index: int) -> tuple[bytes, int, str]:
        """Content and label of an image, and its file and record.

        Parameters
        ----------
        index : int
            Which.

        Returns
        -------
        (bytes, int, str)
            See `labelled.LabelledImages`; labels from 0.

        Raises
        ------
        InvalidInput
            If the record is broken, lacks an image or a label, or its label is out of range.
        """
        place = int(np.searchsorted(self.ends, index, side="right"))
        file = self.files[place]
        number = index - (int(self.ends[place - 1]) if place else 0)
        where = file.where(number)
        found = features(file.content(number), where)
        known = [names for names in _FIELDS if names[0] in found and names[1] in found]
        if not known:
            wanted = " or ".join(" with ".join(names[:2]) for names in _FIELDS)
            raise InvalidInput(
                f"{where} has the features {', '.join(sorted(found)) or 'none'}: {wanted} are needed"
            )
        image, label, first = known[0]
        if [*map(type, found[image])] != [bytes] or [*map(type, found[label])] != [int]:
            raise InvalidInput(f"{where} must have one image in {image} and one whole number in {label}")
        told = found[label][0]
        if not first <= told < first + len(self.classes):
            raise InvalidInput(
                f"{where} has {label}={told}: it must lie between {first} and {first + len(self.classes) - 1}, "
                f"with classes={len(self.classes)}"
            )
        return found[image][0], told - first, where


def holds_records(path: Path) -> bool:
    """Whether a folder has TFRecord files in it.

    Parameters
    ----------
    path : Path
        A folder.

    Returns
    -------
    bool
        By their names: ``...-00000-of-00008`` or ``.tfrecord``.
    """
    return any(file.is_file() and _named(file.name) for file in path.iterdir())


def record_images(path: Path, classes: int) -> tuple[RecordImages, RecordImages]:
    """Training and test images in the TFRecord files of a folder.

    Parameters
    ----------
    path : Path
        With files such as ``train-00000-of-01024`` and ``validation-00000-of-00128``, or one file of each part; the
        part is told by "train", "val" or "test" in the name, and all shards must be there.
    classes : int
        How many; records do not tell.

    Returns
    -------
    (RecordImages, RecordImages)
        Training and test images in the order of names and records. The images are looked at when they are read.

    Raises
    ------
    InvalidInput
        If files of a part are missing, or as `tfrecord.record_file`.
    """
    names = sorted(file.name for file in path.iterdir() if file.is_file() and _named(file.name))
    parts = []
    for part, words in (("training", ("train",)), ("test", ("val", "test"))):
        chosen = [name for name in names if any(word in name.lower() for word in words)]
        if not chosen:
            raise InvalidInput(
                f"path={path} has no TFRecord file of the {part} images: a name with {' or '.join(words)} is needed"
            )
        _check_shards(path, chosen)
        files = tuple(record_file(path / name) for name in chosen)
        ends = np.cumsum([len(file) for file in files])
        if not ends[-1]:
            raise InvalidInput(f"{files[0].path} and the other {part} files hold no record")
        source = f"{path.name}, {part} images in TFRecord files"
        parts.append(RecordImages(files, ends, tuple(map(str, range(classes))), source))
    return parts[0], parts[1]


def _named(name: str) -> bool:
    return _SHARD.match(name) is not None or name.endswith(_ENDINGS)


def _check_shards(path: Path, names: list[str]) -> None:
    found: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _SHARD.match(name):
            found.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    for (stem, count), numbers in found.items():
        if missing := sorted(set(range(count)) - numbers):
            raise InvalidInput(
                f"{path / f'{stem}-{missing[0]:05d}-of-{count:05d}'} is missing: get all {count} shards"
            )
