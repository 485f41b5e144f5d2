"""One BLAS thread for the many short products and solves of an operator: more would only wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

_P = ParamSpec("_P")
_R = TypeVar("_R")


@cache
def _controller() -> Any:
    return ThreadpoolController()  # looking for the libraries takes milliseconds: once is enough


def one_blas_thread(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function with BLAS limited to one thread while it runs.

    On two busy cores the modes of 80 x 80 cells took 12 times as long without. The number of threads is a setting of
    the process: its other threads see the limit too. For inner functions, since warnings name their callers by the
    depth of the call.
    """

    @wraps(function)
    def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
