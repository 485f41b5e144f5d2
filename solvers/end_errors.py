"""Errors of a scheme at the end of a run, per batch of paths and number of steps: the data of an order fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from solvers import weak_increments, wiener
from solvers.errors import InvalidInput
from solvers.given_noise import coarsen_integrals, drive

if TYPE_CHECKING:
    from solvers.schemes import Draws, Scheme
    from solvers.sde import SDE
    from solvers.vector_form import VectorSDE

BATCHES = 20
_REFINEMENT = 16
_ENTRIES = 1 << 21
"""Increments held at once."""
_NODES = 100
_LATTICE = 1 << 22
"""Largest number of points of the sum of two-point or three-point numbers."""


@dataclass(frozen=True)
class Study:
    """One question of order; the arguments are those of `estimate_order`, checked.

    Attributes
    ----------
    counts : ndarray of int
        Numbers of steps, increasing; each divides the last.
    per_batch : int
        Paths in each of the batches.
    """

    sde: SDE | VectorSDE
    scheme: Scheme
    draws: Draws
    start: np.ndarray
    t0: float
    t1: float
    counts: np.ndarray
    per_batch: int
    seed: int
    exact: Callable[..., Any] | None
    observable: Callable[..., Any] | None
    expected: float | None

    @property
    def dt(self) -> np.ndarray:
        """Steps that belong to `counts`."""
        return (self.t1 - self.t0) / self.counts

    @property
    def refined(self) -> bool:
        """Whether the scheme itself on a finer step stands for the truth."""
        return self.exact is None and self.expected is None

    @property
    def reference_dt(self) -> float:
        """Step of the reference; 0 if the truth is known."""
        return float(self.dt[-1]) / _REFINEMENT if self.refined else 0.0

    def noise(self, steps: int) -> Iterator[tuple[int, np.ndarray]]:
        """Batch and numbers (paths, steps, sum(draws)) of its paths, as many as may be held."""
        size = max(1, min(self.per_batch, _ENTRIES // (steps * sum(self.draws))))
        dt = (self.t1 - self.t0) / steps
        for batch in range(BATCHES):
            for low in range(0, self.per_batch, size):
                number, first = min(size, self.per_batch - low), batch * self.per_batch + low
                yield (
                    batch,
                    weak_increments.drawn(self.draws, self.seed, number, steps, dt, first_path=first),
                )

    def coarsened(self, dw: np.ndarray, factor: int) -> np.ndarray:
        """The same Brownian paths on longer steps."""
        if self.draws.gaussian == 2 * self.sde.noise_dimension:
            return coarsen_integrals(dw, factor)
        return wiener.coarsen(dw, factor)

    def end(self, dw: np.ndarray) -> np.ndarray:
        """End points (paths, d) of the scheme."""
        dt = (self.t1 - self.t0) / dw.shape[1]
        paths = drive(self.sde, self.start, dw, dt=dt, t0=self.t0, scheme=self.scheme.name, every_step=False)
        return paths.values[:, 0]

    def solution(self, w: tuple[np.ndarray, ...]) -> np.ndarray:
        """End points (paths, d) of the exact solution for the end values w of the Wiener processes."""
        assert self.exact is not None
        ends = self.exact(self.t1, tuple(self.start), w, self.sde.params)
        return np.stack([np.broadcast_to(c, w[0].shape) for c in ends], axis=-1)

    def walked(self, dw: np.ndarray) -> tuple[np.ndarray, ...]:
        """End values of the m Wiener processes, or of the walks that stand for them."""
        return tuple(dw[:, :, : self.sde.noise_dimension].sum(axis=1).T)

    def observed(self, states: np.ndarray) -> np.ndarray:
        """The observable of end points (paths, d)."""
        return states[:, 0] if self.observable is None else np.asarray(self.observable(tuple(states.T)))


def strong_errors(study: Study) -> np.ndarray:
    """Mean distance of the end points, (batches, counts)."""
    fine = int(study.counts[-1]) * (_REFINEMENT if study.refined else 1)
    errors = np.zeros((BATCHES, study.counts.size))
    for batch, dw in study.noise(fine):
        truth = study.end(dw) if study.exact is None else study.solution(study.walked(dw))
        for k, n in enumerate(study.counts):
            gap = study.end(study.coarsened(dw, fine // int(n))) - truth
            errors[batch, k] += np.sqrt((gap**2).sum(axis=-1)).sum() / study.per_batch
    return errors


def weak_errors(study: Study) -> np.ndarray:
    """Mean error of the observable with its noise reduced, (batches, counts)."""
    if study.draws.gaussian and study.expected is None:
        return _on_one_path(study)
    return np.stack([_on_own_numbers(study, int(n)) for n in study.counts], axis=1)


def _on_one_path(study: Study) -> np.ndarray:
    """All numbers of steps and the truth on the same Brownian paths."""
    fine = int(study.counts[-1]) * (_REFINEMENT if study.refined else 1)
    sums = [_Regression() for _ in study.counts]
    for batch, dw in study.noise(fine):
        if study.exact is None:
            truths = [study.observed(study.end(sign * dw)) for sign in (1.0, -1.0)]
        else:
            w = study.walked(dw)
            truths = [study.observed(study.solution(tuple(sign * v for v in w))) for sign in (1.0, -1.0)]
        for n, into in zip(study.counts, sums, strict=True):
            coarse = study.coarsened(dw, fine // int(n))
            gaps = [
                study.observed(study.end(sign * coarse)) - truth
                for sign, truth in zip((1.0, -1.0), truths, strict=True)
            ]
            into.add(batch, 0.5 * (gaps[0] + gaps[1]), _controls(study, coarse))
    return np.stack([into.means() for into in sums], axis=1)


def _on_own_numbers(study: Study, steps: int) -> np.ndarray:
    """One number of steps against an expectation; numbers need not have a limit on a path."""
    truth = _normal_expectation(study) if study.expected is None else study.expected
    shift = 0.0 if study.exact is None else _walk_expectation(study, steps)
    into = _Regression()
    for batch, dw in study.noise(steps):
        value = 0.0
        for sign in (0.5, -0.5):
            mirrored = 2.0 * sign * dw
            value = value + 0.5 * study.observed(study.end(mirrored))
            if study.exact is not None:
                value = value - 0.5 * study.observed(study.solution(study.walked(mirrored)))
        into.add(batch, value + (shift - truth), _controls(study, dw))
    return into.means()


def _normal_expectation(study: Study) -> float:
    """E f(exact) by Gauss-Hermite quadrature over the end values of the Wiener processes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return _product_mean(study, nodes * math.sqrt(study.t1 - study.t0), weights / weights.sum())


def _walk_expectation(study: Study, steps: int) -> float:
    """E f(exact) with the end value of each Wiener process replaced by the sum of the scheme's numbers."""
    h = (study.t1 - study.t0) / steps
    if study.draws.gaussian:
        return _normal_expectation(study)
    single, spacing = (
        ([1 / 6, 2 / 3, 1 / 6], math.sqrt(3 * h))
        if study.draws.three_point
        else ([0.5, 0.5], 2 * math.sqrt(h))
    )
    weights = np.ones(1)
    for _ in range(steps):
        weights = np.convolve(weights, single)
    return _product_mean(study, spacing * (np.arange(weights.size) - (weights.size - 1) / 2), weights)


def _product_mean(study: Study, values: np.ndarray, weights: np.ndarray) -> float:
    m = study.sde.noise_dimension
    if values.size**m > _LATTICE:
        raise InvalidInput(
            f"exact= with {m} Wiener processes needs {values.size}^{m} evaluations; give expected= instead"
        )
    w = tuple(axis.ravel() for axis in np.meshgrid(*[values] * m, indexing="ij"))
    joint = np.ones(1)
    for _ in range(m):
        joint = np.multiply.outer(joint, weights).ravel()
    # Weights that vanish in double precision belong to points where the solution may overflow.
    held = joint > 0
    return float(joint[held] @ study.observed(study.solution(tuple(axis[held] for axis in w))))


def _controls(study: Study, dw: np.ndarray) -> np.ndarray:
    """Even polynomials of the numbers with mean zero, (paths, controls).

    Of each process, with W its end value, V its first moment in time and Q the deviation of its quadratic
    variation: W^2, V W, V^2, Q, Q weighted by time, W^4 and Q W^2, each less its mean; of each pair W_i W_j.
    """
    steps = dw.shape[1]
    h = (study.t1 - study.t0) / steps
    kurtosis = 1.0 if study.draws.two_point and not study.draws.three_point else 3.0
    time = (np.arange(steps) + 0.5) / steps - 0.5
    t = study.t1 - study.t0
    columns, ends = [], []
    for j in range(study.sde.noise_dimension):
        z = np.ascontiguousarray(dw[:, :, j])
        w, v = z.sum(axis=1), z @ time
        columns += [w * w - t, v * w, v * v - h * (time @ time), w**4 - (3 * t * t + (kurtosis - 3) * t * h)]
        if kurtosis > 1:
            square = z * z - h
            q = square.sum(axis=1)
            columns += [q, square @ time, q * w * w - (kurtosis - 1) * t * h]
        columns += [w * other for other in ends]
        ends.append(w)
    return np.stack(columns, axis=1)


class _Regression:
    """Means of a value per batch after a regression on controls of mean zero, from sums only."""

    def __init__(self) -> None:
        self._count = np.zeros(BATCHES)
        self._value = np.zeros(BATCHES)
        self._control: Any = 0.0
        self._cross: Any = 0.0
        self._square: Any = 0.0

    def add(self, batch: int, value: np.ndarray, controls: np.ndarray) -> None:
        """Take in the values (paths,) and controls (paths, q) of some paths of a batch."""
        if isinstance(self._control, float):
            self._control = np.zeros((BATCHES, controls.shape[1]))
        self._count[batch] += value.size
        self._value[batch] += value.sum()
        self._control[batch] += controls.sum(axis=0)
        self._cross = self._cross + controls.T @ value
        self._square = self._square + controls.T @ controls

    def means(self) -> np.ndarray:
        """Means (batches,); the coefficients come from all batches, a bias of the order of 1 / paths."""
        total = self._count.sum()
        value, control = self._value.sum() / total, self._control.sum(axis=0) / total
        plain = self._value / self._count
        if not np.isfinite(plain).all():
            return plain
        covariance = self._square / total - np.outer(control, control)
        slope = np.linalg.lstsq(covariance, self._cross / total - value * control)[0]
        return plain - (self._control / self._count[:, None]) @ slope
