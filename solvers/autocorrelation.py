"""Autocovariance and autocorrelation in time, averaged over an ensemble and a time window, without storing paths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit

from solvers.errors import InvalidInput
from solvers.observers import Observer, about, observing

if TYPE_CHECKING:
    from solvers.request import Request
    from solvers.running import Run

_KEYS = ("lags", "start", "every")
_ROUNDING = 1e-6
_SETTINGS = 3
"""Settings before the lags: first sampled step, steps between samples, number of samples."""
_VECTOR, _PAIRS = 5, 15
"""Averages of one path for one lag: product, earlier and later factor, square, and value; and their pairs."""


class Window(NamedTuple):
    """When the paths are sampled, and at which lags.

    Attributes
    ----------
    first, spacing, samples : int
        First sampled step, steps from sample to sample, number of samples.
    lags : tuple of int
        In samples, as asked for.
    """

    first: int
    spacing: int
    samples: int
    lags: tuple[int, ...]


def checked_window(
    asked: Any, *, t0: float, dt: float, first_step: int, last_step: int, paths: int
) -> Window | None:
    """The window of `simulate`'s argument ``autocorrelation``, in steps.

    Raises
    ------
    InvalidInput
        If it is no list of lags nor a mapping with them, or a time is off the step grid or outside the run.
    """
    if asked is None:
        return None
    given = dict(asked) if isinstance(asked, Mapping) else {"lags": asked}
    unknown = [key for key in given if key not in _KEYS]
    if unknown or "lags" not in given:
        raise InvalidInput(
            f"autocorrelation has the keys {sorted(map(str, given))}; give 'lags' (times) and, if wanted, 'start' "
            "and 'every'"
        )
    lags = _steps("lags", given["lags"], 0.0, dt)
    if lags.min() < 0 or (np.diff(lags) <= 0).any():
        raise InvalidInput(
            f"autocorrelation at the lags {given['lags']}; give increasing times, 0 or greater"
        )
    start = given.get("start")
    first = first_step if start is None else int(_steps("start", start, t0, dt)[0])
    if not first_step <= first <= last_step:
        raise InvalidInput(
            f"autocorrelation starts at {start}, outside the run from {t0 + first_step * dt:.12g} to "
            f"{t0 + last_step * dt:.12g}"
        )
    common = math.gcd(*(int(lag) for lag in lags))
    every = given.get("every")
    spacing = (common or 1) if every is None else int(_steps("every", every, 0.0, dt)[0])
    if spacing < 1 or common % spacing:
        raise InvalidInput(f"autocorrelation every {every}; give a step of which all lags are multiples")
    if lags[-1] > last_step - first:
        raise InvalidInput(
            f"autocorrelation at the lag {lags[-1] * dt:.12g} in a window of length {(last_step - first) * dt:.12g}; "
            "give shorter lags, an earlier start, or a later t1"
        )
    if paths < 2:
        raise InvalidInput("autocorrelation takes the paths as independent samples; give at least 2 paths")
    samples = (last_step - first) // spacing + 1
    return Window(first, spacing, samples, tuple(int(lag) // spacing for lag in lags))


def _steps(name: str, value: Any, origin: float, dt: float) -> np.ndarray:
    """Times as numbers of steps after the origin."""
    try:
        times = np.atleast_1d(np.asarray(value, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"autocorrelation {name}={value!r}; give times") from error
    if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all():
        raise InvalidInput(f"autocorrelation {name}={value!r}; give finite times")
    position = (times - origin) / dt
    steps = np.rint(position)
    off = np.abs(position - steps) > _ROUNDING * np.maximum(1.0, np.abs(position) * 1e-6)
    if off.any():
        raise InvalidInput(
            f"autocorrelation {name} contains {times[off][0]}, which is no multiple of dt={dt}; give times on the step "
            "grid"
        )
    return steps.astype(np.int64)


@njit(error_model="numpy")
def _look(when, x, carried, sums, _counts, settings):
    """Add the products of a sample with the earlier ones that a ring of rows holds; at the end sum over paths.

    Carried rows, each for every component: the ring, then for every lag the sum of products, the sum of the
    values when the last earlier factor was taken, the same when the first later factor was to come, and the
    sum of all values. Values are relative to the first sample of the block's first path, which the first row
    of the sums holds after the number of samples taken.
    """
    step, _save, count = when
    d, width = x.shape
    first, spacing, samples = int(settings[0]), int(settings[1]), int(settings[2])
    lags = settings[_SETTINGS:]
    if step < first or (step - first) % spacing != 0:
        return
    j = (step - first) // spacing
    if j != int(sums[0, 0]) or j >= samples:  # seen already, or behind the window
        return
    sums[0, 0] = j + 1
    ring = int(lags[-1]) + 1
    products, heads = ring * d, ring * d + lags.size * d
    leads, totals = heads + lags.size * d, heads + 2 * lags.size * d
    for a in range(d):
        if j == 0:
            sums[0, 1 + a] = x[a, 0]
        reference = sums[0, 1 + a]
        new, total = carried[(j % ring) * d + a], carried[totals + a]
        for i in range(width):
            value = x[a, i] - reference
            new[i] = value
            total[i] += value
        for k in range(lags.size):
            lag = int(lags[k])
            if lag <= j:
                old, product = carried[((j - lag) % ring) * d + a], carried[products + k * d + a]
                for i in range(width):
                    product[i] += old[i] * new[i]
            if j == samples - 1 - lag:
                head = carried[heads + k * d + a]
                for i in range(width):
                    head[i] = total[i]
            if j == lag - 1:
                lead = carried[leads + k * d + a]
                for i in range(width):
                    lead[i] = total[i]
    if j == samples - 1:
        for k in range(lags.size):
            pairs = samples - int(lags[k])
            for a in range(d):
                rows = (carried[products + k * d + a], carried[heads + k * d + a], carried[leads + k * d + a])
                _summarise(
                    rows, carried[products + a], carried[totals + a], pairs, samples, count,
                    sums[1 + k * d + a],
                )  # fmt: skip


@njit(error_model="numpy")
def _averages(rows, squares, total, pairs, samples, i):
    """Of path i: mean product, mean earlier and later factor, mean square and mean value."""
    product, head, lead = rows
    return (
        product[i] / pairs,
        head[i] / pairs,
        (total[i] - lead[i]) / pairs,
        squares[i] / samples,
        total[i] / samples,
    )


@njit(error_model="numpy")
def _summarise(rows, squares, total, pairs, samples, count, out):
    """Means of the averages over the paths, and summed products of their deviations from these."""
    means = np.zeros(_VECTOR)
    for i in range(count):
        values = _averages(rows, squares, total, pairs, samples, i)
        for p in range(_VECTOR):
            means[p] += values[p]
    for p in range(_VECTOR):
        out[p] = means[p] / count
    for i in range(count):
        values = _averages(rows, squares, total, pairs, samples, i)
        at = _VECTOR
        for p in range(_VECTOR):
            for q in range(p, _VECTOR):
                out[at] += (values[p] - out[p]) * (values[q] - out[q])
                at += 1


@njit(nogil=True, error_model="numpy")
def _merge(merged, reference, means, products, blocks, counts):
    """Take in blocks one after another, each moved to the reference of the first; the number of paths after it.

    With every value greater by s, product, factors, square and value (a, h, t, q, v) become
    (a + s (h + t) + s^2, h + s, t + s, q + 2 s v + s^2, v + s): an affine map of the averages.
    """
    d = reference.size
    full, half = np.empty((_VECTOR, _VECTOR)), np.empty((_VECTOR, _VECTOR))
    shift, moved = np.empty(_VECTOR), np.empty(_VECTOR)
    linear = np.eye(_VECTOR)
    for b in range(counts.size):
        if merged == 0:
            reference[:] = blocks[b, 0, 1 : 1 + d]
        total = merged + counts[b]
        weight, share = merged * (counts[b] / total), counts[b] / total
        for r in range(means.shape[0]):
            block = blocks[b, 1 + r]
            s = blocks[b, 0, 1 + r % d] - reference[r % d]
            linear[0, 1] = linear[0, 2] = s
            linear[3, 4] = 2.0 * s
            at = _VECTOR
            for p in range(_VECTOR):
                for q in range(p, _VECTOR):
                    full[p, q] = full[q, p] = block[at]
                    at += 1
            for p in range(_VECTOR):
                moved[p] = s * s if p in (0, 3) else s
                for q in range(_VECTOR):
                    moved[p] += linear[p, q] * block[q]
                    half[p, q] = 0.0
                    for o in range(_VECTOR):
                        half[p, q] += linear[p, o] * full[o, q]
                shift[p] = moved[p] - means[r, p]
            for p in range(_VECTOR):
                for q in range(_VECTOR):
                    value = weight * shift[p] * shift[q]
                    for o in range(_VECTOR):
                        value += half[p, o] * linear[q, o]
                    products[r, p, q] += value
                means[r, p] += share * shift[p]
        merged = total
    return merged


@cache
def _pass() -> Any:
    return observing(_look, every_step=True)


class Autocorrelation(Observer):
    """``autocovariance`` and ``autocorrelation`` (lag, component), each with its standard error.

    Notes
    -----
    With mean product a, mean earlier factor h and mean later factor t of each path (over all pairs of
    samples that far apart), the autocovariance is mean(a) - mean(h) mean(t) + cov(h, t)/paths, the means and
    the covariance (divided by paths - 1) over the paths: unbiased for a process that is stationary in the
    window. The paths are independent, so that the standard error is that of the mean over the paths of
    a - mean(t) h - mean(h) t. The autocorrelation is the quotient with lag 0, its error from the first
    derivatives.
    """

    every_step = True
    remedy = "give fewer or shorter lags, or a longer 'every'"

    def __init__(self, window: Window, d: int):
        self.window = window
        # Lag 0 comes first, whether asked for or not.
        self._lags = window.lags if window.lags[0] == 0 else (0, *window.lags)
        self._rows = len(self._lags) * d
        self.observe = _pass()
        self.carried = (self._lags[-1] + 1 + 3 * len(self._lags) + 1) * d
        self.sums = (1 + self._rows, max(_VECTOR + _PAIRS, 1 + d))
        self.settings = np.array([window.first, window.spacing, window.samples, *self._lags], dtype=float)
        self.purpose = f"autocorrelation at {len(window.lags)} lags of up to {self._lags[-1]} samples"
        self._d = d

    def prepare(self, run: Run) -> None:  # noqa: ARG002 - the same for any run
        """Allocate the sums."""
        self._count, self._reference = 0, np.zeros(self._d)
        self._means, self._products = (
            np.zeros((self._rows, _VECTOR)),
            np.zeros((self._rows, _VECTOR, _VECTOR)),
        )

    def merge(self, sums: np.ndarray, paths: np.ndarray) -> None:
        """Take in consecutive blocks."""
        self._count = _merge(self._count, self._reference, self._means, self._products, sums, paths)

    def state(self) -> dict[str, np.ndarray]:
        """The merged sums."""
        return {
            "count": np.array(self._count),
            "reference": self._reference,
            "means": self._means,
            "products": self._products,
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint."""
        self._count, self._reference = int(state["count"]), state["reference"].copy()
        self._means, self._products = state["means"].copy(), state["products"].copy()

    def variables(self, request: Request, coords: dict[str, Any]) -> dict[str, Any]:
        """Autocovariance and autocorrelation with their standard errors."""
        window, n = self.window, self._count
        (a, h, t, q, v), cov = self._means.T, self._products / (n - 1)
        value = a - h * t + cov[:, 1, 2] / n
        variance = q - v * v + cov[:, 4, 4] / n
        value[: self._d] = variance[: self._d]  # lag 0: the same but for rounding
        one, zero = np.ones_like(a), np.zeros_like(a)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = value / variance
            value_stderr = _stderr(np.stack([one, -t, -h, zero, zero]), cov, n)
            ratio_stderr = _stderr(np.stack([one, -t, -h, -ratio, 2 * ratio * v]), cov, n) / np.abs(variance)
        ratio_stderr[: self._d] = 0.0 * ratio_stderr[: self._d]
        shown = slice(len(self._lags) - len(window.lags), None)
        lags = np.array(window.lags) * window.spacing * request.dt
        coords["lag"] = ("lag", lags, about("time between the two values", "time"))
        told = {
            "window_start": request.t0 + window.first * request.dt,
            "window_end": request.t0 + (window.first + (window.samples - 1) * window.spacing) * request.dt,
            "sampled_every": window.spacing * request.dt,
        }
        found = {
            "autocovariance": (value, "covariance over paths and window of two values a lag apart, unbiased"),
            "autocovariance_stderr": (value_stderr, "standard error of the autocovariance"),
            "autocorrelation": (ratio, "autocovariance over that at lag 0"),
            "autocorrelation_stderr": (ratio_stderr, "standard error of the autocorrelation, to first order"),
        }
        return {
            name: (("lag", "component"), numbers.reshape(-1, self._d)[shown], about(text) | told)
            for name, (numbers, text) in found.items()
        }


def _stderr(slopes: np.ndarray, cov: np.ndarray, paths: int) -> np.ndarray:
    """Standard error of a function of the means with these slopes (5, rows)."""
    square = np.zeros(slopes.shape[1])
    for p in range(_VECTOR):
        for q in range(_VECTOR):
            square += slopes[p] * slopes[q] * cov[:, p, q]
    return np.sqrt(np.maximum(square, 0.0) / paths)
