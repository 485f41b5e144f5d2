"""Slowest modes of large chains on a rectangle of cells without detailed balance, by nested iteration on both sides.

Right vectors are iterated as ratios to the stationary masses (or the slowest right vector), functions under the chain
that runs backwards in time; that vector itself is one of them, beside a guess interpolated from blocks.
"""

from __future__ import annotations

import numpy as np

from solvers import block_lattice as kernels
from solvers.chain import Chain
from solvers.coarsening import refined
from solvers.factorisation import resolvent
from solvers.plane_modes import (
    COARSEST,
    NOISE,
    SHIFT,
    Coarse,
    Found,
    Slowest,
    Triple,
    add_noise,
    bottom_of,
    climbed,
    improved,
    lanes_for,
    started,
    tolerance,
)  # fmt: skip
from solvers.planes import Plane, chain_of, joined, rates_of, reversed_in_time

# A ratio to masses interpolated from blocks that is so far from 1 has lost its digits; guesses at most.
_FAR_OFF, _GUESSES = 1e-3, 8
# Ratios where there is no mass need not be as accurate as functions.
_TAILS = 1e-4


def nonreversible_functions(chain: Chain, wanted: int, tol: float, slowest: Slowest) -> Triple | None:
    """Values, right masses and left functions of at least the `wanted` slowest modes, closed under conjugation.

    Parameters
    ----------
    chain : Chain
        For which `suits_planes` holds; at most one zero mode.
    wanted : int
    tol : float
        Residual relative to the eigenvalue.
    slowest : callable
        (chain of blocks, k) -> values, right masses, left functions of its slowest modes, at least k, bi-orthonormal.

    Returns
    -------
    tuple or None
        None if the iteration does not converge: noise that is weak beside the blocks.
    """
    planes = _blocks(chain)
    if planes is None:
        return None
    zeros = len(chain.closed_classes)
    last = chain_of(planes[-1][0], chain)
    if len(last.closed_classes) != zeros:
        return None
    values, right, left = slowest(last, min(3 * wanted + 6, last.size // 4))
    count = _closed(values, wanted)
    lanes = lanes_for(-values, 0, count)
    if count >= len(values) or not right[:, 0].real.min() > 0:
        return None
    shift = SHIFT * last.rate_scale
    solver, masses = resolvent(last, shift), right[:, 0].real
    seen = Coarse(-values, right / masses[:, None], masses[:, None] * left, solver, shift, masses[:, None])
    found = _rights(planes, np.log(masses), seen, count, tol, lanes)
    if found is None:
        return None
    y, start, log_masses = found
    for (plane, _), logs in zip(planes, log_masses, strict=True):
        plane.weigh(logs)
        plane.prepare(lanes)
    x = _left(planes, Coarse(-values, left, right, solver, shift), zeros, count, tol, lanes)
    if x is None:
        return None
    return _joined_sides(planes[0][0], x, y, start, log_masses[0], zeros, count)


def _blocks(chain: Chain) -> list[tuple[Plane, tuple[np.ndarray, ...]]] | None:
    assert chain.place is not None
    rates = rates_of(chain)
    if rates is None:
        return None
    shape = chain.place.shape
    widths = tuple(chain.widths) or tuple(np.ones(n) for n in shape)
    planes: list[tuple[Plane, tuple[np.ndarray, ...]]] = [
        (Plane(rates, chain.loss.reshape(shape), np.zeros(shape), chain.place.wrapped), widths)
    ]
    planes[0][0].find_absorbing_walls()
    while planes[-1][0].killed.size > COARSEST:
        planes.append(joined(*planes[-1]))
    return planes


def _closed(values: np.ndarray, wanted: int) -> int:
    """The first of `wanted` or more values at which neither a pair nor a cluster is cut."""
    count = wanted
    while count < len(values):
        near = np.abs(values[:count] - values[count]).min() < 1e-3 * abs(values[count])
        paired = np.abs(values[:count] - np.conj(values[count])).min() < 1e-6 * abs(values[count])
        if not (near or (paired and values[count].imag != 0)):
            break
        count += 1
    return count


def _real_columns(values: np.ndarray, functions: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Real and imaginary parts of modes, as many as fit, and how many modes that are."""
    columns, used = [], 0
    while used < len(values) and len(columns) < most:
        if values[used].imag == 0:
            columns.append(functions[:, used].real)
            used += 1
        elif len(columns) + 2 <= most:
            columns += [functions[:, used].real, functions[:, used].imag]
            used += 2
        else:
            break
    return np.column_stack(columns), used


def _rights(planes, log_masses, coarse: Coarse, count: int, tol: float, lanes):
    """Ratios of right vectors on the cells, log of the masses under them, and of the slowest vector on all planes."""
    plane, widths = planes[-1]
    logs = [log_masses.reshape(plane.shape)]
    ratios = [reversed_in_time(plane, logs[0])]
    ratios[0].prepare(lanes)
    columns, used = _real_columns(-coarse.rates, coarse.functions, len(lanes) - NOISE)
    x, noise = started(columns, ratios[0]), len(lanes) - columns.shape[1]
    bottom = bottom_of(coarse, used)
    start = logs[0]
    for number in range(len(planes) - 2, -1, -1):
        plane, widths = planes[number]
        wider = planes[number + 1][1]
        density = logs[0] - np.log(np.multiply.outer(*wider))
        for axis in range(2):
            density = refined(density, axis, plane.shape[axis], plane.wrapped[axis])
        start = density + np.log(np.multiply.outer(*widths))
        here = _seen_from(plane, start, lanes)
        x = here.interpolated(x, ratios[0])
        add_noise(x, noise)
        for _ in range(_GUESSES):
            found = improved(
                [here, *ratios], 0, x, count, noise, tolerance(number, tol), bottom, 0.0 if number else _TAILS
            )
            if found is None:
                return None
            slowest = x[1:-1, 1:-1, 0] / np.sum(here.masses * x[1:-1, 1:-1, 0])
            if number or slowest.min() > _FAR_OFF:
                break
            # in the tails the masses were a bad guess
            slowest = np.maximum(slowest, _FAR_OFF)
            start = start + np.log(slowest)
            x[1:-1, 1:-1] /= slowest[..., None]
            here = _seen_from(plane, start, lanes)
        else:
            return None
        if number:  # blocks need only a guess
            slowest = np.clip(slowest, 0.1, 10.0)
        logs.insert(0, start + np.log(slowest))
        if number:
            here = _seen_from(plane, logs[0], lanes)
            x[1:-1, 1:-1] /= slowest[..., None]
            ratios.insert(0, here)
    return x, start, logs


def _seen_from(plane: Plane, log_masses: np.ndarray, lanes: tuple[int, ...]) -> Plane:
    ratios = reversed_in_time(plane, log_masses)
    ratios.weigh(log_masses)
    ratios.prepare(lanes)
    return ratios


def _left(planes, coarse: Coarse, zeros: int, count: int, tol: float, lanes) -> np.ndarray | None:
    columns, used = _real_columns(-coarse.rates[zeros:], coarse.functions[:, zeros:], len(lanes) - NOISE)
    bottom = bottom_of(coarse, zeros + used)
    found: Found | None = climbed(
        [plane for plane, _ in planes],
        started(columns, planes[-1][0]),
        count - zeros,
        tol,
        bottom,
        len(lanes) - columns.shape[1],
        conserving=zeros == 1,
    )
    return None if found is None else found.x


def _joined_sides(plane: Plane, x, y, start, slowest, zeros: int, count: int) -> Triple | None:
    """Values and vectors from both sides, bi-orthonormal."""
    masses = np.exp(start - start.max())
    gram, form, _, _ = kernels.projections(x, y, plane.rates, plane.killed, masses, plane.lanes)
    gram, form = gram[zeros:count, : count - zeros], form[zeros:count, : count - zeros]
    if not np.linalg.cond(gram) < 1e8:
        return None
    values, turn = np.linalg.eig(np.linalg.solve(gram, form))
    # slowest first, of a pair the eigenvalue -value with positive imaginary part
    order = np.lexsort((values.imag, np.round(np.abs(values.imag), 9), np.round(values.real, 9)))
    values, turn = values[order], turn[:, order]
    back = np.linalg.inv(gram @ turn)
    shape = (plane.killed.size, zeros + len(values))
    left, right = np.empty(shape, complex), np.empty(shape, complex)
    left[:, zeros:] = x[1:-1, 1:-1, : count - zeros].reshape(shape[0], -1) @ turn
    right[:, zeros:] = y[1:-1, 1:-1, zeros:count].reshape(shape[0], -1) @ back.T
    right[:, zeros:] *= masses.reshape(-1, 1)
    if zeros:
        stationary = np.exp(slowest - slowest.max()).ravel()
        right[:, 0], left[:, 0] = stationary / stationary.sum(), 1.0
    return np.concatenate([np.zeros(zeros), 0.0 - values]), right, left
