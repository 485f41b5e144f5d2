"""Where the random numbers of a block come from: Gaussian at two resolutions, or the numbers of weak schemes.

To add a source: write a builder of the pass that fills a block and return a `Source` that carries it. Every
number is a function of (seed, path, step, component) alone, so that no bit depends on threads or chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numba import carray, cfunc, float32, float64, int64, types, uint64

from solvers import fast_normals, weak_increments, wiener
from solvers.errors import InvalidInput
from solvers.lanes import prefer_wide_vectors
from solvers.schemes import Draws
from solvers.vmath import double_of
from solvers.weak_increments import THREE_POINT_STEPS, TWO_POINT_STEPS
from solvers.wiener import ROUNDS

FILL = types.void(
    uint64,  # seed
    int64,  # number of the first path
    int64,  # number of the step
    int64,  # not 0 when nothing is left in the scratch from the step before
    float64,  # dt
    types.CPointer(float64),  # numbers (depth * sum(draws) * width), unless they are packed as "single"
    types.CPointer(float32),  # the same in single precision, if they are
    types.CPointer(uint64),  # scratch that lives while one block is carried from step to step
    types.CPointer(float64),  # table of the source
    int64,  # its rows
    int64,  # its columns
)
"""Signature of the pass that fills a block with random numbers."""

Packing = Literal["ready", "single", "signs"]
"""How the step finds its numbers: as doubles; as normals of unit variance in single precision; or as words of
64 signs each, stored as doubles, of which bit ``step % 64`` is the step's: 1 means +sqrt(dt), 0 -sqrt(dt)."""

_NO_TABLE = np.empty((0, 0))
WIDEST, NARROWEST = 1024, 64


def block_width(numbers: int, paths: int) -> int:
    """Paths per block, a power of two, in an ensemble of so many.

    `numbers` is the larger of the components and the random numbers per path. Per path and number the state
    takes 8 bytes and the random numbers of two steps 8 (in single precision), per path the words behind them 8:
    together at most 44 KiB, so that a block stays about in a first-level cache; a wider one spends less on what
    is done once per step. A few paths get a narrow block, since blocks are always computed in full; there are
    no widths between, because each is compiled for itself.
    """
    if paths <= NARROWEST:
        return NARROWEST
    fitting = 44 * 1024 // (16 * numbers + 8)
    return min(WIDEST, max(NARROWEST, 1 << (fitting.bit_length() - 1)))


@dataclass(frozen=True)
class Source:
    """Random numbers for the blocks of `simulate`.

    Attributes
    ----------
    name : str
    fill : compiled pass of type `FILL`
        Makes the numbers of `depth` steps when the step number is a multiple of depth or the scratch is stale;
        number k of path i at step s lies at ``[((s % depth) * sum(draws) + k) * width + i]``.
    depth : int
        Steps per call.
    packing : {"ready", "single", "signs"}
        See `Packing`; what is not ready is scaled and widened where the step uses it.
    words : int
        Size of the scratch.
    about : dict
        Attributes of the dataset: the generator and the resolution.
    table : ndarray
        What `fill` reads besides.
    """

    name: str
    fill: Any
    depth: int
    packing: Packing
    words: int
    about: dict[str, Any]
    table: np.ndarray = field(default_factory=lambda: _NO_TABLE)


def source(draws: Draws, resolution: int, width: int) -> Source:
    """The numbers that a scheme takes in blocks of a width, Gaussian ones at 32 or 53 bits.

    Raises
    ------
    InvalidInput
        For another resolution.
    """
    wiener.checked_resolution(resolution)
    engine = f"threefry2x64-{ROUNDS}"
    if draws.three_point or draws.two_point:
        if draws.gaussian:
            raise NotImplementedError("no source has both Gaussian and weak numbers; no scheme takes both")
        about = {"generator": f"{engine}, weak increments"}
        if not draws.three_point:
            return Source("two-point", _signs(draws.two_point, width), 1, "signs", 0, about)
        words = width * (2 * draws.three_point + draws.two_point)
        return Source("weak", _weak(draws.three_point, draws.two_point, width), 1, "ready", words, about)
    about = {"generator": f"{engine}, Box-Muller", "normal_resolution_bits": resolution}
    if resolution == 32:
        return Source("gaussian-32", _gaussian_32(draws.gaussian, width), 2, "single", width, about)
    return Source("gaussian-53", _gaussian_53(draws.gaussian, width), 2, "ready", 2 * width, about)


def checked_increments(increments: Any, scheme: str, convention: str) -> str:
    """The scheme to be used with increments that are not Gaussian.

    Raises
    ------
    InvalidInput
        If they are none of this package's, the scheme is not Euler-Maruyama, or the SDE not Ito.
    """
    if not callable(getattr(increments, "source", None)):
        raise InvalidInput(f"increments={increments!r} is no noise; give StudentT, AlphaStable or Resampled")
    if scheme not in {"auto", "euler-maruyama"}:
        raise InvalidInput(
            f"scheme={scheme!r} is made for Gaussian increments; with increments use scheme='euler-maruyama'"
        )
    if convention != "ito":
        raise InvalidInput(
            f"the SDE is read as {convention}, whose conversion holds for Gaussian noise only; with increments "
            "write the model with convention='ito'"
        )
    return "euler-maruyama"


@lru_cache(maxsize=64)
def _gaussian_32(components: int, width: int) -> Any:
    fill_pair = fast_normals.filler(width)

    @cfunc(FILL)
    def fill(seed, start, step, _fresh, _dt, _z, at_unit, at_words, _table, _rows, _columns):
        prefer_wide_vectors()
        unit, words = carray(at_unit, (2 * components * width,)), carray(at_words, (width,))
        fill_pair(seed, start, step // 2, components, unit, words)

    return fill


@lru_cache(maxsize=64)
def _gaussian_53(components: int, width: int) -> Any:
    fill_pair = wiener.filler(width)

    @cfunc(FILL)
    def fill(seed, start, step, _fresh, dt, at_z, _unit, at_words, _table, _rows, _columns):
        prefer_wide_vectors()
        z, words = carray(at_z, (2 * components * width,)), carray(at_words, (2 * width,))
        fill_pair(seed, start, step // 2, components, math.sqrt(dt), z, words)

    return fill


@lru_cache(maxsize=64)
def _signs(components: int, width: int) -> Any:
    """Two-point numbers as they come: one word for 64 steps."""
    two_point_word, steps = weak_increments.two_point_word, TWO_POINT_STEPS

    @cfunc(FILL, error_model="numpy")
    def fill(seed, start, step, fresh, _dt, at_z, _unit, _words, _table, _rows, _columns):
        prefer_wide_vectors()
        z = carray(at_z, (components * width,))
        if fresh or step % steps == 0:
            for c in range(components):
                held = z[c * width : (c + 1) * width]
                for i in range(width):
                    held[i] = double_of(two_point_word(seed, start + i, step // steps, c))

    return fill


@lru_cache(maxsize=64)
def _weak(three: int, two: int, width: int) -> Any:
    """Three-point and then two-point numbers, each from words that are kept in the scratch."""
    signs = 2 * three * width  # where the two-point words begin in the scratch
    two_point_word, two_point_of = weak_increments.two_point_word, weak_increments.two_point_of
    three_point_words, three_point_of = weak_increments.three_point_words, weak_increments.three_point_of

    @cfunc(FILL, error_model="numpy")
    def fill(seed, start, step, fresh, dt, at_z, _unit, at_words, _table, _rows, _columns):
        prefer_wide_vectors()
        z, words = carray(at_z, ((three + two) * width,)), carray(at_words, (signs + two * width,))
        scale = math.sqrt(dt)
        place, bit = step % THREE_POINT_STEPS, step % TWO_POINT_STEPS
        for c in range(three):
            low = words[2 * c * width : (2 * c + 1) * width]
            high = words[(2 * c + 1) * width : (2 * c + 2) * width]
            if fresh or place == 0:
                for i in range(width):
                    low[i], high[i] = three_point_words(seed, start + i, step // THREE_POINT_STEPS, c)
            out = z[c * width : (c + 1) * width]
            for i in range(width):
                out[i] = scale * three_point_of((low[i], high[i]), place)
        for c in range(two):
            held = words[signs + c * width : signs + (c + 1) * width]
            if fresh or bit == 0:
                for i in range(width):
                    held[i] = two_point_word(seed, start + i, step // TWO_POINT_STEPS, c)
            out = z[(three + c) * width : (three + c + 1) * width]
            for i in range(width):
                out[i] = scale * two_point_of(held[i], bit)

    return fill
