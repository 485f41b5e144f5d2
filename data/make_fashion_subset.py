"""Make ``fashion_mnist_subset.npz`` from the Debian package ``dataset-fashion-mnist``.

    apt-get install dataset-fashion-mnist
    python data/make_fashion_subset.py [--source DIR] [--out FILE]

The subset is balanced: of each class the first 500 training and the first 100 test images in the official
order, kept in that order. The file's time stamps are fixed, so that the same zlib gives the same bytes; the
printed digest of the arrays holds for every zlib.
"""

import argparse
import gzip
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

TRAIN_PER_CLASS, TEST_PER_CLASS, CLASSES = 500, 100, 10


def read_idx(path: Path) -> np.ndarray:
    """Array in a gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` examples of each class, in the order of the file."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(CLASSES)]))


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed npz whose bytes do not depend on the clock."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)


def report(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Print the digests that ``data/README.md`` and ``eos_sde/bridge/datasets.py`` record."""
    content = hashlib.sha256()
    for array in arrays.values():
        content.update(np.ascontiguousarray(array).tobytes())
    print(f"{path.name}: {path.stat().st_size} bytes")
    print(f"sha256 of the file:   {hashlib.sha256(path.read_bytes()).hexdigest()}")
    print(f"sha256 of the arrays: {content.hexdigest()}")


def main() -> None:
    """Read the full set, keep the subset, write and report it."""
    parser = argparse.ArgumentParser(description="Make the balanced Fashion-MNIST subset.")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "fashion_mnist_subset.npz")
    args = parser.parse_args()
    if not args.source.is_dir():
        raise SystemExit(f"{args.source} does not exist: apt-get install dataset-fashion-mnist")
    arrays = {}
    for part, stem, count in (("train", "train", TRAIN_PER_CLASS), ("test", "t10k", TEST_PER_CLASS)):
        images = read_idx(args.source / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(args.source / f"{stem}-labels-idx1-ubyte.gz")
        keep = first_of_each_class(labels, count)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = images[keep], labels[keep]
    write_npz(args.out, arrays)
    report(args.out, arrays)


if __name__ == "__main__":
    main()
