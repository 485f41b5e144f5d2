"""One thread of BLAS for a point, warnings told to the thread they come from: the same bits wherever a point runs."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""The environment of a worker that shares its machine with others; set before it imports anything."""
_local = threading.local()
_lock = threading.Lock()
_active = 0
_before: Any = None


@cache
def _controller(_modules: int) -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS and OpenMP limited to one thread: sums do not depend on the number of cores, and workers do not compete."""
    # libraries that came in since the last look are found too
    loaded = sum(name in sys.modules for name in ("numpy", "scipy.linalg", "jax", "torch", "sklearn"))
    with _controller(loaded).limit(limits=1):
        yield


def point_threads() -> int | None:
    """How many threads a point's own kernels may take: 1 in a worker, all of the process otherwise."""
    return getattr(_local, "threads", None)


@contextmanager
def as_worker() -> Iterator[None]:
    """The block runs beside others on one machine: kernels keep to one thread."""
    _local.threads = 1
    try:
        yield
    finally:
        _local.threads = None


@contextmanager
def listened() -> Iterator[list[str]]:
    """Warnings of the block as texts, each once; other threads' stay with them.

    Yields
    ------
    list of str
        Filled while the block runs.
    """
    global _active, _before
    heard: list[str] = []
    with _lock:
        if _active == 0:
            shown, kept = warnings.showwarning, warnings.catch_warnings()
            kept.__enter__()
            _before = (kept, shown)
            warnings.simplefilter("always")
            warnings.showwarning = _tell
        _active += 1
    outer = getattr(_local, "heard", None)
    _local.heard = heard
    try:
        yield heard
    finally:
        _local.heard = outer
        with _lock:
            _active -= 1
            if _active == 0:
                _before[0].__exit__(None, None, None)


def _tell(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
    heard = getattr(_local, "heard", None)
    if heard is None:
        _before[1](message, category, *rest, **more)
        return
    text = f"{category.__name__}: {message}"
    if text not in heard:
        heard.append(text)
