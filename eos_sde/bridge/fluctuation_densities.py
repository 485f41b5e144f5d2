"""Densities and quantiles of fluctuations on common bins, whatever they come from."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from eos_sde.bridge.fluctuation_statistics import histogram

PROBABILITIES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
_EDGES = np.linspace(-8.0, 8.0, 161)  # in units of the scale
_TAIL = 0.02


class DensityTable:
    """Densities over (model, direction, bin), filled one by one; NaN where nothing was added.

    Parameters
    ----------
    models : sequence of str
        Names.
    scale : ndarray
        Unit of the bins of each direction, shape (directions,).
    """

    def __init__(self, models: Sequence[str], scale: NDArray[np.float64]):
        self.models, self.scale = tuple(models), np.asarray(scale, float)
        shape = (len(self.models), len(self.scale))
        self.density = np.full((*shape, len(_EDGES) - 1), np.nan)
        self.stderr = np.full_like(self.density, np.nan)
        self.quantile = np.full((*shape, len(PROBABILITIES)), np.nan)
        self._laws: dict[tuple[str, int], tuple[NDArray, NDArray]] = {}

    def edges(self, direction: int) -> NDArray[np.float64]:
        """Of the bins, in units of the weights."""
        return _EDGES * self.scale[direction]

    def add_gaussian(self, direction: int, variances: NDArray[np.float64], model: str = "gaussian") -> None:
        """Normal laws, mixed over steps; none where a variance is infinite."""
        if np.all(np.isfinite(variances)) and np.all(variances > 0):
            edges = np.linspace(-12.0, 12.0, 4801) * np.sqrt(variances.max())
            self._add(model, direction, edges, np.mean(ndtr(edges / np.sqrt(variances)[:, None]), axis=0))

    def add_law(
        self, model: str, direction: int, offsets: NDArray[np.float64], masses: NDArray[np.float64]
    ) -> None:
        """Masses of cells between `offsets` about the mean, mixed over steps: shapes (steps, m + 1), (steps, m)."""
        edges = np.linspace(offsets.min(), offsets.max(), 4801)
        below = np.concatenate([np.zeros((len(masses), 1)), np.cumsum(masses, axis=1)], axis=1)
        share = np.mean(
            [np.interp(edges, o, b, left=0.0, right=1.0) for o, b in zip(offsets, below, strict=True)], axis=0
        )
        self._add(model, direction, edges, share)

    def add_path(self, model: str, direction: int, path: NDArray[np.float64]) -> None:
        """Replicas about their mean, mixed over steps: shape (replicas, steps)."""
        where = self.models.index(model), direction
        self.density[where], self.stderr[where] = histogram(path, self.edges(direction))
        self.quantile[where] = np.quantile(path - path.mean(axis=0), PROBABILITIES)

    def hill(self, model: str, direction: int) -> float:
        """What Hill's estimator would read on a law that was added, at the largest 2 %."""
        edges, share = self._laws[model, direction]
        centres, masses = np.abs(0.5 * (edges[1:] + edges[:-1])), np.diff(share)
        order = np.argsort(-centres)
        above = np.cumsum(masses[order])
        last = int(np.searchsorted(above, _TAIL))
        chosen, kept = centres[order[: last + 1]], masses[order[: last + 1]].copy()
        kept[-1] -= above[last] - _TAIL
        return _TAIL / float(np.sum(kept * np.log(chosen / chosen[-1])))

    def variables(self) -> dict[str, tuple]:
        """Entries of a dataset."""
        edges = np.array([self.edges(i) for i in range(len(self.scale))])
        described = {
            "density": (("model", "direction", "bin"), self.density, "1/weight", "density about the mean"),
            "density_stderr": (("model", "direction", "bin"), self.stderr, "1/weight", "its standard error"),
            "quantile": (
                ("model", "direction", "probability"),
                self.quantile,
                "weight",
                "quantile about the mean",
            ),
            "edge": (("direction", "bin_edge"), edges, "weight", "edges of the bins"),
            "position": (
                ("direction", "bin"),
                0.5 * (edges[:, 1:] + edges[:, :-1]),
                "weight",
                "middle of the bins",
            ),
        }
        return {
            name: (dims, value, {"units": units, "long_name": text})
            for name, (dims, value, units, text) in described.items()
        }

    def _add(
        self, model: str, direction: int, edges: NDArray[np.float64], share: NDArray[np.float64]
    ) -> None:
        where, bins = (self.models.index(model), direction), self.edges(direction)
        self._laws[model, direction] = edges, share
        self.density[where] = np.diff(np.interp(bins, edges, share)) / np.diff(bins)
        self.stderr[where] = 0.0
        increasing = np.concatenate([[True], np.diff(share) > 0])
        self.quantile[where] = np.interp(PROBABILITIES, share[increasing], edges[increasing])
