"""The passes that move a block of paths of a model in vector form by one step, and the steps they are made of.

A block lies as for the component form, ``x[component * width + i]``, with the same random numbers. Functions
for blocks see the block itself; functions for single paths see copies of one path after the other, transposed
eight paths (one cache line) at a time.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, njit

from solvers.kernels import ADVANCE, settling
from solvers.lanes import prefer_wide_vectors
from solvers.matrix_product import apply_matrix
from solvers.schemes import FLAGS
from solvers.sources import Packing
from solvers.transposition import transpose
from solvers.vector_parameters import count, frozen, unpacking, window
from solvers.vector_reading import VectorModel, calling
from solvers.vmath import bits_of
from solvers.weak_increments import TWO_POINT_STEPS, signed

_TOGETHER = 8
"""Single paths that are copied together: one cache line of every component."""
_LARGEST = 1 << 15
"""Entries of state-dependent matrices of noise that are held at once: a quarter of a megabyte."""


class Mover(NamedTuple):
    """A step of a scheme for blocks of one width.

    Attributes
    ----------
    move : dispatcher
        ``move(t, dt, x, ready, unit, p, scratch)``: x (d * width) is moved by one step with the random numbers
        (m * width) of a source.
    scratch : int
        Floats that it needs to work in.
    """

    move: Any
    scratch: int


@lru_cache(maxsize=256)
def moving(heun: bool, model: VectorModel, width: int, single: bool) -> Mover:
    """The step of Heun's scheme or of Euler-Maruyama for a source that is `single` or not.

    Both are written over blocks: a is the drift, and b what `term` makes the noise from (see `_noise`).
    """
    d, m, whole, general = model.d, model.m, model.d * width, model.noise == "general"
    evaluate, spare = _blockwise(model, width) if model.block else _pathwise(model, width)
    held, sigma, row, term = _noise(model, width, single)
    increments = _increments(m * width, single)
    b_at = (2 if heun else 1) * whole
    dw_at = b_at + held
    spare_at = dw_at + (m * width if general else 0)
    spare = max(spare, d + d * m if model.additive and general else d)

    @njit(fastmath=FLAGS, error_model="numpy")
    def euler(t, dt, x, ready, unit, p, scratch):
        a, b = window(scratch, 0, (whole,)), window(scratch, b_at, (held,))
        dw, work = window(scratch, dw_at, (m * width,)), window(scratch, spare_at, (spare,))
        root = math.sqrt(dt)
        if general:
            increments(ready, unit, root, dw)
        evaluate(t, x, dw, p, a, b, work)
        sigma(t, dw, p, b, work)
        for j in range(d):
            y, slope, size = window(x, j * width, (width,)), window(a, j * width, (width,)), row(b, j)
            number, normal = window(ready, j * width, (width,)), window(unit, j * width, (width,))
            for i in range(width):
                y[i] += dt * slope[i] + term(size, number, normal, root, i)

    @njit(fastmath=FLAGS, error_model="numpy")
    def trapezoidal(t, dt, x, ready, unit, p, scratch):
        a, z = window(scratch, 0, (whole,)), window(scratch, whole, (whole,))
        b = window(scratch, b_at, (held,))
        dw, work = window(scratch, dw_at, (m * width,)), window(scratch, spare_at, (spare,))
        root, half = math.sqrt(dt), 0.5 * dt
        if general:
            increments(ready, unit, root, dw)
        evaluate(t, x, dw, p, a, b, work)
        sigma(t, dw, p, b, work)
        for j in range(d):
            y, slope, size = window(x, j * width, (width,)), window(a, j * width, (width,)), row(b, j)
            number, normal = window(ready, j * width, (width,)), window(unit, j * width, (width,))
            predicted = window(z, j * width, (width,))
            for i in range(width):
                kick = term(size, number, normal, root, i)
                predicted[i] = y[i] + dt * slope[i] + kick
                y[i] += half * slope[i] + 0.5 * kick
        evaluate(t + dt, z, dw, p, a, b, work)
        sigma(t + dt, dw, p, b, work)
        for j in range(d):
            y, slope, size = window(x, j * width, (width,)), window(a, j * width, (width,)), row(b, j)
            number, normal = window(ready, j * width, (width,)), window(unit, j * width, (width,))
            for i in range(width):
                y[i] += half * slope[i] + 0.5 * term(size, number, normal, root, i)

    return Mover(trapezoidal if heun else euler, spare_at + spare)


def _noise(model: VectorModel, width: int, single: bool) -> tuple[int, Any, Any, Any]:
    """How the noise is held in b: its size, and three functions.

    b holds sigma dw of each path for general noise; for diagonal noise sigma, one number per component if it is
    additive. ``sigma(t, dw, p, b, work)`` fills it if the noise is additive, `row(b, j)` is that of a component
    and ``term(row, number, normal, root, i)`` its sigma dw for path i.
    """
    d, m, general, additive = model.d, model.m, model.noise == "general", model.additive
    shared = additive and not general
    diffusion = calling("diffusion", model, 1)

    @njit(fastmath=FLAGS, error_model="numpy")
    def sigma(t, dw, p, b, work):
        if additive:
            nothing, matrix = window(work, 0, (d,)), window(work, d, (d * m,))
            for j in range(d):
                nothing[j] = 0.0
            diffusion(t, nothing, p, matrix if general else b)
            if general:
                apply_matrix(window(matrix, 0, (d, m)), window(dw, 0, (m, width)), window(b, 0, (d, width)))

    @njit(fastmath=FLAGS, error_model="numpy")
    def number_of(b, j):
        return b[j]

    @njit(fastmath=FLAGS, error_model="numpy")
    def row_of(b, j):
        return window(b, j * width, (width,))

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def shared_term(size, number, normal, root, i):
        return size * (normal[i] * root if single else number[i])

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def term(size, number, normal, root, i):
        if general:
            return size[i]
        return size[i] * (normal[i] * root if single else number[i])

    return (d, sigma, number_of, shared_term) if shared else (d * width, sigma, row_of, term)


def _increments(numbers: int, single: bool) -> Any:
    """``increments(ready, unit, root, dw)``: the increments of a block in double precision."""

    @njit(fastmath=FLAGS, error_model="numpy")
    def increments(ready, unit, root, dw):
        for q in range(numbers):
            dw[q] = unit[q] * root if single else ready[q]

    return increments


def _pathwise(model: VectorModel, width: int) -> tuple[Any, int]:
    """``evaluate(t, x, dw, p, a, b, work)`` for functions of single paths, and the size of its work.

    It fills a with the drift and, unless the noise is additive, b.
    """
    d, m, general, additive = model.d, model.m, model.noise == "general", model.additive
    drift, diffusion = calling("drift", model, 1), calling("diffusion", model, 1)
    n = min(_TOGETHER, width)
    entries, matrix = d * n, d * m if general else 0
    dw_at = 3 * d * n + matrix

    @njit(fastmath=FLAGS, error_model="numpy")
    def evaluate(t, x, dw, p, a, b, work):
        y, slope = window(work, 0, (entries,)), window(work, entries, (entries,))
        size, sigma = window(work, 2 * entries, (entries,)), window(work, 3 * entries, (matrix,))
        increment = window(work, dw_at, (m * n,))
        for start in range(0, width, n):
            transpose(x, start, width, d, n, y, 0, d)
            for q in range(n):
                drift(t, window(y, q * d, (d,)), p, window(slope, q * d, (d,)))
            transpose(slope, 0, d, n, d, a, start, width)
            if additive:
                continue
            if general:
                transpose(dw, start, width, m, n, increment, 0, m)
            for q in range(n):
                if general:
                    diffusion(t, window(y, q * d, (d,)), p, sigma)
                    apply_matrix(
                        window(sigma, 0, (d, m)), window(increment, q * m, (m,)), window(size, q * d, (d,))
                    )
                else:
                    diffusion(t, window(y, q * d, (d,)), p, window(size, q * d, (d,)))
            transpose(size, 0, d, n, d, b, start, width)

    return evaluate, 2 * entries if additive else dw_at + (m * n if general else 0)


def _blockwise(model: VectorModel, width: int) -> tuple[Any, int]:
    """The same for functions of blocks; matrices of noise are made for as many paths as fit in the cache."""
    d, m, general, additive = model.d, model.m, model.noise == "general", model.additive
    fitting = max(_TOGETHER, _LARGEST // (d * m))
    n = min(width, 1 << (fitting.bit_length() - 1))
    drift = calling("drift", model, width)
    diffusion = calling("diffusion", model, n if general else width)
    y_at = d * m * n

    @njit(fastmath=FLAGS, error_model="numpy")
    def evaluate(t, x, dw, p, a, b, work):
        drift(t, x, p, a)
        if additive:
            return
        if not general:
            diffusion(t, x, p, b)
            return
        sigma, y = window(work, 0, (d * m * n,)), window(work, y_at, (d * n,))
        for start in range(0, width, n):
            for j in range(d):
                row, source = window(y, j * n, (n,)), window(x, j * width + start, (n,))
                for i in range(n):
                    row[i] = source[i]
            diffusion(t, y, p, sigma)
            for j in range(d):
                target = window(b, j * width + start, (n,))
                for i in range(n):
                    target[i] = 0.0
                for k in range(m):
                    factor, increment = (
                        window(sigma, (j * m + k) * n, (n,)),
                        window(dw, k * width + start, (n,)),
                    )
                    for i in range(n):
                        target[i] += factor[i] * increment[i]

    return evaluate, (d * m + d) * n if general and not additive else 0


def _unpacked(packing: Packing, numbers: int) -> Any:
    """``unpacked(numbers, dt, step)``: increments from signs; numbers that are packed otherwise as they are."""
    signs = packing == "signs"

    @njit(fastmath=FLAGS, error_model="numpy")
    def unpacked(ready, dt, step):
        if not signs:
            return ready
        root, bit = math.sqrt(dt), step % TWO_POINT_STEPS
        increments = np.empty(numbers)
        for q in range(numbers):
            increments[q] = signed(root, bits_of(ready[q]), bit)
        return increments

    return unpacked


@lru_cache(maxsize=256)
def vector_advancing(heun: bool, model: VectorModel, width: int, packing: Packing) -> Any:
    """The pass that moves all paths of a block by one step; `packing` is the source's."""
    mover, unpack = moving(heun, model, width, packing == "single"), unpacking(model.kind, model.shapes)
    move, scratch, unpacked = mover.move, mover.scratch, _unpacked(packing, model.m * width)
    whole, held, numbers = model.d * width, count(model.shapes), model.m * width

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, at_x, at_ready, at_unit, at_p, _seed, _start, number, _exits, _gaps, _of, _g):
        prefer_wide_vectors()
        x, p = carray(at_x, (whole,)), unpack(carray(at_p, (held,)))
        space = np.zeros(scratch)  # zeros: what a function leaves unwritten is then the same in any thread
        ready, unit = unpacked(carray(at_ready, (numbers,)), dt, number), carray(at_unit, (numbers,))
        move(t, dt, x, ready, unit, p, space)

    return advance


@lru_cache(maxsize=256)
def vector_advancing_until(heun: bool, model: VectorModel, width: int, packing: Packing, stop: Any) -> Any:
    """The same for paths that may meet a stop condition; as `solvers.kernels.advancing_until`."""
    mover, unpack = moving(heun, model, width, packing == "single"), unpacking(model.kind, model.shapes)
    move, scratch, unpacked = mover.move, mover.scratch, _unpacked(packing, model.m * width)
    spread_of, spread_size = spreading(model, width)
    d, whole, held, numbers = model.d, model.d * width, count(model.shapes), model.m * width
    settle = settling(d, width)

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, at_x, at_ready, at_unit, at_p, seed, start, number, at_exits, at_gaps, at_of, g):
        prefer_wide_vectors()
        x, p = carray(at_x, (whole,)), unpack(carray(at_p, (held,)))
        exits, gaps, components = carray(at_exits, (width,)), carray(at_gaps, (g, 2)), carray(at_of, (g,))
        space = np.zeros(max(scratch, spread_size))
        new, spread, flags, y = x.copy(), np.empty(whole), np.zeros(width), np.empty(d)
        if g > 0:
            spread_of(t, x, p, spread, space)
        ready, unit = unpacked(carray(at_ready, (numbers,)), dt, number), carray(at_unit, (numbers,))
        move(t, dt, new, ready, unit, p, space)
        if g == 0:
            for i in range(width):
                for j in range(d):
                    y[j] = new[j * width + i]
                flags[i] = 1.0 if stop(t + dt, frozen(y, 0, (d,)), p) else 0.0
        settle(t, dt, x, new, spread, flags, exits, gaps, components, seed, start, number)

    return advance


@lru_cache(maxsize=256)
def spreading(model: VectorModel, width: int) -> tuple[Any, int]:
    """``spread(t, x, p, out, scratch)``: the diagonal of sigma sigma^T (d * width), and the scratch it needs."""
    d, entries = model.d, model.m if model.noise == "general" else 1
    diffusion = calling("diffusion", model, 1)

    @njit(fastmath=FLAGS, error_model="numpy")
    def spread(t, x, p, out, scratch):
        y, b = window(scratch, 0, (d,)), window(scratch, d, (d * entries,))
        for i in range(width):
            for j in range(d):
                y[j] = x[j * width + i]
            diffusion(t, y, p, b)
            for j in range(d):
                total = 0.0
                for k in range(entries):
                    total += b[j * entries + k] * b[j * entries + k]
                out[j * width + i] = total

    return spread, d + d * entries


@lru_cache(maxsize=256)
def vector_following(heun: bool, model: VectorModel) -> Any:
    """``follow(parameters, t0, dt, start, dw, states)``: paths one by one on given increments, for `drive`."""
    mover, unpack = moving(heun, model, 1, False), unpacking(model.kind, model.shapes)
    move, scratch = mover.move, mover.scratch

    @njit(error_model="numpy", nogil=True)
    def follow(parameters, t0, dt, start, dw, states):
        p, space, unit = unpack(parameters), np.zeros(scratch), np.empty(1, np.float32)
        paths, kept = states.shape[0], states.shape[1]
        for i in range(paths):
            y = start[i].copy()
            if kept > 1:
                states[i, 0] = y
            for k in range(dw.shape[1]):
                move(t0 + k * dt, dt, y, dw[i, k], unit, p, space)
                if kept > 1:
                    states[i, k + 1] = y
            if kept == 1:
                states[i, 0] = y

    return follow
