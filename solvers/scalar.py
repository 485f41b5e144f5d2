"""Scalar namespace: the functions of NumPy that a model may use, on floats inside Numba code.

A model function written over `xp` receives this module when it is compiled. Every name means what it
means in NumPy. `where` is a plain select, since `numpy.where` on scalars allocates in Numba.
"""

import math

from numba import njit

from solvers._scalar_select import clip, maximum, minimum, sign, where

pi = math.pi
e = math.e
sin = math.sin
cos = math.cos
tan = math.tan
arcsin = math.asin
arccos = math.acos
arctan = math.atan
arctan2 = math.atan2
sinh = math.sinh
cosh = math.cosh
tanh = math.tanh
exp = math.exp
expm1 = math.expm1
log = math.log
log1p = math.log1p
sqrt = math.sqrt
hypot = math.hypot
abs = abs  # noqa: A001 - NumPy's name


@njit(inline="always")
def square(x):  # noqa: D103
    return x * x


@njit(inline="always")
def logical_and(a, b):  # noqa: D103
    return a and b


@njit(inline="always")
def logical_or(a, b):  # noqa: D103
    return a or b


@njit(inline="always")
def logical_not(a):  # noqa: D103
    return not a


__all__ = [
    "abs", "arccos", "arcsin", "arctan", "arctan2", "clip", "cos", "cosh", "e", "exp", "expm1", "hypot",
    "log", "log1p", "logical_and", "logical_not", "logical_or", "maximum", "minimum", "pi", "sign", "sin",
    "sinh", "sqrt", "square", "tan", "tanh", "where",
]  # fmt: skip
