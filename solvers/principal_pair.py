"""Principal eigenvalue of a tilted generator of the direction, by harmonics increased until it settles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sps

from solvers import memory
from solvers.angular_harmonics import TiltedGenerator, tilted_generator
from solvers.blas_threads import one_blas_thread
from solvers.errors import ConvergenceFailure
from solvers.factorisation import factor
from solvers.whitening import whitened

_HARMONICS = {2: (16, 32, 64, 128, 256, 512, 1024, 2048, 4096), 3: (4, 8, 12, 18, 27, 40, 60, 90, 135, 200)}
_COSTLY = 100
"""In three dimensions more harmonics than these cost seconds and gigabytes, and are tried only while the series of the
eigenfunctions still converges: never where the density is singular."""
_CONVERGES = 1 / 3
"""Ratio of what is left out with half again as many harmonics, below which a series converges; one that falls like
their inverse square, as for a density on a curve, has 0.44."""
_BYTES = 350.0
"""Of the factors, over the cube of the harmonics."""
_SETTLED = 1e-10
"""Change of a rate from one truncation to the next, relative to the range of rates, that ends the iteration."""
_RESOLVED = 1e-6
"""Bound of what is left out, from the last coefficients of both eigenfunctions, asked for in addition."""
_ACCEPTED = 1e-3
"""Change with which a result is returned all the same, with that error."""
_ROUNDING = 1e-14
_ITERATIONS = 60


class Estimate(NamedTuple):
    """A rate of growth.

    Attributes
    ----------
    value : float
        Lambda(p); at p = 0 its derivative there, the Lyapunov exponent.
    error : float
        Estimated from the two finest truncations.
    slope : float
        Lambda'(p); at p = 0 the second derivative, the variance of log|y| per time.
    """

    value: float
    error: float
    slope: float


class _Level(NamedTuple):
    value: float
    slope: float
    tail: float
    moments: np.ndarray
    start: Any


class Direction:
    """The direction of y under dy = A y dt + sum_k B_k y dW_k without invariant subspace, d = 2 or 3.

    Parameters
    ----------
    drift, noises : array (d, d), (m, d, d)
    """

    def __init__(self, drift: np.ndarray, noises: np.ndarray):
        self._shift, self._drift, self._noises = whitened(drift, noises)
        self._generators: dict[int, TiltedGenerator] = {}
        symmetric = 0.5 * (self._drift + self._drift.T)
        spread = symmetric - np.trace(symmetric) / len(drift) * np.eye(len(drift))
        self.scale = float(np.linalg.norm(spread) + np.sum(self._noises**2))
        """Range of the growth rates that the direction can have: what errors are measured by."""

    @one_blas_thread
    def exponent(self) -> Estimate:
        """Furstenberg-Khasminskii average, and variance, by perturbation theory of Lambda(p) at p = 0.

        Raises
        ------
        ConvergenceFailure
            If the series of the angular density does not settle.
        """
        found = self._settled(
            lambda generator, harmonics, _: _perturbed(generator, harmonics), "the exponent"
        )
        return found._replace(value=self._shift + found.value)

    @one_blas_thread
    def moment(self, p: float) -> Estimate:
        """Lambda(p) and its slope, p != 0.

        Raises
        ------
        ConvergenceFailure
            If the series of the eigenfunctions does not settle.
        """
        found = self._settled(
            lambda generator, harmonics, start: _tilted(generator, harmonics, start, p), f"Lambda({p:g})"
        )
        return Estimate(p * self._shift + found.value, found.error, self._shift + found.slope)

    @one_blas_thread
    def even_moment(self, p: int) -> float:
        """Lambda(p), p even: an eigenvalue of the closed moment equations, exact whatever the noise."""
        values = np.linalg.eigvals(self._generator(p // 2).at(p).toarray())
        return p * self._shift + float(values.real.max())

    def _generator(self, harmonics: int) -> TiltedGenerator:
        if harmonics not in self._generators:
            self._generators[harmonics] = tilted_generator(self._drift, self._noises, harmonics)
        return self._generators[harmonics]

    def _settled(self, compute: Callable[..., _Level], what: str) -> Estimate:
        levels: list[_Level] = []
        error, all_harmonics = np.inf, _HARMONICS[len(self._drift)]
        for harmonics in all_harmonics:
            if len(self._drift) == 3 and harmonics > _COSTLY:
                if levels[-1].tail > _CONVERGES * levels[-2].tail:
                    break
                memory.require(
                    int(_BYTES * harmonics**3),
                    f"{what} with {harmonics} harmonics",
                    "use method='simulation'",
                )
            now = compute(self._generator(harmonics), harmonics, levels[-1].start if levels else None)
            levels.append(now)
            error = _remaining([level.value for level in levels[-3:]])
            settled = error <= _SETTLED * self.scale and now.tail <= _RESOLVED * self.scale
            if settled and _is_measure(now.moments):
                return Estimate(now.value, max(error, _ROUNDING * self.scale), now.slope)
        if not (error <= _ACCEPTED * self.scale and _is_measure(levels[-1].moments)):
            raise ConvergenceFailure(
                f"{what} has not settled with {all_harmonics[len(levels) - 1]} harmonics of the direction (to within "
                f"{error:.2g}, beside rates of {self.scale:.2g}): the noise does not spread the direction over all "
                "others, so that its density is singular; use method='simulation'"
            )
        return Estimate(levels[-1].value, error, levels[-1].slope)


def _remaining(values: list[float]) -> float:
    """What further truncations would change: the last step, or all to come if they shrink slowly, geometrically."""
    if len(values) < 2:
        return np.inf
    last = abs(values[-1] - values[-2])
    if len(values) < 3 or last == 0:
        return last
    ratio = min(last / max(abs(values[-2] - values[-3]), 1e-300), 0.95)
    return last * max(1.0, ratio / (1 - ratio))


def _is_measure(moments: np.ndarray) -> bool:
    """Whether fourth moments of a normalised left eigenvector are those of a positive measure.

    A truncated series can settle on nonsense; the principal left eigenvector alone is positive.
    """
    return bool(np.linalg.eigvalsh(0.5 * (moments + moments.T)).min() > -1e-6)


def _fourth_moments(generator: TiltedGenerator, measure: np.ndarray) -> np.ndarray:
    columns = np.column_stack([f[:, [0]].toarray().ravel() for f in generator.forms])
    return np.array([measure @ (f @ columns) for f in generator.forms])


def _perturbed(generator: TiltedGenerator, harmonics: int) -> _Level:
    plain = generator.plain
    lu = factor(sps.csc_array(plain[1:, 1:]), symmetric=False)
    first = generator.first[:, [0]].toarray().ravel()
    second = generator.second[:, [0]].toarray().ravel()
    # measure L_0 = 0 and L_0 function = value - first, with measure[0] = 1 and function[0] = 0
    measure = np.concatenate([[1.0], -lu.solve(plain[[0], 1:].toarray().ravel(), trans="T")])
    function = np.concatenate([[0.0], -lu.solve(first[1:])])
    value = _sum_of_products(measure, first)
    variance = 2 * _sum_of_products(measure, second + generator.first @ function - value * function)
    tail = _tail(measure, function, plain, harmonics)
    return _Level(value, variance, tail, _fourth_moments(generator, measure), None)


def _tail(left: np.ndarray, right: np.ndarray, matrix: Any, harmonics: int) -> float:
    """What degrees beyond the last might add: the coupling there times both vectors' last coefficients."""
    last = 2 if len(left) == 2 * harmonics + 1 else 4 * harmonics + 1
    coupling = float(abs(matrix[:, -last:]).max())
    sizes = np.linalg.norm(left[-last:]) * np.linalg.norm(right[-last:])
    return coupling * float(sizes) / max(abs(_sum_of_products(left, right)), 1e-300)


def _sum_of_products(left: np.ndarray, right: np.ndarray) -> float:
    """Not a BLAS dot: threads woken for a few thousand numbers cost more than the whole solve."""
    return float(np.einsum("i,i->", left, right))


def _tilted(generator: TiltedGenerator, harmonics: int, before: Any, p: float) -> _Level:
    matrix, slope = generator.at(p), generator.slope(p)
    n = matrix.shape[0]
    if before is None:
        decomposition: Any = sl.eig(matrix.toarray(), left=True, right=True)
        values, lefts, rights = decomposition
        order = np.argsort(-values.real)
        value, right, left = float(values[order[0]].real), rights[:, order[0]].real, lefts[:, order[0]].real
        gap = max(value - float(values[order[1]].real), 1e-6 * float(np.abs(values).max()))
    else:
        value, gap, right, left = before
        right, left = (np.concatenate([v, np.zeros(n - len(v))]) for v in (right, left))
        value, right, left = _inverse_iteration(matrix, value, gap, right, left)
    left = left / left[0]
    right = right / _sum_of_products(left, right)
    return _Level(
        value,
        _sum_of_products(left, slope @ right),
        _tail(left, right, matrix, harmonics) if before is not None else np.inf,
        _fourth_moments(generator, left),
        (value, gap, right, left),
    )


def _inverse_iteration(
    matrix: Any, value: float, gap: float, right: np.ndarray, left: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The principal pair: the eigenvalue nearest to any shift to its right, whatever the others are."""
    n, reach = matrix.shape[0], 0.3 * gap
    while True:
        shift = value + reach
        lu = factor(sps.csc_array(shift * sps.eye_array(n) - matrix), symmetric=False)
        new = value
        for _ in range(_ITERATIONS):
            right, left = lu.solve(right), lu.solve(left, trans="T")
            right, left = right / np.abs(right).max(), left / np.abs(left).max()
            last, new = new, _sum_of_products(left, matrix @ right) / _sum_of_products(left, right)
            if abs(new - last) <= 1e-15 * (abs(new) + gap):
                break
        if new < shift:
            return new, right, left
        value, reach = new, 4 * reach
