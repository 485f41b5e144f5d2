"""What kind of noise a model has: additive, uncoupled, scalar, commuting or none of these.

With b^k the k-th column of sigma and L^j = sum_l b_l^j d/dy_l, noise commutes when L^j b^k = L^k b^j for all j
and k (Kloeden and Platen 1992, eq. 10.3.13): then Levy areas drop out and strong order 1 costs no more than
the increments. Diagonal noise commutes only where no amplitude depends on another noisy component.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from solvers import tangent
from solvers.compiling import Keyed
from solvers.errors import InvalidInput

if TYPE_CHECKING:
    from solvers.sde import SDE

KINDS = ("additive", "uncoupled", "scalar", "commuting", "general")
DESCRIPTIONS = {
    "additive": "additive noise",
    "uncoupled": "diagonal noise whose amplitudes depend on their own component",
    "scalar": "one Wiener process",
    "commuting": "commutative noise",
    "general": "general noise",
}
COMMUTING = frozenset(KINDS) - {"general"}
_PROBES = 64
_ENOUGH = 8
"""Probes with finite values that a verdict needs."""


class Verdict(NamedTuple):
    """The first of `KINDS` that holds, and where the noise depends on the state or fails to commute ("" if not)."""

    kind: str
    dependence: str
    conflict: str


def verdict(sde: SDE) -> Verdict:
    """The kind of noise with its reasons; remembered for each model and its parameters.

    Derivatives are exact; whether what does not vanish as an expression vanishes for the model's parameters is
    decided at 64 fixed probes, 0.01 to 1000 in size. A model that cannot be traced is judged by differences.
    """
    return _verdict(Keyed((sde._keys(), sde.names, sde.noise, sde.params), cast("Any", sde)))


@lru_cache(maxsize=512)
def _verdict(keyed: Keyed) -> Verdict:
    sde = cast("SDE", keyed.function)
    t, y = _probes(sde.dimension)
    with np.errstate(all="ignore"):
        sigma = _matrix(sde, t, y)
        try:
            slope, tolerance = _exact_slopes(sde, t, y), 1e-10
        except InvalidInput:
            slope, tolerance = _differences(sde, t, y), 1e-5
        finite = np.isfinite(sigma).all(axis=(1, 2)) & np.isfinite(slope).all(axis=(1, 2, 3))
    if finite.sum() < _ENOUGH:
        unknown = f"its amplitudes are finite at {finite.sum()} of {_PROBES} probes, too few to judge them"
        return Verdict("general", unknown, unknown)
    sigma, slope = sigma[finite], slope[finite]
    matters = np.asarray(np.abs(slope) > tolerance * (np.abs(sigma)[..., None] + (tolerance > 1e-6)))
    dependence, coupled = _dependence(sde, np.asarray(matters.any(axis=0)))
    conflict = _conflict(sde, sigma, slope, tolerance)
    if not dependence:
        return Verdict("additive", "", "")
    if sde.noise == "diagonal" and not coupled:
        return Verdict("uncoupled", dependence, "")
    if sde.noise_dimension == 1:
        return Verdict("scalar", dependence, "")
    return Verdict("general" if conflict else "commuting", coupled or dependence, conflict)


def _probes(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Times (P,) and states (P, d): sizes spread evenly in the logarithm, half of the states positive."""
    generator = np.random.default_rng(20240229)
    size = 10.0 ** generator.uniform(-2, 3, (_PROBES, d))
    size[: _PROBES // 2] = generator.uniform(0.1, 2.0, (_PROBES // 2, d))
    sign = np.where(generator.random((_PROBES, d)) < 0.5, -1.0, 1.0)
    sign[::2] = 1.0
    return generator.uniform(0.1, 1.0, _PROBES), size * sign


def _matrix(sde: SDE, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sigma as (P, d, m)."""
    rows = sde.diffusion_at(t, tuple(y.T))  # type: ignore[arg-type]
    if sde.noise == "general":
        return np.stack([np.stack(row, axis=-1) for row in rows], axis=1)
    return np.stack(rows, axis=-1)[:, :, None] * np.eye(sde.dimension)


def _exact_slopes(sde: SDE, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The derivatives d sigma_ik / d y_l as (P, d, m, d)."""
    d, m = sde.dimension, sde.noise_dimension
    slopes = tangent.slopes_of_noise(sde.symbolic())
    values = np.zeros((_PROBES, d, m, d))
    if slopes:
        places = list(slopes)
        function = tangent.lambdify_components([slopes[place] for place in places], sde.symbolic())
        for (i, k, j), value in zip(places, function(t, tuple(y.T), sde.params, np), strict=True):
            values[:, i, k, j] = value
    return values


def _differences(sde: SDE, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    d = sde.dimension
    slopes = []
    for j in range(d):
        h = 6e-6 * np.maximum(1.0, np.abs(y[:, j]))
        up, down = y.copy(), y.copy()
        up[:, j] += h
        down[:, j] -= h
        slopes.append((_matrix(sde, t, up) - _matrix(sde, t, down)) / (up[:, j] - down[:, j])[:, None, None])
    return np.stack(slopes, axis=-1)


def _dependence(sde: SDE, matters: np.ndarray) -> tuple[str, str]:
    """The first dependence on the state, and the first on another component; `matters` is (d, m, d)."""
    found = [
        (i, j, f"the amplitude of component {sde.names[i]!r} depends on {sde.names[j]!r}")
        for i, j in np.argwhere(matters.any(axis=1))
    ]
    every = [text for _, _, text in found]
    coupled = [text for i, j, text in found if i != j]
    return (every or [""])[0], (coupled or [""])[0]


def _conflict(sde: SDE, sigma: np.ndarray, slope: np.ndarray, tolerance: float) -> str:
    """The first pair of Wiener processes that do not commute."""
    terms = np.einsum("plj,pikl->pijkl", sigma, slope)  # L^j b_i^k before the sum over l
    advanced, size = terms.sum(axis=-1), np.abs(terms).sum(axis=-1)
    gap = np.abs(advanced - advanced.swapaxes(2, 3)) > tolerance * (size + size.swapaxes(2, 3) + 1e-300)
    for i, j, k in np.argwhere(gap.any(axis=0)):
        return f"Wiener processes {j} and {k} do not commute in component {sde.names[i]!r}"
    return ""
