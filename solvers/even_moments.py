"""Even moments of linear SDEs: closed linear systems on homogeneous polynomials, in any dimension."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import scipy.sparse as sps

from solvers.errors import InvalidInput

_LARGEST = 1500


def even_moment_exponent(drift: np.ndarray, noises: np.ndarray, p: int) -> float:
    """Growth rate Lambda(p) of E|y|^p of dy = A y dt + sum_k B_k y dW_k (Ito), p even.

    The generator maps homogeneous polynomials of degree p to such; |y|^p lies inside the cone of the positive
    ones, which the semigroup keeps, so that Lambda(p) is the largest real part of an eigenvalue there. No condition on
    the noise is needed. (Arnold, Random Dynamical Systems (1998) sec. 6.2; p = 2 is the second-moment matrix.)

    Parameters
    ----------
    drift, noises : array (d, d), (m, d, d)
    p : int

    Returns
    -------
    float

    Raises
    ------
    InvalidInput
        If p is not even and positive, or there are more than 1500 monomials.
    """
    if p <= 0 or p % 2:
        raise InvalidInput(f"p={p} is not an even number above 0; only even moments close")
    return float(np.linalg.eigvals(moment_equations(drift, noises, p).toarray()).real.max())


def moment_equations(drift: np.ndarray, noises: np.ndarray, p: int) -> Any:
    """Matrix (csr) of the generator on monomials y^a, |a| = p, each divided by sqrt(a!).

    Raises
    ------
    InvalidInput
        If there are more than 1500 monomials.
    """
    d = len(drift)
    size = math.comb(p + d - 1, d - 1)
    if size > _LARGEST:
        raise InvalidInput(
            f"the equations of moments of order {p} in {d} dimensions are {size}, more than {_LARGEST}; use "
            "method='simulation'"
        )
    ends = np.array(list(itertools.combinations(range(p + d - 1), d - 1)), dtype=int).reshape(size, d - 1)
    borders = np.column_stack([np.full(size, -1), ends, np.full(size, p + d - 1)])
    powers = np.diff(borders, axis=1) - 1
    place = {tuple(a): k for k, a in enumerate(powers.tolist())}

    def field(matrix: np.ndarray) -> sps.csr_array:
        """Derivative along M y: sum M_ij y_j d/dy_i."""
        entries = [
            (k, a, i, j)
            for k, a in enumerate(powers)
            for i, j in zip(*np.nonzero(matrix), strict=True)
            if a[i]
        ]
        rows, columns, values = [], [], []
        for k, a, i, j in entries:
            moved = a.copy()
            moved[i] -= 1
            moved[j] += 1
            rows.append(place[tuple(moved.tolist())])
            columns.append(k)
            values.append(matrix[i, j] * (a[i] if i == j else math.sqrt(a[i] * moved[j])))
        return sps.csr_array((values, (rows, columns)), shape=(size, size))

    total = field(drift - 0.5 * np.sum(noises @ noises, axis=0))
    for noise in noises:
        kick = field(noise)
        total = total + 0.5 * (kick @ kick)
    return total
