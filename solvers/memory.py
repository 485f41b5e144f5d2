"""How much memory is left, a refusal before more than that is taken, and arrays laid on cache lines."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from solvers.errors import InvalidInput

_LINE = 64


def available() -> int | None:
    """Bytes that can be taken without swapping, within the control group's limit; None if unknown."""
    found = [_meminfo(), _control_group()]
    known = [value for value in found if value is not None]
    if known:
        return min(known)
    if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _meminfo() -> int | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not (limit.exists() and used.exists()):
        return None
    text = limit.read_text().strip()
    return None if text == "max" else max(int(text) - int(used.read_text()), 0)


def require(size: int, what: str, remedy: str) -> None:
    """Refuse an allocation of `size` bytes that would not fit.

    Raises
    ------
    InvalidInput
        Naming what was asked for, its size and the remedy.
    """
    left = available()
    if left is not None and size > left:
        raise InvalidInput(
            f"{what} needs {size / 1e9:.3g} GB, but {left / 1e9:.3g} GB are available; {remedy}"
        )


def aligned(shape: int | tuple[int, ...], dtype: Any = float) -> np.ndarray:
    """An uninitialised array that begins on a cache line, as NumPy's own do not.

    A vector register that is stored across two lines takes twice as long.
    """
    kind, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.empty(size + _LINE, np.uint8)
    lead = -raw.ctypes.data % _LINE
    return raw[lead : lead + size].view(kind).reshape(shape)
