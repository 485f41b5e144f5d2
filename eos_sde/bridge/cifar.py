"""CIFAR-10 and CIFAR-100 from files that the user has: Python or binary batches, a tar.gz of either, or an npz.

Python batches are pickles, which can run any code when they are loaded; here an unpickler that knows no class but
NumPy's array reads them, and takes the bytes of an array itself, so that a batch can only ever be data.
"""

import io
import math
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.datasets import ImageSet
from eos_sde.bridge.image_tasks import check_classifier, one_hot, pooled
from eos_sde.bridge.networks import Network
from eos_sde.bridge.recipes import Problem, check_counts, given_path, recipe
from eos_sde.bridge.residual_network import preactivation_network
from solvers.errors import InvalidInput

WHERE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_NEEDS = (
    f"the official archive or folder of CIFAR-10 or CIFAR-100 from {WHERE}, "
    "or an npz with x_train, y_train, x_test, y_test"
)
_SIDE = 32
_PIXELS = 3 * _SIDE**2
_ARCHIVE_LIMIT = 2**28  # bytes of one member; the largest official one has 1.6e8
_LICENCE = "none stated; A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)"
_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
_LAYOUTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("CIFAR-10", _BATCHES, ("test_batch",), "python"),
    ("CIFAR-100", ("train",), ("test",), "python"),
    ("CIFAR-10", tuple(f"{name}.bin" for name in _BATCHES), ("test_batch.bin",), "binary"),
    ("CIFAR-100", ("train.bin",), ("test.bin",), "binary"),
)

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_cifar(path: str | Path) -> ImageSet:
    """CIFAR-10 or CIFAR-100 from files in an official format, or from an npz.

    Parameters
    ----------
    path : str or Path
        A folder with the official Python batches (``data_batch_1`` ... ``test_batch``, or ``train`` and ``test`` of
        CIFAR-100, whose fine labels are taken) or binary batches (the same with ``.bin``), a tar archive of such a
        folder (compressed or not), or an npz with ``x_train``, ``y_train``, ``x_test``, ``y_test``: images of shape
        (n, 32, 32, 3), uint8, and labels from 0. Some training batches may be missing. Python batches are read by an
        unpickler that makes nothing but dictionaries, lists, strings, numbers and arrays of bytes.

    Returns
    -------
    ImageSet
        Colour images, in the order of the files.

    Raises
    ------
    InvalidInput
        If there are no such files there, or they hold something else.
    """
    return _load(Path(path).absolute())


@lru_cache(maxsize=1)
def _load(path: Path) -> ImageSet:
    if path.is_dir():
        return _official(path, {file.name: file.read_bytes for file in path.iterdir() if file.is_file()})
    if not path.is_file():
        raise InvalidInput(f"path={path} does not exist: give CIFAR-10 or CIFAR-100, from {WHERE}")
    if path.suffix == ".npz":
        return _from_npz(path)
    if not tarfile.is_tarfile(path):
        raise InvalidInput(
            f"path={path} is no folder, tar archive or npz: give CIFAR-10 or CIFAR-100 from {WHERE}"
        )
    try:
        return _from_archive(path)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InvalidInput(f"path={path} is a broken archive ({error}): get it anew from {WHERE}") from error


def _from_archive(path: Path) -> ImageSet:
    with tarfile.open(path) as archive:
        members = {PurePosixPath(one.name).name: one for one in archive.getmembers() if one.isfile()}

        def reader(member: tarfile.TarInfo) -> Callable[[], bytes]:
            def read() -> bytes:
                stream = archive.extractfile(member)
                if stream is None or member.size > _ARCHIVE_LIMIT:
                    raise InvalidInput(
                        f"{member.name} in {path} is no batch of CIFAR: get the archive from {WHERE}"
                    )
                return stream.read()

            return read

        return _official(path, {name: reader(member) for name, member in members.items()})


def _official(path: Path, files: Mapping[str, Callable[[], bytes]]) -> ImageSet:
    for name, train, test, form in _LAYOUTS:
        if test[0] in files and train[0] in files:
            classes = 10 if name == "CIFAR-10" else 100
            decode = _python_batch if form == "python" else _binary_batch
            parts = [
                _joined([decode(files[one](), classes, f"{one} in {path}") for one in names if one in files])
                for names in (train, test)
            ]
            return _image_set(*parts, name=f"{name}, official {form} batches", classes=classes)
    raise InvalidInput(
        f"path={path} holds no data_batch_1 with test_batch, nor train with test (or the same with .bin): "
        f"get CIFAR-10 or CIFAR-100 from {WHERE}"
    )


def _from_npz(path: Path) -> ImageSet:
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise InvalidInput(f"path={path} has no array {missing[0]}: an npz needs {', '.join(names)}")
            arrays = [archive[name] for name in names]
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, ValueError, KeyError) as error:
        raise InvalidInput(f"path={path} is a broken npz file ({error}): get it anew") from error
    for name, array in zip(names[::2], arrays[::2], strict=True):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (_SIDE, _SIDE, 3):
            raise InvalidInput(
                f"{name} in {path} is {array.dtype} {array.shape}: it must be uint8 (n, 32, 32, 3)"
            )
    for name, images, labels in zip(names[1::2], arrays[::2], arrays[1::2], strict=True):
        if not np.issubdtype(labels.dtype, np.integer) or labels.size != len(images):
            raise InvalidInput(
                f"{name} in {path} is {labels.dtype} {labels.shape}: one label per image is needed"
            )
    pairs = [(arrays[i], arrays[i + 1].reshape(-1).astype(np.int64)) for i in (0, 2)]
    top = max(int(labels.max(initial=0)) for _, labels in pairs)
    classes = 10 if top < 10 else 100
    return _image_set(*pairs, name=f"CIFAR-{classes} of the file {path.name}", classes=classes)


def _image_set(train: Images, test: Images, *, name: str, classes: int) -> ImageSet:
    for part, (_, labels) in (("training", train), ("test", test)):
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if wrong.size:
            raise InvalidInput(
                f"{name}: labels must be from 0 to {classes - 1}, and {part} image {wrong[0]} has {labels[wrong[0]]}"
            )
    pixels = [images.astype(np.float32) / np.float32(255) for images, _ in (train, test)]
    for array in (*pixels, train[1], test[1]):
        array.setflags(write=False)
    return ImageSet(
        name="cifar",
        x_train=pixels[0],
        y_train=train[1],
        x_test=pixels[1],
        y_test=test[1],
        classes=tuple(map(str, range(classes))),
        source=name,
        licence=_LICENCE,
    )


def _joined(batches: list[Images]) -> Images:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _channels_last(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of 3072 bytes, red, green, blue planes, as images."""
    return np.ascontiguousarray(rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _binary_batch(raw: bytes, classes: int, where: str) -> Images:
    head = 1 if classes == 10 else 2  # CIFAR-100: coarse, then fine label
    if not raw or len(raw) % (head + _PIXELS):
        raise InvalidInput(
            f"{where} has {len(raw)} bytes, no multiple of {head + _PIXELS}: get it anew from {WHERE}"
        )
    rows = np.frombuffer(raw, np.uint8).reshape(-1, head + _PIXELS)
    return _channels_last(rows[:, head:]), rows[:, head - 1].astype(np.int64)


def _python_batch(raw: bytes, classes: int, where: str) -> Images:
    try:
        batch = _DataUnpickler(io.BytesIO(raw), encoding="latin1").load()
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
    ) as error:
        raise InvalidInput(f"{where} is no Python batch of CIFAR: get it anew from {WHERE}") from error
    labels_key = "labels" if classes == 10 else "fine_labels"
    values = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    data, labels = values.get("data"), values.get(labels_key)
    rows = data.array() if isinstance(data, _Bytes) else None
    if rows is None or rows.ndim != 2 or rows.shape[1] != _PIXELS or not isinstance(labels, list):
        raise InvalidInput(
            f"{where} holds no data (n, {_PIXELS}) with {labels_key}: get it anew from {WHERE}"
        )
    if len(labels) != len(rows) or not all(type(one) is int for one in labels):
        raise InvalidInput(
            f"{where}: {labels_key} must be one whole number per image; get it anew from {WHERE}"
        )
    return _channels_last(rows), np.array(labels, np.int64)


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


class _Type:
    """Stands for a NumPy dtype: only its name is kept."""

    def __init__(self, name: str, *flags: Any) -> None:
        self.name, self.flags = name, flags

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Bytes:
    """Stands for a NumPy array: what the pickle says of it, taken as data."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Version, shape, dtype, whether in Fortran order, and the bytes."""
        _, self.shape, self.dtype, self.fortran, self.content = state

    def array(self) -> NDArray[np.uint8]:
        """The array, if it is one of unsigned bytes."""
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        if not isinstance(self.dtype, _Type) or self.dtype.name not in ("u1", "|u1"):
            raise InvalidInput("the array of a batch must be of unsigned bytes")
        shape = self.shape if isinstance(self.shape, tuple) else ()
        if not isinstance(content, bytes) or not all(type(size) is int for size in shape):
            raise InvalidInput("the array of a batch holds no bytes")
        if len(content) != math.prod(shape):
            raise InvalidInput("the array of a batch has another number of bytes than its shape says")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if self.fortran else "C")


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them in an old protocol."""
    if encoding != "latin1":
        raise InvalidInput(f"a batch holds text in {encoding!r}, not bytes")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Bytes,
    ("numpy.core.multiarray", "_reconstruct"): _Bytes,
    ("numpy._core.multiarray", "_reconstruct"): _Bytes,
    ("_codecs", "encode"): _encoded,
}


class _DataUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, strings, numbers and arrays of bytes; refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global of the pickle."""
        if (module, name) not in _KNOWN:
            raise InvalidInput(f"the pickle asks for {module}.{name}, which no batch of CIFAR needs")
        return _KNOWN[module, name]


def _classify(chosen: Mapping[str, Any]) -> Problem:
    network_of = _network(chosen)
    data = load_cifar(given_path("cifar-resnet", chosen, _NEEDS))
    test_examples = len(data.y_test) if chosen["test_examples"] is None else chosen["test_examples"]
    images, labels = data.balanced(chosen["examples"])
    test_images, test_labels = data.balanced(test_examples, "test")
    images, test_images = (one.astype(np.float64) for one in (images, test_images))
    mean, spread = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    spread = np.where(spread > 0, spread, 1.0)
    x, x_test = (pooled((one - mean) / spread, chosen["pool"]) for one in (images, test_images))
    classes = len(data.classes)
    y, y_test = (one_hot(one, classes, chosen["smoothing"]) for one in (labels, test_labels))
    return Problem(network_of(classes), x, y, x_test, y_test, data.source, data.licence)


def _network(chosen: Mapping[str, Any]) -> Callable[[int], Network]:
    check_classifier(chosen)
    check_counts(chosen, "channels", "stages", "blocks")
    if _SIDE % chosen["pool"]:
        raise InvalidInput(f"pool={chosen['pool']} must divide the image size {_SIDE}")
    shape = {key: chosen[key] for key in ("channels", "stages", "blocks", "activation")}
    return lambda classes: preactivation_network(side=_SIDE // chosen["pool"], classes=classes, **shape)


def _preview(chosen: Mapping[str, Any]) -> tuple[Network, str]:
    return _network(chosen)(10), f"{chosen['examples']} examples of CIFAR-10 or CIFAR-100"


RECIPES = {
    "cifar-resnet": recipe(
        _classify,
        {
            "examples": 100,
            "test_examples": 200,
            "pool": 2,
            "channels": 8,
            "stages": 2,
            "blocks": 1,
            "activation": "gelu",
            "smoothing": 0.0,
            "path": None,
            "eta": 0.1,
        },
        {"examples": 5000, "test_examples": 2000, "pool": 1, "channels": 32, "stages": 3, "blocks": 3},
        preview=_preview,
        needs=f"path=... to the official files ({WHERE}) or an npz",
    )
}
