"""Quantiles of an ensemble at the saved times from counts in fine bins, with a bound on their error."""

from __future__ import annotations

import dataclasses
import math
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from solvers.errors import InvalidInput
from solvers.observers import Counting, about, observing
from solvers.vmath import bits_of

if TYPE_CHECKING:
    from solvers.request import Before, Request
    from solvers.running import Run

_BITS, _OCTAVES = 10, 12
_BINS = _OCTAVES << _BITS
"""Bins on each side of the centre."""
_SHIFT, _ONE = np.uint64(52 - _BITS), np.int64(1023 << _BITS)
_PILOT = 512
"""Paths from which centre and scale are taken: the first ones, whatever else the run does."""


def checked_levels(asked: Any) -> tuple[float, ...]:
    """The levels of `simulate`'s argument ``quantiles``.

    Raises
    ------
    InvalidInput
        If they are no increasing numbers from 0 to 1.
    """
    if asked is None:
        return ()
    try:
        levels = np.atleast_1d(np.asarray(asked, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"quantiles={asked!r}; give levels between 0 and 1") from error
    if levels.ndim != 1 or levels.size == 0 or not ((levels >= 0) & (levels <= 1)).all():
        raise InvalidInput(f"quantiles={asked!r}; give levels between 0 and 1")
    if (np.diff(levels) <= 0).any():
        raise InvalidInput(f"quantiles={asked!r} must increase; sort the levels and remove repeated ones")
    return tuple(levels.tolist())


@njit(error_model="numpy")
def _look(when, x, _carried, _sums, counts, settings):
    """Count the paths in bins whose edges are 1 + |x - centre|/scale = (1 + m/2^10) 2^e.

    The bin is read from the bits of that number: exponent and leading bits of the mantissa. Settings: centre
    and 1/scale of every saved time and component. The last column counts what is not a number.
    """
    _step, save, count = when
    d = x.shape[0]
    for a in range(d):
        row = save * d + a
        centre, inverse = settings[2 * row], settings[2 * row + 1]
        for i in range(count):
            offset = (x[a, i] - centre) * inverse
            if offset != offset:
                counts[row, 2 * _BINS] += 1
                continue
            bin_ = min(np.int64(bits_of(1.0 + abs(offset)) >> _SHIFT) - _ONE, _BINS - 1)
            counts[row, _BINS + bin_ if offset >= 0.0 else _BINS - 1 - bin_] += 1


@cache
def _pass() -> Any:
    return observing(_look)


class Quantiles(Counting):
    """``quantile`` and ``quantile_error`` (time, q, component).

    Notes
    -----
    Bins are uniform in the logarithm of 1 + |x - c|/w to within the spacing of 10-bit numbers, as in the
    sketches with relative accuracy of Masson, Rim and Lee (2019, PVLDB 12, 2195) but read from the bits of the
    number instead of its logarithm, and counts are integers: merging is exact. Centre c (median) and scale w
    (half the distance of the quartiles) are those of the first 512 paths, which are run once in advance. The
    error against the quantile of the paths themselves (with linear interpolation, as `numpy.quantile`) is
    at most (w + |x - c|)/1024, and ``quantile_error`` bounds it; it is less where many paths share a bin, for
    ranks are interpolated inside. Beyond 4093 w from the centre a quantile is reported as infinite, and where
    a path is not a number as not a number.
    """

    remedy = "give fewer times in save_at"

    def __init__(self, levels: tuple[float, ...], request: Request):
        d, saves = request.sde.dimension, request.saves.size
        self.levels = levels
        self.observe = _pass()
        self.counts = (saves * d, 2 * _BINS + 1)
        # The pilot's paths, and in the end the cumulative counts of one time and component at a time.
        self.held = 8 * (math.prod(self.counts) + saves * d * (_PILOT + 2))
        self.purpose = f"quantiles at {saves} times"

    def prepare(self, run: Run) -> None:
        """Allocate the counts; run the first paths for centre and scale."""
        states = np.sort(_pilot(run), axis=0).reshape(-1, self.counts[0])
        n = len(states)
        centre = states[n // 2]
        with np.errstate(over="ignore", invalid="ignore"):
            scale = 0.5 * (states[(3 * n) // 4] - states[n // 4])
        start = run.request.start
        spread = np.tile(np.ptp(start, axis=0), len(scale) // start.shape[1])
        fallback = np.where(spread > 0.0, spread, np.maximum(np.abs(centre), 1.0) * 2.0**-20)
        scale = np.where((scale > 0.0) & np.isfinite(scale), scale, fallback)
        self._centre = np.where(np.isfinite(centre), centre, 0.0)
        self._scale = np.where(np.isfinite(scale), scale, 1.0)
        self.settings = np.stack([self._centre, 1.0 / self._scale], axis=1).ravel()
        super().prepare(run)

    def variables(self, request: Request, coords: dict[str, Any]) -> dict[str, Any]:
        """Quantiles and bounds of their errors."""
        saves, d = request.saves.size, request.sde.dimension
        values, bounds = np.empty((2, saves * d, len(self.levels)))
        edges = _edges()
        for row in range(saves * d):
            values[row], bounds[row] = self._read(row, edges)
        values, bounds = (v.reshape(saves, d, -1).transpose(0, 2, 1) for v in (values, bounds))
        coords["q"] = ("q", np.array(self.levels), about("level of the quantile"))
        dims = ("time", "q", "component")
        return {
            "quantile": (dims, values, about("quantile over the paths")),
            "quantile_error": (dims, bounds, about("bound on the error of the quantile of these paths")),
        }

    def _read(self, row: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The quantiles of one time and component, and bounds of their errors."""
        counts = self._total[row]
        if counts[-1]:
            missing = np.full(len(self.levels), np.nan)
            return missing, missing
        below = np.concatenate([[0], np.cumsum(counts[:-1])])
        paths = below[-1]
        rank = np.array(self.levels) * (paths - 1)
        lower = np.floor(rank).astype(np.int64)
        part = rank - lower
        value, bound = np.zeros_like(rank), np.zeros_like(rank)
        for ranks, weight in ((lower, 1.0 - part), (np.minimum(lower + 1, paths - 1), part)):
            cell = np.searchsorted(below, ranks, side="right") - 1
            inside = (ranks - below[cell] + 0.5) / counts[cell]
            left, right = edges[cell], edges[cell + 1]
            with np.errstate(invalid="ignore"):
                place = np.where(
                    np.isfinite(right - left), left + inside * (right - left), np.sign(left) * np.inf
                )
                reach = np.where(np.isfinite(place), np.maximum(place - left, right - place), np.inf)
                used = weight > 0.0
                value[used] += (weight * place)[used]
                bound[used] += (weight * reach)[used]
        centre, scale = self._centre[row], self._scale[row]
        with np.errstate(invalid="ignore"):
            found = centre + scale * value
            # The rounding of x - c, of the quotient by w and of the number 1 + |x - c|/w.
            rounding = 8 * np.finfo(float).eps * (np.abs(found) + np.abs(centre) + scale)
        return found, scale * bound + rounding


@cache
def _edges() -> np.ndarray:
    """Edges of the bins in units of the scale about the centre; the outermost are infinite."""
    steps = 1.0 + np.arange(1 << _BITS) / (1 << _BITS)
    right = np.concatenate([steps * 2.0**octave for octave in range(_OCTAVES)] + [[np.inf]]) - 1.0
    return np.concatenate([-right[:0:-1], right])


def _pilot(run: Run) -> np.ndarray:
    """States of the first paths at the saved times (paths, times, d)."""
    request = run.request
    count = min(_PILOT, request.paths)
    start = request.start if len(request.start) == 1 else request.start[:count]
    before: Before | None = None if request.before is None else request.before.first(count)
    small = dataclasses.replace(
        request, paths=count, start=start, before=before, statistics=(), save_paths=True, grid=None,
        levels=(), window=None, chunk=None,
    )  # fmt: skip
    first = type(run)(small)
    for part in first.tasks():
        first.work(*part, threading.Event())
    return first.states
