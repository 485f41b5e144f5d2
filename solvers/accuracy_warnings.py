"""Warnings about a Fokker-Planck operator that depend on where its stationary mass lies."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from solvers.errors import AccuracyWarning

if TYPE_CHECKING:
    from solvers.fokker_planck import FokkerPlanck

# Share of the model's noise from which on upwind diffusion is told of as noise.
_FALSE_NOISE = 0.05


def warn_if_unresolved(fp: FokkerPlanck, masses: np.ndarray, stacklevel: int = 3) -> None:
    """Warn if cells are too coarse, or the grid too narrow, for where the stationary mass lies.

    Large cell Peclet numbers P in empty regions are harmless. What matters is the excess diffusion
    (P/2) coth(P/2) - 1 averaged over the stationary mass: beyond 5 percent eigenvalues are off by about
    as much. On faces without noise it is the upwind diffusion |a| h / 2, over spread times speed, beyond 5 percent.

    Parameters
    ----------
    masses : ndarray of shape (size,)
        Stationary masses, summing to 1.
    stacklevel : int
        As for `warnings.warn`.
    """
    for axis, name in enumerate(fp.grid.names):
        _, mean, noisy = fp.mean_excess(masses, axis)
        if noisy and mean > 0.05:
            warnings.warn(
                AccuracyWarning(
                    f"cells along {name} are too coarse: where the stationary mass lies, the scheme's "
                    f"diffusion exceeds the model's by {100 * mean:.0f} % on average; use about "
                    f"{np.sqrt(mean / 0.005):.0f} times as many cells for half a percent"
                ),
                stacklevel=stacklevel,
            )
        added, share = fp.upwind_diffusion(masses, axis)
        if share > 0.05:
            warnings.warn(
                AccuracyWarning(
                    f"{name} has little or no noise, and upwind fluxes add a diffusion of {added:.3g} there, "
                    f"{100 * share:.0f} % of spread times speed of the model; use more cells along {name}, or "
                    'advection="second-order"'
                ),
                stacklevel=stacklevel,
            )
        elif (ratio := _upwind_over_noise(fp, masses, axis, added)) > _FALSE_NOISE:
            warnings.warn(
                AccuracyWarning(
                    f"upwind fluxes along {name} add a diffusion of {added:.3g}, which spreads the density "
                    f"{ratio:.2g} times as fast as the model's own noise: where that is hardly damped it decides "
                    f'the result; use more cells along {name}, or advection="second-order"'
                ),
                stacklevel=stacklevel,
            )
    _warn_if_peak_on_wall(fp, masses, stacklevel + 1)


def _upwind_over_noise(fp: FokkerPlanck, masses: np.ndarray, axis: int, added: float) -> float:
    """Rate at which upwind diffusion spreads the density along an axis, over that of the noise along all others.

    Rates are diffusion over variance. In a slowly damped rotation both are fed into the same amplitude, however small
    they are beside its speed.
    """
    if added == 0:
        return 0.0
    spreading = []
    for k, name in enumerate(fp.grid.names):
        face, center = fp.faces[k], fp.grid.centers[name]
        others = tuple(j for j in range(fp.grid.d) if j != k)
        marginal = masses.reshape(fp.grid.shape).sum(axis=others)
        variance = float((marginal * (center - (marginal * center).sum()) ** 2).sum())
        weight = 0.5 * (masses[face.first] + masses[face.second])
        diffusion = added if k == axis else float(np.sum(weight * (face.diffusion + face.split)))
        spreading.append(diffusion / max(variance, 1e-300))
    noise = sum(spreading) - spreading[axis]
    return spreading[axis] / noise if noise > 0 else 0.0


def _warn_if_peak_on_wall(fp: FokkerPlanck, masses: np.ndarray, stacklevel: int) -> None:
    density = masses.reshape(fp.grid.shape) / fp.grid.volumes
    peak = np.unravel_index(int(np.argmax(density)), fp.grid.shape)
    for (name, word), pressure in fp.wall_pressure.items():
        axis = fp.grid.names.index(name)
        on_wall = peak[axis] == (0 if word == "low" else fp.grid.shape[axis] - 1)
        along = (*peak[:axis], 0, *peak[axis + 1 :])
        if on_wall and pressure[along] > 0 and not np.all(pressure > 0):
            wall = fp.grid.edges[name][0 if word == "low" else -1]
            warnings.warn(
                AccuracyWarning(
                    f"the stationary density is largest at the {word} wall {name}={wall:g} and the drift "
                    f"there is {pressure[along]:.3g} out of the grid: mass is missed; widen the grid"
                ),
                stacklevel=stacklevel,
            )


def warn_if_tail_is_heavy(fp: FokkerPlanck, stacklevel: int = 3) -> None:
    """Warn if the density, in one dimension, would not be normalisable without its reflecting walls.

    At a wall where it still exceeds 1e-3 of its maximum, and its logarithm is convex (a tail that flattens,
    not a box inside a well), the local power law |x - peak|^-a is continued: for a <= 1 its mass is infinite.

    Parameters
    ----------
    stacklevel : int
        As for `warnings.warn`.
    """
    weights = fp.chain.log_weights
    if fp.grid.d > 1 or weights is None or fp.allow_wall_mass or fp.grid.size < 4:
        return
    (name,) = fp.grid.names
    center, edges = fp.grid.centers[name], fp.grid.edges[name]
    density = weights - np.log(fp.grid.widths[name])
    peak = center[np.argmax(density)]
    for side, word in zip((0, -1), ("low", "high"), strict=True):
        outwards = -1 if side == 0 else 1
        x = (outwards * center)[::-outwards][:3]
        level = density[::-outwards][:3]
        if fp.boundary[name][side] != "reflecting" or level[0] - density.max() < np.log(1e-3):
            continue
        near, far = np.diff(level[::-1]) / np.diff(x[::-1])  # outward slopes, the last one at the wall
        exponent = -far * abs(edges[side] - peak)
        if far < 0 and far - near > 1e-6 * abs(near) and exponent <= 1.0:
            warnings.warn(
                AccuracyWarning(
                    f"at the {word} wall {name}={edges[side]:g} the stationary density is "
                    f"{np.exp(level[0] - density.max()):.2g} of its maximum and falls like "
                    f"|{name} - {peak:.3g}|^-{exponent:.2g}, which without the wall has infinite mass: the "
                    "result depends on where the wall is; pass allow_wall_mass=True if it is part of the model"
                ),
                stacklevel=stacklevel,
            )
