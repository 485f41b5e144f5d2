"""Backward equations on large lattices: Krylov iterations preconditioned by multigrid, verified afterwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers import memory
from solvers.chain import Chain
from solvers.conjugate_directions import conjugate_residuals
from solvers.errors import ConvergenceFailure
from solvers.lattice_operator import LatticeOperator

# In tails all time scales are short: few directions do as well.
_KEPT_IN_TAILS = 4
_ACCURATE, _NEGATIVE, _EXTENDED = 1e-4, 1e-10, 1e-6
# Where sqrt(pi) is below this fraction of its largest, sqrt(pi) q has too few digits.
RELIABLE = 1e-6
BYTES = 500  # per cell, measured: hierarchy, operator and the vectors of a pass


def extend(
    chain: Chain,
    rates: np.ndarray,
    values: np.ndarray,
    known: np.ndarray,
    right: np.ndarray | None = None,
) -> None:
    """Solve (-L^T - rate) q = right (0 if not given) on the states outside the mask `known`, given q on those inside.

    Parameters
    ----------
    chain : Chain
        With a lattice.
    rates : ndarray of shape (k,)
        Decay rates of the modes, complex if `values` are.
    values : ndarray of shape (k, n)
        q, one mode a row, where known; elsewhere a guess, which is overwritten.
    known : ndarray of bool, shape (n,)

    Raises
    ------
    ConvergenceFailure
        If the iteration does not reach a relative residual of 1e-6.
    """
    if known.all():
        return
    rest = ~known
    edges = []
    into = np.zeros(chain.size)
    for here, there, speed in (
        (chain.first, chain.second, chain.forward),
        (chain.second, chain.first, chain.backward),
    ):
        at = rest[here] & known[there]
        edges.append((here[at], there[at], speed[at]))
        np.add.at(into, here[at], speed[at])
    inner = chain.keep(rest, into)
    system = LatticeOperator(inner, "backward")
    diagonal = inner.outflow
    for rate, row in zip(rates, values, strict=True):
        given = np.zeros(chain.size, row.dtype) if right is None else right.copy()
        for here, there, speed in edges:
            np.add.at(given, here, speed * row[there])
        row[rest] = _in_tails(system, diagonal, rate, given[rest], row[rest])


def _in_tails(
    system: LatticeOperator, diagonal: np.ndarray, rate: complex, given: np.ndarray, guess: np.ndarray
) -> np.ndarray:
    """Solve (A - rate) q = given; a complex q by its real and imaginary part, one after the other in a vector."""
    complex_one = np.iscomplexobj(guess)

    def stacked(q: np.ndarray) -> np.ndarray:
        return np.concatenate([q.real, q.imag]) if complex_one else q

    def halves(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
        return np.concatenate([function(part) for part in np.split(x, 1 + int(complex_one))])

    def apply(x: np.ndarray) -> np.ndarray:
        result = halves(system, x) - np.real(rate) * x
        if complex_one:
            real, imaginary = np.split(x, 2)
            result += np.imag(rate) * np.concatenate([imaginary, -real])
        return result

    solution, residual = stacked(guess), np.inf
    scale = np.tile(diagonal, 1 + int(complex_one))
    # where the drift dominates on every scale coarse lattices mislead, and sweeps alone follow it
    for precondition in (system.precondition, system.precondition.smooth):
        if not residual < _EXTENDED:
            trial, size, _ = conjugate_residuals(
                apply,
                lambda x, one=precondition: halves(one, x),
                stacked(given),
                tol=1e-10,
                start=solution,
                scale=scale,
                kept=_KEPT_IN_TAILS,
            )
            if size < residual:
                solution, residual = trial, size
    if not residual < _EXTENDED:
        raise ConvergenceFailure(
            f"the function of decay rate {rate:.6g} is undetermined in the tails (residual {residual:.2g}): "
            "the process hardly leaves them; use more noise or a narrower grid"
        )
    return solution[: len(given)] + 1j * solution[len(given) :] if complex_one else solution


def stationary_by_cycles(chain: Chain) -> tuple[np.ndarray, float]:
    """Null vector of the generator, summing to 1, and the net flow it leaves, relative to the exchange.

    The null vector of the coarsest lattice is spread to the finest, where a correction is solved for.
    """
    memory.require(BYTES * chain.size, f"a stationary density on {chain.size} cells", "use fewer cells")
    system = LatticeOperator(chain, "forward")
    start = system.precondition.spread_null()
    masses = start if chain.cells is None else start[chain.cells]
    masses /= masses.sum()
    correction, _, _ = conjugate_residuals(
        system,
        system.precondition,
        -system(masses),
        tol=1e-13,
        scale=chain.outflow,
        reference=chain.outflow * masses,
    )
    masses += correction
    masses /= masses.sum()
    if not -float(masses[masses < 0].sum()) < _NEGATIVE:
        raise ConvergenceFailure(
            f"the stationary density on {chain.size} cells has negative mass {float(masses[masses < 0].sum()):.2g}; "
            "use more noise, or fewer cells, for which a factorisation fits in memory"
        )
    masses = np.maximum(masses, 0.0)
    masses /= masses.sum()
    return masses, float(np.abs(system(masses)).sum() / (chain.outflow @ masses))
