"""Fokker-Planck operators whose coefficients depend on time, and steps of order 4 that keep their structure."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sps

from solvers.boundary import Boundary
from solvers.chain import Chain
from solvers.errors import AccuracyWarning, ConvergenceFailure, InvalidInput
from solvers.exponential_choice import exponential
from solvers.exponentials import Exponential, Side
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.request import refuse_other
from solvers.sde import SDE

# Gauss points, and the share of each in the two exponentials (Thalhammer 2006, SIAM J. Numer. Anal. 44, 851)
_NODES = (0.5 - np.sqrt(3) / 6, 0.5 + np.sqrt(3) / 6)
_NEAR, _FAR = 0.25 + np.sqrt(3) / 6, 0.25 - np.sqrt(3) / 6
# Ends of a step as seen from inside, where a schedule may jump.
_INSIDE = 1e-6
_SMALLEST = 2.0**-40


class TimeDependentFokkerPlanck:
    """Generator of the density of an SDE whose drift or diffusion depends on time, such as a schedule.

    At every time it is the `FokkerPlanck` operator of the model as it is then: a rate matrix on the same
    cells. `evolve` and `evolve_backward` take it; everything that asks for a fixed operator takes ``.at(t)``.

    Parameters
    ----------
    sde : SDE
        Its drift, diffusion or potential may use t; they are read at single times.
    grid, boundary, flux, allow_wall_mass
        As for `FokkerPlanck`.

    Raises
    ------
    InvalidInput
        As `FokkerPlanck` does, here and at every time that is visited.

    Examples
    --------
    >>> from solvers import SDE, Grid
    >>> decay = SDE(lambda t, y, p, xp: (-y[0] / (1 + t),), lambda t, y, p, xp: (1 / (1 + t),), convention="ito")
    >>> fp = TimeDependentFokkerPlanck(decay, Grid.uniform(x=(-4, 4, 100)))
    >>> bool(fp.at(1.0).generator[0, 0] > fp.at(0.0).generator[0, 0])
    True
    """

    def __init__(
        self,
        sde: Any,
        grid: Grid,
        *,
        boundary: Boundary = "reflecting",
        flux: str = "scharfetter-gummel",
        allow_wall_mass: bool = False,
    ):
        refuse_other(sde, SDE, "sde")
        refuse_other(grid, Grid, "grid")
        self.sde, self.grid = sde, grid
        self._settings = {"boundary": boundary, "flux": flux, "allow_wall_mass": allow_wall_mass}
        # symbolic differentiation once, not at every time
        self._model = sde.to("ito") if sde.noise == "general" else sde

    def at(self, time: float) -> FokkerPlanck:
        """The operator with the coefficients of one time."""
        return FokkerPlanck(_frozen(self._model, float(time)), self.grid, **self._settings)

    def __repr__(self) -> str:
        return f"TimeDependentFokkerPlanck({self.grid!r}, convention={self.sde.convention!r})"


def _frozen(sde: SDE, time: float) -> SDE:
    """The model with t fixed."""
    new = copy.copy(sde)
    drift, diffusion, potential = sde.drift, sde.diffusion, sde.potential
    new.drift = lambda t, y, p, xp: drift(time, y, p, xp)  # noqa: ARG005
    new.diffusion = lambda t, y, p, xp: diffusion(time, y, p, xp)  # noqa: ARG005
    if potential is not None:
        new.potential = lambda t, y, p, xp: potential(time, y, p, xp)  # noqa: ARG005
    new._traced = None
    return new


class CommutatorFreeSteps:
    """x' = L(t) x, or backwards in time x' = L(end - t)^T x, by two exponentials per step.

    With L1, L2 the generators at the Gauss points of a step s, it is

        exp(s (b L1 + a L2)) exp(s (a L1 + b L2)),    a, b = 1/4 +- sqrt(3)/6,

    of order 4 (Blanes and Moan 2006, Appl. Numer. Math. 56, 1519; Thalhammer 2006). b = -0.039 is so small
    that both combinations are rate matrices unless a rate changes 14-fold between the points; where one does
    (a schedule with a jump), s (L1 + L2) / 2, of order 2, takes the place of both. So positivity, mass and the
    maximum principle hold in every step. Each step is compared with two of half the size, and the Gauss points
    with Simpson's rule, which sees jumps of a schedule near the ends of the step; the larger difference sets it.

    Parameters
    ----------
    chain_at : callable
        The chain at a time.
    side : Side
    allowed : float
        Largest difference per step, in the side's norm.
    method : str
        For the exponentials.
    """

    def __init__(self, chain_at: Callable[[float], Chain], side: Side, allowed: float, method: str):
        self._chain_at, self._side, self._allowed, self._method = chain_at, side, allowed, method
        self._counts: dict[str, int] = {"steps": 0, "rejected": 0, "assemblies": 0, "reduced": 0}

    def __call__(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Rows: the solution at increasing positive times."""
        result, done, now, last = np.empty((len(times), len(x))), 0, 0.0, float(times[-1])
        step = last / 8
        while done < len(times):
            step = min(step, last - now)
            if step >= (last - now) * (1 - 1e-9):
                step = last - now
            gauss = self._chains(now, step, _NODES)
            coarse = self.step(x, now, step, gauss)
            fine = self.step(self.step(x, now, 0.5 * step), now + 0.5 * step, 0.5 * step)
            error = max(self._side.norm(coarse - fine), self._unseen(fine, now, step, gauss))
            factor = 0.9 * (self._allowed / max(error, 1e-300)) ** 0.2
            if error > self._allowed:
                self._counts["rejected"] += 1
                step *= max(0.1, factor)
                if step < _SMALLEST * last:
                    raise ConvergenceFailure(
                        f"the step fell to {step:.2g} at {now:.6g} with error {error:.2g}; use a larger tol"
                    )
                continue
            self._counts["steps"] += 1
            end = last if step == last - now else now + step
            while done < len(times) and times[done] <= end:
                # from the start of the step: output times do not shorten steps
                part = float(times[done]) - now
                result[done] = fine if times[done] == end else self.step(x, now, part)
                done += 1
            x, now = fine, end
            step *= min(4.0, max(0.2, factor))
        return result

    def step(self, x: np.ndarray, now: float, step: float, gauss: list[Chain] | None = None) -> np.ndarray:
        """One step, with the chains at its Gauss points if they are known."""
        if step == 0:
            return x
        first, second = gauss or self._chains(now, step, _NODES)
        chains = [_combined(first, second, _NEAR, _FAR), _combined(first, second, _FAR, _NEAR)]
        if any(chain is None for chain in chains):
            self._counts["reduced"] += 1
            chains = [_combined(first, second, 0.5, 0.5)]
        for chain in chains:
            assert chain is not None
            if chain.outflow.any() or chain.extra is not None:
                solver: Exponential = exponential(chain, self._side, 0.1 * self._allowed, self._method)
                x = solver(x, np.array([step]))[0]
        return x

    def _chains(self, now: float, step: float, shares: tuple[float, ...]) -> list[Chain]:
        self._counts["assemblies"] += len(shares)
        return [self._chain_at(now + share * step) for share in shares]

    def _unseen(self, x: np.ndarray, now: float, step: float, gauss: list[Chain]) -> float:
        """Norm of step * (mean L by Simpson's rule - mean L by Gauss') x."""
        simpson = self._chains(now, step, (_INSIDE, 0.5, 1 - _INSIDE))
        mean = list(zip((*simpson, *gauss), (1 / 6, 2 / 3, 1 / 6, -0.5, -0.5), strict=True))
        forward, backward, loss = (
            sum(weight * getattr(chain, name) for chain, weight in mean)
            for name in ("forward", "backward", "loss")
        )
        first, second = gauss[0].first, gauss[0].second
        if self._side.transposed:
            rise = x[second] - x[first]
            change = np.bincount(first, forward * rise, len(x)) - np.bincount(second, backward * rise, len(x))
        else:
            flow = forward * x[first] - backward * x[second]
            change = np.bincount(second, flow, len(x)) - np.bincount(first, flow, len(x))
        change -= loss * x
        for chain, weight in mean:
            if chain.extra is not None:
                extra = chain.extra.T if self._side.transposed else chain.extra
                change += weight * (extra @ x)
        return step * self._side.norm(change)

    def told(self) -> dict[str, Any]:
        """Attributes: what it took."""
        return self._counts


def _combined(first: Chain, second: Chain, a: float, b: float) -> Chain | None:
    """The chain with rates a * first + b * second; None if one would be negative."""
    rates = [a * getattr(first, name) + b * getattr(second, name) for name in ("forward", "backward", "loss")]
    if any(rate.min(initial=0.0) < 0 for rate in rates):
        return None
    extra = None
    if first.extra is not None and second.extra is not None:
        extra = sps.csr_array(a * first.extra + b * second.extra)
    return replace(first, forward=rates[0], backward=rates[1], loss=rates[2], log_weights=None, extra=extra)


def chains(fp: TimeDependentFokkerPlanck, t0: float) -> Callable[[float], Chain]:
    """The chain at t0 + time, with warnings and choices of the stencil as at t0."""
    start = fp.at(t0).chain

    def chain_at(time: float) -> Chain:
        with warnings.catch_warnings():  # said once, at t0
            warnings.simplefilter("ignore", AccuracyWarning)
            chain = fp.at(t0 + time).chain
        if not (np.array_equal(chain.first, start.first) and (chain.extra is None) == (start.extra is None)):
            raise InvalidInput(
                f"the noise is correlated at one time and not at another (t={t0:g}, t={t0 + time:g}), so the "
                "stencil changes; use noise='general' with one structure at all times"
            )
        return chain

    return chain_at
