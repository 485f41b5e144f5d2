"""Make ``digits.npz`` from the copy of the UCI digits that scikit-learn distributes.

    pip install scikit-learn        # needed by this recipe only
    python data/make_digits.py

All 1797 images of 8x8 pixels (0..16) in scikit-learn's order; the split into training and test examples is
made by the loader.
"""

from pathlib import Path

import numpy as np
from make_fashion_subset import report, write_npz
from sklearn.datasets import load_digits


def main() -> None:
    """Convert to bytes without loss, write and report."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    if not np.array_equal(images, digits.images):
        raise SystemExit("the pixels of load_digits() are no longer integers: check this recipe")
    arrays = {"x": images, "y": digits.target.astype(np.uint8)}
    path = Path(__file__).parent / "digits.npz"
    write_npz(path, arrays)
    report(path, arrays)


if __name__ == "__main__":
    main()
