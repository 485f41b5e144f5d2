"""The discrete rules themselves, with Gaussian noise: the ground truth of every continuous model.

Each is one Euler-Maruyama step of an Ito SDE. That SDE comes along (`NoisyMap.as_sde`), so that a transfer
operator or a compiled simulation with the step `NoisyMap.dt` *is* the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from eos_sde.models.arguments import count, finite, non_negative, positive
from eos_sde.models.capped_rate import capped_rate
from eos_sde.models.landscapes import LineLoss, line_loss
from eos_sde.models.normal_forms import SelfStabilization, _self_stabilization_params
from eos_sde.models.sme import gradient_flow
from solvers import memory
from solvers.errors import InvalidInput
from solvers.provenance import provenance
from solvers.sde import SDE

__all__ = [
    "NoisyMap",
    "caeo_map",
    "catapult_map",
    "line_map",
    "loss_map",
    "quadratic_map",
    "self_stabilization_map",
]


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


def quadratic_map(eta: float, curvature: float, noise: float) -> NoisyMap:
    """SGD on h x^2/2: x+ = (1 - eta h) x + eta s xi.

    Parameters
    ----------
    eta : float
        Learning rate, > 0.
    curvature : float
        h.
    noise : float
        s >= 0, standard deviation of the gradient noise.

    Returns
    -------
    NoisyMap
        With ``dt = eta``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    return NoisyMap("quadratic map", gradient_flow(curvature=curvature, eta=eta, noise=noise), float(eta))


def line_map(
    eta: float, noise: float, *, curvature: float, third: float = 0.0, fourth: float = 0.0
) -> NoisyMap:
    """SGD on the loss along a line, h x^2/2 + f3 x^3/6 + f4 x^4/24: x+ = x - eta f'(x) + eta s xi.

    Parameters
    ----------
    eta : float
        Learning rate, > 0.
    noise : float
        s >= 0, standard deviation of the gradient noise.
    curvature, third, fourth : float
        Derivatives of the loss at 0.

    Returns
    -------
    NoisyMap
        With ``dt = eta``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    return loss_map(line_loss, eta, noise, params=LineLoss(curvature, third, fourth))


def loss_map(
    potential: Callable[..., Any],
    eta: float,
    noise: float | Callable[..., Any],
    *,
    params: Any = None,
    names: Sequence[str] = ("x",),
) -> NoisyMap:
    """SGD with Gaussian noise on any loss: y+ = y - eta grad L(y) + eta sigma(y) xi.

    Parameters
    ----------
    potential, eta, noise, params, names
        As for `eos_sde.models.gradient_flow`.

    Returns
    -------
    NoisyMap
        With ``dt = eta``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    return NoisyMap(
        "SGD map", gradient_flow(potential, eta=eta, noise=noise, params=params, names=names), float(eta)
    )


def self_stabilization_map(alpha: float, beta: float, eta: float, noise: float = 0.0) -> NoisyMap:
    """Damian, Nichani and Lee's map: x+ = -(1 + eta y) x + eta s xi, y+ = y + eta (alpha - beta x^2/2).

    Parameters
    ----------
    alpha, beta, eta, noise
        As for `eos_sde.models.self_stabilization`; here x is the displacement along u itself, which changes
        sign at every step.

    Returns
    -------
    NoisyMap
        With ``dt = 1``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.

    References
    ----------
    arXiv:2209.15594, eq. 3; stationary sharpness gap -E y = (eta beta/(4 alpha)) [s^2 + (beta/2) Var x^2 +
    E x^2 y^2], from the stationarity of E x^2 and E y^2.
    """
    params = _self_stabilization_params(alpha, beta, eta, noise)
    sde = SDE(_alternating_drift, _stabilization_noise, params=params, names=("x", "y"), convention="ito")
    return NoisyMap("self-stabilization map", sde, 1.0)


def _alternating_drift(t: float, y: Any, p: SelfStabilization, xp: Any) -> Any:  # noqa: ARG001
    x, excess = y
    return (-(2.0 + p.eta * excess) * x, p.eta * (p.alpha - 0.5 * p.beta * x * x))


def _stabilization_noise(t: float, y: Any, p: SelfStabilization, xp: Any) -> Any:  # noqa: ARG001
    return (p.eta * p.noise, 0.0)


class Caeo(NamedTuple):
    """Parameters of the reduced CAEO map."""

    eta_base: float
    delta: float
    alpha: float
    beta: float
    noise: float


def caeo_map(
    eta_base: float, *, delta: float = 0.1, alpha: float, beta: float, noise: float = 0.0
) -> NoisyMap:
    """The reduced CAEO rule: eta_t = min(eta_base, (2 - delta)/S) in the self-stabilization map.

    x+ = (1 - eta_t S) x + eta_t s xi, S+ = S + eta_t (alpha - beta x^2/2), S the sharpness itself. For S <= 0
    the rate is eta_base.

    Parameters
    ----------
    eta_base : float
        Uncapped learning rate, > 0.
    delta : float
        Distance kept from the edge, < 2; 0 rests on it, a negative value allows the oscillation.
    alpha, beta, noise
        As for `eos_sde.models.self_stabilization`.

    Returns
    -------
    NoisyMap
        Components "x" and "S", with ``dt = 1``.

    Raises
    ------
    InvalidInput
        If an argument is out of range; delta >= 2 would stop or reverse training.
    """
    margin = finite("delta", delta)
    if margin >= 2:
        raise InvalidInput(f"delta={margin} makes the learning rate zero or negative; give delta < 2")
    params = Caeo(
        positive("eta_base", eta_base),
        margin,
        positive("alpha", alpha, "the reduced model needs progressive sharpening, alpha > 0"),
        positive("beta", beta, "the reduced model needs a sharpness gradient, beta > 0"),
        non_negative("noise", noise, "give the standard deviation of the gradient noise, >= 0"),
    )
    sde = SDE(_caeo_drift, _caeo_noise, params=params, names=("x", "S"), convention="ito")
    return NoisyMap("CAEO map", sde, 1.0)


def _caeo_drift(t: float, y: Any, p: Caeo, xp: Any) -> Any:  # noqa: ARG001
    x, sharpness = y
    rate = capped_rate(p.eta_base, sharpness, p.delta, xp)
    return (-rate * sharpness * x, rate * (p.alpha - 0.5 * p.beta * x * x))


def _caeo_noise(t: float, y: Any, p: Caeo, xp: Any) -> Any:  # noqa: ARG001
    return (capped_rate(p.eta_base, y[1], p.delta, xp) * p.noise, 0.0)


class Catapult(NamedTuple):
    """Parameters of the catapult map."""

    eta: float
    width: float


def catapult_map(eta: float, width: float) -> NoisyMap:
    """Gradient descent on (v.u)^2/(2 n): f+ = f (1 - eta l + eta^2 f^2/n), l+ = l + (eta f^2/n)(eta l - 4).

    f is the output of the two-layer linear network v.u/sqrt(n) on one example with target 0, l its tangent kernel
    (|u|^2 + |v|^2)/n, which is the sharpness where f = 0; a state of the network has l >= 2 |f|/sqrt(n). From a small
    f it converges without leaving for eta l < 2, leaves and lands where eta l < 2 from there to eta l = 4, and
    diverges beyond. eta l < 4 never diverges, from any state: l falls, so that eta f^2/n <= eta l^2/4 stays bounded.

    Parameters
    ----------
    eta : float
        Learning rate, > 0.
    width : float
        n > 0.

    Returns
    -------
    NoisyMap
        Components "f", "l", without noise; ``dt = eta``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.

    References
    ----------
    Lewkowycz et al. 2020, arXiv:2003.02218, section 2.
    """
    params = Catapult(positive("eta", eta), positive("width", width))
    sde = SDE(_catapult_drift, _no_noise, params=params, names=("f", "l"), convention="ito")
    return NoisyMap("catapult map", sde, params.eta)


def _catapult_drift(t: float, y: Any, p: Catapult, xp: Any) -> Any:  # noqa: ARG001
    f, kernel = y
    size = f * f / p.width
    return (f * (p.eta * size - kernel), size * (p.eta * kernel - 4.0))


def _no_noise(t: float, y: Any, p: Catapult, xp: Any) -> Any:  # noqa: ARG001
    return (0.0, 0.0)
