"""Where an eigen-solve starts: the modes of an operator nearby."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Start:
    """Modes near those that are sought, slowest first.

    Attributes
    ----------
    values : ndarray of shape (m,)
        Predicted eigenvalues.
    right, left : ndarray of shape (n, m)
        Masses and functions of the neighbour.
    """

    values: np.ndarray
    right: np.ndarray
    left: np.ndarray

    def functions(self, zeros: int) -> np.ndarray:
        """A real basis of the left functions of the modes that decay."""
        return _real_columns(self.values[zeros:], self.left[:, zeros:])

    def masses(self, zeros: int) -> np.ndarray:
        """A real basis of the right masses of the modes that decay."""
        return _real_columns(self.values[zeros:], self.right[:, zeros:])


def _real_columns(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A real basis of the span of modes that come in complex pairs."""
    columns = [vectors.real[:, [a]] for a in range(len(values)) if np.imag(values[a]) >= 0]
    columns += [vectors.imag[:, [a]] for a in range(len(values)) if np.imag(values[a]) > 0]
    return np.hstack([np.zeros((len(vectors), 0)), *columns])
