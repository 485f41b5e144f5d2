"""Invariant density, passage times, committors and escape of noisy maps, by equations in discrete time."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sps
from scipy.sparse import csgraph

from solvers.eigensolvers import transfer_modes
from solvers.errors import InvalidInput
from solvers.killed_maps import killed_steps, slowest_removal, steps_until
from solvers.regions import Region, place
from solvers.step_elimination import eliminated_masses
from solvers.transfer import TransferOperator

_FEW = 2000
"""Cells up to which the invariant density always comes from an elimination."""
# 1 - |eigenvalue| below which it is found without this subtraction, and for the invariant density, of the second.
_SLOW, _STUCK = 1e-3, 1e-8


def invariant_masses(operator: TransferOperator) -> np.ndarray:
    """Stationary masses of the cells: relatively accurate by elimination on few cells or beside a slow mode.

    Raises
    ------
    InvalidInput
        If an absorbing wall removes all probability, or disconnected parts leave it undetermined.
    ConvergenceFailure
        If they exceed the range of floats.
    """
    if any("absorbing" in pair for pair in operator.boundary.values()):
        raise InvalidInput("there is no stationary density: an absorbing wall removes all probability")
    size = operator.grid.size
    if size > _FEW:
        modes = transfer_modes(operator.matrix, 2, "auto", 1e-10)
        if abs(modes.values[1] - 1.0) > _STUCK:
            masses = np.abs(modes.right[:, 0])
            return masses / masses.sum()
    masses = np.zeros(size)
    lasting = _closed_class(operator)
    masses[lasting] = eliminated_masses(sps.csc_array(operator.matrix[:, lasting][lasting]))
    return masses


def _closed_class(operator: TransferOperator) -> np.ndarray:
    """The cells that are never left for good, which must be one set."""
    label: np.ndarray
    count, label = csgraph.connected_components(operator.matrix, connection="strong")
    target, source = operator.matrix.nonzero()
    left = np.zeros(count, dtype=bool)
    left[label[source[label[source] != label[target]]]] = True
    closed = np.flatnonzero(~left)
    if len(closed) > 1:
        a, b = (place(operator.grid, int(np.flatnonzero(label == c)[0])) for c in closed[:2])
        raise InvalidInput(
            f"the stationary density is undetermined: what starts at {a} and what starts at {b} never meet; use a "
            "grid that holds one of them"
        )
    return np.flatnonzero(label == closed[0])


def passage_times(operator: TransferOperator, target: Region | None, inside: np.ndarray) -> np.ndarray:
    """Mean number of steps until one ends in the target or leads through a wall, times the step, of all cells.

    Raises
    ------
    InvalidInput
        If it is not reached from everywhere.
    ConvergenceFailure
        If the time exceeds the floats.
    """
    killed = killed_steps(operator, [] if target is None else [target])
    killed.refuse_kept(operator.grid)
    times = np.zeros(operator.grid.size)
    steps = steps_until(killed, np.ones(killed.states.size), "mean first passage time")
    times[killed.states] = operator.step * steps
    times[inside] = 0.0
    return times


def first_reached(
    operator: TransferOperator, regions: tuple[Region, Region], insides: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Probability that a step ends in the second region before one ends in the first, of all cells.

    Raises
    ------
    InvalidInput
        If they are not reached from everywhere.
    """
    killed = killed_steps(operator, list(regions))
    killed.refuse_kept(operator.grid)
    result = np.zeros(operator.grid.size)
    result[killed.states] = np.minimum(steps_until(killed, killed.entering[1], "committor"), 1.0)
    result[insides[0]], result[insides[1]] = 0.0, 1.0
    return result


def removal(
    operator: TransferOperator, target: Region | None
) -> tuple[float, np.ndarray, str, tuple[str, ...]]:
    """Rate of escape in 1/time, quasi-stationary masses of all cells, method and doubts.

    Raises
    ------
    InvalidInput
        If a state is never removed.
    """
    killed = killed_steps(operator, [] if target is None else [target])
    killed.refuse_kept(operator.grid)
    modes = transfer_modes(killed.matrix, 1, "auto", 1e-10)
    survival, method, doubts = float(np.abs(modes.values[0])), modes.method, modes.doubts
    rate, left = -np.log(survival) / operator.step, np.abs(modes.right[:, 0])
    if 1.0 - survival < _SLOW:
        slow = slowest_removal(killed)
        if slow is not None:
            rate, left = -np.log1p(-slow[0]) / operator.step, slow[1]
            method, doubts = "inverse iteration", ()
    masses = np.zeros(operator.grid.size)
    masses[killed.states] = left / left.sum()
    return float(rate), masses, method, doubts
