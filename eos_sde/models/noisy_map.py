"""A discrete rule with Gaussian noise: the type that the exact rules share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.models.arguments import count
from solvers import memory
from solvers.errors import InvalidInput
from solvers.provenance import provenance
from solvers.sde import SDE


@dataclass(frozen=True)
class NoisyMap:
    """y+ = y + a(y) dt + sigma(y) sqrt(dt) xi with standard normal xi: one step of a training rule.

    Attributes
    ----------
    name : str
        What it is.
    sde : SDE
        a and sigma, convention Ito, diagonal noise.
    dt : float
        The step, in the time unit of the SDE.
    """

    name: str
    sde: SDE
    dt: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components."""
        return self.sde.names

    def as_sde(self) -> SDE:
        """The Ito SDE whose Euler-Maruyama step of size `dt` is this map."""
        return self.sde

    def step(self, state: Sequence[Any], xi: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """One step of an ensemble.

        Parameters
        ----------
        state : d-tuple of arrays
            One array per component, of the ensemble's shape.
        xi : d-tuple of arrays
            Standard normals; those of a component without noise are ignored.

        Returns
        -------
        d-tuple of arrays
            The next state.
        """
        drift, diffusion = self.sde.drift_at(0.0, tuple(state)), self.sde.diffusion_at(0.0, tuple(state))
        root = math.sqrt(self.dt)
        return tuple(
            np.asarray(y) + a * self.dt + (root * s) * noise
            for y, a, s, noise in zip(state, drift, diffusion, xi, strict=True)
        )

    def iterate(
        self, state: Sequence[Any], *, steps: int, paths: int = 1, seed: int, save_every: int = 1
    ) -> xr.Dataset:
        """Run an ensemble.

        The normals come from one `numpy.random.Philox` stream per call, keyed by `seed`; step after step all
        components of all paths. (For large ensembles use `solvers.simulate(m.as_sde(), ..., dt=m.dt)`.)

        Parameters
        ----------
        state : sequence of d numbers or arrays of shape (paths,)
            Initial state.
        steps, paths : int
            Number of steps and of independent copies.
        seed : int
            At least 0.
        save_every : int
            Keep every so many steps, beginning with step 0.

        Returns
        -------
        xarray.Dataset
            ``state(path, step, component)`` and ``diverged(path)``, true where a value overflowed; the later
            states of such a path are inf or nan.

        Raises
        ------
        InvalidInput
            If the start is not finite or of the wrong shape, a count is out of range, or the result would not
            fit in memory.
        """
        steps, paths = count("steps", steps, least=0), count("paths", paths)
        seed, save_every = count("seed", seed, least=0), count("save_every", save_every)
        d, saved = len(self.names), steps // save_every + 1
        memory.require(
            paths * saved * d * 8,
            f"a run of {paths} paths with {saved} saved states each",
            "raise save_every",
        )
        current = self._start(state, paths)
        generator = np.random.Generator(np.random.Philox(key=seed))
        kept = np.empty((paths, saved, d))
        kept[:, 0] = np.stack(current, axis=-1)
        with np.errstate(over="ignore", invalid="ignore"):
            for k in range(1, steps + 1):
                current = self.step(current, tuple(generator.standard_normal((d, paths))))
                if k % save_every == 0:
                    kept[:, k // save_every] = np.stack(current, axis=-1)
            diverged = ~np.all(np.isfinite(current), axis=0)
        return xr.Dataset(
            {
                "state": (("path", "step", "component"), kept, {"units": "1", "long_name": "state"}),
                "diverged": (
                    "path",
                    diverged,
                    {"units": "1", "long_name": "left the floating-point numbers"},
                ),
            },
            coords={
                "step": ("step", np.arange(saved) * save_every, {"units": "1", "long_name": "step"}),
                "component": list(self.names),
            },
            attrs=provenance(model=self.name, convention="ito", seed=seed, step=self.dt),
        )

    def _start(self, state: Sequence[Any], paths: int) -> tuple[np.ndarray, ...]:
        if len(state) != len(self.names):
            raise InvalidInput(
                f"state has {len(state)} components; give one number or array for each of {self.names}"
            )
        arrays = []
        for name, value in zip(self.names, state, strict=True):
            array = np.asarray(value, dtype=float)
            if array.shape not in {(), (paths,)} or not np.all(np.isfinite(array)):
                raise InvalidInput(
                    f"state of {name!r} must be a finite number or an array of {paths} finite numbers"
                )
            arrays.append(np.broadcast_to(array, (paths,)).copy())
        return tuple(arrays)
