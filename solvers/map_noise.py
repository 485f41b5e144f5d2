"""Noise of a discrete map: Gaussian, a histogram, or a table of samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solvers.errors import InvalidInput


@dataclass(frozen=True)
class GaussianNoise:
    """Normal noise of mean 0, the same everywhere, its components correlated or not.

    Parameters
    ----------
    covariance : float or array (d, d)
        Per step.

    Raises
    ------
    InvalidInput
        If it is no finite symmetric positive semidefinite matrix.
    """

    covariance: Any
    matrix: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        matrix = np.atleast_2d(np.asarray(self.covariance, dtype=float))
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
            raise InvalidInput(f"covariance={self.covariance!r}; give a finite number, or a matrix (d, d)")
        slack = 1e-12 * float(np.abs(matrix).max())
        if np.abs(matrix - matrix.T).max() > slack or np.linalg.eigvalsh(matrix).min() < -slack:
            raise InvalidInput(f"covariance={matrix.tolist()} is not symmetric and positive semidefinite")
        object.__setattr__(self, "matrix", matrix)

    @property
    def d(self) -> int:
        """Number of components."""
        return len(self.matrix)


class Atoms:
    """A mixture of uniform laws on boxes: low corners (n, d), widths (n, d), masses (n,) that add up to 1."""

    def __init__(self, low: np.ndarray, width: np.ndarray, mass: np.ndarray):
        kept = mass > 0
        self.low, self.width = np.ascontiguousarray(low[kept]), np.ascontiguousarray(width[kept])
        self.mass = mass[kept] / mass[kept].sum()

    @property
    def d(self) -> int:
        """Number of components."""
        return self.low.shape[1]


@dataclass(frozen=True)
class HistogramNoise:
    """Noise with a given density, constant in each bin.

    Parameters
    ----------
    edges : array (n + 1,), or a pair of such
        Increasing edges of the bins; a pair for joint noise of two components.
    masses : array (n,) or (n1, n2)
        Probabilities of the bins, or counts: they are divided by their sum. `numpy.histogram` and
        `numpy.histogram2d` give both.

    Raises
    ------
    InvalidInput
        If edges do not increase, or masses do not fit them or are negative.
    """

    edges: Any
    masses: Any
    atoms: Atoms = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        masses = np.asarray(self.masses, dtype=float)
        axes = [self.edges] if masses.ndim == 1 else list(self.edges)
        lines = [np.asarray(axis, dtype=float) for axis in axes]
        shape = tuple(len(line) - 1 if line.ndim == 1 else 0 for line in lines)
        if masses.ndim not in {1, 2} or masses.shape != shape or 0 in shape:
            raise InvalidInput(
                f"masses have shape {masses.shape} for {' and '.join(str(n) for n in shape)} bins; give one for each"
            )
        if not all(np.isfinite(line).all() and (np.diff(line) > 0).all() for line in lines):
            raise InvalidInput("edges of the histogram are not finite and increasing; sort them")
        if not np.isfinite(masses).all() or masses.min() < 0 or not masses.sum() > 0:
            raise InvalidInput(
                "masses of the histogram are negative, not finite or all 0; give probabilities"
            )
        low = np.stack(np.meshgrid(*[line[:-1] for line in lines], indexing="ij"), axis=-1)
        width = np.stack(np.meshgrid(*[np.diff(line) for line in lines], indexing="ij"), axis=-1)
        d = len(lines)
        object.__setattr__(self, "atoms", Atoms(low.reshape(-1, d), width.reshape(-1, d), masses.ravel()))


@dataclass(frozen=True)
class SampleNoise:
    """Noise that takes the values of a table, such as the gradient noise of each example.

    Parameters
    ----------
    table : array (n,) or (n, d)
    weights : array (n,), optional
        Probabilities; equal if not given.

    Raises
    ------
    InvalidInput
        If the table is not finite or the weights do not fit it.
    """

    table: Any
    weights: Any = None
    atoms: Atoms = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        table = np.asarray(self.table, dtype=float)
        table = table[:, None] if table.ndim == 1 else table
        if table.ndim != 2 or 0 in table.shape:
            raise InvalidInput(f"table has shape {table.shape}; give numbers of shape (n,) or (n, d)")
        if not np.isfinite(table).all():
            raise InvalidInput(f"table contains {table[~np.isfinite(table)][0]}; give finite numbers")
        weights = np.ones(len(table)) if self.weights is None else np.asarray(self.weights, dtype=float)
        if weights.shape != (len(table),) or not np.isfinite(weights).all() or weights.min() < 0:
            raise InvalidInput(f"weights have shape {weights.shape}; give {len(table)} numbers >= 0")
        if not weights.sum() > 0:
            raise InvalidInput("weights are all 0; give probabilities")
        object.__setattr__(self, "atoms", Atoms(table, np.zeros_like(table), weights))


def checked_noise(noise: Any, d: int) -> Any:
    """The noise of a map in d dimensions: a `GaussianNoise`, `Atoms`, or a callable or array of deviations.

    Raises
    ------
    InvalidInput
        If it is of another kind or dimension.
    """
    if isinstance(noise, (HistogramNoise, SampleNoise)):
        noise = noise.atoms
    if isinstance(noise, (GaussianNoise, Atoms)):
        if noise.d != d:
            raise InvalidInput(f"noise has {noise.d} components, but the grid has {d} axes")
        return noise
    if callable(noise):
        return noise
    parts = noise if isinstance(noise, (tuple, list)) else (noise,) * d
    if len(parts) != d:
        raise InvalidInput(f"noise has {len(parts)} components, but the grid has {d} axes")
    if any(isinstance(part, (HistogramNoise, SampleNoise)) for part in parts):
        return _product([_one_dimensional(part) for part in parts])
    try:
        deviations = np.asarray(parts, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"noise={noise!r}; {_CHOICE}") from error
    if deviations.shape != (d,) or not np.isfinite(deviations).all() or (deviations < 0).any():
        raise InvalidInput(f"noise={noise!r}; {_CHOICE}")
    return deviations


_CHOICE = (
    "give standard deviations >= 0 (a number, one per axis, or a function of the coordinates), GaussianNoise, "
    "HistogramNoise or SampleNoise"
)


def _one_dimensional(part: Any) -> Atoms:
    if isinstance(part, (HistogramNoise, SampleNoise)) and part.atoms.d == 1:
        return part.atoms
    if isinstance(part, (int, float)) and part == 0:
        return SampleNoise([0.0]).atoms
    raise InvalidInput(
        f"noise={part!r} beside a table; give a one-dimensional HistogramNoise or SampleNoise, or 0, for each axis"
    )


def _product(parts: list[Atoms]) -> Atoms:
    index = np.stack(np.meshgrid(*[np.arange(len(p.mass)) for p in parts], indexing="ij"), axis=-1)
    index = index.reshape(-1, len(parts))
    low, width, mass = (
        np.stack([getattr(p, name).reshape(-1)[index[:, k]] for k, p in enumerate(parts)], axis=-1)
        for name in ("low", "width", "mass")
    )
    return Atoms(low, width, np.prod(mass, axis=1))
