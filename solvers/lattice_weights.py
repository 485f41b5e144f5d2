"""Weights near the stationary ones of a chain on a lattice, from coarse lattices to the finest, by relaxation."""

from __future__ import annotations

import numpy as np

from solvers.lattice_rates import Rates
from solvers.lattice_transfer import Step
from solvers.multigrid import dense_matrix, operator

# Sweeps up and down per lattice; on the coarsest, where they also carry tails.
_SWEEPS, _SWEEPS_COARSEST = 4, 100
# Smaller weights, relative to the largest, are not told apart.
_FLOOR = 1e-280


def balancing_weights(rates: list[Rates], steps: list[list[Step]]) -> np.ndarray:
    """Logarithms, on the finest lattice, of weights near those of the stationary distribution without losses.

    The null vector of the coarsest lattice is interpolated as a density, on a logarithmic scale, and relaxed by
    Gauss-Seidel sweeps, all of whose terms are positive: tails are found as well as the bulk.

    Parameters
    ----------
    rates : list of Rates
        Finest first.
    steps : list of list of Step
        How each lattice is coarsened to the next.
    """
    last = rates[-1]
    lossless = operator(_without_losses(last), "forward", float)
    _, _, right = np.linalg.svd(dense_matrix(lossless))
    masses = np.abs(right[-1]).reshape(last.shape)
    masses = _relaxed(last, masses, _SWEEPS_COARSEST)
    for finer, coarser, joined in zip(rates[-2::-1], rates[:0:-1], steps[::-1], strict=True):
        density = np.log(np.maximum(masses, _FLOOR * masses.max())) - np.log(_volumes(coarser))
        for step in reversed(joined):
            density = _interpolated(density, coarser, finer, step.axis)
        logarithm = density + np.log(_volumes(finer))
        masses = _relaxed(finer, np.exp(logarithm - logarithm.max()), _SWEEPS)
    return np.log(np.maximum(masses, _FLOOR * masses.max()))


def _without_losses(rates: Rates) -> Rates:
    return Rates(rates.up, rates.down, np.zeros_like(rates.loss), rates.alive, rates.widths)


def _relaxed(rates: Rates, masses: np.ndarray, sweeps: int) -> np.ndarray:
    level = operator(_without_losses(rates), "forward", float)
    nothing = np.zeros_like(masses)
    masses = masses if rates.alive is None else np.where(rates.alive, masses, 0.0)
    for _ in range(sweeps):
        for forward in (True, False):
            masses = np.maximum(masses, _FLOOR)
            level.sweep(masses, nothing, forward)
        masses /= masses.max()
    return masses


def _volumes(rates: Rates) -> np.ndarray:
    a, b, c = rates.widths
    return a[:, None, None] * b[None, :, None] * c[None, None, :]


def _interpolated(values: np.ndarray, coarse: Rates, fine: Rates, axis: int) -> np.ndarray:
    """Linear between centres along an axis, and beyond the last ones."""
    if values.shape[axis] == fine.shape[axis] or values.shape[axis] < 2:
        return np.repeat(values, 2, axis).take(range(fine.shape[axis]), axis)
    near, far = (np.cumsum(r.widths[axis]) - 0.5 * r.widths[axis] for r in (coarse, fine))
    low = np.clip(np.searchsorted(near, far) - 1, 0, len(near) - 2)
    share = ((far - near[low]) / (near[low + 1] - near[low])).reshape((-1,) + (1,) * (2 - axis))
    return (1.0 - share) * values.take(low, axis) + share * values.take(low + 1, axis)
