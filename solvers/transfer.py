"""The Markov kernel of a noisy map on a grid: cell averages integrated exactly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sps

from solvers import boundary as boundaries
from solvers import memory
from solvers.coefficients import Coefficients
from solvers.correlated_landing import REACH
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.grid import Grid
from solvers.landing import ANYWHERE, Curves, Normal, images, normal_matrix, table_matrix
from solvers.map_noise import Atoms, GaussianNoise, checked_noise
from solvers.map_walls import refuse_folded_mass, refuse_outward_walls
from solvers.request import refuse_other
from solvers.sde import SDE
from solvers.source_cells import (
    Law,
    NoisyMap,
    by_cell,
    conditional,
    evaluated,
    images_of_cells,
    lower,
)

_MAX_NODES = 32


class TransferOperator:
    """Transition matrix of one Euler-Maruyama step y -> y + step a(y) + sqrt(step) sigma(y) xi.

    `TransferOperator.of_map` makes one of any map with Gaussian or tabulated noise.

    ``matrix[i, j]`` is the probability that a point spread uniformly over cell j lands in cell i: exact over
    the target cell (differences of the normal distribution function), by Gauss-Legendre quadrature over the
    source cell. What remains is the projection on piecewise constant densities (Ulam's method), which acts
    like additional noise of variance (1 + f'^2) h^2/12 per step: second order in the cell size h. With step = eta and
    gradient noise this is SGD itself, the edge at eta h = 2 included, not an approximation to it.

    Stratonovich and Klimontovich models are converted to Ito first, since Euler-Maruyama is an Ito scheme.

    Parameters
    ----------
    sde : SDE
        Autonomous, of dimension 1 or 2. Noise that is correlated in a step is integrated over the second axis
        given the first, by Gauss-Legendre quadrature over the first target cell.
    grid : Grid
    step : float
        Time step > 0.
    boundary : str or mapping
        As for `FokkerPlanck`. "reflecting" folds the landing point back at the wall (once; what goes further
        than a whole grid width beyond a wall is kept in the last cell it would fold to), "absorbing" removes
        it, "periodic" wraps it.
    allow_wall_mass : bool
        Accept a reflecting wall that the drift presses against along its whole length, or stationary mass whose
        mean landing point lies beyond one: then the fold is part of the model.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array
        Columns sum to 1 to rounding (less at absorbing walls).
    loss : ndarray (cells,)
        Probability that a step from the cell leads through an absorbing wall: every digit of it, where
        1 - (column sum) has none.
    grid, sde, step, boundary

    Raises
    ------
    InvalidInput
        For unusable arguments or more than two dimensions, if the grid misses the mass, or if correlated noise
        lies along a line within a cell.

    Warns
    -----
    AccuracyWarning
        If cells are wider than the noise of one step over most of the grid: the grid's own spreading of
        h^2/12 per step then exceeds a twelfth of the noise variance.

    Notes
    -----
    The integrand over a source cell is a normal distribution function of width s / |f'| for the map f with
    noise s, so the number of Gauss-Legendre nodes is 3 plus 2 per noise width that the image of the cell
    covers, rounded up, at most 32: with 4 nodes the error of a cell as wide as the noise is below 1e-7. Without noise
    along an axis the image of each node falls into one cell.

    As the step goes to 0, (matrix - 1)/step tends to the Fokker-Planck operator and log(eigenvalue)/step to its
    eigenvalues, to first order in the step (Euler-Maruyama has weak order one) and second in the cell size; cells
    must stay narrower than the noise of a step, sqrt(step) sigma, so the step is refined with the grid.

    References
    ----------
    Ulam, A Collection of Mathematical Problems (1960) ch. 6; Ding and Zhou, Physica D 92 (1996) 61.
    """

    def __init__(
        self,
        sde: Any,
        grid: Grid,
        *,
        step: float,
        boundary: boundaries.Boundary = "reflecting",
        allow_wall_mass: bool = False,
    ):
        refuse_other(sde, SDE, "sde")
        refuse_other(grid, Grid, "grid")
        self._check(grid, step)
        self.boundary = boundaries.walls(boundary, grid.names)
        Coefficients(sde, grid)  # refuses what cannot be read on this grid
        ito = sde.to("ito")
        self.sde: Any = sde

        def move(coords: tuple[np.ndarray, ...]) -> Any:
            drift, sigma = ito.drift_at(0.0, coords), ito.diffusion_at(0.0, coords)
            mean = [y + self.step * a for y, a in zip(coords, drift, strict=True)]
            if ito.noise != "general":
                return mean, [np.sqrt(self.step) * np.abs(s) for s in sigma], None
            covariance = [
                [self.step * sum(p * q for p, q in zip(r, s, strict=True)) for s in sigma] for r in sigma
            ]
            return mean, *conditional(covariance)

        self._build(Law(move, None), allow_wall_mass)

    @classmethod
    def of_map(
        cls,
        map: Callable[..., Any],  # noqa: A002 - what it is
        noise: Any,
        grid: Grid,
        *,
        step: float = 1.0,
        boundary: boundaries.Boundary = "reflecting",
        allow_wall_mass: bool = False,
    ) -> TransferOperator:
        """The kernel of y -> map(y) + noise.

        Parameters
        ----------
        map : callable
            ``map(x)`` or ``map(x, y)`` on arrays of coordinates, returning an array or a pair of arrays. Put its
            jumps and kinks on edges of cells.
        noise : float, tuple, callable, GaussianNoise, HistogramNoise or SampleNoise
            Standard deviations of independent Gaussian noise: a number, one per axis, or a function of the
            coordinates that returns them; `GaussianNoise` for a covariance; tables for anything else, a pair
            of one-dimensional ones if the axes are independent.
        grid : Grid
            One or two axes.
        step : float
            Time that an application takes, by which rates are counted.
        boundary, allow_wall_mass
            As for `TransferOperator`.

        Returns
        -------
        TransferOperator
            Its ``sde`` is a `NoisyMap` with the arguments.

        Raises
        ------
        InvalidInput
            As for `TransferOperator`.

        Warns
        -----
        AccuracyWarning
            As for `TransferOperator`.

        Notes
        -----
        Gaussian noise as for `TransferOperator`. With tabulated noise the map is replaced by polynomials of degree
        5 on each source cell, or on pieces of it where one does not suffice (at most 32, 8 x 8 in two dimensions:
        a kink inside a cell). What lands in each target is integrated between the kinks of the integrand, where the
        image meets edges (`solvers.curved_landing`): to rounding for affine maps, coupled or not; smooth ones have
        eigenvalues to about 1e-11. Time grows with cells times rows of the table: for each pair 10 us in two
        dimensions, or 50 us for bins.

        Examples
        --------
        >>> from solvers import Grid, TransferOperator, eigenmodes
        >>> halved = TransferOperator.of_map(lambda x: 0.5 * x, 0.3, Grid.uniform(x=(-3, 3, 300)))
        >>> [round(v, 4) for v in eigenmodes(halved, k=3).eigenvalue.values.real.tolist()]
        [1.0, 0.5, 0.25]
        """
        refuse_other(grid, Grid, "grid")
        operator = cls.__new__(cls)
        operator._check(grid, step)
        operator.boundary = boundaries.walls(boundary, grid.names)
        if not callable(map):
            raise InvalidInput(f"map={map!r} is not callable; give a function of the coordinates")
        law = checked_noise(noise, grid.d)
        operator.sde = NoisyMap(map, noise)

        def move(coords: tuple[np.ndarray, ...]) -> Any:
            mean = evaluated(map, coords, "map")
            still = [np.zeros(coords[0].shape)] * grid.d
            if isinstance(law, Atoms):
                return mean, still, None
            if isinstance(law, GaussianNoise):
                return mean, *conditional([[entry + still[0] for entry in row] for row in law.matrix])
            deviations = evaluated(law, coords, "noise") if callable(law) else [s + still[0] for s in law]
            if any((s < 0).any() for s in deviations):
                raise InvalidInput("noise returns a negative standard deviation; return numbers >= 0")
            return mean, deviations, None

        operator._build(Law(move, law if isinstance(law, Atoms) else None), allow_wall_mass)
        return operator

    def _check(self, grid: Grid, step: float) -> None:
        if not (isinstance(step, (int, float, np.number)) and 0 < step < np.inf):
            raise InvalidInput(f"step={step!r}; give a positive time step")
        if grid.d > 2:
            raise InvalidInput(f"the grid has {grid.d} axes; a transfer operator is built for one or two")
        self.grid, self.step = grid, float(step)

    def _build(self, law: Law, allow_wall_mass: bool) -> None:
        if not allow_wall_mass:
            refuse_outward_walls(self.grid, self.boundary, lambda coords: self._mean(law, coords))
        nodes = self._nodes(law)
        matrix, self.loss = (
            self._of_normal(law, nodes) if law.atoms is None else self._of_table(law, law.atoms)
        )
        if all("absorbing" not in pair for pair in self.boundary.values()):
            matrix.data /= np.repeat(matrix.sum(axis=0), np.diff(matrix.indptr))
        self.matrix = sps.csr_array(matrix)
        if not allow_wall_mass:
            refuse_folded_mass(self.grid, self.boundary, self._mean(law, self.grid.coords()), self.matrix)

    def __repr__(self) -> str:
        return f"TransferOperator({self.grid!r}, step={self.step:g}, boundary={self.boundary})"

    def _move(
        self, law: Law, coords: tuple[np.ndarray, ...]
    ) -> tuple[list[np.ndarray], list[np.ndarray], Any]:
        """Mean (without that of a table), deviations and regression of the landing point."""
        with np.errstate(all="ignore"):
            mean, deviation, regression = law.move(coords)
        for values in (*mean, *deviation):
            if not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values)))
                place = ", ".join(
                    f"{n}={c.flat[bad]:g}" for n, c in zip(self.grid.names, coords, strict=True)
                )
                raise InvalidInput(f"one step from {place} is not finite; leave this point out of the grid")
        return mean, deviation, regression

    def _mean(self, law: Law, coords: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        mean, _, _ = self._move(law, coords)
        if law.atoms is None:
            return mean
        shift = law.atoms.mass @ (law.atoms.low + 0.5 * law.atoms.width)
        return [m + s for m, s in zip(mean, shift, strict=True)]

    def _nodes(self, law: Law) -> int:
        grid = self.grid
        mean, deviation, regression = self._move(law, grid.coords())
        if regression is not None:
            deviation = [deviation[0], np.hypot(deviation[1], regression * deviation[0])]
        if law.atoms is not None:
            middle = law.atoms.low + 0.5 * law.atoms.width
            offset = (middle - law.atoms.mass @ middle) ** 2 + law.atoms.width**2 / 12
            deviation = [np.full(grid.shape, np.sqrt(value)) for value in law.atoms.mass @ offset]
        covered, coarse = 0.0, 0.0
        for axis, name in enumerate(grid.names):
            widths = grid.widths[name].reshape((1,) * axis + (-1,) + (1,) * (grid.d - axis - 1))
            noisy = deviation[axis] > 0
            if not noisy.any():
                covered = max(covered, 0.5 * _MAX_NODES)
                continue
            safe = np.where(noisy, deviation[axis], 1.0)
            for other in range(grid.d):
                stretch = np.abs(np.diff(mean[axis], axis=other))
                covered = max(covered, float(np.quantile(stretch / lower(safe, other), 0.9)))
            coarse = max(coarse, float(np.median(np.where(noisy, widths / safe, 0.0))))
        if coarse > 1.0:
            warnings.warn(
                AccuracyWarning(
                    f"cells are {coarse:.2g} times as wide as the noise of one step, so the grid itself "
                    f"spreads {coarse**2 / 12:.1g} times its variance; use {math.ceil(4 * coarse)} times "
                    "as many cells"
                ),
                stacklevel=4,
            )
        return int(min(3 + math.ceil(2 * covered), _MAX_NODES))

    def _of_normal(self, law: Law, nodes: int) -> Any:
        grid = self.grid
        abscissae, weights = np.polynomial.legendre.leggauss(nodes)
        fine = [
            (grid.centers[n][:, None] + 0.5 * grid.widths[n][:, None] * abscissae[None, :]).ravel()
            for n in grid.names
        ]
        memory.require(
            8 * (8 + 6 * grid.d) * grid.size * nodes**grid.d,
            f"a kernel on {grid.size} cells",
            "use fewer cells",
        )
        mean, deviation, regression = self._move(law, tuple(np.meshgrid(*fine, indexing="ij")))
        means = [self._wrapped(by_cell(m, grid, nodes), axis) for axis, m in enumerate(mean)]
        # no noise: a step function, still a difference of distribution functions
        deviations = [
            np.maximum(by_cell(s, grid, nodes), 1e-12 * float(grid.widths[name].min()))
            for s, name in zip(deviation, grid.names, strict=True)
        ]
        quadrature = 0.5 * weights
        if grid.d == 2:
            quadrature = np.multiply.outer(quadrature, quadrature).ravel()
        if regression is not None:
            regression = by_cell(regression, grid, nodes)
        total = [deviations[0], *deviations[1:]]
        if regression is not None:
            total[1] = np.hypot(total[1], regression * total[0])
        targets = [
            images(grid, name, self.boundary[name], REACH * float(s.max()))
            for name, s in zip(grid.names, total, strict=True)
        ]
        if grid.d == 1:
            targets.append(ANYWHERE)
            means.append(np.zeros((grid.size, 1)))
            deviations.append(np.ones((grid.size, 1)))
        law_at_nodes = Normal(means, deviations, regression, quadrature)
        return normal_matrix(law_at_nodes, targets, grid.shape[1] if grid.d == 2 else 1, grid.size)

    def _of_table(self, law: Law, atoms: Atoms) -> Any:
        grid = self.grid
        found = images_of_cells(lambda coords: self._move(law, coords)[0], grid)
        targets = []
        for axis, name in enumerate(grid.names):
            image = found.coefficients[axis]
            shift = self._wrapped(image[:, :, 0, 0], axis) - image[:, :, 0, 0]
            image[:, :, 0, 0] += shift
            # pieces of one cell may wrap differently
            found.low[axis][:] += shift.min(axis=1)
            found.high[axis][:] += shift.max(axis=1)
            noise_low, noise_high = atoms.low[:, axis].min(), (atoms.low + atoms.width)[:, axis].max()
            size = float((found.high[axis] - found.low[axis]).max())
            targets.append(images(grid, name, self.boundary[name], size + max(-noise_low, noise_high, 0.0)))
        noise_low, noise_width = atoms.low, atoms.width
        if grid.d == 1:
            nothing = np.zeros(grid.size)
            targets.append(ANYWHERE)
            found = found._replace(
                coefficients=[*found.coefficients, np.zeros_like(found.coefficients[0])],
                low=[*found.low, nothing],
                high=[*found.high, nothing],
            )
            noise_low, noise_width = (np.column_stack([v, 0 * v]) for v in (noise_low, noise_width))
        law_of_pieces = Curves(found, noise_low, noise_width, atoms.mass)
        return table_matrix(law_of_pieces, targets, grid.shape[1] if grid.d == 2 else 1, grid.size)

    def _wrapped(self, values: np.ndarray, axis: int) -> np.ndarray:
        name = self.grid.names[axis]
        if self.boundary[name][0] != "periodic":
            return values
        edges = self.grid.edges[name]
        return edges[0] + np.mod(values - edges[0], edges[-1] - edges[0])
