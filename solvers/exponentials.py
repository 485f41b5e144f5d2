"""The exponential of a generator times a vector at many times: rational Krylov spaces, uniformization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sps
from scipy.special import gammaln

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.resolvents import Resolvents

# Times of one rational Krylov space reach from the longest down to this share of it; its pole is at 10 / longest
# (van den Eshof and Hochbruck 2006: near the best for 8 to 20 vectors).
_WINDOW, _POLE = 1 / 16, 0.1
_FIRST, _LAST = 6, 40
SMALLEST = 2.0**-60


@dataclass(frozen=True)
class Side:
    """Which of the two equations is solved, and what its solutions keep.

    Attributes
    ----------
    transposed : bool
        False: masses under L; True: functions under L^T.
    conserving : bool
        Whether the walls keep all probability.
    positive : bool
        Whether L is a rate matrix; signed cross terms can make exact solutions leave the bounds a little.
    weight : ndarray
        Masses or functions times this have a Euclidean norm that is an integral over space.
    low, high : float
        Bounds that functions keep (the maximum principle).
    """

    transposed: bool
    conserving: bool
    positive: bool
    weight: np.ndarray
    low: float = 0.0
    high: float = np.inf

    def norm(self, x: np.ndarray) -> float:
        """Mass of the absolute value, or its maximum: L does not increase it."""
        return float(np.abs(x).max() if self.transposed else np.abs(x).sum())

    def finish(self, x: np.ndarray, before: np.ndarray, *, shown: bool = True) -> np.ndarray:
        """What exact solutions have, restored: bounds; of masses the sum, which is set and not accumulated.

        Where signed cross terms make the discrete solution leave the bounds, only what is shown is cut.
        """
        cut = self.positive or shown
        if self.transposed:
            return np.clip(x, self.low, self.high) if cut else x
        total = before.sum() if self.conserving else x.sum()
        kept = np.maximum(x, 0.0) if cut else x
        size = kept.sum()
        return kept * (total / size) if size > 0 and total > 0 else kept

    def excess(self, x: np.ndarray, before: np.ndarray) -> float:
        """By how much x leaves the bounds, and its mass the given one: a lower bound of its error."""
        if self.transposed:
            return max(self.low - float(x.min()), float(x.max()) - self.high, 0.0) if self.positive else 0.0
        negative = -float(np.minimum(x, 0.0).sum()) if self.positive else 0.0
        return max(negative, abs(float(x.sum() - before.sum())) if self.conserving else 0.0)


class Exponential(Protocol):
    """x(0) -> e^(tL) x(0) at times."""

    def __call__(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Rows: the solution at increasing positive times."""
        ...

    def told(self) -> dict[str, Any]:
        """Attributes: what it took."""
        ...


class Krylov:
    """e^(tL) x in the rational Krylov space of (1 - g L)^-1 and x, for all times of a window at once.

    The space is built by Arnoldi's method; on it L becomes a small matrix A = (1 - H^-1) / g, and the solution
    is the basis times e^(tA) (Moret and Novati 2004; van den Eshof and Hochbruck 2006, SIAM J. Sci. Comput.
    27, 1438). One factorisation serves all vectors and times, the fast modes of a fine grid or a rough start
    cost nothing, and convergence is geometric: 12 solves for 1e-5, 20 for 1e-9. The change by the last two
    vectors, which is larger than what the next ones would add, must be below `allowed` at all times, and so
    must negative mass. Where 40 vectors do not suffice (many rotations, very different times) the interval
    is cut.

    Parameters
    ----------
    chain : Chain
    side : Side
    allowed : float
        Largest error per interval, in the side's norm.
    """

    def __init__(self, chain: Chain, side: Side, allowed: float):
        self._side, self._allowed = side, allowed
        self._resolvents = Resolvents(chain, side.transposed)
        self._rate = float(chain.outflow.max(initial=0.0))
        self._reach, self._intervals = np.inf, 0

    def __call__(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Rows: the solution at increasing positive times."""
        result, done, base = np.empty((len(times), len(x))), 0, 0.0
        self._resolvents.aim(self._allowed / max(self._side.norm(x), 1e-300))
        while done < len(times):
            ahead = times[done:] - base
            horizon = min(float(ahead[ahead <= ahead[0] / _WINDOW][-1]), self._reach)
            inside = ahead[ahead <= horizon * (1 + 1e-12)]
            found, used = self._window(x, np.append(np.minimum(inside, horizon), horizon))
            if found is None:
                self._reach = horizon / 4
                if self._reach < SMALLEST * times[-1]:
                    raise ConvergenceFailure(
                        f"{_LAST} Krylov vectors did not reach {self._allowed:.2g} on any interval; use a larger "
                        "tol, or method='implicit'"
                    )
                continue
            self._intervals += 1
            result[done : done + len(inside)] = found[: len(inside)]
            done += len(inside)
            if horizon == self._reach:
                x, base = found[-1], base + horizon
                if used <= _LAST // 2:
                    self._reach *= 4
        return result

    def told(self) -> dict[str, Any]:
        """Attributes: what it took."""
        return self._resolvents.told() | {"intervals": self._intervals}

    def _window(self, x: np.ndarray, times: np.ndarray) -> tuple[np.ndarray | None, int]:
        """The solution at times of one window, or None if 40 vectors do not suffice; and how many did."""
        g = _POLE * float(times[-1])
        solve, weight, n = self._resolvents(g), self._side.weight, len(x)
        start = weight * x
        size = float(np.sqrt(np.sum(start * start)))
        last = min(_LAST, n)
        basis, hessenberg = np.empty((last + 1, n)), np.zeros((last + 1, last))
        basis[0] = start / size
        # rounding of a solve, which no further vector removes
        allowed = self._allowed + 8 * np.finfo(float).eps * (1 + g * self._rate) * self._side.norm(x)
        before: np.ndarray | None = None
        tested = times[[0, -1]] if times[0] < times[-1] else times[:1]
        for k in range(last):
            new = weight * solve(basis[k] / weight)
            grown, known = np.abs(new).max(), basis[: k + 1]
            for _ in range(2):
                part = known @ new
                hessenberg[: k + 1, k] += part
                new = new - part @ known
            hessenberg[k + 1, k] = length = float(np.sqrt(np.sum(new * new)))
            closed = length <= 4 * np.finfo(float).eps * max(grown, 1e-300)
            count = k + 1
            if not closed:
                basis[k + 1] = new / length
            if not (closed or count == last or (count >= _FIRST and count % 2 == 0)):
                continue
            now = self._coefficients(hessenberg[:count, :count], g, tested) * size
            change = np.inf
            if before is not None:
                now_less = now.copy()
                now_less[:, : before.shape[1]] -= before
                change = max(self._side.norm(row) for row in (now_less @ basis[:count]) / weight)
            before = now
            if closed or count == n or change <= allowed:
                small = self._coefficients(hessenberg[:count, :count], g, times) * size
                found = (small @ basis[:count]) / weight
                if all(self._side.excess(row, x) <= allowed for row in found):
                    shown = [self._side.finish(row, x) for row in found[:-1]]
                    return np.array([*shown, self._side.finish(found[-1], x, shown=False)]), count
                if closed:
                    break
        return None, last

    @staticmethod
    def _coefficients(hessenberg: np.ndarray, g: float, times: np.ndarray) -> np.ndarray:
        small = (np.eye(len(hessenberg)) - np.linalg.inv(hessenberg)) / g
        return _expm(times[:, None, None] * small)[:, :, 0]


# Pade [6/6] of e^z: coefficients of the numerator
_PADE = np.array([1.0, 1 / 2, 5 / 44, 1 / 66, 1 / 792, 1 / 15840, 1 / 665280])


def _expm(a: np.ndarray) -> np.ndarray:
    """The exponentials of a stack of small matrices, by scaling and squaring.

    SciPy's takes 8 ms for a matrix of order 14 as soon as its BLAS has two threads, which wait for each other.
    """
    size = float(np.abs(a).sum(axis=1).max())
    squarings = max(0, math.ceil(math.log2(max(size, 1e-300) / 0.5)))
    a = a * 0.5**squarings
    one, square = np.eye(a.shape[-1]), a @ a
    fourth = square @ square
    even = one + _PADE[2] * square + _PADE[4] * fourth + _PADE[6] * (fourth @ square)
    odd = a @ (_PADE[1] * one + _PADE[3] * square + _PADE[5] * fourth)
    result = np.linalg.solve(even - odd, even + odd)
    for _ in range(squarings):
        result = result @ result
    return result


class Uniformization:
    """e^(tL) x as a Poisson average of jumps, sum_k Pois(k; qt) (1 + L/q)^k x with q the fastest rate.

    Every term is positive and keeps the mass (and the bounds of functions), so nothing is ever cut off; the average
    ends where less than `allowed` is left, or where the state no longer changes by as much. The cost is qt products
    with L for the longest time, and no factorisation (Jensen 1953; Grassmann 1977, Comput. Oper. Res. 4, 47).

    Parameters
    ----------
    chain : Chain
        Without signed transport.
    side : Side
    allowed : float
        Largest error, in the side's norm.
    """

    def __init__(self, chain: Chain, side: Side, allowed: float):
        self._side, self._allowed = side, allowed
        self._q = float(chain.outflow.max(initial=0.0))
        generator = chain.generator.T if side.transposed else chain.generator
        self._jump = sps.csr_array(sps.eye_array(chain.size) + generator / (self._q or 1.0))
        self._products = 0

    def __call__(self, x: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Rows: the solution at increasing positive times."""
        share = max(self._allowed / max(self._side.norm(x), 1e-300), 1e-15)
        counts = [_poisson_reach(self._q * t, share) for t in times]
        weights = [_poisson(self._q * t, *pair) for t, pair in zip(times, counts, strict=True)]
        result, state, last = np.zeros((len(times), len(x))), x, max(high for _, high in counts)
        rest = np.ones(len(times))
        for k in range(last + 1):
            for row, (low, high) in enumerate(counts):
                if low <= k <= high:
                    result[row] += weights[row][k - low] * state
                    rest[row] -= weights[row][k - low]
            if k == last:
                break
            new = self._jump @ state
            self._products += 1
            # each further jump changes no more than this one
            if k % 16 == 15 and self._side.norm(new - state) * (last - k) <= 0.5 * self._allowed:
                result += np.maximum(rest, 0.0)[:, None] * new
                break
            state = new
        return np.array([self._side.finish(row, x) for row in result])

    def told(self) -> dict[str, Any]:
        """Attributes: what it took."""
        return {"products": self._products}


def _poisson_reach(mean: float, share: float) -> tuple[int, int]:
    """The first and last count of a Poisson variable that are needed to leave out less than `share`."""
    # Chernoff: P(N >= mean + a) <= exp(-a^2 / (2 (mean + a / 3))), P(N <= mean - a) <= exp(-a^2 / (2 mean))
    logarithm = math.log(4 / share)
    above = logarithm / 3 + math.sqrt((logarithm / 3) ** 2 + 2 * logarithm * mean)
    return max(0, math.floor(mean - math.sqrt(2 * logarithm * mean))), math.ceil(mean + above)


def _poisson(mean: float, low: int, high: int) -> np.ndarray:
    """Poisson weights of low ... high, rescaled to sum to one: products then keep every sum and bound."""
    if mean == 0:
        return np.where(np.arange(low, high + 1) == 0, 1.0, 0.0)
    k = np.arange(low, high + 1)
    weights = np.exp(k * math.log(mean) - mean - gammaln(k + 1.0))
    return weights / weights.sum()
