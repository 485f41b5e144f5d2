"""Where an eigen-solve starts: the modes of operators nearby, continued to it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from solvers.factorisation import start_vector

# Share of a random vector in a sum of modes.
_FRESH = 1e-3
# Neighbours that are kept; the two nearest are used.
_KEPT = 4
# No further than this times the distance between two neighbours is their difference continued.
_FARTHEST = 2.0


@dataclass(frozen=True)
class Start:
    """Modes near those that are sought, slowest first.

    Attributes
    ----------
    values : ndarray of shape (m,)
        Eigenvalues of the neighbour.
    right, left : ndarray of shape (n, m)
        Its masses and functions.
    spare : ndarray of shape (n, s)
        Functions near the next modes.
    """

    values: np.ndarray
    right: np.ndarray
    left: np.ndarray
    spare: np.ndarray | None = None

    def functions(self, zeros: int) -> np.ndarray:
        """A real basis of the left functions of the modes that decay, and the spare ones."""
        modes = _real_columns(self.values[zeros:], self.left[:, zeros:])
        return modes if self.spare is None else np.hstack([modes, self.spare])

    def slowest_pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Sizes of the slowest right masses and left function."""
        right, left = np.abs(self.right[:, 0]), np.abs(self.left[:, 0])
        return right / right.sum(), left / left.max()

    def scaled(self, zeros: int, balance: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Sums of right / balance and of left * balance, each vector of length 1, of the modes that decay; how many.

        With a little of a random vector, since what a sum lacks, such as modes of another symmetry, is never found.
        """
        sums, fresh = [], start_vector(len(balance))
        fresh *= _FRESH / np.linalg.norm(fresh)
        for block in (self.right / balance[:, None], self.left * balance[:, None]):
            columns = _real_columns(self.values[zeros:], block[:, zeros:])
            sums.append(np.sum(columns / np.linalg.norm(columns, axis=0), axis=1) + fresh)
        return sums[0], sums[1], len(self.values) - zeros


@dataclass
class Neighbours:
    """The starts of values of a parameter that were solved last."""

    _solved: list[tuple[float, Start]] = field(default_factory=list)

    def add(self, value: float, start: Start) -> None:
        """Remember a solved value."""
        self._solved = [*(pair for pair in self._solved if pair[0] != value), (value, start)][-_KEPT:]

    def start(self, value: float, size: int) -> Start | None:
        """Modes at a value of the parameter: those of the nearest one, continued linearly through the next one.

        Parameters
        ----------
        value : float
        size : int
            Number of states; others are no neighbours.
        """
        fitting = [pair for pair in self._solved if len(pair[1].left) == size]
        fitting.sort(key=lambda pair: abs(pair[0] - value))
        if not fitting:
            return None
        at, nearest = fitting[0]
        if len(fitting) == 1:
            return nearest
        other, before = fitting[1]
        ratio = (value - at) / (at - other)
        return _continued(before, nearest, ratio) if abs(ratio) <= _FARTHEST else nearest


def _continued(before: Start, last: Start, ratio: float) -> Start:
    """The modes last found, and `ratio` times what they differ from their part in the span of those before."""
    if ratio == 0:
        return last
    left = last.left + ratio * (last.left - _within(before.left, before.right, last.left))
    right = last.right + ratio * (last.right - _within(before.right, before.left, last.right))
    return Start(last.values, right, left, last.spare)


def _within(basis: np.ndarray, dual: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The part of the vectors in the span of a basis, along what is orthogonal to the dual one."""
    return basis @ np.linalg.lstsq(dual.T @ basis, dual.T @ vectors, rcond=None)[0]


def _real_columns(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A real basis of the span of modes that come in complex pairs.

    Equal real eigenvalues may split into a pair by rounding, one part of whose vectors is then no direction.
    """
    upper = vectors[:, np.imag(values) >= 0]
    turning = vectors[:, np.imag(values) > 0]
    columns = np.hstack([upper.real, turning.imag])
    least = np.finfo(float).eps * np.linalg.norm(np.hstack([upper, turning]), axis=0)
    return columns[:, np.linalg.norm(columns, axis=0) > least]
