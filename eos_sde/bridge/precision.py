"""Double precision inside the bridge, whatever the user's JAX settings are."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def double_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run `function` with 64-bit JAX types and leave the caller's setting as it was.

    Thresholds and Hessian eigenvalues near the edge need more digits than float32 carries, and a
    user who has not set ``jax_enable_x64`` must get the same numbers as one who has. Arrays that the
    function returns stay float64; NumPy conversions of them are exact.

    Parameters
    ----------
    function : callable
        Any function; what it traces and jits is cached per precision by JAX itself.

    Returns
    -------
    callable
        The same function, wrapped.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return wrapped
