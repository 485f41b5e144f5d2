"""Left eigenfunctions where products with tiny weights have no digits: solved for from where the mode is."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sps

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.factorisation import factor

# Entries of an eigenvector below this fraction of its largest are solved for anew, not divided by tiny
# weights.
RELIABLE = 1e-6
# Beside its largest entry, psi of one mode is told from rounding of the others.
PEAK = 1e-2
_REFINEMENTS = 3


def left_from_symmetric(
    chain: Chain, adjoint: sps.csr_array, value: float, vector: np.ndarray, first: bool
) -> np.ndarray:
    """The left vector: psi / sqrt(weight) where psi has digits, elsewhere from the eigen-equation."""
    assert chain.log_weights is not None
    if first:
        return np.where(vector != 0, 1.0, 0.0) if chain.closed_classes[1:] else np.ones(chain.size)
    reliable = np.abs(vector) > RELIABLE * np.abs(vector).max()
    log_size = np.full(chain.size, -np.inf)
    log_size[reliable] = np.log(np.abs(vector[reliable])) - 0.5 * chain.log_weights[reliable]
    left = np.sign(vector) * np.exp(log_size - log_size.max())
    return extend_left(adjoint, value, left, reliable)


def extend_left(adjoint: sps.csr_array, value: complex, left: np.ndarray, reliable: np.ndarray) -> np.ndarray:
    """Solve (A^T - value) q = 0 for q on unreliable states, given q on the others."""
    if reliable.all():
        return left
    rest = ~reliable
    rows = sps.csr_array(adjoint[rest])
    inner = sps.csc_array(rows[:, rest] - value * sps.eye_array(int(rest.sum())))
    known = rows[:, reliable] @ left[reliable]
    result = left.astype(np.result_type(left, type(value), float))
    try:
        result[rest] = _graded_solution(factor(inner, symmetric=False), inner, -known.astype(inner.dtype))
    except RuntimeError as error:  # SuperLU's only word for it
        raise ConvergenceFailure(
            f"the left eigenvector of {value:.6g} is undetermined where it is below {RELIABLE:g} of its "
            "maximum: the process hardly leaves that region; use more noise or a narrower grid"
        ) from error
    return result


def from_peaks(
    chain: Chain, values: np.ndarray, left: np.ndarray, vectors: np.ndarray, zeros: int, tol: float
) -> np.ndarray:
    """Functions whose equations fail where the mass is, solved for anew from the peaks of psi.

    A mode on a barrier has its psi there, but its mass in the wells, where psi has few digits beside that of the
    wells' own modes.
    """
    assert chain.log_weights is not None
    weights = np.exp(chain.log_weights)
    adjoint = sps.csr_array(chain.generator.T)
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = weights @ np.abs(adjoint @ left - left * values) / (weights @ np.abs(left))
    allowed = np.maximum(
        tol * np.abs(values), 100 * np.finfo(float).eps * float(chain.outflow.max(initial=0.0))
    )
    for a in np.flatnonzero(wrong > allowed):
        if a >= zeros and values[a] != 0:
            peak = np.abs(vectors[:, a]) > PEAK * np.abs(vectors[:, a]).max()
            left[:, a] = extend_left(adjoint, values[a], left[:, a], peak)
    return left


def _graded_solution(lu: Any, matrix: sps.csc_array, right: np.ndarray) -> np.ndarray:
    """Solve by factors, and refine: each equation then holds beside its own terms (Skeel 1980, Math. Comp. 35, 817).

    Without, equations hold beside the largest terms anywhere, and functions may differ by many powers of ten
    from place to place.
    """
    solution = lu.solve(right)
    for _ in range(_REFINEMENTS):
        solution += lu.solve(right - matrix @ solution)
    return solution
