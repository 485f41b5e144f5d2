"""Statistics taken of a block while it is carried from step to step: what a statistic is made of.

To add a statistic: write an `Observer` (its compiled pass, the arrays it fills, how blocks are merged and
which variables it becomes) and one entry in `solvers.collecting`. The pass sees a block while it lies in the
first-level cache; nothing is stored per path and step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import carray, cfunc, float64, int64, types

if TYPE_CHECKING:
    from solvers.request import Request
    from solvers.running import Run

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


def observing(look: Any, *, every_step: bool = False) -> Any:
    """The pass of an observer from a Numba function over arrays.

    Parameters
    ----------
    look : dispatcher
        ``look(when, x, carried, sums, counts, settings)``: when is (step, number of the saved step or -1, paths
        that count), x the state (d, width), carried (rows, width), sums and counts two-dimensional, settings
        flat. Entries of x beyond the paths that count are to be ignored.
    every_step : bool
        Whether it is called between saved steps too. It may then be called twice with the same step, where
        one call of the kernel ends and the next begins.
    """

    @cfunc(OBSERVE, error_model="numpy")
    def observe(
        step, save, count, width, at_x, at_carried, rows, at_sums, r, c, at_counts, m, n, at_settings, size, d
    ):  # fmt: skip
        if save < 0 and not every_step:
            return
        look(
            (step, save, count),
            carray(at_x, (d, width)),
            carray(at_carried, (rows, width)),
            carray(at_sums, (r, c)),
            carray(at_counts, (m, n)),
            carray(at_settings, (size,)),
        )

    return observe


class Observer:
    """One statistic of a run. A subclass overrides what it needs; the rest does nothing.

    Attributes
    ----------
    observe : compiled pass of type `OBSERVE`
        From `observing`; may be set as late as in `prepare`.
    carried : int
        Rows of one entry per path kept per block, zero at the start of a run.
    sums : (int, int)
        Shape of each block's sums, zero at the start; merged in the order of the paths.
    counts : (int, int)
        Shape of the part's counts; integers, so that their sum has no order.
    settings : ndarray
        Flat, contiguous floats.
    every_step : bool
        Whether it wants to see steps that are not saved.
    held : int
        Bytes of what is merged in one run.
    purpose, remedy : str
        For the refusal of a run that would not fit in memory: what needs it, and what to do.
    """

    observe: Any
    carried: int = 0
    sums: tuple[int, int] = (0, 0)
    counts: tuple[int, int] = (0, 0)
    settings: np.ndarray = np.empty(0)
    every_step: bool = False
    held: int = 0
    purpose: str = "statistics"
    remedy: str = "ask for fewer"

    def prepare(self, run: Run) -> None:
        """Allocate what is merged; called once, when a run is made."""

    def begin(self, carried: np.ndarray, first: int) -> None:
        """Fill the carried rows (blocks, rows, width) of a part before its first step; `first` is its first path."""

    def merge(self, sums: np.ndarray, paths: np.ndarray) -> None:
        """Take in consecutive blocks: their sums (blocks, *shape) and how many paths each has."""

    def add_counts(self, counts: np.ndarray) -> None:
        """Take in the counts of a part."""

    def keep(self, carried: np.ndarray, first: int, count: int) -> None:
        """Take in the final carried rows of a part, (blocks, rows, width), for its `count` paths from `first`."""

    def variables(self, request: Request, coords: dict[str, Any]) -> dict[str, Any]:
        """Variables of the dataset; may add coordinates."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """Everything merged so far, for a checkpoint."""
        raise NotImplementedError

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint."""
        raise NotImplementedError


class Counting(Observer):
    """A statistic that is all in the counts: integers, which add up in any order."""

    _total: np.ndarray

    def prepare(self, run: Run) -> None:  # noqa: ARG002 - the same for any run
        """Allocate the counts."""
        self._total = np.zeros(self.counts, dtype=np.int64)

    def add_counts(self, counts: np.ndarray) -> None:
        """Take in the counts of a part."""
        self._total += counts

    def state(self) -> dict[str, np.ndarray]:
        """The counts so far."""
        return {"counts": self._total}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint."""
        self._total = state["counts"].copy()


def about(long_name: str, units: str = "1") -> dict[str, str]:
    """Attributes of a variable."""
    return {"units": units, "long_name": long_name}


def by_path(rows: np.ndarray, count: int) -> np.ndarray:
    """Carried rows (blocks, rows, width) as (count, rows): one line for each of the paths that count."""
    return rows.transpose(0, 2, 1).reshape(-1, rows.shape[1])[:count]
