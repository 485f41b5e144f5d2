"""Rectangular grids of finite-volume cells with named axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from solvers import memory
from solvers.axes import log_axis, read_axis, stretched_axis, uniform_axis
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
        "eigenvalue_derivative",
        "eigenvalue_error",
        "eigenvalue_extrapolated",
        "exit_time",
        "exited",
        "expectation",
        "final",
        "forward_committor",
        "gap",
        "left",
        "local",
        "mean",
        "membership",
        "mode",
        "outside",
        "overlap",
        "path",
        "potential",
        "quasi_stationary",
        "rank",
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
        those of the SDE's components. Spacing may vary; second order needs it to vary smoothly, as in the
        edges of `uniform_axis`, `log_axis` and `stretched_axis`.

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
    fitted : tuple of AxisFit
        From `Grid.fit`: per axis the spacing, its scale, and the numbers behind it; printed, a sentence each.

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
                    f"axis {name!r} has the name of a variable of the results, which a dataset cannot hold beside it; "
                    f"choose another name, such as {name + '_'!r}, also in the SDE's names"
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
        self.fitted: tuple[Any, ...] = ()

    @classmethod
    def uniform(cls, /, **axes: tuple[float, float, int] | np.ndarray) -> Grid:
        """A grid of equal cells.

        Parameters
        ----------
        **axes : tuple (low, high, cells), or ndarray of edges
            One triple per axis; an axis of another kind is given by its edges (`log_axis`, `stretched_axis`).

        Returns
        -------
        Grid

        Raises
        ------
        InvalidInput
            If a triple is malformed, low >= high, or cells is not an integer >= 2.
        """
        return cls(**{name: read_axis(name, axis, uniform_axis) for name, axis in axes.items()})

    @classmethod
    def log(cls, /, **axes: tuple[float, float, int] | np.ndarray) -> Grid:
        """A grid of cells in constant ratios.

        Parameters
        ----------
        **axes : tuple (low, high, cells), or ndarray of edges
            One triple per logarithmic axis, low and high of one sign; others by their edges.

        Returns
        -------
        Grid

        Raises
        ------
        InvalidInput
            As for `Grid.uniform`, and if a logarithmic axis contains 0.

        Examples
        --------
        >>> Grid.log(x=(1e-3, 10, 400), y=uniform_axis(-2, 2, 100)).shape
        (400, 100)
        """
        return cls(**{name: read_axis(name, axis, log_axis) for name, axis in axes.items()})

    @classmethod
    def stretched(
        cls,
        /,
        *,
        around: Mapping[str, float | Sequence[float]],
        width: Mapping[str, float] | None = None,
        ratio: float = 10.0,
        **axes: tuple[float, float, int] | np.ndarray,
    ) -> Grid:
        """A grid whose cells shrink around given points; axes without points have equal cells.

        Parameters
        ----------
        around : mapping
            ``{axis: point or points}``; they become edges.
        width : mapping, optional
            ``{axis: half width of the fine region}``; a tenth of the axis where left out.
        ratio : float
            Finest to coarsest number of cells per length.
        **axes : tuple (low, high, cells), or ndarray of edges

        Returns
        -------
        Grid

        Raises
        ------
        InvalidInput
            As for `Grid.uniform` and `stretched_axis`, and if `around` or `width` names no axis.

        Examples
        --------
        >>> grid = Grid.stretched(x=(-4, 4, 200), y=(0, 1, 50), around={"x": (-1, 1)}, ratio=20)
        >>> float(grid.widths["x"].max() / grid.widths["x"].min()) > 5
        True
        """
        width = {} if width is None else width
        for what, given in (("around", around), ("width", width)):
            if not isinstance(given, Mapping):
                raise InvalidInput(f"{what}={given!r}; give a mapping {{axis: value}}")
            unknown = [axis for axis in given if axis not in axes]
            if unknown:
                raise InvalidInput(f"{what} names axis {unknown[0]!r}; the axes are {', '.join(axes)}")
        edges = {}
        for name, axis in axes.items():
            kind: Any = uniform_axis
            if name in around:
                kind = partial(stretched_axis, around=around[name], width=width.get(name), ratio=ratio)
            edges[name] = read_axis(name, axis, kind)
        return cls(**edges)

    @classmethod
    def fit(
        cls,
        sde: Any,
        *,
        mass: float = 1e-8,
        excess: float = 1e-3,
        box: Mapping[str, tuple[float | None, float | None]] | None = None,
        boundary: str | Mapping[str, tuple[str, str] | str] = "reflecting",
        cells: int | Mapping[str, int] | None = None,
    ) -> Grid:
        """A grid proposed from the SDE, with what was chosen in `fitted`.

        A wide box in coordinates that span many decades is shrunk, in rounds, onto the stationary mass of a
        coarse operator; the last rounds use the operator itself on a wider box, on which the mass left
        outside is measured. Cells are then as many as keep the scheme's relative excess diffusion, P^2 / 12
        with the cell Peclet number P averaged over the stationary mass, at `excess`; the slow eigenvalues are
        off by about as much. An axis without noise gets cells a tenth of the deviation wide, which suits
        ``FokkerPlanck(advection="second-order")``; upwind fluxes add `resolution`'s ``upwind_share`` there. Axes are
        uniform unless stretched or logarithmic cells save more than half.
        Nothing is random: the same SDE gives the same grid. Where slow states without stationary mass matter
        (metastable wells far above the deepest), give the box.

        Parameters
        ----------
        sde : SDE
            Autonomous, of one to three components.
        mass : float
            Largest stationary mass outside the box, of all sides together.
        excess : float
            Largest mean excess diffusion along each axis.
        box : mapping, optional
            ``{axis: (low, high)}``: walls that belong to the model, None where the box is free. Needed on
            periodic axes, at absorbing walls, and at points where the noise vanishes (``(0, None)``).
        boundary : str or mapping
            As for `FokkerPlanck`; absorbing walls are taken as reflecting here.
        cells : int or mapping, optional
            Cells per axis instead of those from `excess`.

        Returns
        -------
        Grid
            At most 1e5, 1e6 and 128^3 cells in one, two and three dimensions; `fitted` has the excess diffusion
            reached.

        Raises
        ------
        InvalidInput
            If an argument is unusable, there is no stationary density (mass escapes to infinity or collapses
            onto a point without noise), or its tails hold more than `mass` beyond any box.
        ConvergenceFailure
            If the box does not settle.

        Examples
        --------
        >>> from solvers import SDE
        >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
        >>> grid = Grid.fit(ou)
        >>> bool(3.9 < grid.edges["x"][-1] < 4.5)
        True
        """
        from solvers.grid_fit import propose  # the operator is built on this module

        grid, grid.fitted = propose(sde, mass=mass, excess=excess, box=box, boundary=boundary, cells=cells)
        return grid

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
