"""Branch-free selections of the scalar namespace: one instruction each after vectorisation."""

from numba import njit


@njit
def where(condition, a, b):
    """`a` where the condition holds, else `b`."""
    return a if condition else b


@njit
def maximum(a, b):
    """The larger of the two; NaN if either is NaN, as in NumPy."""
    return a if (a >= b or a != a) else b


@njit
def minimum(a, b):
    """The smaller of the two; NaN if either is NaN, as in NumPy."""
    return a if (a <= b or a != a) else b


@njit
def sign(x):
    """-1, 0 or 1; NaN of NaN, as in NumPy."""
    return 1.0 if x > 0 else (-1.0 if x < 0 else (0.0 if x == 0 else x))


@njit
def clip(x, low, high):
    """`x` limited to [low, high]."""
    return minimum(maximum(x, low), high)
