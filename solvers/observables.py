"""What a Fokker-Planck operator says about a model: densities, passage times, committors, escape."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sps
import xarray as xr

from solvers.backward import nonnegative_solution, prefers_cycles
from solvers.chain import Chain
from solvers.eigensolvers import generator_modes, transfer_modes
from solvers.elimination import Elimination
from solvers.errors import AccuracyWarning, ConvergenceFailure, InvalidInput
from solvers.exit_times import refuse_arity
from solvers.factorisation import factor
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.nonreversible import stationary_masses
from solvers.provenance import provenance
from solvers.transfer import TransferOperator

Region = Callable[..., Any]
_BISECTIONS = 40
# A wall nearer to a centre than this share of a cell acts as if it were this near.
_NEAREST = 1e-6


def stationary_density(operator: Any) -> xr.DataArray:
    """The stationary density.

    Parameters
    ----------
    operator : FokkerPlanck or TransferOperator

    Returns
    -------
    DataArray over the axes
        Nonnegative, sum(density * volumes) = 1. Reversible operators: the exact discrete weights, whatever
        their range; otherwise the null vector, from one sparse LU pinned at a cell that carries mass. For a
        transfer operator: the invariant density.

    Raises
    ------
    InvalidInput
        If an absorbing wall removes all probability, or disconnected parts leave it undetermined.
    ConvergenceFailure
        If the equations do not determine it.

    Warns
    -----
    AccuracyWarning
        If the operator is not reversible and cells are too coarse where the mass lies, if the density is
        largest on a wall against which the drift presses, or if it would not be normalisable without its
        reflecting walls (one dimension).
    """
    grid = operator.grid
    if isinstance(operator, TransferOperator):
        if any("absorbing" in pair for pair in operator.boundary.values()):
            raise InvalidInput("there is no stationary density: an absorbing wall removes all probability")
        masses = np.abs(transfer_modes(operator.matrix, 1, "auto", 1e-10).right[:, 0])
        masses /= masses.sum()
    elif isinstance(operator, FokkerPlanck):
        masses = stationary_masses(operator.chain)
        if not operator.reversible:
            operator.warn_if_unresolved(masses, stacklevel=3)
        operator.warn_if_tail_is_heavy(stacklevel=3)
    else:
        raise InvalidInput(
            f"operator is a {type(operator).__name__}; pass a FokkerPlanck or TransferOperator"
        )
    density = grid.data_array(
        masses.reshape(grid.shape) / grid.volumes, name="density", long_name="stationary density", units="1"
    )
    return density.assign_attrs(provenance(convention=operator.sde.convention))


def effective_potential(operator: Any) -> xr.DataArray:
    """Minus the logarithm of the stationary density, minimum 0 (infinite where the density is 0).

    Parameters
    ----------
    operator : FokkerPlanck or TransferOperator

    Returns
    -------
    DataArray over the axes
        Dimensionless; times a constant D it is the potential of a gradient system. Reversible operators
        give it from the logarithms, so it does not end where the density underflows.

    Raises
    ------
    InvalidInput, ConvergenceFailure
        As for `stationary_density`.
    """
    grid = operator.grid
    density = stationary_density(operator).values
    logarithm = np.full(grid.shape, -np.inf)
    np.log(density, out=logarithm, where=density > 0)
    if isinstance(operator, FokkerPlanck) and operator.chain.log_weights is not None:
        logarithm = operator.chain.log_weights.reshape(grid.shape) - np.log(grid.volumes)
    potential = grid.data_array(
        logarithm.max() - logarithm, name="potential", long_name="-log(stationary density)", units="1"
    )
    return potential.assign_attrs(provenance(convention=operator.sde.convention))


def escape_rate(operator: Any, *, target: Region | None = None) -> xr.Dataset:
    """Rate at which a population that has lasted long leaves, and its shape.

    Parameters
    ----------
    operator : FokkerPlanck or TransferOperator
        With an absorbing wall, or with a target.
    target : callable, optional
        ``target(x, y, ...)`` is true where the process is removed; its edge is found between cell centres.

    Returns
    -------
    Dataset
        ``rate`` in 1/time: minus the slowest eigenvalue (for a transfer operator ``-log|mu| / step``).
        ``quasi_stationary(*names)``: the density conditioned on survival, integral 1, zero in the target.

    Raises
    ------
    InvalidInput
        If nothing removes probability, or the target is unusable.
    ConvergenceFailure
        As for `eigenmodes`.

    Warns
    -----
    AccuracyWarning
        If the rate is so small that rounding spoils it (with signed cross terms, or when two slow modes are
        nearly equal).

    Notes
    -----
    The rate is accurate relatively even when exponentially small: for reversible operators it is a sum of
    squares or a squared singular value, and rates below their rounding come from inverse iteration by
    elimination without subtraction.
    Collet, Martinez and San Martin, Quasi-Stationary Distributions (2013).
    """
    grid = operator.grid
    if not isinstance(operator, (FokkerPlanck, TransferOperator)):
        raise InvalidInput(
            f"operator is a {type(operator).__name__}; pass a FokkerPlanck or TransferOperator"
        )
    absorbing = any("absorbing" in pair for pair in operator.boundary.values())
    if target is None and not absorbing:
        raise InvalidInput("nothing removes probability; give boundary='absorbing' on a wall, or a target")
    inside = np.zeros(grid.size, dtype=bool) if target is None else _cells(grid, target, "target")
    free, chain = ~inside, None
    if isinstance(operator, TransferOperator):
        modes = transfer_modes(sps.csr_array(operator.matrix[free][:, free]), 1, "auto", 1e-10)
        rate = -np.log(np.abs(modes.values[0])) / operator.step
    else:
        chain, _ = _killed(operator, [] if target is None else [target], [inside])
        if chain.closed_classes:
            place = _place(grid, int(np.flatnonzero(free)[chain.closed_classes[0][0]]))
            raise InvalidInput(f"what starts at {place} never leaves, so the rate is zero; check the target")
        modes = generator_modes(chain, 1, "auto", 1e-10)
        rate = -np.real(modes.values[0])
    leaving = np.abs(modes.right[:, 0]) / np.abs(modes.right[:, 0]).sum()
    if chain is not None and modes.doubts:
        rate, leaving, doubts = _inverse_iteration(chain, rate, leaving, modes.doubts)
        for doubt in doubts:
            warnings.warn(AccuracyWarning(doubt), stacklevel=2)
    masses = np.zeros(grid.size)
    masses[free] = leaving
    density = masses.reshape(grid.shape) / grid.volumes
    return xr.Dataset(
        {
            "rate": ((), float(rate), {"units": "1/time", "long_name": "escape rate"}),
            "quasi_stationary": (
                grid.names,
                density,
                {"units": "1", "long_name": "quasi-stationary density"},
            ),
        },
        coords=grid.coordinates(),
        attrs=provenance(convention=operator.sde.convention, method=modes.method),
    )


def mean_first_passage_time(fp: FokkerPlanck, target: Region | None = None) -> xr.DataArray:
    """Mean time to reach a region, from every cell.

    Parameters
    ----------
    fp : FokkerPlanck
        Absorbing walls count as reached too: the time is then that of the first exit.
    target : callable, optional
        ``target(x, y, ...)`` on coordinate arrays, true inside. Its edge is found between cell centres by
        bisection, so the error is second order for any edge. Without one: the time to an absorbing wall.

    Returns
    -------
    DataArray over the axes
        Time; 0 inside the target.

    Raises
    ------
    InvalidInput
        If the target holds no cell centre or all of them, or is not reached from everywhere.
    ConvergenceFailure
        If the time exceeds the range of floats, or, with correlated noise beyond the positive stencil, is too
        long to be solved for.

    Notes
    -----
    The equations are eliminated without subtractions (`solvers.elimination`), so the time is accurate
    relatively however long it is. Beyond 20 000 cells in three dimensions elimination would fill in: Krylov steps with
    multigrid cycles takes its place, and ``method`` in the attributes says how well the equations hold.
    """
    grid = _checked(fp)
    if target is None and not any("absorbing" in pair for pair in fp.boundary.values()):
        raise InvalidInput("nothing is ever reached; give a target, or boundary='absorbing' on a wall")
    inside = np.zeros(grid.size, dtype=bool) if target is None else _cells(grid, target, "target")
    chain, _ = _killed(fp, [] if target is None else [target], [inside])
    _refuse_unreachable(grid, chain, ~inside)
    times = np.zeros(grid.size)
    times[~inside], how = _backward_solution(chain, np.ones(chain.size), "mean first passage time")
    result = grid.data_array(times, name="time", long_name="mean first passage time", units="time")
    return result.assign_attrs(provenance(convention=fp.sde.convention, method=how))


def committor(fp: FokkerPlanck, source: Region, target: Region) -> xr.DataArray:
    """Probability to reach `target` before `source`, from every cell.

    Parameters
    ----------
    fp : FokkerPlanck
        At an absorbing wall the process counts as lost: it reaches neither.
    source, target : callable
        As for `mean_first_passage_time`; disjoint.

    Returns
    -------
    DataArray over the axes
        From 0 in the source to 1 in the target.

    Raises
    ------
    InvalidInput
        If the regions overlap, are empty, or are not reached from everywhere.
    ConvergenceFailure
        As for `mean_first_passage_time`.
    """
    grid = _checked(fp)
    in_source, in_target = _cells(grid, source, "source"), _cells(grid, target, "target")
    if np.any(in_source & in_target):
        place = _place(grid, int(np.argmax(in_source & in_target)))
        raise InvalidInput(f"source and target overlap, for example at {place}; make them disjoint")
    free = ~(in_source | in_target)
    chain, rates = _killed(fp, [source, target], [in_source, in_target])
    _refuse_unreachable(grid, chain, free)
    result, how = np.where(in_target, 1.0, 0.0), None
    if free.any():
        solution, how = _backward_solution(chain, rates[1][free], "committor")
        result[free] = np.minimum(solution, 1.0)  # probabilities: only rounding can lead above 1
    labelled = grid.data_array(result, name="committor", long_name="probability of target first", units="1")
    return labelled.assign_attrs(provenance(convention=fp.sde.convention, method=how))


def _inverse_iteration(
    chain: Chain, rate: float, masses: np.ndarray, doubts: tuple[str, ...]
) -> tuple[float, np.ndarray, tuple[str, ...]]:
    """The slowest mode of a killed chain by powers of its inverse, all of whose entries are positive."""
    if chain.extra is not None:
        return rate, masses, doubts
    elimination = Elimination(chain)
    masses = np.full(chain.size, 1.0 / chain.size)
    for _ in range(500):
        grown = elimination.solve_transposed(masses)
        if not np.isfinite(grown).all():
            return rate, masses, doubts
        total = grown.sum()
        change = float(np.abs(grown / total - masses).sum())
        masses = grown / total
        if change < 1e-12:
            return float(1.0 / total), masses, ()
    return rate, masses, doubts


def _backward_solution(chain: Chain, right: np.ndarray, what: str) -> tuple[np.ndarray, str]:
    """Nonnegative solution of -L^T q = right for a chain whose every state is removed in the end, and how."""
    if prefers_cycles(chain):
        return nonnegative_solution(chain, right, what)
    if chain.extra is None:
        solution = Elimination(chain).solve(right)
        if not np.isfinite(solution).all():
            raise ConvergenceFailure(
                f"the {what} exceeds {np.finfo(float).max:.2g}, the largest float; use more noise, or a target "
                "that is reached sooner"
            )
        return solution, "elimination"
    matrix = sps.csc_array(-chain.generator.T)
    try:
        solution = factor(matrix, symmetric=False).solve(right)
    except RuntimeError as error:  # SuperLU's only word for it
        raise ConvergenceFailure(
            f"the equations of the {what} are singular to rounding: the process hardly leaves; use more noise"
        ) from error
    # signed cross terms leave the sparse LU only: each equation is rounded by eps |A| |q|
    rounding = np.finfo(float).eps * (abs(matrix) @ np.abs(solution)).max() / right.max()
    negative = -float(solution.min()) / max(float(np.abs(solution).max()), 1e-300)
    if not (rounding < 1e-3 and negative < 1e-3):
        raise ConvergenceFailure(
            f"the {what} is not determined: its equations are rounded by {rounding:.2g} of the right-hand side "
            f"and its least value is {-negative:.2g} of the largest; use more noise, or cells with "
            "h1/h2 = sqrt(D11/D22) and no signed cross terms"
        )
    return np.maximum(solution, 0.0), "sparse LU"


# ---- regions ---------------------------------------------------------------------------------------------


def _checked(fp: Any) -> Grid:
    if not isinstance(fp, FokkerPlanck):
        raise InvalidInput(f"fp is a {type(fp).__name__}; pass a FokkerPlanck")
    return fp.grid


def _evaluate(
    region: Region, coords: tuple[np.ndarray, ...], what: str, names: tuple[str, ...]
) -> np.ndarray:
    if not callable(region):
        raise InvalidInput(f"{what} is a {type(region).__name__}; give a predicate such as lambda x: x > 1")
    arguments = f"({', '.join(names)})"
    refuse_arity(region, len(coords), what, arguments)
    try:
        value = np.asarray(region(*coords))
    except ValueError as error:
        if "truth value of an array" not in str(error):
            raise
        raise InvalidInput(
            f"{what} branches on a coordinate (or, and, not, if); join conditions with | and &"
        ) from error
    if value.dtype != bool:
        raise InvalidInput(f"{what} returns {value.dtype}; give a predicate that returns booleans on arrays")
    return np.broadcast_to(value, coords[0].shape)


def _cells(grid: Grid, region: Region, what: str) -> np.ndarray:
    inside = _evaluate(region, grid.coords(), what, grid.names).ravel()
    if not inside.any():
        raise InvalidInput(f"the {what} contains no cell centre; move it into the grid, or refine the grid")
    if inside.all():
        raise InvalidInput(f"the {what} contains every cell; leave some cells out")
    return inside


def _place(grid: Grid, cell: int | np.integer) -> str:
    index = np.unravel_index(cell, grid.shape)
    return ", ".join(f"{n}={grid.centers[n][i]:g}" for n, i in zip(grid.names, index, strict=True))


def _killed(
    fp: FokkerPlanck, regions: list[Region], insides: list[np.ndarray]
) -> tuple[Chain, list[np.ndarray]]:
    """The chain outside all regions, and the rates from each cell into each region.

    Where a face joins a free cell to a region, the region's edge is bisected between the two centres and the
    process is removed there: the same flux with density 0 at the fraction of the distance that is free.
    """
    grid = fp.grid
    removed = np.logical_or.reduce(insides, axis=0)
    rates = [np.zeros(grid.size) for _ in regions]
    if regions:
        for face in fp.faces:
            _edge_rates(fp, face, regions, insides, removed, rates)
        _corner_losses(fp, insides, removed, rates)
    extra = np.sum(rates, axis=0) if rates else np.zeros(grid.size)
    return fp.chain.keep(~removed, extra), rates


def _edge_rates(fp, face, regions, insides, removed, rates) -> None:
    grid, name = fp.grid, fp.grid.names[face.axis]
    first, second = face.first.ravel(), face.second.ravel()
    index = np.unravel_index(first, grid.shape)
    fixed = [grid.centers[n][i] for n, i in zip(grid.names, index, strict=True)]
    start, distance = face.start.ravel(), face.distance.ravel()
    low, high = grid.edges[name][0], grid.edges[name][-1]
    for region, inside, rate in zip(regions, insides, rates, strict=True):
        for forward in (True, False):
            cell, other = (first, second) if forward else (second, first)
            at = ~removed[cell] & inside[other]
            if not at.any():
                continue
            origin = start[at] if forward else start[at] + distance[at]
            step = distance[at] if forward else -distance[at]
            near, far = np.zeros(at.sum()), np.ones(at.sum())
            for _ in range(_BISECTIONS):
                middle = 0.5 * (near + far)
                position = origin + middle * step
                position = np.where(position > high, position - (high - low), position)
                coords = [c[at] for c in fixed]
                coords[face.axis] = position
                hit = _evaluate(region, tuple(coords), "the region", grid.names)
                near, far = np.where(hit, near, middle), np.where(hit, middle, far)
            share = np.maximum(far, _NEAREST)
            lift = (face.lift.ravel()[at] if forward else -face.lift.ravel()[at]) * share
            outward, _ = fp.face_flux(face.diffusion.ravel()[at], distance[at] * share, lift)
            width = grid.widths[name][np.unravel_index(cell[at], grid.shape)[face.axis]]
            np.add.at(rate, cell[at], outward / width)


def _corner_losses(fp, insides, removed, rates) -> None:
    """Jumps between diagonal neighbours into a region: removed at full rate (first order)."""
    chain = fp.chain
    faces = sum(face.first.size for face in fp.faces)
    first, second = chain.first[faces:], chain.second[faces:]
    for inside, rate in zip(insides, rates, strict=True):
        out, back = ~removed[first] & inside[second], ~removed[second] & inside[first]
        np.add.at(rate, first[out], chain.forward[faces:][out])
        np.add.at(rate, second[back], chain.backward[faces:][back])


def _refuse_unreachable(grid: Grid, chain: Chain, free: np.ndarray) -> None:
    if chain.size == 0:
        return
    if chain.closed_classes:
        place = _place(grid, int(np.flatnonzero(free)[chain.closed_classes[0][0]]))
        raise InvalidInput(f"what starts at {place} never reaches the region; check the region and the noise")
