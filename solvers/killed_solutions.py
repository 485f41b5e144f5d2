"""Passage times and probabilities of killed chains on large lattices: iterations, and slow modes on their own."""

from __future__ import annotations

import numpy as np

from solvers import memory
from solvers.backward import BYTES, RELIABLE, extend
from solvers.chain import Chain
from solvers.conjugate_directions import conjugate_gradients, conjugate_residuals
from solvers.eigensolvers import generator_modes
from solvers.errors import ConvergenceFailure
from solvers.lattice_operator import BalancedOperator, LatticeOperator

_ACCURATE = 1e-4
# Tails follow the scale of the bulk, and change its balance a little: so often, or until it is so near one.
_PASSES, _BALANCED = 5, 1e-9


def nonnegative_solution(chain: Chain, right: np.ndarray, what: str) -> tuple[np.ndarray, str]:
    """The solution q >= 0 of -L^T q = right >= 0 of a chain whose every state is removed in the end.

    With detailed balance: conjugate gradients for sqrt(pi) q, from there into the tails, and the scale from the
    exact balance sum pi loss q = sum pi right, all of whose terms are positive. Without: conjugate residuals.
    Where a slow mode leaves these no digits it is found first, see `_with_slow_mode`.

    Returns
    -------
    q, how
        How it was computed and how well the equations hold, as a sentence.

    Raises
    ------
    InvalidInput
        If memory would not suffice.
    ConvergenceFailure
        If the equations hold to less than 1e-4.
    """
    memory.require(BYTES * chain.size, f"the {what} on {chain.size} cells", "use fewer cells")
    if chain.log_weights is not None:
        q, cycles, wrong = _reversible_solution(chain, right)
        name = "conjugate gradients"
    else:
        system, name = LatticeOperator(chain, "backward"), "conjugate residuals"
        q, wrong, cycles = conjugate_residuals(
            system, system.precondition, right, tol=1e-12, scale=chain.outflow
        )
    negative = _negative(q)
    if not (wrong < _ACCURATE and negative < _ACCURATE):
        q, wrong, more = _with_slow_mode(chain, right)
        cycles, negative = cycles + more, _negative(q)
        name = f"slowest mode and {name}"
    if not (wrong < _ACCURATE and negative < _ACCURATE):
        raise ConvergenceFailure(
            f"the {what} is not determined on {chain.size} cells: after {cycles} multigrid cycles its equations "
            f"hold to {wrong:.2g} of the right-hand side and its least value is {-negative:.2g} of the largest; "
            "use more noise, or fewer cells, for which elimination fits in memory"
        )
    how = f"{name}, {cycles} multigrid cycles (elimination would fill in); equations hold to {wrong:.1e}"
    return np.maximum(q, 0.0), how


def _negative(q: np.ndarray) -> float:
    return -float(q.min()) / max(float(np.abs(q).max()), 1e-300)


def _with_slow_mode(chain: Chain, right: np.ndarray) -> tuple[np.ndarray, float, int]:
    """The solution split into the slowest mode and the rest, in which all time scales are short.

    With the quasi-stationary masses r, their rate and the function h, r . h = 1: r . q = r . right / rate exactly,
    and the rate has relative accuracy. The rest c = q - (r . q) h solves -L^T c = right - (r . right) h, r . c = 0.

    Raises
    ------
    ConvergenceFailure
        If the rate is below the rounding of its quotient.
    """
    mode = generator_modes(chain, 1, "davidson", 1e-10)
    if mode.doubts:
        raise ConvergenceFailure(f"the process hardly leaves: {mode.doubts[0]}")
    rate = -float(mode.values[0].real)
    masses, function = (np.ascontiguousarray(v[:, 0].real) for v in (mode.right, mode.left))
    del mode
    inflow = float(masses @ right)
    system = BalancedOperator(chain)
    known = system.balance > RELIABLE
    slow_masses, slow_function = system.masses(masses), system.functions(function)

    def project(z: np.ndarray) -> np.ndarray:
        return z - float(slow_masses @ z) * slow_function

    given = project(system.functions(right - inflow * function))
    rest, wrong, cycles = conjugate_residuals(
        system, lambda x: project(system.precondition(x)), given, tol=1e-12
    )
    q = np.zeros(chain.size)
    q[known] = rest[known] / system.balance[known] + inflow / rate * function[known]
    extend(chain, np.zeros(1), q[None], known, right)
    return q, wrong, cycles


def _reversible_solution(chain: Chain, right: np.ndarray) -> tuple[np.ndarray, int, float]:
    weights = chain.log_weights
    assert weights is not None
    with np.errstate(under="ignore"):
        half = np.exp(0.5 * weights)
        pi = half * half
    system = LatticeOperator(chain, "symmetric")
    psi, cycles = conjugate_gradients(system, system.precondition, half * right, tol=1e-13)
    del system
    known = weights > 2 * np.log(RELIABLE)
    q = np.zeros(chain.size)
    q[known] = psi[known] / half[known]
    # the scale of a slow mode has no digits in residuals; this balance has them all, once the tails are there
    for passes in range(_PASSES):
        if passes:
            extend(chain, np.zeros(1), q[None], known, right)
        lost = float(pi @ (chain.loss * np.maximum(q, 0.0)))
        if not lost > 0.0:
            return q, cycles, np.inf
        factor = float(pi @ right) / lost
        if passes and abs(factor - 1.0) < _BALANCED:
            break
        q *= factor
    change = (right, chain.loss * q, -_gains(chain, q))
    wrong = float(pi @ np.abs(change[0] - change[1] - change[2])) / float(pi @ right)
    return q, cycles, wrong


def _gains(chain: Chain, q: np.ndarray) -> np.ndarray:
    """L^T q without the losses, from differences: a constant gives exactly nothing."""
    step = q[chain.second] - q[chain.first]
    return np.bincount(chain.first, chain.forward * step, chain.size) - np.bincount(
        chain.second, chain.backward * step, chain.size
    )
