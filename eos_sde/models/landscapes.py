"""Losses of one or more weights, written once over a namespace: `loss(t, y, p, xp)` returns one number."""

from __future__ import annotations

from typing import Any, NamedTuple


class LineLoss(NamedTuple):
    """Derivatives at 0 of the loss along a line, for `line_loss`: loss per weight^2, ^3 and ^4."""

    curvature: float
    third: float = 0.0
    fourth: float = 0.0


def line_loss(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001 - signature of every loss
    """The loss along a line to fourth order, h x^2/2 + f3 x^3/6 + f4 x^4/24, with p a `LineLoss`."""
    (x,) = y
    square = x * x
    return 0.5 * p.curvature * square + p.third * square * x / 6.0 + p.fourth * square * square / 24.0


def quadratic(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
    """sum_i h_i y_i^2 / 2, the h_i being the first parameters in the order of the components."""
    total = 0.0
    for i in range(len(y)):
        total = total + 0.5 * p[i] * y[i] * y[i]
    return total


def double_well(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
    """x^4/4 - x^2/2: minima of curvature 2 at +-1, a barrier of height 1/4 between; no parameters."""
    (x,) = y
    square = x * x
    return 0.25 * square * square - 0.5 * square
