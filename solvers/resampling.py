"""Mini-batch noise in place of Gaussian noise: averages of rows drawn from a given table of gradients.

Every step draws a batch of rows for each path and uses the average, less the mean of the table, as its noise;
all components of a row are used together, so that the noise keeps the table's correlations, skewness and tails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray, cfunc

from solvers.errors import InvalidInput
from solvers.heavy_tails import two_uniforms
from solvers.sources import FILL, Source
from solvers.wiener import ROUNDS, checked_integer


@dataclass(frozen=True)
class Resampled:
    """Increments sqrt(dt) (mean of a batch of rows - mean of the table).

    An SGD step ``x -= eta (grad L + noise)`` is a step of Euler-Maruyama with dt = eta, drift -grad L and
    diffusion sqrt(eta) times the identity: sqrt(dt) sqrt(eta) noise = eta noise (the sign is that of the table).

    Parameters
    ----------
    table : array (n, m)
        Per-example gradients, or other noise vectors; m Wiener processes are replaced.
    batch_size : int
        Rows per batch.
    replacement : bool
        Draw with replacement, or batch_size different rows (Floyd's algorithm); the covariance is C/B or
        C (n - B)/(B (n - 1)) with C the (biased) covariance of the table.

    Raises
    ------
    InvalidInput
        If the table is no finite (n, m) array, or the batch is empty or, without replacement, beyond n.
    """

    table: Any
    batch_size: int = 1
    replacement: bool = True
    _centred: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        table = np.asarray(self.table, dtype=float)
        if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
            raise InvalidInput(
                f"table has shape {table.shape}; give finite numbers of shape (rows, components)"
            )
        size = checked_integer("batch_size", self.batch_size)
        if size < 1 or (not self.replacement and size > len(table)):
            raise InvalidInput(
                f"batch_size={size} must be at least 1 and, without replacement, at most the {len(table)} rows"
            )
        object.__setattr__(self, "_centred", np.ascontiguousarray(table - table.mean(axis=0)))

    def covariance(self) -> np.ndarray:
        """Covariance (m, m) of the noise of one step, before the factor dt."""
        n, size = len(self._centred), self.batch_size
        shared = 1.0 if self.replacement or n == 1 else (n - size) / (n - 1)
        return self._centred.T @ self._centred / n * (shared / size)

    def source(self, numbers: int, width: int) -> Source:
        """The numbers for blocks of a width, `numbers` per path and step.

        Raises
        ------
        InvalidInput
            If the table has not as many columns.
        """
        if self._centred.shape[1] != numbers:
            raise InvalidInput(
                f"table has {self._centred.shape[1]} columns, but the model has {numbers} Wiener processes; give one "
                "column for each"
            )
        how = "with" if self.replacement else "without"
        about = {
            "generator": f"threefry2x64-{ROUNDS}",
            "increments": f"means of {self.batch_size} of {len(self._centred)} rows {how} replacement, centred",
        }
        fill = _resampled(numbers, width, int(self.batch_size), bool(self.replacement))
        return Source("resampled", fill, 1, "ready", 0, about, self._centred)


@lru_cache(maxsize=64)
def _resampled(numbers: int, width: int, size: int, replacement: bool) -> Any:
    @cfunc(FILL, error_model="numpy")
    def fill(seed, start, step, _fresh, dt, at_z, _unit, _words, at_table, rows, columns):
        z, table = carray(at_z, (numbers, width)), carray(at_table, (rows, columns))
        scale = math.sqrt(dt) / size
        taken = np.zeros(1 if replacement else rows, np.bool_)
        batch = np.empty(size, np.int64)
        for i in range(width):
            for b in range(size):
                u, _ = two_uniforms(seed, start + i, step, b)
                if replacement:
                    batch[b] = int((1.0 - u) * rows)
                else:  # Floyd: the b-th draw is uniform on the first rows - size + b + 1, or the last of them
                    last = rows - size + b
                    row = int((1.0 - u) * (last + 1))
                    batch[b] = last if taken[row] else row
                    taken[batch[b]] = True
            for c in range(numbers):
                total = 0.0
                for b in range(size):
                    total += table[batch[b], c]
                z[c, i] = scale * total
            if not replacement:
                for b in range(size):
                    taken[batch[b]] = False

    return fill
