"""Sparse factorisations and ARPACK, called the same way every time."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import scipy.sparse as sps
import scipy.sparse.linalg as spl

from solvers.errors import ConvergenceFailure


def factor(matrix: sps.csc_array, *, symmetric: bool) -> Any:
    """Sparse LU of an M-matrix (SciPy's `SuperLU`)."""
    # Generators are M-matrices: diagonal pivots are stable, and the ordering of A + A^T fills in least.
    options = {"SymmetricMode": True} if symmetric else None
    return spl.splu(
        matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0 if symmetric else 0.01, options=options
    )


def start_vector(n: int) -> np.ndarray:
    """A fixed start vector, so that the same call gives the same bits."""
    return np.random.Generator(np.random.PCG64(20240501)).standard_normal(n)


def arpack(solver: Any, operator: Any, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Call SciPy's `eigs` or `eigsh`, the same bits each time.

    Raises
    ------
    ConvergenceFailure
        If it does not converge.
    """
    if "rng" in inspect.signature(solver).parameters:  # SciPy >= 1.17: also fixes restarts
        settings["rng"] = np.random.Generator(np.random.PCG64(20240501))
    try:
        return solver(operator, **settings)
    except spl.ArpackNoConvergence as error:
        raise ConvergenceFailure(
            f"ARPACK found {len(error.eigenvalues)} of {settings['k']} modes; ask for fewer, or use "
            "method='dense' on a coarser grid"
        ) from error
