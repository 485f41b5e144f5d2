"""Branch-free selections of the scalar namespace: one to four instructions each after vectorisation."""

from numba import njit

_inlined = njit(error_model="numpy", forceinline=True)


@_inlined
def where(condition, a, b):
    """`a` where the condition holds, else `b`."""
    return a if condition else b


@_inlined
def maximum(a, b):
    """The larger of the two; NaN if either is NaN, as in NumPy."""
    return a if (a >= b) | (a != a) else b


@_inlined
def minimum(a, b):
    """The smaller of the two; NaN if either is NaN, as in NumPy."""
    return a if (a <= b) | (a != a) else b


@_inlined
def sign(x):
    """-1, 0 or 1; NaN of NaN, as in NumPy."""
    return 1.0 if x > 0 else (-1.0 if x < 0 else (0.0 if x == 0 else x))


@_inlined
def clip(x, low, high):
    """`x` limited to [low, high]."""
    return minimum(maximum(x, low), high)


@_inlined
def square(x):
    """`x` times itself."""
    return x * x


@_inlined
def logical_and(a, b):
    """Whether both hold; both are evaluated, so that no branch arises."""
    return bool(a) & bool(b)


@_inlined
def logical_or(a, b):
    """Whether either holds; both are evaluated."""
    return bool(a) | bool(b)


@_inlined
def logical_not(a):
    """Whether it does not hold."""
    return not a
