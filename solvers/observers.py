"""Statistics taken of a block at saved steps: the interface, and what one part of an ensemble collects.

To add a statistic: write an `Observer` (its compiled pass, the arrays it fills, how blocks are merged and
which variables it becomes) and one entry in `STATISTICS` of `solvers.request`. The pass sees every step of a
block while it lies in the first-level cache; nothing is stored per path and step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numba import carray, cfunc, float64, int64, types

if TYPE_CHECKING:
    from solvers.request import Request

_FLOATS, _INTEGERS = types.CPointer(float64), types.CPointer(int64)
OBSERVE = types.void(
    *(int64, int64, int64, int64),  # step, number of the saved step (-1 between), paths that count, width
    _FLOATS,  # state of the block (d * width)
    *(_FLOATS, int64),  # carried rows of width, one entry per path, kept from step to step
    *(_FLOATS, int64, int64),  # sums of this block: rows, columns
    *(_INTEGERS, int64, int64),  # counts of the part (all its blocks): rows, columns
    *(_FLOATS, int64),  # settings, the same for all blocks: columns
    int64,  # d
)
"""Signature of the pass that looks at a block; made by `observing`."""


def observing(look: Any) -> Any:
    """The pass of an observer from a Numba function over arrays.

    Parameters
    ----------
    look : dispatcher
        ``look(when, x, carried, sums, counts, settings)``: when is (step, number of the saved step or -1, paths
        that count), x the state (d, width), carried (rows, width), sums and counts two-dimensional, settings
        flat.
    """

    @cfunc(OBSERVE, error_model="numpy")
    def observe(
        step, save, count, width, at_x, at_carried, rows, at_sums, r, c, at_counts, m, n, at_settings, size, d
    ):  # fmt: skip
        look(
            (step, save, count),
            carray(at_x, (d, width)),
            carray(at_carried, (rows, width)),
            carray(at_sums, (r, c)),
            carray(at_counts, (m, n)),
            carray(at_settings, (size,)),
        )

    return observe


class Observer(Protocol):
    """One statistic of a run.

    Attributes
    ----------
    observe : compiled pass of type `OBSERVE`
        From `observing`.
    carried : int
        Rows of one entry per path kept per block, zero at the start.
    sums : (int, int)
        Shape of each block's sums, zero at the start; merged in the order of the paths.
    counts : (int, int)
        Shape of the part's counts; integers, so that their sum has no order.
    settings : ndarray
        Flat, contiguous floats.
    every_step : bool
        Whether it wants to see steps that are not saved.
    """

    observe: Any
    carried: int
    sums: tuple[int, int]
    counts: tuple[int, int]
    settings: np.ndarray
    every_step: bool

    def merge(self, sums: np.ndarray, paths: np.ndarray) -> None:
        """Take in consecutive blocks: their sums (blocks, *shape) and how many paths each has."""
        ...

    def add_counts(self, counts: np.ndarray) -> None:
        """Take in the counts of a part."""
        ...

    def keep(self, carried: np.ndarray, first: int, count: int) -> None:
        """Take in the final carried rows of a part, (blocks, rows, width), for its `count` paths from `first`."""
        ...

    def variables(self, request: Request, coords: dict[str, Any]) -> dict[str, Any]:
        """Variables of the dataset; may add coordinates."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything merged so far, for a checkpoint."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint."""
        ...


def about(long_name: str, units: str = "1") -> dict[str, str]:
    """Attributes of a variable."""
    return {"units": units, "long_name": long_name}
