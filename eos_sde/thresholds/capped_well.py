"""The well in which gradient noise holds the sharpness under a capped learning rate, and the way out of it.

In the units X = x sqrt(beta/(2 alpha)), z = eta_base lambda the reduced CAEO map (`models.maps.caeo_map`) has three
numbers: the noise q = eta_base^2 beta sigma^2/(2 alpha), the speed e = eta_base^2 alpha, and delta:

    X+ = (1 - r z) X + r sqrt(q) xi,   z+ = z + e r (1 - X^2),   r = min(1, (2 - delta)/z).

With z held, X is a first-order autoregression with a = 1 - r z and E X^2 = m(z) = r^2 q/(1 - a^2), so that z has the
averaged drift e r (1 - m). Without the cap it rests at z = 1 + sqrt(1 - q); under it the drift is upward beyond
z_s = sqrt(q (2 - delta)/delta). Both meet at the cap where delta (2 - delta) = q.

The way up from the well to z_s is rare where e is small, and what makes it is X^2 staying small for long. Its
quasi-potential is exact: with theta the nonzero root of the cumulant generating function of r (1 - X^2) over many
steps, which for a Gaussian autoregression is in closed form, p = log(G)/(2 r) with

    (G - 1)(G - a^2) = r^2 q G log(G),   G != 1,

and the rate falls as exp(-integral of p dz / e). The diffusion below is the one whose Fokker-Planck equation has this
quasi-potential; at m = 1 it is that of the central limit theorem, 2 e^2 r^2 m^2 (1 + a^2)/(1 - a^2). The latter
everywhere would give far too many escapes, because X^2 has a long upper tail and none below 0. The drift contains the
second order of averaging (Poisson equation of the autoregression), in the Ito reading.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eos_sde.models.capped_rate import capped_rate
from solvers import SDE, FokkerPlanck, Grid, TransferOperator, mean_first_passage_time

DEVIATIONS = (
    5.0  # above the plateau, in standard deviations sqrt(e) of z there: what has passed them has run away
)
_DROP = 3.0  # units of quasi-potential below the top of the barrier: e^-3 of what is there would return
_LOWEST = 1.0  # of z: below half the edge the autoregression no longer alternates, and the well has ended
_CELLS_PER_DEVIATION, _FEWEST, _MOST = 10, 1200, 4000
_BISECTIONS = 60
_REACH = 4.5  # of |X|: its stationary mean square is about 1
_HIGHEST = 600.0  # barrier whose rate is still a floating-point number


class CappedWell(NamedTuple):
    """The reduced CAEO map in its own units.

    Attributes
    ----------
    noise : float
        q = eta_base^2 beta sigma^2/(2 alpha), >= 0.
    speed : float
        e = eta_base^2 alpha, > 0.
    delta : float
        Margin of the rule, < 2.
    """

    noise: float
    speed: float
    delta: float

    @property
    def plateau(self) -> float:
        """The z at which noise holds the sharpness without the cap, 1 + sqrt(1 - q); nan for q > 1, where it falls."""
        return 1.0 + math.sqrt(1.0 - self.noise) if self.noise <= 1 else math.nan

    @property
    def separatrix(self) -> float:
        """The z beyond which the capped rate lets the sharpness rise; inf for delta <= 0."""
        return math.sqrt(self.noise * (2.0 - self.delta) / self.delta) if self.delta > 0 else math.inf

    @property
    def least_wall(self) -> float:
        """The z that the fluctuations about the plateau do not reach: five standard deviations above it."""
        return self.plateau + DEVIATIONS * math.sqrt(self.speed)

    def step(self, x: NDArray, z: NDArray, xi: NDArray) -> tuple[NDArray, NDArray]:
        """One step of the map.

        Parameters
        ----------
        x, z, xi : ndarray
            X, z, and standard normals.

        Returns
        -------
        x, z : ndarray
        """
        r = capped_rate(1.0, z, self.delta, np)
        return (1 - r * z) * x + r * np.sqrt(self.noise) * xi, z + self.speed * r * (1 - np.square(x))

    def rates(self, z: NDArray) -> tuple[NDArray, NDArray]:
        """Averaged drift of z, and the diffusion with the exact quasi-potential.

        Parameters
        ----------
        z : ndarray
            Positive.

        Returns
        -------
        drift, diffusion : ndarray
            Per step; the diffusion is a variance.
        """
        q, e, edge = self.noise, self.speed, 2.0 - self.delta
        capped = z > edge
        r = np.where(capped, edge / z, 1.0)
        a = 1.0 - r * z
        left = 1.0 - a * a
        m = r * r * q / left
        # derivatives along z of r, a^2, m and r/(1 - a^2)
        dr = np.where(capped, -r / z, 0.0)
        da2 = np.where(capped, 0.0, -2.0 * a)
        dm = 2 * r * dr * q / left + r * r * q * da2 / left**2
        dweight = dr / left + r * da2 / left**2
        mean = r * (1 - m)
        drift = e * mean + e * e * (mean * r * dm / left + 2 * m * m * a * a * r * dweight)
        size, kick = np.maximum(np.abs(a), 1e-300), np.maximum(r * r * q, 1e-300)
        root = _log_root(kick, size * size)
        # for G < |a| X^2 has no such exponential moment: the largest that it has stands in
        root = np.where(root < np.log(size), -((1 - size) ** 2) / kick, root)
        near = np.abs(m - 1) < 1e-5  # the ratio below is 0/0 there
        ratio = (m - 1) / np.where(near, 1.0, root)
        diffusion = e * e * r * r * np.where(near, 2 * (1 + a * a) / left, 4 * ratio)
        return drift, diffusion

    def wall(self) -> float:
        """The z from which nothing comes back: beyond the fluctuations and well beyond the separatrix."""
        least, top = self.least_wall, self.separatrix
        if not top > 2.0 - self.delta:
            return max(least, 2.0 - self.delta)
        low = top
        while True:
            z = np.linspace(low, low + max(1.0, top), 400)
            drift, diffusion = self.rates(z)
            fall = np.concatenate([[0.0], np.cumsum((drift / diffusion)[1:] + (drift / diffusion)[:-1])])
            fall *= z[1] - z[0]
            if fall[-1] >= _DROP:
                return max(least, float(np.interp(_DROP, fall, z)))
            if low > 100 * top:  # the fall is slower than any wall: count what has passed the separatrix
                return max(least, top)
            top = low = float(z[-1])

    def averaged(self, wall: float) -> FokkerPlanck:
        """Fokker-Planck operator of z from half the edge to the wall, which absorbs.

        Parameters
        ----------
        wall : float
            Above 1.

        Returns
        -------
        FokkerPlanck
        """

        def drift(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
            return (self.rates(y[0])[0],)

        def diffusion(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
            return (np.sqrt(self.rates(y[0])[1]),)

        sde = SDE(drift, diffusion, names=("z",), convention="ito")
        grid = Grid(z=self._edges(wall))
        return FokkerPlanck(sde, grid, boundary={"z": ("reflecting", "absorbing")}, allow_wall_mass=True)

    def kernel(self, wall: float, cells: tuple[int, int]) -> TransferOperator:
        """Transfer operator of one step of the map itself, in (|X|, z): the map has no preferred sign of X.

        Parameters
        ----------
        wall : float
            Above 1; absorbs.
        cells : (int, int)
            Along |X| and z.

        Returns
        -------
        TransferOperator
        """
        q, e, delta = self.noise, self.speed, self.delta

        def move(size: NDArray, z: NDArray) -> Any:
            r = capped_rate(1.0, z, delta, np)
            return np.abs(1 - r * z) * size, z + e * r * (1 - size * size)

        def spread(size: NDArray, z: NDArray) -> Any:
            return math.sqrt(q) * capped_rate(1.0, z, delta, np) + 0 * size, 0 * z

        grid = Grid.uniform(X=(0.0, _REACH, cells[0]), z=(_LOWEST, wall, cells[1]))
        walls = {"X": ("reflecting", "reflecting"), "z": ("reflecting", "absorbing")}
        return TransferOperator.of_map(move, spread, grid, boundary=walls, allow_wall_mass=True)

    def escape_rate(self, *, method: str = "averaged", cells: tuple[int, int] = (40, 120)) -> float:
        """Rate at which the sharpness leaves the well upwards, per step: one over the mean time from the plateau.

        Behind a barrier this is the quasi-stationary rate; where none is left, one over the time of the rise.

        Parameters
        ----------
        method : {"averaged", "map"}
            Fokker-Planck operator of z alone, or transfer operator of (|X|, z) from the stationary X at the plateau.
        cells : (int, int)
            Of the latter.

        Returns
        -------
        float
            0 for delta <= 0: under a cap beyond the edge the oscillation grows until the sharpness falls. 0 also
            where it is below 1e-260.
        """
        if self.delta <= 0:
            return 0.0
        wall = self.wall()
        if self.noise == 0:  # nothing holds z: from the cap on z^2 grows linearly
            edge = 2.0 - self.delta
            steps = max(edge - _LOWEST, 0.0) + max(wall**2 - max(edge, _LOWEST) ** 2, 0.0) / (2 * edge)
            return self.speed / steps
        if method == "averaged":
            return self._averaged_rate(wall)
        times = mean_first_passage_time(self.kernel(wall, cells)).sel(z=self.plateau, method="nearest")
        weight = np.exp(-0.5 * times["X"].values ** 2)  # E X^2 = 1 at the plateau
        return float(weight.sum() / (weight @ times.values))

    def _averaged_rate(self, wall: float) -> float:
        """One over the mean time of `averaged` from the plateau, by its double integral (Gardiner, section 5.2.7)."""
        edges = self._edges(wall)
        width, middle = np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
        drift, diffusion = self.rates(middle)
        rise = -2 * drift / diffusion * width
        potential = np.cumsum(rise) - 0.5 * rise
        potential -= potential.min()
        above = middle >= self.plateau
        if potential[above].max() > _HIGHEST:
            return 0.0
        weight = np.exp(-potential) / diffusion * width
        held = np.cumsum(weight) - 0.5 * weight
        return 1.0 / float(2 * np.sum((np.exp(np.where(above, potential, 0.0)) * held * width)[above]))

    def _edges(self, wall: float) -> NDArray:
        """Edges of cells from half the edge to the wall, with the plateau and the cap among them."""
        inner = [z for z in (self.plateau, 2.0 - self.delta) if _LOWEST < z < wall]
        ends = np.unique([_LOWEST, *inner, wall])
        cells = _CELLS_PER_DEVIATION * (wall - _LOWEST) / math.sqrt(self.speed)
        width = (wall - _LOWEST) / min(max(cells, _FEWEST), _MOST)
        pieces = [
            np.linspace(a, b, max(math.ceil((b - a) / width), 4) + 1)[:-1]
            for a, b in itertools.pairwise(ends)
        ]
        return np.concatenate([*pieces, [wall]])


def _log_root(kick: NDArray, a2: NDArray) -> NDArray:
    """Logarithm of G in (G - 1)(G - a^2) = kick G log G with G != 1, G > a^2; 0 where kick = 1 - a^2."""
    low = np.log(np.maximum(a2, 1e-300)) * np.ones_like(kick)
    high = np.full_like(low, 1.0)

    def level(root: NDArray) -> NDArray:
        safe = np.where(np.abs(root) < 1e-12, 1e-12, root)
        return -np.expm1(-safe) * (np.exp(safe) - a2) / safe

    # increasing from 0 at G = a^2
    while np.any(short := level(high) < kick):
        high = np.where(short, 2 * high, high)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = level(middle) < kick
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)
