"""Compiling model functions with Numba, once per process for each code and what it references."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


class Keyed:
    """A function that compares by its purity key, so that an LRU finds equal code again."""

    __slots__ = ("function", "key")

    def __init__(self, key: Any, function: Callable[..., Any]):
        self.key, self.function = key, function

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and self.key == other.key


@lru_cache(maxsize=512)
def dispatcher(keyed: Keyed, d: int, width: int | None) -> Any:
    """A Numba dispatcher (t, y, p) -> floats with the scalar namespace bound and integers promoted."""
    from numba import njit

    from solvers import scalar

    flags = {"contract", "reassoc"}
    entry = (
        "float(r[{0}])"
        if width is None
        else "(" + ", ".join(f"float(r[{{0}}][{k}])" for k in range(width)) + ",)"
    )
    body = ", ".join(entry.format(i) for i in range(d))
    source = f"def read(t, y, p):\n    r = function(t, y, p, scalar)\n    return ({body},)\n"
    scope: dict[str, Any] = {
        "function": njit(fastmath=flags, error_model="numpy")(keyed.function),
        "scalar": scalar,
    }
    exec(compile(source, "<compiled model>", "exec"), scope)
    return njit(fastmath=flags, error_model="numpy")(scope["read"])
