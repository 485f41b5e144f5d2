"""Componentwise operations on tuples, written out for given dimensions and compiled: what the steps are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from numba import njit

FLAGS = {"contract", "reassoc"}
"""Floating-point freedoms of all compiled steps; infinities and NaNs keep their meaning."""


@dataclass(frozen=True)
class Algebra:
    """Operations for one pair of dimensions.

    Attributes
    ----------
    plus : callable
        ``plus(y, h, a)`` = y + h a.
    kick : callable
        ``kick(y, b, dw)`` = y + b dw, b diagonal or a matrix; only the first m numbers of dw are read.
    scaled : callable
        ``scaled(dw, h)`` = h dw, of the first m numbers.
    variances : callable
        ``variances(b)``: the diagonal of b b^T.
    load, load_noise, store : callable
        Between path i of a block and a tuple; component j of the block lies at ``x[j * BLOCK + i]``.
    """

    plus: Any
    kick: Any
    scaled: Any
    variances: Any
    load: Any
    load_noise: Any
    store: Any


@cache
def algebra(d: int, m: int, noise: str, block: int, draws: int) -> Algebra:
    """The operations for d components, m Wiener processes, blocks of the given width, `draws` numbers a step."""
    if noise == "diagonal":
        moves = [f"b[{j}] * dw[{j}]" for j in range(d)]
        variances = [f"b[{j}] * b[{j}]" for j in range(d)]
    else:
        moves = [" + ".join(f"b[{j}][{k}] * dw[{k}]" for k in range(m)) for j in range(d)]
        variances = [" + ".join(f"b[{j}][{k}] * b[{j}][{k}]" for k in range(m)) for j in range(d)]
    targets = "".join(f"x[{j * block} + i], " for j in range(d))
    return Algebra(
        plus=tuples("y, h, a", [f"y[{j}] + h * a[{j}]" for j in range(d)]),
        kick=tuples("y, b, dw", [f"y[{j}] + {moves[j]}" for j in range(d)]),
        scaled=tuples("dw, h", [f"h * dw[{k}]" for k in range(m)]),
        variances=tuples("b", variances),
        load=tuples("x, i", [f"x[{j * block} + i]" for j in range(d)]),
        load_noise=tuples("x, i", [f"x[{k * block} + i]" for k in range(draws)]),
        store=compiled(f"def store(x, i, y):\n    {targets} = y\n"),
    )


def tuples(arguments: str, entries: Iterable[str]) -> Any:
    """A compiled function of the arguments that returns the tuple of the entries."""
    return compiled(f"def function({arguments}):\n    return {row(entries)}\n")


def row(entries: Iterable[str]) -> str:
    """The source of a tuple, of one entry too."""
    return "(" + "".join(f"{entry}, " for entry in entries) + ")"


def compiled(source: str, **scope: Any) -> Any:
    """The one function that the source defines, compiled so that LLVM can inline and vectorise it."""
    before = set(scope)
    exec(compile(source, "<scheme>", "exec"), scope)
    (name,) = set(scope) - before - {"__builtins__"}
    return njit(fastmath=FLAGS, error_model="numpy", forceinline=True)(scope[name])
