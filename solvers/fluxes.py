"""Face fluxes of a drift-diffusion current, by exponential fitting.

Between two cell centres the current J = a p - D dp/dx is integrated exactly for constant J, a and D
(Scharfetter and Gummel 1969; Chang and Cooper 1970; Il'in 1969):

    J = F p_left - G p_right,    F = (D / h) B(-P),    G = (D / h) B(P),    P = a h / D,

with the Bernoulli function B(z) = z / (e^z - 1). F and G are never negative, so the generator is a rate
matrix of a Markov chain, and F / G = e^P, so the zero-flux state has the exact weights. The error is second
order in h; the effective diffusion is D (P/2) coth(P/2). As D -> 0 the flux becomes upwind.

Chang and Cooper write the same as J = A [d p_left + (1 - d) p_right] - D (p_right - p_left) / h with the weight
d = 1/w - 1/(e^w - 1), w = -P, which gives F and G above. The two named fluxes differ in P: Scharfetter-Gummel
takes what a face sees between its two centres (differences of the potential and of log D, which keep zero-current
states exactly), Chang-Cooper the drift A = a - c D' and D at the face itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FaceFlux = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def bernoulli(z: np.ndarray) -> np.ndarray:
    """B(z) = z / (exp(z) - 1), to rounding for every finite z, without overflow.

    Parameters
    ----------
    z : ndarray

    Returns
    -------
    ndarray
        Positive, decreasing, B(0) = 1, B(-z) = B(z) + z; underflows to 0 beyond z = 745.
    """
    z = np.asarray(z, dtype=float)
    size = np.abs(z)
    safe = np.where(size > 1e-8, size, 1.0)
    with np.errstate(under="ignore"):
        # z e^-z / (1 - e^-z) for z > 0; near 0 the series 1 - z/2 is exact to 1e-17
        tail = np.where(size > 1e-8, safe * np.exp(-safe) / -np.expm1(-safe), 1.0 - 0.5 * size)
    return np.where(z < 0, tail + size, tail)


def excess_diffusion(peclet: np.ndarray) -> np.ndarray:
    """(P/2) coth(P/2) - 1: by how much exponential fitting exceeds the true diffusion, P^2/12 when small."""
    return bernoulli(np.abs(peclet)) + 0.5 * np.abs(peclet) - 1.0


def scharfetter_gummel(
    diffusion: np.ndarray, distance: np.ndarray, lift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the face current J = F p_left - G p_right.

    Parameters
    ----------
    diffusion : ndarray
        D >= 0 on the faces, in length^2 / time.
    distance : ndarray
        Between the two centres, > 0.
    lift : ndarray
        Effective drift times distance, in units of D: the Peclet number is lift / D.

    Returns
    -------
    forward, backward : ndarray
        F and G, both >= 0, in length / time. Where D = 0 they are the upwind speeds.
    """
    diffusive = diffusion > 0
    # lift / D beyond 1e300 would overflow; such a face is upwind to every digit
    with np.errstate(under="ignore"):
        diffusive &= 1e-290 * np.abs(lift) < diffusion
    safe = np.where(diffusive, diffusion, 1.0)
    peclet = np.where(diffusive, lift / safe, 0.0)
    tail = bernoulli(np.abs(peclet))
    with np.errstate(under="ignore"):
        mobile = diffusion / distance * tail
    upwind = np.abs(lift) / distance
    # B(-P) = B(|P|) + |P| downhill: adding the drift itself keeps F - G = lift / h exact
    downhill = np.where(diffusive, mobile + upwind, upwind)
    uphill = np.where(diffusive, mobile, 0.0)
    return np.where(lift > 0, downhill, uphill), np.where(lift > 0, uphill, downhill)


def hybrid(diffusion: np.ndarray, distance: np.ndarray, lift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences up to Peclet number 2, upwind beyond (Spalding 1972); arguments as above.

    Nothing is added to the diffusion up to Peclet number 2, but zero-flux states are not exact. It serves
    correlated noise, where part of D is carried by diagonal jumps: exponential fitting with the rest alone
    would add P^2/12 of that rest for a large P, and there is no zero-flux state to keep.
    """
    drift, conductance = lift / distance, diffusion / distance
    forward = np.maximum(np.maximum(drift, 0.0), conductance + 0.5 * drift)
    backward = np.maximum(np.maximum(-drift, 0.0), conductance - 0.5 * drift)
    return forward, backward


def hybrid_excess_diffusion(peclet: np.ndarray) -> np.ndarray:
    """By how much the hybrid flux exceeds the true diffusion, relative to it."""
    return np.maximum(0.5 * np.abs(peclet) - 1.0, 0.0)


class Flux(NamedTuple):
    """A named flux: coefficients of the current, its relative excess diffusion, and where it reads the model."""

    face: FaceFlux
    excess: Callable[[np.ndarray], np.ndarray]
    pointwise: bool  # drift and D' at the face itself, instead of differences of the potential and of log D


FLUXES: dict[str, Flux] = {
    "scharfetter-gummel": Flux(scharfetter_gummel, excess_diffusion, pointwise=False),
    "chang-cooper": Flux(scharfetter_gummel, excess_diffusion, pointwise=True),
}
