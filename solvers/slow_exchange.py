"""The slowest exchange of a stochastic matrix whose second eigenvalue is near 1, without a subtraction from 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sps
from scipy.sparse import csgraph

from solvers.factorisation import start_vector
from solvers.step_elimination import StepElimination, eliminated_masses

Map = Callable[[np.ndarray], np.ndarray]
_ROUNDS = 200
_SETTLED = 1e-12
_AGREED = 1e-9


class Exchange(NamedTuple):
    """The stationary masses and the mode that decays slowest.

    Attributes
    ----------
    gap : float
        1 - eigenvalue, accurate relatively.
    masses, right, left : ndarray (n,)
        Stationary masses, and the mode's masses and function.
    """

    gap: float
    masses: np.ndarray
    right: np.ndarray
    left: np.ndarray


def slowest_exchange(matrix: sps.csr_array) -> Exchange | None:
    """The real eigenvalue nearest 1, by powers of the inverse of 1 - M among vectors without the stationary part.

    The chain is stopped at one state s, whose equations are eliminated without subtractions: of masses r that sum to 0,
    the positive part from one side comes back to s after long, the negative part beside s soon, so that their
    difference keeps its digits, and so does what is left of it without the stationary masses if s lies on the
    heavier side. None if the chain falls into parts, or the iterations do not settle: for complex or several slow modes
    of nearly one rate.
    """
    count, _ = csgraph.connected_components(matrix, connection="strong")
    if count > 1:
        return None
    columns = sps.csc_array(matrix)
    masses = eliminated_masses(columns)
    pin = int(np.argmax(masses))
    found = _stopped_at(columns, masses, pin)
    if found is not None:
        side = found.left * found.left[pin] > 0
        if masses[side].sum() < 0.5:
            found = _stopped_at(columns, masses, int(np.argmax(np.where(side, 0.0, masses))))
    return found


def _stopped_at(columns: sps.csc_array, masses: np.ndarray, pin: int) -> Exchange | None:
    others = np.delete(np.arange(len(masses)), pin)
    inner = columns[:, others]
    stopped = StepElimination(sps.csr_array(inner[others]), inner[[pin]].toarray()[0])
    start = start_vector(len(masses))
    left = _settled(stopped.solve, start - masses @ start, others, lambda g: g - masses @ g)
    if left is None:
        return None
    right = _settled(stopped.solve_transposed, masses * left[1], others, lambda x: x - masses * x.sum())
    if right is None or abs(right[0] / left[0] - 1.0) > _AGREED:
        return None
    return Exchange(right[0], masses, right[1], left[1])


def _settled(
    solve: Map, vector: np.ndarray, others: np.ndarray, project: Map
) -> tuple[float, np.ndarray] | None:
    """1 - eigenvalue and the vector that the inverse settles on."""
    vector = vector / np.abs(vector).sum()
    for _ in range(_ROUNDS):
        grown = np.zeros(len(vector))
        grown[others] = solve(np.maximum(vector, 0.0)[others]) - solve(np.maximum(-vector, 0.0)[others])
        grown = project(grown)
        total = float(np.abs(grown).sum())
        if not 0 < total < np.inf:
            return None
        grown /= total
        change = float(np.abs(grown - vector).sum())
        vector = grown
        if change < _SETTLED:
            return 1.0 / total, vector
    return None
