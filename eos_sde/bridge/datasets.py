"""The real data that comes with the project: found, verified, decoded.

Where the files come from, under which licence, and how they were made: ``data/README.md``.
"""

import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidInput

SHA256 = {
    "fashion_mnist_subset.npz": "53b43f52212ba781f08d1e0f0f9cd48dcfb04e3fe2ae81d55cc00b5210113030",
    "digits.npz": "35ca2870ddda628aecd42364588fe5012bdb3df9ce91b9b943752b82b02f04c9",
    "tinyshakespeare.txt.gz": "bf237b9f5a05abe79d7a0caa809b6513fbcbc323e9521a77086d556e4c9bbed8",
}
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
DIGITS_TRAIN = 1500

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, pixels scaled to [0, 1].

    Attributes
    ----------
    name : str
        "fashion", "digits" or "cifar".
    x_train, x_test : ndarray
        Images, shape (examples, height, width) or, in colour, (examples, height, width, 3), in [0, 1], read-only:
        float64, and float32 of CIFAR.
    y_train, y_test : ndarray
        Labels from 0, shape (examples,), int64, read-only.
    classes : tuple of str
        What the labels mean.
    source : str
        Which copy of the data this is.
    licence : str
        Its licence and holder.
    """

    name: str
    x_train: NDArray[np.floating]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.floating]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str
    licence: str

    def balanced(self, examples: int, part: str = "train") -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """First `examples` images taken class by class: 0, 1, ..., 9, 0, 1, ... in the order of the set.

        The first k images of each class are the same in every copy of the data that holds them, so the
        choice does not depend on which copy is installed.

        Parameters
        ----------
        examples : int
            How many, at most the size of the part.
        part : {"train", "test"}
            Where from.

        Returns
        -------
        (ndarray, ndarray)
            Images (examples, height, width) or (examples, height, width, 3), and labels (examples,).

        Raises
        ------
        InvalidInput
            If there are not so many.
        """
        x, y = (self.x_train, self.y_train) if part == "train" else (self.x_test, self.y_test)
        if not 1 <= examples <= len(y):
            raise InvalidInput(
                f"examples={examples} must lie between 1 and {len(y)}, the {part} images of {self.source}"
            )
        chosen = balanced_rows(y, len(self.classes), examples)
        return x[chosen], y[chosen]


def balanced_rows(labels: NDArray[np.int64], classes: int, examples: int) -> NDArray[np.int64]:
    """Places of the first examples taken class by class: 0, 1, ..., 0, 1, ... in the order of the labels.

    Parameters
    ----------
    labels : ndarray
        Shape (n,), from 0.
    classes : int
        How many there are.
    examples : int
        How many are taken, at most n.

    Returns
    -------
    ndarray
        Shape (examples,), int64.
    """
    rank = np.empty(len(labels), np.int64)
    for label in range(classes):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    return np.lexsort((labels, rank))[:examples]


def debian_fashion_installed() -> bool:
    """Whether the Debian package ``dataset-fashion-mnist`` is on this machine.

    Returns
    -------
    bool
        True if its training images are there.
    """
    return (DEBIAN_FASHION / "train-images-idx3-ubyte.gz").is_file()


def load_dataset(name: str, *, source: str = "auto") -> ImageSet:
    """Load real images by name.

    Parameters
    ----------
    name : {"fashion", "digits"}
        Fashion-MNIST (28x28) or the UCI digits (8x8).
    source : {"auto", "subset", "debian"}
        For "fashion": the 5000 + 1000 images that come with the project ("subset"), the full 60000 +
        10000 of the Debian package dataset-fashion-mnist ("debian"), or the full set where installed and
        the subset elsewhere ("auto"). The digits have one source, and "auto" and "subset" both mean it.

    Returns
    -------
    ImageSet
        Read-only arrays, with their source and licence.

    Raises
    ------
    InvalidInput
        For an unknown name or source, absent Debian data, or a file whose SHA-256 is wrong.
    """
    if name not in ("fashion", "digits"):
        raise InvalidInput(f"name={name!r} is not a dataset: choose 'fashion' or 'digits'")
    if source not in ("auto", "subset", "debian"):
        raise InvalidInput(f"source={source!r} is not known: choose 'auto', 'subset' or 'debian'")
    if name == "digits":
        if source == "debian":
            raise InvalidInput("source='debian' holds no digits: choose 'auto' or 'subset'")
        return _digits()
    if source == "debian" and not debian_fashion_installed():
        raise InvalidInput(
            f"source='debian' needs {DEBIAN_FASHION}: apt-get install dataset-fashion-mnist, "
            "or choose source='subset'"
        )
    if source == "debian" or (source == "auto" and debian_fashion_installed()):
        return _fashion_debian()
    return _fashion_subset()


@contextmanager
def _data_file(name: str) -> Iterator[Path]:
    """Path of a data file: inside an installed wheel, or beside the packages in a source tree."""
    packaged = files("eos_sde").joinpath("_data", name)
    if packaged.is_file():
        with as_file(packaged) as path:
            yield path
        return
    beside = Path(__file__).parents[2] / "data" / name
    if not beside.is_file():
        raise InvalidInput(f"the data file {name} is missing from this installation: reinstall eos-sde")
    yield beside


def verified_bytes(name: str) -> bytes:
    """Content of a data file that comes with the project.

    Parameters
    ----------
    name : str
        One of those in `SHA256`.

    Returns
    -------
    bytes
        The file, as its SHA-256 says it should be.

    Raises
    ------
    InvalidInput
        If the file is missing or another.
    """
    with _data_file(name) as path:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != SHA256[name]:
            raise InvalidInput(
                f"{path} has SHA-256 {digest[:12]}... instead of {SHA256[name][:12]}...: "
                "restore it from the repository or make it again as data/README.md says"
            )
    return content


def _read_verified(name: str) -> dict[str, NDArray[np.uint8]]:
    with np.load(io.BytesIO(verified_bytes(name)), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _pixels(images: NDArray[np.uint8], scale: int) -> NDArray[np.float64]:
    scaled = images.astype(np.float64) / scale
    scaled.setflags(write=False)
    return scaled


def _labels(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    converted = labels.astype(np.int64)
    converted.setflags(write=False)
    return converted


@lru_cache(maxsize=1)
def _digits() -> ImageSet:
    raw = _read_verified("digits.npz")
    x, y = _pixels(raw["x"], 16), _labels(raw["y"])
    return ImageSet(
        name="digits",
        x_train=x[:DIGITS_TRAIN],
        y_train=y[:DIGITS_TRAIN],
        x_test=x[DIGITS_TRAIN:],
        y_test=y[DIGITS_TRAIN:],
        classes=tuple("0123456789"),
        source="UCI digits, 1797 images as in scikit-learn",
        licence="CC BY 4.0, E. Alpaydin and C. Kaynak",
    )


@lru_cache(maxsize=1)
def _fashion_subset() -> ImageSet:
    return _fashion(
        _read_verified("fashion_mnist_subset.npz"), "Fashion-MNIST, balanced subset of 5000 + 1000"
    )


@lru_cache(maxsize=1)
def _fashion_debian() -> ImageSet:
    raw = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        raw[f"x_{part}"] = _read_idx(DEBIAN_FASHION / f"{stem}-images-idx3-ubyte.gz")
        raw[f"y_{part}"] = _read_idx(DEBIAN_FASHION / f"{stem}-labels-idx1-ubyte.gz")
    return _fashion(raw, "Fashion-MNIST, full, Debian package dataset-fashion-mnist")


def _fashion(raw: dict[str, NDArray[np.uint8]], source: str) -> ImageSet:
    return ImageSet(
        name="fashion",
        x_train=_pixels(raw["x_train"], 255),
        y_train=_labels(raw["y_train"]),
        x_test=_pixels(raw["x_test"], 255),
        y_test=_labels(raw["y_test"]),
        classes=_FASHION_CLASSES,
        source=source,
        licence="MIT, Copyright 2017 Zalando SE",
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Array in a gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise InvalidInput(f"{path} is not an IDX file of unsigned bytes: reinstall dataset-fashion-mnist")
    dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)
