"""Coarser lattices: cells joined in pairs along an axis, residuals summed, corrections interpolated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special

from solvers import lattice
from solvers.lattice_rates import Rates

Form = Literal["symmetric", "backward", "forward"]
# An axis is coarsened where its couplings are at least this share of the strongest: point smoothing does the rest.
_STRONG = 0.25
# Below this share of the largest, entries count as zero.
_NEGLIGIBLE = 1e-20
# Largest logarithm of a ratio of neighbouring weights that is told from an infinite one.
_STEEPEST = 300.0


@dataclass
class Step:
    """Transfer between a lattice and the one with half the cells along an axis.

    `gather` are the weights of sums over pairs, `spread` those of interpolation, each (own, other).
    """

    axis: int
    fine: tuple[int, ...]
    gather: tuple[np.ndarray, np.ndarray]
    spread: tuple[np.ndarray, np.ndarray]

    def transposed(self) -> Step:
        """The step of the transposed operator."""
        return Step(self.axis, self.fine, self.spread, self.gather)


def coarsened(rates: Rates, axis: int, form: Form) -> tuple[Rates, Step]:
    """Join pairs of cells along an axis.

    Within a pair the stationary shares follow from its own two rates, unless weights are given.
    Rates across the sides of pairs are averaged with these shares; rates along the axis are as well, and
    multiplied by the ratio of distances between centres, which is exact for a constant drift: it is what
    exponential fitting gives on the coarser grid.
    """
    n = rates.shape[axis]
    up, down = (np.moveaxis(r[axis], axis, 0) for r in (rates.up, rates.down))
    pairs = n // 2
    inner_up, inner_down = up[0 : 2 * pairs : 2], down[0 : 2 * pairs : 2]
    total = inner_up + inner_down
    joined = total > 0
    low = np.where(joined, inner_down / np.where(joined, total, 1.0), 0.5)
    weights = None
    if rates.log_weights is not None:
        fine = np.moveaxis(rates.log_weights, axis, 0)
        low = scipy.special.expit(fine[0 : 2 * pairs : 2] - fine[1 : 2 * pairs : 2])
        weights = fine[0::2].copy()
        np.logaddexp(weights[:pairs], fine[1::2], out=weights[:pairs])
        weights = np.ascontiguousarray(np.moveaxis(weights, 0, axis))
    if rates.alive is not None:
        alive = np.moveaxis(rates.alive, axis, 0)
        a, b = alive[0 : 2 * pairs : 2], alive[1 : 2 * pairs : 2]
        low = np.where(a & ~b, 1.0, np.where(b & ~a, 0.0, low))
    share = np.ones(up.shape)
    share[0 : 2 * pairs : 2], share[1 : 2 * pairs : 2] = low, 1.0 - low

    def summed(values: np.ndarray) -> np.ndarray:
        out = values[0::2].copy()
        out[:pairs] += values[1::2]
        return out

    def averaged(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(summed(share * np.moveaxis(values, axis, 0)), 0, axis))

    new_up, new_down = [], []
    for other in range(3):
        if other != axis:
            new_up.append(averaged(rates.up[other]))
            # a rate back leaves the next cell along the other axis, so that cell's share counts
            there = np.roll(np.moveaxis(share, 0, axis), -1, other)
            back = summed(np.moveaxis(there * rates.down[other], axis, 0))
            new_down.append(np.ascontiguousarray(np.moveaxis(back, 0, axis)))
            continue
        last = np.minimum(2 * np.arange((n + 1) // 2) + 1, n - 1)
        first_of_next = (last + 1) % n
        stretch, _ = _distances(rates.widths[axis])
        stretch = stretch.reshape(-1, 1, 1)
        new_up.append(np.ascontiguousarray(np.moveaxis(stretch * share[last] * up[last], 0, axis)))
        new_down.append(
            np.ascontiguousarray(np.moveaxis(stretch * share[first_of_next] * down[last], 0, axis))
        )
    width = rates.widths[axis]
    widths = list(rates.widths)
    widths[axis] = np.add.reduceat(width, np.arange(0, n, 2))
    alive = None
    if rates.alive is not None:
        alive = np.moveaxis(rates.alive, axis, 0)
        joined_alive = alive[0::2].copy()
        joined_alive[:pairs] |= alive[1::2]
        alive = np.ascontiguousarray(np.moveaxis(joined_alive, 0, axis))
    coarse = Rates(new_up, new_down, averaged(rates.loss), alive, widths, weights)
    return coarse, _transfer(share, coarse, rates, axis, form)


def _distances(width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances along an axis whose cells are joined in pairs.

    Per pair: from its last cell to the next pair's first, over the distance of the pairs' centres. Per cell: the
    share of the way from its own pair's centre to the other pair's at which it lies.
    """
    n = len(width)
    coarse = np.add.reduceat(width, np.arange(0, n, 2))
    last = np.minimum(2 * np.arange(len(coarse)) + 1, n - 1)
    following = (last + 1) % n
    between = 0.5 * (width[last] + width[following])
    apart = 0.5 * (coarse + np.roll(coarse, -1))
    edges = np.concatenate([[0.0], np.cumsum(width)])
    centre = 0.5 * (edges[1:] + edges[:-1])
    ends = np.concatenate([edges[0:n:2], [edges[-1]]])
    own_centre = 0.5 * (ends[1:] + ends[:-1])
    index = np.arange(n)
    near = index // 2
    upwards = index % 2 == 1
    gap = np.where(upwards, apart[near], np.roll(apart, 1)[near])
    fraction = np.abs(centre - own_centre[near]) / gap
    return between / apart, fraction


def _transfer(share: np.ndarray, coarse: Rates, rates: Rates, axis: int, form: Form) -> Step:
    """Interpolation that is exact where the drift between two centres is constant, and sums of residuals."""
    n = rates.shape[axis]
    up, down = (np.moveaxis(r[axis], axis, 0) for r in (coarse.up, coarse.down))
    m = up.shape[0]
    index = np.arange(n)
    near, upwards = index // 2, (index % 2 == 1).reshape(-1, 1, 1)
    far = np.where(index % 2 == 1, (near + 1) % m, (near - 1) % m)
    _, fraction = _distances(rates.widths[axis])
    fraction = fraction.reshape(-1, 1, 1)
    towards = np.where(upwards, up[near], down[far])
    back = np.where(upwards, down[near], up[far])
    alive_far = None
    if coarse.alive is not None:
        alive_far = np.moveaxis(coarse.alive, axis, 0)[far]
    weight, peclet = _share_from_there(towards, back, fraction, alive_far)
    if coarse.log_weights is not None:
        masses = np.moveaxis(coarse.log_weights, axis, 0)
        lift = np.clip(masses[far] - masses[near], -_STEEPEST, _STEEPEST)
        # in reversed time rates are those back, times the ratio of weights
        ahead, behind = back * np.exp(lift), towards * np.exp(-lift)
        gathered_weight, _ = _share_from_there(ahead, behind, fraction, alive_far)
        root, ratio = np.sqrt(share), np.exp(-0.5 * lift)
        backward = (root * (1.0 - weight), root * weight * ratio)
        forward = (root * (1.0 - gathered_weight), root * gathered_weight * ratio)
    else:
        # what a unit of function value on a coarse cell weighs in the residual it gathers
        ratio = np.exp(-np.clip(peclet, -_STEEPEST, _STEEPEST))
        if form == "symmetric":
            ratio = np.sqrt(ratio)
            backward = forward = ((1.0 - weight) * np.sqrt(share), weight * np.sqrt(share) * ratio)
        else:
            backward = (1.0 - weight, weight)
            forward = ((1.0 - weight) * share, weight * share * ratio)
    spreading = _compact(backward[0], axis), _compact(backward[1], axis)
    if forward is backward:
        return Step(axis, rates.shape, spreading, spreading)
    gathering = _compact(forward[0], axis), _compact(forward[1], axis)
    step = Step(axis, rates.shape, gathering, spreading)
    return step.transposed() if form == "forward" else step


def _share_from_there(
    towards: np.ndarray, back: np.ndarray, fraction: np.ndarray, alive_far: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the far centre in interpolation exact for a constant drift, and the logarithm of towards / back.

    One-way: all from there, or nothing (and a logarithm of 0).
    """
    open_way = (towards > 0) & (back > 0)
    peclet = np.log(np.where(open_way, towards, 1.0)) - np.log(np.where(open_way, back, 1.0))
    small = np.abs(peclet) < 1e-4
    safe = np.where(small, 1.0, np.clip(peclet, -_STEEPEST, _STEEPEST))
    weight = np.where(small, fraction, -np.expm1(-safe * fraction) / -np.expm1(-safe))
    weight = np.where(open_way, weight, np.where(towards > 0, 1.0, 0.0))
    if alive_far is not None:
        weight = np.where(alive_far, weight, 0.0)
    return weight, peclet


def _compact(values: np.ndarray, axis: int) -> np.ndarray:
    """Weights in single precision, in the shape (outer, n, inner) that the kernels take."""
    values = np.moveaxis(values, 0, axis)
    values = np.where(np.abs(values) < _NEGLIGIBLE, 0.0, values)
    shape = values.shape
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return np.ascontiguousarray(values, dtype=np.float32).reshape(outer, shape[axis], inner)


def axes_to_join(rates: Rates) -> list[int]:
    """The axes of strong coupling."""
    strength = np.zeros(3)
    for axis in range(3):
        if rates.shape[axis] > 1:
            size = np.sqrt(rates.up[axis]) * np.sqrt(rates.down[axis]) + 1e-3 * (
                rates.up[axis] + rates.down[axis]
            )
            size = size[size > 0]
            strength[axis] = np.mean(size) if size.size else 0.0
    candidates = [axis for axis in range(3) if rates.shape[axis] > 1]
    best = max(strength[axis] for axis in candidates)
    return [axis for axis in candidates if strength[axis] >= _STRONG * best]


def gathered(steps: list[Step], fine: np.ndarray) -> np.ndarray:
    """Residuals summed onto the next coarser lattice."""
    for step in steps:
        own, other = step.gather
        outer, n, inner = own.shape
        out = np.empty((outer, (n + 1) // 2, inner), np.float32)
        lattice.restrict(fine.reshape(own.shape), own, other, out)
        shape = list(step.fine)
        shape[step.axis] = (n + 1) // 2
        fine = out.reshape(shape)
    return fine


def spread(steps: list[Step], coarse: np.ndarray) -> np.ndarray:
    """Values interpolated onto the next finer lattice."""
    for step in reversed(steps):
        own, other = step.spread
        outer, n, inner = own.shape
        out = np.empty(own.shape, np.float32)
        lattice.prolong(coarse.reshape(outer, (n + 1) // 2, inner), own, other, out)
        coarse = out.reshape(step.fine)
    return coarse
