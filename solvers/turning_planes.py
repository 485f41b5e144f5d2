"""Slowest modes of large chains on a rectangle of cells without detailed balance, by nested iteration on both sides.

Right vectors are iterated as ratios to the stationary masses (or the slowest right vector), functions under the chain
that runs backwards in time; that vector itself is one of them, beside a guess interpolated from blocks.
"""

from __future__ import annotations

import numpy as np

from solvers import block_lattice as kernels
from solvers.chain import Chain
from solvers.coarsening import refined
from solvers.errors import ConvergenceFailure
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
    uncut,
)  # fmt: skip
from solvers.planes import Plane, chain_of, joined, rates_of, reversed_in_time

# A ratio to masses interpolated from blocks that is so far from 1 has lost its digits; guesses at most.
_FAR_OFF, _GUESSES = 1e-3, 8
# Ratios where there is no mass need not be as accurate as functions.
_TAILS = 1e-4
# Where there is less, densities are lost in the rounding of others, and ratios to it need not be known at all.
_EMPTY = 1e-30
# Modes of the last lattice beyond the wanted ones: some are iterated too, others only known.
_MORE = 5
# Where cycles do not converge they may from finer blocks, up to so many times as many,
_FINEST = 5
# and while there are so many times fewer of them than cells; else a factorisation of the cells costs no more.
_WORTH = 16
# Masses of the last lattice below this share of the largest are rounding.
_LOST = 1e-200


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
    found = _from_blocks(planes, chain, wanted, tol, slowest)
    while found is None and len(planes) > 1:
        planes.pop()
        size = planes[-1][0].killed.size
        if size > min(_FINEST * COARSEST, chain.size // _WORTH):
            break
        found = _from_blocks(planes, chain, wanted, tol, slowest)
    return found


def _from_blocks(planes, chain: Chain, wanted: int, tol: float, slowest: Slowest) -> Triple | None:
    """The same from the modes of the last blocks."""
    zeros = len(chain.closed_classes)
    last = chain_of(planes[-1][0], chain)
    if len(last.closed_classes) != zeros:
        return None
    try:
        modes = slowest(last, min(wanted + _MORE, last.size // 4))
        doubt = _doubt(planes[-1], chain, modes[0], slowest)
    except ConvergenceFailure:  # of so few blocks: finer ones, or the cells, may tell which modes are slowest
        return None
    rates = -modes[0]
    count = uncut(rates, wanted, len(rates), np.zeros(len(rates)))
    held = uncut(rates, wanted, len(rates), doubt)
    if count >= len(rates):
        return None
    for vectors in modes[1:]:
        vectors[:, 0] *= np.sign(vectors[:, 0].real.sum())
    lanes = lanes_for(rates, 0, held)
    # others between the wanted ones and those that blocks tell apart can keep these from converging
    for more in (lanes, (0,) * (len(lanes) + 4)):
        found = _both_sides(planes, chain, modes, zeros, count, tol, more)
        if found is not None:
            return found
    return None


def _both_sides(
    planes, chain: Chain, modes: Triple, zeros: int, count: int, tol: float, lanes: tuple[int, ...]
) -> Triple | None:
    """From the modes of the last blocks to those of the cells; None if the iteration does not converge."""
    values, right, left = modes
    last = planes[-1][0]
    masses = right[:, 0].real
    masses = np.maximum(masses, _LOST * masses.max())
    log_masses = last.settled(np.log(masses).reshape(last.shape), -float(values[0].real))
    behind = _seen_from(last, log_masses, lanes)
    backwards = chain_of(behind, chain)
    ratios = np.where(masses[:, None] < _EMPTY, 0.0, right / masses[:, None])
    ratios[:, 0] = 1.0
    shift = SHIFT * backwards.rate_scale
    seen = Coarse(-values, ratios, masses[:, None] * left, backwards.matrix("backward", 0.0), shift)
    found = _rights(planes, behind, log_masses, seen, count, tol, lanes)
    if found is None:
        return None
    y, start, log_masses, right_count = found
    for (plane, _), logs in zip(planes, log_masses, strict=True):
        plane.weigh(logs)
        plane.prepare(lanes)
    blocks = Coarse(-values, left, right, chain_of(last, chain).matrix("backward", 0.0), shift)
    functions = _left(planes, blocks, zeros, count, tol, lanes)
    if functions is None:
        return None
    count = min(right_count, zeros + functions.count)
    return _joined_sides(planes[0][0], functions.x, y, start, log_masses[0], zeros, count)


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


def _doubt(
    last: tuple[Plane, tuple[np.ndarray, ...]], chain: Chain, values: np.ndarray, slowest: Slowest
) -> np.ndarray:
    """How far rates of decay of blocks may be from those of the cells, from blocks of twice the width.

    Half the difference: the error is all of it where it is of first order, a third where it is of second order.
    """
    wider = chain_of(joined(*last)[0], chain)
    others = slowest(wider, min(len(values) + _MORE, wider.size // 4))[0]
    nearest = np.abs(values[:, None] - others).argmin(axis=1)
    return 0.5 * np.abs(values.real - others[nearest].real)


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


def _rights(planes, behind: Plane, log_masses, coarse: Coarse, count: int, tol: float, lanes):
    """Ratios of right vectors on the cells, log of the masses under them, and of the slowest vector on all planes."""
    plane, widths = planes[-1]
    logs, ratios = [log_masses], [behind]
    columns, used = _real_columns(-coarse.rates, coarse.functions, len(lanes) - NOISE)
    found = None
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
        start = plane.settled(start, float(coarse.rates[0].real))
        here = _seen_from(plane, start, lanes)
        x = here.interpolated(x, ratios[0])
        add_noise(x, noise)
        for _ in range(_GUESSES):
            found = improved(
                [here, *ratios],
                0,
                x,
                count,
                noise,
                tolerance(number, tol),
                bottom,
                0.0 if number else _TAILS,
                seen=_EMPTY,
            )
            if found is None:
                return None
            slowest = x[1:-1, 1:-1, 0] / np.sum(here.masses * x[1:-1, 1:-1, 0])
            slowest[here.masses < _EMPTY] = 1.0
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
        logs.insert(0, plane.settled(start + np.log(slowest), float(coarse.rates[0].real)))
        if number:
            here = _seen_from(plane, logs[0], lanes)
            x[1:-1, 1:-1] /= slowest[..., None]
            ratios.insert(0, here)
    return x, start, logs, found.count


def _seen_from(plane: Plane, log_masses: np.ndarray, lanes: tuple[int, ...]) -> Plane:
    """The operator on ratios to the masses; no growth where there is no mass, whatever they are there."""
    ratios = reversed_in_time(plane, log_masses)
    ratios.weigh(log_masses)
    ratios.tame(ratios.masses < _EMPTY)
    ratios.prepare(lanes)
    return ratios


def _left(planes, coarse: Coarse, zeros: int, count: int, tol: float, lanes) -> Found | None:
    columns, used = _real_columns(-coarse.rates[zeros:], coarse.functions[:, zeros:], len(lanes) - NOISE)
    bottom = bottom_of(coarse, zeros + used)
    return climbed(
        [plane for plane, _ in planes],
        started(columns, planes[-1][0]),
        count - zeros,
        tol,
        bottom,
        len(lanes) - columns.shape[1],
        conserving=zeros == 1,
    )


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
