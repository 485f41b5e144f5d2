"""What tests of stores share: byte-by-byte comparison, and a function that counts its calls."""

import filecmp
from pathlib import Path


def same_files(one, other):
    """Whether two stores have the same files with the same bytes."""
    one, other = Path(one), Path(other)
    names = [sorted(str(path.relative_to(store)) for path in store.rglob("*")) for store in (one, other)]
    files = [name for name in names[0] if (one / name).is_file()]
    return (
        bool(files)
        and names[0] == names[1]
        and filecmp.cmpfiles(one, other, files, shallow=False)[1:] == ([], [])
    )


class Counted:
    """Calls so far, and what to raise at one of them."""

    def __init__(self, raise_at=None, error=None):
        self.points, self.raise_at, self.error = [], raise_at, error

    def __call__(self, *point):
        self.points.append(point)
        if len(self.points) == self.raise_at:
            raise self.error


def counting(counted):
    """A function of x and seed whose code is the same whatever counts it."""

    def wave(x, seed):
        counted(x, seed)
        if x == 2.0 and seed == 1:
            raise ValueError("no wave here")
        return {"height": x**0.5 + seed, "phase": complex(x, seed)}

    return wave


AXES = {"x": [0.5, 1.0, 2.0, 3.0], "seed": range(3)}
