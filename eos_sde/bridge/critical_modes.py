"""The complementarity problem of the critical modes: the smallest oscillation that keeps the curvature at the edge."""

import clarabel
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from solvers.errors import ConvergenceFailure, InvalidInput

_SOLVED = (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved)
_TOLERANCE = 1e-8  # on the conditions of the scaled problem


def complementary_covariance(gap: ArrayLike, response: ArrayLike) -> NDArray[np.float64]:
    """Solve the semidefinite linear complementarity problem of the central flow.

    Find X with

        X >= 0,   S = A + B[X] >= 0,   <X, S> = 0

    in the order of positive semidefinite matrices. A is what the gap 2/eta - U'HU between the edge and the curvature
    of the critical modes U would become without oscillation, and B[X] what an oscillation of covariance U X U' adds to
    it (Cohen, Damian, Talwalkar, Kolter and Lee, arXiv:2410.24206). B is a Gram matrix, so these are the conditions of
    the convex program ``min <X, B[X]>/2 + <A, X>, X >= 0``, which Clarabel's interior-point method solves. For one
    mode X = max(0, -A)/B.

    Parameters
    ----------
    gap : array
        A, symmetric, shape (m, m).
    response : array
        B, shape (m, m, m, m): ``B[X]_ij = sum_kl B_ijkl X_kl``; symmetric in (i, j), in (k, l) and in the two pairs,
        and positive semidefinite.

    Returns
    -------
    array
        X, shape (m, m), in units of `gap` over units of `response`. With A and B scaled to norm 1, the least
        eigenvalues of X and S are at least -t and <X, S> is at most t, for t = 1e-8 max(1, |X|).

    Raises
    ------
    InvalidInput
        If the shapes do not fit or a number is not finite.
    ConvergenceFailure
        If there is no solution (no oscillation opens the gap), or the conditions are not met to the tolerance.
    """
    gap, response = np.asarray(gap, dtype=float), np.asarray(response, dtype=float)
    m = gap.shape[0] if gap.ndim else 0
    if m < 1 or gap.shape != (m, m) or response.shape != (m, m, m, m):
        raise InvalidInput(
            f"gap and response must have shapes (m, m) and (m, m, m, m), got {gap.shape} and {response.shape}"
        )
    if not (np.all(np.isfinite(gap)) and np.all(np.isfinite(response))):
        raise InvalidInput("gap and response must be finite; look for a diverged run")
    if np.linalg.eigvalsh(gap)[0] >= 0:
        return np.zeros((m, m))
    basis = _packing(m)
    linear = basis.T @ gap.reshape(-1)
    quadratic = basis.T @ response.reshape(m * m, m * m) @ basis
    scale, stiffness = np.linalg.norm(linear), np.linalg.norm(quadratic)
    unit = scale / stiffness if stiffness > 0 else np.inf
    if not np.isfinite(unit):
        raise ConvergenceFailure("no oscillation opens the gap: the response is zero and the gap negative")
    a, b = linear / scale, quadratic / stiffness
    solution = _solve(a, b, m)
    packed = np.asarray(solution.x)
    if solution.status in _SOLVED:
        x, slack = ((basis @ v).reshape(m, m) for v in (packed, a + b @ packed))
        worst = max(-np.linalg.eigvalsh(x)[0], -np.linalg.eigvalsh(slack)[0], abs(np.sum(x * slack)))
        if worst <= _TOLERANCE * max(1.0, float(np.linalg.norm(x))):
            return unit * x
        reached = f"the conditions of complementarity are met to {worst:.1e}, not {_TOLERANCE:g}"
    else:
        reached = f"no oscillation opens the gap (Clarabel: {solution.status})"
    raise ConvergenceFailure(f"{reached}, for {m} critical modes")


def _solve(linear: NDArray, quadratic: NDArray, m: int):
    size = linear.size
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-9  # rounding stops it at less
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix(np.triu(quadratic)),
        linear,
        sparse.csc_matrix(-np.eye(size)),
        np.zeros(size),
        [clarabel.PSDTriangleConeT(m)],
        settings,
    )
    return solver.solve()


def _packing(m: int) -> NDArray[np.float64]:
    """Orthonormal basis of the symmetric matrices, flattened as columns, in Clarabel's order of the triangle."""
    columns, rows = np.tril_indices(m)  # the upper triangle, column by column
    basis = np.zeros((m, m, rows.size))
    scale = np.where(rows == columns, 1.0, np.sqrt(0.5))
    basis[rows, columns, np.arange(rows.size)] = scale
    basis[columns, rows, np.arange(rows.size)] = scale
    return basis.reshape(m * m, -1)
