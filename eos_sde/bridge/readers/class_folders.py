"""ImageNet and its like as folders: one for each class, with JPEG or PNG files in it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidInput

ENDINGS = (".jpeg", ".jpg", ".png")
TRAIN, TEST = ("train",), ("val", "validation", "test")
_HELD_OUT = 10  # of as many images of a class the last is a test image, where no folder says so


@dataclass(frozen=True, eq=False)
class ClassFolders:
    """Images in folders, one for each class; see `labelled.LabelledImages`.

    Attributes
    ----------
    root : Path
        Where the folders of the classes are.
    classes : tuple of str
        Names of these folders, sorted: class k is the k-th, as in torchvision's ImageFolder.
    names : tuple of str
        Of the files, sorted within a class, classes one after another.
    labels : ndarray
        Of the files, int64.
    source : str
        For people.
    """

    root: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    source: str

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, index: int) -> tuple[bytes, int, str]:
        """Content, label and path of an image.

        Parameters
        ----------
        index : int
            Which.

        Returns
        -------
        (bytes, int, str)
            See `labelled.LabelledImages`.

        Raises
        ------
        InvalidInput
            If the file cannot be read any more.
        """
        label = int(self.labels[index])
        path = self.root / self.classes[label] / self.names[index]
        try:
            return path.read_bytes(), label, str(path)
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error

    def part(self, rows: NDArray[np.bool_], source: str) -> "ClassFolders":
        """Some of the images.

        Parameters
        ----------
        rows : ndarray of bool
            Which.
        source : str
            For people.

        Returns
        -------
        ClassFolders
            With the same classes.
        """
        names = tuple(name for name, kept in zip(self.names, rows, strict=True) if kept)
        return ClassFolders(self.root, self.classes, names, self.labels[rows], source)


def class_folders(path: Path) -> tuple[ClassFolders, ClassFolders]:
    """Training and test images in folders of classes.

    Parameters
    ----------
    path : Path
        With ``train`` and one of ``val``, ``validation``, ``test``, each of which holds a folder for every class (the
        layout of ILSVRC2012 once its validation images are sorted into folders); or with the folders of the classes
        themselves: then of every class, sorted by name, each tenth image (the last where there are fewer) is a test
        image.

    Returns
    -------
    (ClassFolders, ClassFolders)
        Training and test images, with the same classes.

    Raises
    ------
    InvalidInput
        If a folder is missing or empty, or the test images have a class that the training images lack.
    """
    train = next((path / name for name in TRAIN if (path / name).is_dir()), None)
    if train is None:
        whole = _read(path, path.name)
        place = np.concatenate([np.arange(n) for n in np.bincount(whole.labels)])
        of_class = np.bincount(whole.labels)[whole.labels]
        out = (place % _HELD_OUT == _HELD_OUT - 1) | ((of_class < _HELD_OUT) & (place == of_class - 1))
        if not (~out).any():
            raise InvalidInput(
                f"path={path} has one image in every class: the last of each is held out, give more"
            )
        return whole.part(~out, f"{path.name}, training images"), whole.part(out, f"{path.name}, test images")
    test = next((path / name for name in TEST if (path / name).is_dir()), None)
    if test is None:
        raise InvalidInput(f"path={path} has a folder train and none of {', '.join(TEST)}: add one")
    training = _read(train, f"{path.name}, training images")
    return training, _read(test, f"{path.name}, test images", training.classes)


def _read(root: Path, source: str, classes: Sequence[str] | None = None) -> ClassFolders:
    with os.scandir(root) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise InvalidInput(
            f"{root} holds no folder of a class: sort the images into folders, one for each class "
            "(of ILSVRC2012's validation images the development kit names the classes)"
        )
    if classes is not None and (foreign := sorted(set(found) - set(classes))):
        raise InvalidInput(f"{root / foreign[0]} is a class that the training images do not have")
    known = tuple(found if classes is None else classes)
    names, labels = [], []
    for label, name in enumerate(known):
        if name not in found:
            continue
        with os.scandir(root / name) as entries:
            files = sorted(entry.name for entry in entries if entry.name.lower().endswith(ENDINGS))
        if not files:
            raise InvalidInput(f"{root / name} holds no image ({', '.join(ENDINGS)}): a class needs one")
        names += files
        labels += [label] * len(files)
    return ClassFolders(root, known, tuple(names), np.array(labels, np.int64), source)
