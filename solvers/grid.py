"""Rectangular grids of finite-volume cells with named axes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import xarray as xr

from solvers import memory
from solvers.errors import InvalidInput

# Variables and coordinates of datasets over a grid, whose axes must not be called so.
_TAKEN = frozenset(
    [
        "assignment",
        "backward_committor",
        "committor",
        "component",
        "component2",
        "covariance",
        "crispness",
        "current",
        "density",
        "diverged",
        "eigenvalue",
        "exit_time",
        "exited",
        "final",
        "forward_committor",
        "gap",
        "left",
        "local",
        "mean",
        "membership",
        "mode",
        "outside",
        "path",
        "potential",
        "quasi_stationary",
        "rate",
        "rates",
        "reactive_current",
        "reactive_density",
        "residual",
        "right",
        "set",
        "set2",
        "source_residence",
        "state",
        "target_residence",
        "time",
        "transition",
        "transition_time",
        "variance",
        "weight",
    ]
)


class Grid:
    """A product of intervals cut into cells; unknowns live at cell centres, fluxes on cell faces.

    Parameters
    ----------
    **edges : array_like
        One increasing, finite sequence of cell edges per axis, in the order of the axes. The names must be
        those of the SDE's components. Spacing may vary; second order needs it to vary smoothly.

    Attributes
    ----------
    names : tuple of str
    d : int
        Number of axes.
    edges, centers, widths : dict of str to ndarray
        Per axis: n + 1 edges, n midpoints, n cell widths.
    shape : tuple of int
        Cells per axis; `size` is their product.
    volumes : ndarray of shape `shape`

    Raises
    ------
    InvalidInput
        If an axis has fewer than two cells or edges that are not finite and increasing, its name is taken by a
        variable of the results, or the cells do not fit in memory.

    Examples
    --------
    >>> Grid.uniform(x=(-4, 4, 200), y=(-6, 2, 160)).shape
    (200, 160)
    >>> float(Grid(x=[0.0, 0.1, 0.3]).centers["x"][1])
    0.2
    """

    def __init__(self, /, **edges: Iterable[float]):
        if not edges:
            raise InvalidInput("Grid needs at least one axis, for example Grid.uniform(x=(-4, 4, 200))")
        for name in edges:
            if name in _TAKEN:
                raise InvalidInput(
                    f"axis {name!r} has the name of a variable of the results; choose another name, also in the "
                    "SDE's names"
                )
        self.edges = {name: _checked_edges(name, values) for name, values in edges.items()}
        self.names = tuple(self.edges)
        self.centers = {name: _frozen(_midpoints(e)) for name, e in self.edges.items()}
        self.widths = {name: _frozen(np.diff(e)) for name, e in self.edges.items()}
        self.d = len(self.names)
        self.shape = tuple(len(c) for c in self.centers.values())
        self.size = math.prod(self.shape)
        memory.require(16 * self.size, f"a grid of {self.size} cells", "use fewer cells")
        volumes = np.ones(())
        for width in self.widths.values():
            volumes = np.multiply.outer(volumes, width)
        self.volumes = _frozen(volumes)

    @classmethod
    def uniform(cls, /, **axes: tuple[float, float, int]) -> Grid:
        """A grid of equal cells.

        Parameters
        ----------
        **axes : tuple (low, high, cells)
            One triple per axis.

        Returns
        -------
        Grid

        Raises
        ------
        InvalidInput
            If a triple is malformed, low >= high, or cells is not an integer >= 2.
        """
        edges = {}
        for name, axis in axes.items():
            try:
                low, high, cells = axis
                low, high = float(low), float(high)
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"axis {name}={axis!r} is not a triple (low, high, cells)") from error
            if not (isinstance(cells, (int, np.integer)) and cells >= 2):
                raise InvalidInput(f"axis {name} has cells={cells!r}; give an integer >= 2")
            if not (np.isfinite([low, high]).all() and low < high):
                raise InvalidInput(f"axis {name} goes from {low} to {high}; give finite low < high")
            values = np.linspace(low, high, int(cells) + 1)
            # an edge meant to be 0 must be 0: noise may vanish there, and then nothing crosses it
            edges[name] = np.where(np.abs(values) < 1e-13 * (high - low), 0.0, values)
        return cls(**edges)

    def coords(self) -> tuple[np.ndarray, ...]:
        """Cell-centre coordinates as d arrays of shape `shape`."""
        return tuple(np.meshgrid(*self.centers.values(), indexing="ij"))

    def is_uniform(self, name: str) -> bool:
        """Whether all cells along an axis have the same width, up to rounding."""
        width = self.widths[name]
        return bool(np.ptp(width) <= 1e-9 * width.mean())

    def data_array(self, values: np.ndarray, *, name: str, long_name: str, units: str) -> xr.DataArray:
        """Cell values, of shape `shape` or flat, as a labelled array."""
        return xr.DataArray(
            np.reshape(values, self.shape),
            coords=self.coordinates(),
            dims=self.names,
            name=name,
            attrs={"long_name": long_name, "units": units},
        )

    def coordinates(self) -> dict[str, xr.DataArray]:
        """Cell centres as xarray coordinates."""
        return {
            name: xr.DataArray(c, dims=name, attrs={"long_name": f"{name}, cell centre", "units": "1"})
            for name, c in self.centers.items()
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.names == other.names and all(
            np.array_equal(self.edges[n], other.edges[n]) for n in self.names
        )

    def __hash__(self) -> int:
        return hash((self.names, tuple(e.tobytes() for e in self.edges.values())))

    def __repr__(self) -> str:
        axes = ", ".join(f"{n}: [{e[0]:g}, {e[-1]:g}] in {len(e) - 1}" for n, e in self.edges.items())
        return f"Grid({axes})"


def _midpoints(edges: np.ndarray) -> np.ndarray:
    centers = 0.5 * (edges[:-1] + edges[1:])
    # a centre meant to be 0 must be 0: noise may vanish there, and its logarithm be rounding
    return np.where(np.abs(centers) < 1e-12 * np.diff(edges), 0.0, centers)


def _frozen(values: np.ndarray) -> np.ndarray:
    values.setflags(write=False)
    return values


def _checked_edges(name: str, values: Iterable[float]) -> np.ndarray:
    try:
        edges = np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"edges of axis {name} are not numbers: {values!r}") from error
    if edges.ndim != 1:
        raise InvalidInput(f"edges of axis {name} have shape {edges.shape}; give one sequence of numbers")
    if edges.size < 3:
        raise InvalidInput(f"axis {name} has {max(edges.size - 1, 0)} cells; give at least 3 edges (2 cells)")
    if not np.isfinite(edges).all():
        raise InvalidInput(
            f"edges of axis {name} contain {edges[~np.isfinite(edges)][0]}; give finite numbers"
        )
    steps = np.diff(edges)
    if not (steps > 0).all():
        bad = int(np.argmin(steps > 0))
        raise InvalidInput(
            f"edges of axis {name} must increase; edge {bad + 1} is {edges[bad + 1]:g} after {edges[bad]:g}"
        )
    return _frozen(edges)
