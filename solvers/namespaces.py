"""The namespaces a model is read over: floats (Numba), arrays (NumPy), symbols (SymPy).

The fourth reading, JAX, is `jax.numpy` itself and lives in `eos_sde.jax_terms`, since nothing here imports
jax. All four speak NumPy's names; the list of names common to all is `NAMES`.
"""

from typing import Any

import numpy as array

from solvers import scalar

NAMES = tuple(scalar.__all__)
"""Functions and constants available in every namespace."""

__all__ = ["NAMES", "array", "common", "scalar", "symbolic"]


class _Common:
    """NumPy cut down to `NAMES`: a model that can be read here can be read everywhere."""

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(f"xp has no {name!r}; a model may use: {', '.join(NAMES)}")
        return getattr(array, name)


common = _Common()


class _Symbolic:
    """NumPy's names over SymPy expressions; SymPy is imported at first use."""

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(f"xp has no {name!r}; a model may use: {', '.join(NAMES)}")
        table = _symbolic_table()
        self.__dict__.update(table)
        return table[name]


def _symbolic_table() -> dict[str, Any]:
    import sympy as sp

    def where(condition, a, b):
        if condition is True or condition == sp.true:
            return sp.sympify(a)
        if condition is False or condition == sp.false:
            return sp.sympify(b)
        return sp.Piecewise((a, condition), (b, True))

    return {
        "abs": sp.Abs, "arccos": sp.acos, "arcsin": sp.asin, "arctan": sp.atan, "arctan2": sp.atan2,
        "clip": lambda x, low, high: sp.Min(sp.Max(x, low), high), "cos": sp.cos, "cosh": sp.cosh, "e": sp.E,
        "exp": sp.exp, "expm1": lambda x: sp.exp(x) - 1, "hypot": lambda a, b: sp.sqrt(a**2 + b**2),
        "log": sp.log, "log1p": lambda x: sp.log(1 + x), "logical_and": sp.And, "logical_not": sp.Not,
        "logical_or": sp.Or, "maximum": sp.Max, "minimum": sp.Min, "pi": sp.pi, "sign": sp.sign,
        "sin": sp.sin, "sinh": sp.sinh, "sqrt": sp.sqrt, "square": lambda x: sp.sympify(x) ** 2,
        "tan": sp.tan, "tanh": sp.tanh, "where": where,
    }  # fmt: skip


symbolic = _Symbolic()
