"""The passes that move a block of paths of a model in vector form by one step, and the steps they are made of.

A block lies as for the component form, ``x[component * width + i]``, with the same random numbers. Functions
for single paths see one path at a time, copied together from the block eight paths (one cache line) at a time;
functions for blocks see the block itself.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, njit

from solvers.kernels import ADVANCE, _settling
from solvers.matrix_product import apply_matrix
from solvers.schemes import FLAGS
from solvers.transposition import transpose
from solvers.vector_parameters import count, frozen, unpacking, window
from solvers.vector_reading import VectorModel, calling

_TOGETHER = 8
"""Single paths that are copied together: one cache line of every component."""
_LARGEST = 1 << 15
"""Entries of state-dependent matrices of noise that are held at once: a quarter of a megabyte."""


def _columns(model: VectorModel, width: int) -> int:
    """Paths per call of the model's functions."""
    if not model.block:
        return 1
    if model.additive or model.noise == "diagonal":
        return width
    fitting = max(_TOGETHER, _LARGEST // (model.d * model.m))
    return min(width, 1 << (fitting.bit_length() - 1))


class Mover(NamedTuple):
    """A step of a scheme for blocks of one width.

    Attributes
    ----------
    move : dispatcher
        ``move(t, dt, x, dw, p, scratch)``: x (d * width) is moved by one step with the increments dw (m * width).
    scratch : int
        Floats that it needs to work in.
    """

    move: Any
    scratch: int


@lru_cache(maxsize=256)
def moving(scheme: str, model: VectorModel, width: int) -> Mover:
    """The step of "euler-maruyama" or "heun" for blocks of a width."""
    n, d, m = _columns(model, width), model.d, model.m
    together = min(_TOGETHER, width) if n == 1 else n
    step, work = _stepping(scheme == "heun", model, n)
    kicks, kicks_size = _kicking(scheme == "heun", model, width)
    additive = model.additive
    rows = d if additive else m  # of the noise that a step takes
    second = scheme == "heun" and additive
    packed = together < width or n == 1
    noise_at = kicks_size
    work_at = kicks_size + ((d + rows + (rows if second else 0)) * together if packed else 0)
    y_at, z_at, s_at = noise_at, noise_at + d * together, noise_at + (d + rows) * together
    whole = d * width
    calls = together // n

    @njit(fastmath=FLAGS, error_model="numpy")
    def gather(x, start, size, out):
        """Columns from start on of a block with rows of width: path by path, or as a narrower block."""
        if n == 1:
            transpose(x, start, width, size, together, out, 0, size)
        else:
            copy(x, start, width, size, out, 0, together)

    @njit(fastmath=FLAGS, error_model="numpy")
    def scatter(x, start, size, out):
        if n == 1:
            transpose(out, 0, size, together, size, x, start, width)
        else:
            copy(out, 0, together, size, x, start, width)

    @njit(fastmath=FLAGS, error_model="numpy")
    def copy(source, start, stride, size, target, place, step):
        for j in range(size):
            row = window(source, start + j * stride, (together,))
            into = window(target, place + j * step, (together,))
            for q in range(together):
                into[q] = row[q]

    @njit(fastmath=FLAGS, error_model="numpy")
    def move(t, dt, x, dw, p, scratch):
        noise = dw
        if additive:
            kicks(t, dt, dw, p, scratch)
            noise = window(scratch, 0, (whole,))
        more = window(scratch, whole if second else 0, (whole,)) if additive else dw
        work = window(scratch, work_at, (scratch.size - work_at,))
        if not packed:
            step(t, dt, x, noise, more, p, work)
            return
        ys = window(scratch, y_at, (d * together,))
        zs = window(scratch, z_at, (rows * together,))
        ss = window(scratch, s_at if second else z_at, (rows * together,))
        for start in range(0, width, together):
            gather(x, start, d, ys)
            gather(noise, start, rows, zs)
            if second:
                gather(more, start, rows, ss)
            for q in range(calls):
                step(
                    t, dt, window(ys, q * d * n, (d * n,)), window(zs, q * rows * n, (rows * n,)),
                    window(ss, q * rows * n, (rows * n,)), p, work,
                )  # fmt: skip
            scatter(x, start, d, ys)

    return Mover(move, work_at + work)


@lru_cache(maxsize=256)
def _kicking(heun: bool, model: VectorModel, width: int) -> tuple[Any, int]:
    """Additive noise of a whole block, and its scratch.

    ``kicks(t, dt, dw, p, scratch)`` writes sigma(t) dw (d * width) to the beginning of the scratch and, for
    Heun's scheme, sigma(t + dt) dw after it.
    """
    d, m, general = model.d, model.m, model.noise == "general"
    size, whole = d * m if general else d, model.d * width
    evaluations = 2 if heun else 1
    sigma_at = evaluations * whole
    if not model.additive:
        return None, 0
    diffusion = calling("diffusion", model, 1)

    @njit(fastmath=FLAGS, error_model="numpy")
    def kicks(t, dt, dw, p, scratch):
        sigma = window(scratch, sigma_at, (size,))
        nothing = window(scratch, sigma_at + size, (d,))
        for j in range(d):
            nothing[j] = 0.0
        for k in range(evaluations):
            diffusion(t + k * dt, nothing, p, sigma)
            if general:
                apply_matrix(
                    window(sigma, 0, (d, m)),
                    window(dw, 0, (m, width)),
                    window(scratch, k * whole, (d, width)),
                )
            else:
                for j in range(d):
                    size_j, source = sigma[j], window(dw, j * width, (width,))
                    target = window(scratch, k * whole + j * width, (width,))
                    for i in range(width):
                        target[i] = size_j * source[i]

    return kicks, sigma_at + size + d


@lru_cache(maxsize=256)
def _stepping(heun: bool, model: VectorModel, n: int) -> tuple[Any, int]:
    """``step(t, dt, y, noise, more, p, work)`` on flat arrays of n columns, and the size of its work.

    noise are the increments of the Wiener processes or, for additive noise, sigma(t) dw; more is then
    sigma(t + dt) dw.
    """
    d, m = model.d, model.m
    drift, diffusion, kick = calling("drift", model, n), calling("diffusion", model, n), _kick(model, n)
    additive, size = model.additive, d * n
    matrix = 0 if model.additive else d * m * n if model.noise == "general" else d * n

    @njit(fastmath=FLAGS, error_model="numpy")
    def euler(t, dt, y, noise, _more, p, work):
        a, b = window(work, 0, (size,)), window(work, size, (matrix,))
        drift(t, y, p, a)
        if additive:
            for q in range(size):
                y[q] = y[q] + dt * a[q] + noise[q]
        else:
            diffusion(t, y, p, b)
            for q in range(size):
                y[q] += dt * a[q]
            kick(y, b, noise, 1.0)

    @njit(fastmath=FLAGS, error_model="numpy")
    def trapezoidal(t, dt, y, noise, more, p, work):
        a, c = window(work, 0, (size,)), window(work, size, (size,))
        z = window(work, 2 * size, (size,))
        b = window(work, 3 * size, (matrix,))
        half = 0.5 * dt
        drift(t, y, p, a)
        if additive:
            for q in range(size):
                z[q] = y[q] + dt * a[q] + noise[q]
            drift(t + dt, z, p, c)
            for q in range(size):
                y[q] += half * (a[q] + c[q]) + 0.5 * (noise[q] + more[q])
        else:
            diffusion(t, y, p, b)
            for q in range(size):
                z[q] = y[q] + dt * a[q]
            kick(z, b, noise, 1.0)
            drift(t + dt, z, p, c)
            for q in range(size):
                y[q] += half * (a[q] + c[q])
            kick(y, b, noise, 0.5)
            diffusion(t + dt, z, p, b)
            kick(y, b, noise, 0.5)

    return (trapezoidal, 3 * size + matrix) if heun else (euler, size + matrix)


@lru_cache(maxsize=256)
def _kick(model: VectorModel, n: int) -> Any:
    """``kick(y, b, dw, factor)``: y += factor b dw, on flat arrays of n columns."""
    d, m = model.d, model.m

    @njit(fastmath=FLAGS, error_model="numpy")
    def diagonal(y, b, dw, factor):
        for q in range(d * n):
            y[q] += factor * b[q] * dw[q]

    @njit(fastmath=FLAGS, error_model="numpy")
    def alone(y, b, dw, factor):
        for j in range(d):
            row, total = window(b, j * m, (m,)), 0.0
            for k in range(m):
                total += row[k] * dw[k]
            y[j] += factor * total

    @njit(fastmath=FLAGS, error_model="numpy")
    def columns(y, b, dw, factor):
        for j in range(d):
            target = window(y, j * n, (n,))
            for k in range(m):
                row, source = window(b, (j * m + k) * n, (n,)), window(dw, k * n, (n,))
                for i in range(n):
                    target[i] += factor * row[i] * source[i]

    return diagonal if model.noise == "diagonal" else alone if n == 1 else columns


@lru_cache(maxsize=256)
def vector_advancing(scheme: str, model: VectorModel, width: int, single: bool) -> Any:
    """The pass that moves all paths of a block by one step; `single` is the source's."""
    mover, prepare = moving(scheme, model, width), _increments(model.m * width, single)
    move, scratch, unpack = mover.move, mover.scratch, unpacking(model.kind, model.shapes)
    whole, held, numbers = model.d * width, count(model.shapes), model.m * width

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, at_x, at_ready, at_unit, at_p, _seed, _start, _number, _exits, _gaps, _of, _g):
        p = unpack(carray(at_p, (held,)))
        ready, unit = carray(at_ready, (numbers,)), carray(at_unit, (numbers,))
        space = np.zeros(
            scratch + numbers
        )  # zeros: what a function leaves unwritten is the same in any thread
        dw = prepare(ready, unit, math.sqrt(dt), window(space, scratch, (numbers,)))
        move(t, dt, carray(at_x, (whole,)), dw, p, space)

    return advance


@lru_cache(maxsize=256)
def vector_advancing_until(scheme: str, model: VectorModel, width: int, single: bool, stop: Any) -> Any:
    """The same for paths that may meet a stop condition; as `solvers.kernels.advancing_until`."""
    mover, prepare = moving(scheme, model, width), _increments(model.m * width, single)
    move, scratch, unpack = mover.move, mover.scratch, unpacking(model.kind, model.shapes)
    spread_of, spread_size = spreading(model, width)
    d, whole, held, numbers = model.d, model.d * width, count(model.shapes), model.m * width
    settle = _settling(d, width)

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, at_x, at_ready, at_unit, at_p, seed, start, number, at_exits, at_gaps, at_of, g):
        x, p = carray(at_x, (whole,)), unpack(carray(at_p, (held,)))
        ready, unit = carray(at_ready, (numbers,)), carray(at_unit, (numbers,))
        exits, gaps, components = carray(at_exits, (width,)), carray(at_gaps, (g, 2)), carray(at_of, (g,))
        space = np.zeros(max(scratch, spread_size) + numbers)
        dw = prepare(ready, unit, math.sqrt(dt), window(space, space.size - numbers, (numbers,)))
        new, spread, flags, y = x.copy(), np.empty(whole), np.zeros(width), np.empty(d)
        if g > 0:
            spread_of(t, x, p, spread, space)
        move(t, dt, new, dw, p, space)
        if g == 0:
            for i in range(width):
                for j in range(d):
                    y[j] = new[j * width + i]
                flags[i] = 1.0 if stop(t + dt, frozen(y, 0, (d,)), p) else 0.0
        settle(t, dt, x, new, spread, flags, exits, gaps, components, seed, start, number)

    return advance


@lru_cache(maxsize=256)
def _increments(numbers: int, single: bool) -> Any:
    """``prepare(ready, unit, root, space)``: the increments, scaled into the space if they are of unit variance."""

    @njit(fastmath=FLAGS, error_model="numpy")
    def prepare(ready, unit, root, space):
        if not single:
            return window(ready, 0, (numbers,))
        for q in range(numbers):
            space[q] = unit[q] * root
        return space

    return prepare


@lru_cache(maxsize=256)
def spreading(model: VectorModel, width: int) -> tuple[Any, int]:
    """``spread(t, x, p, out, scratch)``: the diagonal of sigma sigma^T (d * width), and the scratch it needs."""
    d, m = model.d, model.m
    entries = m if model.noise == "general" else 1
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
