"""The ensembles that every peer of `sde.py` simulates: the same equations, start, step and statistics.

Each is dx_j = f(x_j) dt + g(x_j) dW_j in the Ito sense, all components alike, from x_j = 0.5 with steps of
0.01; wanted are the mean and the variance of each component at every step.
"""
# ruff: noqa: ARG005 - model functions have a fixed signature

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from solvers import SDE

DT = 0.01
START = 0.5


@dataclass(frozen=True)
class Problem:
    """One ensemble.

    Attributes
    ----------
    name : str
    d : int
        Components.
    drift : callable
        f for anything with arithmetic: floats, arrays, tensors, symbols.
    additive : float or None
        g where it is constant, so that peers may use that.
    diffusion : callable
        g in general.
    c : (str, str)
        f and g in C.
    sde : SDE
        Ours.
    """

    name: str
    d: int
    drift: Callable[[Any], Any]
    additive: float | None
    diffusion: Callable[[Any], Any]
    c: tuple[str, str]
    sde: SDE


def _linear(x):
    return -x


def _cubic(x):
    return x - x * x * x


def _one(x):
    return 1.0 + 0.0 * x


def _half(x):
    return 0.5 + 0.0 * x


def _proportional(x):
    return 0.3 * x


_ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
_well = SDE(lambda t, y, p, xp: (y[0] - y[0] * y[0] * y[0],), lambda t, y, p, xp: (0.5,), convention="ito")
_multiplicative = SDE(
    lambda t, y, p, xp: (y[0] - y[0] * y[0] * y[0],), lambda t, y, p, xp: (0.3 * y[0],), convention="ito"
)
_ten = SDE(
    lambda t, y, p, xp: (-y[0], -y[1], -y[2], -y[3], -y[4], -y[5], -y[6], -y[7], -y[8], -y[9]),
    lambda t, y, p, xp: (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    names=tuple(f"x{j}" for j in range(10)),
    convention="ito",
)

PROBLEMS = (
    Problem("OU", 1, _linear, 1.0, _one, ("-(x)", "1.0"), _ou),
    Problem("double well", 1, _cubic, 0.5, _half, ("(x) - (x) * (x) * (x)", "0.5"), _well),
    Problem(
        "multiplicative",
        1,
        _cubic,
        None,
        _proportional,
        ("(x) - (x) * (x) * (x)", "0.3 * (x)"),
        _multiplicative,
    ),
    Problem("d = 10", 10, _linear, 1.0, _one, ("-(x)", "1.0"), _ten),
)
