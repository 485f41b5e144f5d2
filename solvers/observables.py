"""What an operator says about a model: densities, passage times, committors, escape."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from solvers.chain import Chain
from solvers.eigensolvers import generator_modes
from solvers.elimination import Elimination
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.lattice_operator import prefers_cycles
from solvers.map_observables import first_reached, invariant_masses, passage_times, removal
from solvers.nonreversible import stationary_masses
from solvers.provenance import provenance
from solvers.regions import (
    Region,
    backward_solution,
    disjoint_cells,
    killed,
    place,
    refuse_unreachable,
    region_cells,
)
from solvers.transfer import TransferOperator


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
        transfer operator: the invariant density, by elimination without subtractions on up to 2000 cells and
        wherever an eigenvalue is within 1e-8 of 1, otherwise by Arnoldi's method.

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
        masses = invariant_masses(operator)
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
        ``target(x, y, ...)`` is true where the process is removed; its edge is found between cell centres. A map
        is removed when a step ends inside.

    Returns
    -------
    Dataset
        ``rate`` in 1/time: minus the slowest eigenvalue (for a transfer operator ``-log|mu| / step``).
        ``quasi_stationary(*names)``: the density conditioned on survival, integral 1, zero in the target. Of a
        map, cells cut by the target's edge hold what lies outside it.

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
    elimination without subtraction. On more than 20 000 cells in three dimensions nothing is factored or
    eliminated: modes come from multigrid cycles, with detailed balance or without (`eigenmodes`), and the rate
    keeps relative accuracy down to about 1e-26 of the fastest rate. Of a map, single steps of more than 8.5
    deviations of normal noise are left out: 2e-17 of each step's mass.
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
    inside = np.zeros(grid.size, dtype=bool) if target is None else region_cells(grid, target, "target")
    if isinstance(operator, TransferOperator):
        rate, masses, method, doubts = removal(operator, target)
    else:
        rate, masses, method, doubts = _decay(operator, target, inside)
    for doubt in doubts:
        warnings.warn(AccuracyWarning(doubt), stacklevel=2)
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
        attrs=provenance(convention=operator.sde.convention, method=method),
    )


def _decay(
    operator: FokkerPlanck, target: Region | None, inside: np.ndarray
) -> tuple[float, np.ndarray, str, tuple[str, ...]]:
    """Rate, masses of all cells, method and doubts of the slowest mode outside the target."""
    chain, _, _ = killed(operator, [] if target is None else [target], [inside])
    if chain.closed_classes:
        where = place(operator.grid, int(np.flatnonzero(~inside)[chain.closed_classes[0][0]]))
        raise InvalidInput(f"what starts at {where} never leaves, so the rate is zero; check the target")
    modes = generator_modes(chain, 1, "auto", 1e-10)
    rate, doubts = float(-np.real(modes.values[0])), modes.doubts
    leaving = np.abs(modes.right[:, 0]) / np.abs(modes.right[:, 0]).sum()
    if doubts:
        rate, leaving, doubts = _inverse_iteration(chain, rate, leaving, doubts)
    masses = np.zeros(operator.grid.size)
    masses[~inside] = leaving
    return rate, masses, modes.method, doubts


def mean_first_passage_time(
    fp: FokkerPlanck | TransferOperator, target: Region | None = None
) -> xr.DataArray:
    """Mean time to reach a region, from every cell.

    Parameters
    ----------
    fp : FokkerPlanck or TransferOperator
        Absorbing walls count as reached too: the time is then that of the first exit.
    target : callable, optional
        ``target(x, y, ...)`` on coordinate arrays, true inside. Its edge is found between cell centres by
        bisection, so the error is second order for any edge. Without one: the time to an absorbing wall.

    Returns
    -------
    DataArray over the axes
        Time; 0 inside the target. Of a map: the mean number of steps until one ends in the target, times the
        operator's ``step``, as its rates are per ``step``.

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
    relatively however long it is. Beyond 20 000 cells in three dimensions elimination would fill in: Krylov steps
    with multigrid cycles take its place, and ``method`` in the attributes says how well the equations hold. Times
    too long for these are split into the slowest mode, over its rate, and a rest; they are accurate relative to the
    longest one, and near the target only so.

    A map that follows a diffusion in steps sees it only at their ends: against the diffusion its times are longer by
    0.58 deviations of a step's noise at every edge (Broadie, Glasserman and Kou, Math. Finance 7 (1997) 325), half
    an order in the step, where eigenvalues without edges are of order one.
    """
    grid = _grid_of(fp)
    if target is None and not any("absorbing" in pair for pair in fp.boundary.values()):
        raise InvalidInput("nothing is ever reached; give a target, or boundary='absorbing' on a wall")
    inside = np.zeros(grid.size, dtype=bool) if target is None else region_cells(grid, target, "target")
    if isinstance(fp, TransferOperator):
        times, how = passage_times(fp, target, inside), "elimination"
    else:
        chain, _, _ = killed(fp, [] if target is None else [target], [inside])
        refuse_unreachable(grid, chain, ~inside)
        times = np.zeros(grid.size)
        times[~inside], how = backward_solution(chain, np.ones(chain.size), "mean first passage time")
    result = grid.data_array(times, name="time", long_name="mean first passage time", units="time")
    return result.assign_attrs(provenance(convention=fp.sde.convention, method=how))


def committor(fp: FokkerPlanck | TransferOperator, source: Region, target: Region) -> xr.DataArray:
    """Probability to reach `target` before `source`, from every cell.

    Parameters
    ----------
    fp : FokkerPlanck or TransferOperator
        At an absorbing wall the process counts as lost: it reaches neither. A map reaches a region when a step
        ends inside.
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
    grid = _grid_of(fp)
    in_source, in_target = disjoint_cells(grid, source, target)
    if isinstance(fp, TransferOperator):
        result, how = first_reached(fp, (source, target), (in_source, in_target)), "elimination"
    else:
        result, how = _first_reached(fp, (source, target), (in_source, in_target))
    labelled = grid.data_array(result, name="committor", long_name="probability of target first", units="1")
    return labelled.assign_attrs(provenance(convention=fp.sde.convention, method=how))


def _grid_of(operator: Any) -> Grid:
    if not isinstance(operator, (FokkerPlanck, TransferOperator)):
        raise InvalidInput(f"fp is a {type(operator).__name__}; pass a FokkerPlanck or TransferOperator")
    return operator.grid


def _first_reached(
    fp: FokkerPlanck, regions: tuple[Region, Region], insides: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, str | None]:
    """Probability of the second region before the first, of all cells, and how it was found."""
    free = ~(insides[0] | insides[1])
    chain, rates, _ = killed(fp, list(regions), list(insides))
    refuse_unreachable(fp.grid, chain, free)
    result, how = np.where(insides[1], 1.0, 0.0), None
    if free.any():
        solution, how = backward_solution(chain, rates[1][free], "committor")
        result[free] = np.minimum(solution, 1.0)  # probabilities: only rounding can lead above 1
    return result, how


def _inverse_iteration(
    chain: Chain, rate: float, masses: np.ndarray, doubts: tuple[str, ...]
) -> tuple[float, np.ndarray, tuple[str, ...]]:
    """The slowest mode of a killed chain by powers of its inverse, all of whose entries are positive."""
    if chain.extra is not None or prefers_cycles(chain):
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
