"""Regions of state space: which cells they hold, where their edges lie, and the chain killed in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sps

from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.elimination import Elimination
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.exit_times import refuse_arity
from solvers.faces import Faces
from solvers.factorisation import factor
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.killed_solutions import nonnegative_solution
from solvers.lattice_operator import prefers_cycles

Region = Callable[..., Any]
_BISECTIONS = 40
# A wall nearer to a centre than this share of a cell acts as if it were this near.
_NEAREST = 1e-6


@dataclass(frozen=True)
class Exits:
    """Pairs of a chain that lead from a free cell into a region; one entry per pair and region.

    Attributes
    ----------
    pair : ndarray of int
        Number of the pair in the chain of the whole grid (faces axis by axis, then diagonal jumps).
    cell, region : ndarray of int
        The free cell, and which region.
    rate : ndarray
        Rate at which the cell is left through the region's edge.
    """

    pair: np.ndarray
    cell: np.ndarray
    region: np.ndarray
    rate: np.ndarray


def checked_grid(fp: Any) -> Grid:
    """The grid of an operator, or a refusal of what is none."""
    if not isinstance(fp, FokkerPlanck):
        raise InvalidInput(f"fp is a {type(fp).__name__}; pass a FokkerPlanck")
    return fp.grid


def region_cells(grid: Grid, region: Region, what: str) -> np.ndarray:
    """Which cells have their centre in a region: booleans of shape (size,), neither none nor all."""
    inside = evaluated_region(region, grid.coords(), what, grid.names).ravel()
    if not inside.any():
        raise InvalidInput(f"the {what} contains no cell centre; move it into the grid, or refine the grid")
    if inside.all():
        raise InvalidInput(f"the {what} contains every cell; leave some cells out")
    return inside


def disjoint_cells(grid: Grid, source: Region, target: Region) -> tuple[np.ndarray, np.ndarray]:
    """The cells of two regions that have none in common."""
    in_source, in_target = region_cells(grid, source, "source"), region_cells(grid, target, "target")
    if np.any(in_source & in_target):
        where = place(grid, int(np.argmax(in_source & in_target)))
        raise InvalidInput(f"source and target overlap, for example at {where}; make them disjoint")
    return in_source, in_target


def place(grid: Grid, cell: int | np.integer) -> str:
    """The centre of a cell, for a message."""
    index = np.unravel_index(cell, grid.shape)
    return ", ".join(f"{n}={grid.centers[n][i]:g}" for n, i in zip(grid.names, index, strict=True))


def killed(
    fp: FokkerPlanck, regions: list[Region], insides: list[np.ndarray]
) -> tuple[Chain, list[np.ndarray], Exits]:
    """The chain outside all regions, the rates from each cell into each region, and the pairs that carry them.

    Where a face joins a free cell to a region, the region's edge is bisected between the two centres and the
    process is removed there: the same flux with density 0 at the fraction of the distance that is free.
    """
    grid = fp.grid
    removed = np.logical_or.reduce(insides, axis=0)
    parts, offset = [], 0
    if regions:
        for face in fp.faces:
            parts += _edge_exits(fp, face, offset, regions, insides, removed)
            offset += face.first.size
        parts += _corner_exits(fp, offset, insides, removed)
    pair, cell, region, rate = (
        (np.concatenate([part[k] for part in parts]) if parts else np.zeros(0, dtype=int)) for k in range(4)
    )
    rates = [np.bincount(cell[region == r], rate[region == r], grid.size) for r in range(len(regions))]
    extra = np.sum(rates, axis=0) if rates else np.zeros(grid.size)
    return fp.chain.keep(~removed, extra), rates, Exits(pair, cell, region, rate)


def refuse_unreachable(grid: Grid, chain: Chain, free: np.ndarray) -> None:
    """Refuse regions that some free cell never reaches."""
    if chain.size and chain.closed_classes:
        where = place(grid, int(np.flatnonzero(free)[chain.closed_classes[0][0]]))
        raise InvalidInput(f"what starts at {where} never reaches the region; check the region and the noise")


@one_blas_thread
def backward_solution(chain: Chain, right: np.ndarray, what: str) -> tuple[np.ndarray, str]:
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


def evaluated_region(
    region: Region, coords: tuple[np.ndarray, ...], what: str, names: tuple[str, ...]
) -> np.ndarray:
    """Where a region holds, booleans of the coordinates' shape.

    Raises
    ------
    InvalidInput
        If it is no predicate on arrays.
    """
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


def _edge_exits(
    fp: FokkerPlanck,
    face: Faces,
    offset: int,
    regions: list[Region],
    insides: list[np.ndarray],
    removed: np.ndarray,
) -> list[tuple[np.ndarray, ...]]:
    grid, name = fp.grid, fp.grid.names[face.axis]
    first, second = face.first.ravel(), face.second.ravel()
    index = np.unravel_index(first, grid.shape)
    fixed = [grid.centers[n][i] for n, i in zip(grid.names, index, strict=True)]
    start, distance = face.start.ravel(), face.distance.ravel()
    low, high = grid.edges[name][0], grid.edges[name][-1]
    parts = []
    for number, (region, inside) in enumerate(zip(regions, insides, strict=True)):
        for forward in (True, False):
            cell, other = (first, second) if forward else (second, first)
            at = np.flatnonzero(~removed[cell] & inside[other])
            if not at.size:
                continue
            origin = start[at] if forward else start[at] + distance[at]
            step = distance[at] if forward else -distance[at]
            near, far = np.zeros(at.size), np.ones(at.size)
            for _ in range(_BISECTIONS):
                middle = 0.5 * (near + far)
                position = origin + middle * step
                position = np.where(position > high, position - (high - low), position)
                coords = [c[at] for c in fixed]
                coords[face.axis] = position
                hit = evaluated_region(region, tuple(coords), "the region", grid.names)
                near, far = np.where(hit, near, middle), np.where(hit, middle, far)
            share = np.maximum(far, _NEAREST)
            lift = (face.lift.ravel()[at] if forward else -face.lift.ravel()[at]) * share
            outward, _ = fp.face_flux(face.diffusion.ravel()[at], distance[at] * share, lift)
            width = grid.widths[name][np.unravel_index(cell[at], grid.shape)[face.axis]]
            parts.append((offset + at, cell[at], np.full(at.size, number), outward / width))
    return parts


def _corner_exits(
    fp: FokkerPlanck, offset: int, insides: list[np.ndarray], removed: np.ndarray
) -> list[tuple[np.ndarray, ...]]:
    """Jumps between diagonal neighbours into a region: removed at full rate (first order)."""
    chain, parts = fp.chain, []
    first, second = chain.first[offset:], chain.second[offset:]
    for number, inside in enumerate(insides):
        for cell, other, rate in (
            (first, second, chain.forward[offset:]),
            (second, first, chain.backward[offset:]),
        ):
            at = np.flatnonzero(~removed[cell] & inside[other])
            parts.append((offset + at, cell[at], np.full(at.size, number), rate[at]))
    return parts
