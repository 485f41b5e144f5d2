"""Stationary masses of an SDE on search grids of any width: by sums, by elimination, or of an inflated noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from solvers.chain import Chain
from solvers.charts import Profile
from solvers.elimination import Elimination
from solvers.errors import AccuracyWarning, ConvergenceFailure
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.nonreversible import stationary_masses
from solvers.sde import SDE

_ONE_WAY = 1e-3  # search rates: backward to forward at least this, so that weights do not overflow


@dataclass(frozen=True)
class Masses:
    """Stationary masses of the cells of a grid, and where the largest lies."""

    sizes: np.ndarray
    peak: tuple[float, ...]


def search_operator(
    sde: SDE, grid: Grid, walls: dict[str, tuple[Any, Any]], second_order: bool
) -> FokkerPlanck:
    """The operator on a search grid, its absorbing walls taken as reflecting."""
    kinds = {n: tuple("periodic" if w == "periodic" else "reflecting" for w in walls[n]) for n in grid.names}
    with warnings.catch_warnings():
        # a search grid is stretched, where cross terms are central; the number is for the user's own operator
        warnings.simplefilter("ignore", AccuracyWarning)
        return FokkerPlanck(
            sde,
            grid,
            boundary=kinds,  # type: ignore[arg-type]
            advection="second-order" if second_order else "upwind",
            allow_wall_mass=True,
        )


def search_masses(fp: FokkerPlanck, robust: bool, before: Masses | None) -> Masses:
    """Stationary masses of the operator, or of its upwind version, which is never narrower."""
    chain, grid = (_upwind_chain(fp) if robust else fp.chain), fp.grid
    if chain.linear and chain.log_weights is not None and chain.joined:
        sizes = _by_sums(fp, before)
    elif fp.grid.d == 1 or (chain.log_weights is not None and chain.joined) or chain.extra is not None:
        sizes = stationary_masses(chain)
        # signed transport can leave small negative masses; large ones say that the cells are too coarse for it
        if sizes[sizes < 0].sum() < -1e-3:
            return search_masses(fp, True, before)
        sizes = np.abs(sizes)
    else:
        sizes = _by_elimination(chain, grid, before)
    sizes = sizes / sizes.sum()
    return Masses(sizes, tuple(float(c.flat[np.argmax(sizes)]) for c in grid.coords()))


def _by_sums(fp: FokkerPlanck, before: Masses | None) -> np.ndarray:
    """Weights on a line, summed outwards from where the mass is, so that far ends do not round it away."""
    (center,), (width,) = fp.grid.centers.values(), fp.grid.widths.values()
    lift, start = fp.faces[0].peclet, int(np.argmin(np.abs(center - (before.peak[0] if before else 0.0))))
    up = np.concatenate([[0.0], np.cumsum(lift[start:])])
    down = np.cumsum(-lift[:start][::-1])[::-1]
    logarithm = np.concatenate([down, up]) + np.log(width)
    return np.exp(logarithm - logarithm.max())


def _by_elimination(chain: Chain, grid: Grid, before: Masses | None) -> np.ndarray:
    place = before.peak if before else tuple(float(0.5 * (e[0] + e[-1])) for e in grid.edges.values())
    index = [int(np.argmin(np.abs(c - at))) for c, at in zip(grid.centers.values(), place, strict=True)]
    start = int(np.ravel_multi_index(index, grid.shape))
    for _ in range(6):
        sizes = _pinned(chain, start)
        if np.isfinite(sizes).all() and np.isfinite(sizes.sum()):
            return sizes
        start = int(np.flatnonzero(sizes == sizes.max())[0] if np.isnan(sizes).any() else np.argmax(sizes))
    raise ConvergenceFailure("the stationary masses span more than floats can hold; give the box as box=")


def _pinned(chain: Chain, pin: int) -> np.ndarray:
    """Masses relative to those of one cell, each to full relative accuracy (Grassmann, Taksar, Heyman)."""
    kept = np.arange(chain.size) != pin
    out_of, into = np.zeros(chain.size), np.zeros(chain.size)
    for here, there, rate, back in (
        (chain.first, chain.second, chain.forward, chain.backward),
        (chain.second, chain.first, chain.backward, chain.forward),
    ):
        mine = here == pin
        out_of += np.bincount(there[mine], rate[mine], chain.size)
        into += np.bincount(there[mine], back[mine], chain.size)
    masses = np.ones(chain.size)
    masses[kept] = Elimination(chain.keep(kept, into)).solve_transposed(out_of[kept])
    return masses


def _upwind_chain(fp: FokkerPlanck) -> Chain:
    """Upwind rates on the faces, without cross terms: the scheme's own diffusion makes the density wider."""
    parts = []
    for face, name in zip(fp.faces, fp.grid.names, strict=True):
        width = fp.grid.widths[name].reshape((1,) * face.axis + (-1,) + (1,) * (fp.grid.d - face.axis - 1))
        widths = np.broadcast_to(width, fp.grid.shape).ravel()
        drift, conductance = face.lift / face.distance, (face.diffusion + face.split) / face.distance
        forward, backward = conductance + np.maximum(drift, 0.0), conductance + np.maximum(-drift, 0.0)
        forward, backward = np.maximum(forward, _ONE_WAY * backward), np.maximum(backward, _ONE_WAY * forward)
        parts.append((face.first, face.second, forward / widths[face.first], backward / widths[face.second]))
    first, second, forward, backward = (np.concatenate([p[k].ravel() for p in parts]) for k in range(4))
    size = fp.grid.size
    return Chain(size, first, second, forward, backward, np.zeros(size), None, 1.0)


def mass_profile(fp: FokkerPlanck, masses: np.ndarray, k: int) -> Profile:
    """Where along an axis the mass lies, and how steep the density is there."""
    grid, face, name = fp.grid, fp.faces[k], fp.grid.names[k]
    marginal = masses.reshape(grid.shape).sum(axis=tuple(j for j in range(grid.d) if j != k))
    center, width = grid.centers[name], grid.widths[name]
    mean = float((marginal * center).sum())
    variance = float((marginal * ((center - mean) ** 2 + width**2 / 12)).sum())
    deviation = float(np.sqrt(variance))
    diffusion = face.diffusion + face.split
    if not np.any(diffusion > 0):
        return Profile(center, marginal, np.full(center.shape, 1 / deviation), deviation, noisy=False)
    x = np.append(grid.edges[name][1:-1], grid.edges[name][-1])[: face.lift.shape[k]]
    x = np.broadcast_to(x.reshape((1,) * k + (-1,) + (1,) * (grid.d - k - 1)), face.lift.shape)
    open_ = diffusion > 0
    weight = np.where(open_, 0.5 * (masses[face.first] + masses[face.second]), 0.0)
    # a drift that pushes mass across several cells is as steep as one over the search grid can show
    steep = np.abs(face.lift) / np.where(open_, diffusion, 1.0) / face.distance
    kept = weight > 1e-12 * weight.max()
    return Profile(x[kept], weight[kept], steep[kept], deviation, noisy=True)


def noisy(fp: FokkerPlanck) -> bool:
    """Whether every axis has noise somewhere."""
    return all(bool(np.any(face.diffusion > 0)) for face in fp.faces)
