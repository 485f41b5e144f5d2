"""Growth rates of linear SDEs by spectra: closed forms, moment equations, and the generator of the direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from solvers.errors import InvalidInput
from solvers.even_moments import even_moment_exponent
from solvers.invariant_subspaces import irreducible_blocks
from solvers.principal_pair import Direction, Estimate

_EVEN = 20


class GrowthRates:
    """Lyapunov and moment Lyapunov exponents of dy = A y dt + sum_k B_k y dW_k (Ito).

    The system is taken apart into blocks without invariant subspace. One-dimensional and noise-free blocks have
    closed forms, those in two and three dimensions are spectral problems of the direction, and even
    moments are eigenvalues of closed equations in any dimension.

    Parameters
    ----------
    drift, noises : array (d, d), (m, d, d)
    """

    def __init__(self, drift: np.ndarray, noises: np.ndarray):
        self._drift, self._noises = drift, noises
        self._blocks = [_block(a, b) for a, b in irreducible_blocks(drift, noises)]

    def exponent(self) -> Estimate:
        """The top exponent, its error, and the variance of log|y| per time.

        Raises
        ------
        InvalidInput
            If a block has more than three dimensions.
        ConvergenceFailure
            If the series of the density of the direction does not settle.
        """
        return self._largest(lambda block: block.exponent())

    def exponents(self) -> list[Estimate]:
        """All of them, largest first: each block's own, the slope left at nan beyond a block's first.

        Raises
        ------
        InvalidInput, ConvergenceFailure
            As for `exponent`.
        """
        found = [rate for block in self._blocks for rate in block.spectrum()]
        return sorted(found, key=lambda rate: -rate.value)

    def moment(self, p: float, *, slope: bool = False) -> Estimate:
        """Lambda(p) and its error; Lambda'(p) if asked for (nan otherwise where that takes more work).

        Raises
        ------
        InvalidInput
            If a block has more than three dimensions and p is not even; for p < 0 if there are several blocks.
        ConvergenceFailure
            If the series of the eigenfunctions does not settle.
        """
        if p == 0:
            return Estimate(0.0, 0.0, self.exponent().value if slope else np.nan)
        if p < 0 and len(self._blocks) > 1 and np.any(self._noises):
            raise InvalidInput(
                f"p={p:g}: there is an invariant subspace, so that negative moments depend on the start; give p > 0"
            )
        return self._largest(lambda block: block.moment(p, slope))

    def _largest(self, rate: Callable[[_Block], Estimate]) -> Estimate:
        return max((rate(block) for block in self._blocks), key=lambda found: found.value)


def second_moment_exponent(drift: np.ndarray, noises: np.ndarray) -> float:
    """Lambda(2): largest real eigenvalue of S -> A S + S A^T + sum_k B_k S B_k^T."""
    identity = np.eye(len(drift))
    operator = np.kron(drift, identity) + np.kron(identity, drift) + sum(np.kron(b, b) for b in noises)
    return float(np.linalg.eigvals(operator).real.max())


class _Block(Protocol):
    def exponent(self) -> Estimate: ...

    def spectrum(self) -> list[Estimate]: ...

    def moment(self, p: float, slope: bool) -> Estimate: ...


def _block(drift: np.ndarray, noises: np.ndarray) -> _Block:
    if not np.any(noises):
        return _NoiseFree(drift)
    if len(drift) == 1:
        return _Scalar(float(drift[0, 0]), float(np.sum(noises**2)))
    return _Coupled(drift, noises)


class _NoiseFree:
    def __init__(self, drift: np.ndarray):
        self._rates = np.sort(np.linalg.eigvals(drift).real)[::-1]

    def exponent(self) -> Estimate:
        return self.spectrum()[0]

    def spectrum(self) -> list[Estimate]:
        return [Estimate(float(rate), 0.0, 0.0) for rate in self._rates]

    def moment(self, p: float, slope: bool) -> Estimate:  # noqa: ARG002 - comes for free
        rate = float(self._rates[0])
        return Estimate(p * rate, 0.0, rate)


class _Scalar:
    def __init__(self, rate: float, power: float):
        self._rate, self._power = rate, power

    def exponent(self) -> Estimate:
        return Estimate(self._rate - 0.5 * self._power, 0.0, self._power)

    def spectrum(self) -> list[Estimate]:
        return [self.exponent()]

    def moment(self, p: float, slope: bool) -> Estimate:  # noqa: ARG002 - comes for free
        value = p * self._rate + 0.5 * p * (p - 1) * self._power
        return Estimate(value, 0.0, self._rate + (p - 0.5) * self._power)


class _Coupled:
    """No invariant subspace, two dimensions or more."""

    def __init__(self, drift: np.ndarray, noises: np.ndarray):
        self._drift, self._noises = drift, noises
        self._direction: Direction | None = None

    def exponent(self) -> Estimate:
        return self._of_direction("an exponent").exponent()

    def spectrum(self) -> list[Estimate]:
        first = self.exponent()
        # Liouville: the exponents add up to the rate of volumes
        squares = self._noises @ self._noises
        total = float(np.trace(self._drift) - 0.5 * np.trace(squares.sum(axis=0)))
        if len(self._drift) == 2:
            return [first, Estimate(total - first.value, first.error, np.nan)]
        # the flow's inverse transposed has minus the exponents
        dual_drift = -self._drift.T + np.swapaxes(squares, 1, 2).sum(axis=0)
        dual = Direction(dual_drift, -np.swapaxes(self._noises, 1, 2)).exponent()
        middle = Estimate(total - first.value + dual.value, first.error + dual.error, np.nan)
        return [first, middle, Estimate(-dual.value, dual.error, np.nan)]

    def moment(self, p: float, slope: bool) -> Estimate:
        even = p > 0 and p % 2 == 0
        if even and not slope:
            if len(self._drift) > 3:
                return Estimate(even_moment_exponent(self._drift, self._noises, int(p)), 0.0, np.nan)
            if p <= _EVEN:
                return Estimate(self._of_direction("").even_moment(int(p)), 0.0, np.nan)
        return self._of_direction(f"Lambda({p:g})").moment(p)

    def _of_direction(self, what: str) -> Direction:
        d = len(self._drift)
        if d > 3:
            raise InvalidInput(
                f"{what} of {d} coupled dimensions has no spectral method here (even moments have); use "
                "method='simulation'"
            )
        if self._direction is None:
            self._direction = Direction(self._drift, self._noises)
        return self._direction
