"""Scalar namespace: the functions of NumPy that a model may use, on floats inside Numba code.

A model function written over `xp` receives this module when it is compiled. Every name means what it
means in NumPy, takes floats and integers, and is straight-line code, so that a loop over paths vectorises.
Elementary functions are those of `solvers.vmath`: within 4 ulps of the true value (each docstring states its
bound), hence within 5 ulps of NumPy's where those are within 1. One difference: `sin`, `cos` and `tan` give
NaN for |x| > 2^40, where a double no longer resolves the phase. `abs`, `sqrt` and the selections are exact.
"""

import math

from solvers._scalar_select import (
    clip,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    sign,
    square,
    where,
)
from solvers.vmath import cosh, exp, expm1, hypot, log1p, sinh, tanh
from solvers.vmath import log_full as log
from solvers.vmath_trig import arccos, arcsin, arctan, arctan2, cos, sin, tan

pi = math.pi
e = math.e
sqrt = math.sqrt
abs = abs  # noqa: A001 - NumPy's name

__all__ = [
    "abs", "arccos", "arcsin", "arctan", "arctan2", "clip", "cos", "cosh", "e", "exp", "expm1", "hypot",
    "log", "log1p", "logical_and", "logical_not", "logical_or", "maximum", "minimum", "pi", "sign", "sin",
    "sinh", "sqrt", "square", "tan", "tanh", "where",
]  # fmt: skip
