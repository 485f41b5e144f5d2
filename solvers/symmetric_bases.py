"""Bases of the slowest modes of a symmetrised generator: LAPACK on a line, shift-invert Lanczos elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg as sl
import scipy.sparse.linalg as spl

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.factorisation import arpack, start_vector, symmetric_resolvent

# Shift of shift-invert, beside the rate of diffusing across the grid.
SHIFT = 1e-3
# The search for missed modes: steps, at least and at most, and the accuracy of what it finds.
_FEWEST, _SEARCH_STEPS, _SEARCHED = 8, 100, 1e-3


def tridiagonal_basis(chain: Chain, k: int, null: np.ndarray) -> np.ndarray:
    """Of the k slowest modes of a line, without the known null vectors."""
    off = np.zeros(chain.size - 1)
    off[chain.first] = np.sqrt(chain.forward) * np.sqrt(chain.backward)
    _, vectors = sl.eigh_tridiagonal(
        -chain.outflow, off, select="i", select_range=(chain.size - k, chain.size - 1)
    )
    return without(vectors, null, max(k - null.shape[1], 0))


def without(vectors: np.ndarray, null: np.ndarray, wanted: int) -> np.ndarray:
    """An orthonormal basis of the part of a subspace orthogonal to the known null vectors."""
    rest = vectors - null @ (null.T @ vectors)
    rest -= null @ (null.T @ rest)
    left, size, _ = np.linalg.svd(rest, full_matrices=False)
    if wanted and size[wanted - 1] < 0.5:
        raise ConvergenceFailure(
            f"the subspace of the {wanted} slowest modes overlaps the stationary one (singular value "
            f"{size[wanted - 1]:.2g}); use a narrower grid"
        )
    return left[:, :wanted]


def lanczos_basis(
    chain: Chain, wanted: int, null: np.ndarray, tol: float, near: np.ndarray | None
) -> np.ndarray:
    """Shift-invert Lanczos with the null space projected out, then a search for modes it missed.

    From a sum of vectors near the modes it needs half as many steps.
    """
    shift = SHIFT * chain.rate_scale
    lu = symmetric_resolvent(chain, shift)

    def inverse(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        x = x - known @ (known.T @ x)
        x = lu.solve(x)
        return x - known @ (known.T @ x)

    def largest(count: int, known: np.ndarray, start: np.ndarray, ncv: int) -> np.ndarray:
        shape = (chain.size, chain.size)
        solve = spl.LinearOperator(shape, matvec=lambda x: inverse(x.ravel(), known), dtype=float)  # pyright: ignore[reportCallIssue]
        settings = {
            "k": count,
            "which": "LA",
            "v0": start,
            "tol": 0.01 * tol,
            "ncv": min(ncv, chain.size - 1),
        }
        return arpack(spl.eigsh, solve, **settings)[1]

    vector, ncv = start_vector(chain.size), max(2 * wanted + 10, 20)
    if near is not None:
        vector, ncv = inverse(near, null), 2 * wanted + 4
    basis = largest(wanted, null, vector, ncv)
    basis = np.linalg.qr(inverse(basis, null))[0]  # one more inverse iteration cleans all vectors at once
    for _ in range(8):
        slowest = rayleigh_ritz(chain, basis)[0][:wanted]
        known = np.hstack([null, basis])
        limit = (1 + _SEARCHED) / (shift - float(slowest[-1]))
        vector = _missed(lambda x, known=known: inverse(x, known), known, limit)
        if vector is None:
            return basis
        basis = np.linalg.qr(np.hstack([basis, largest(1, known, vector, 20)]))[0]
        basis = np.linalg.qr(inverse(basis, null))[0]
    raise ConvergenceFailure(
        "Lanczos keeps finding missed modes (a large cluster of eigenvalues); ask for larger k"
    )


def _missed(apply: Callable[[np.ndarray], np.ndarray], known: np.ndarray, limit: float) -> np.ndarray | None:
    """A vector of the deflated operator's largest eigenvalue if that is above the limit.

    Lanczos steps from another random vector, until the largest Ritz value with its residual, within which there is an
    eigenvalue, is below the limit, or has converged above it.
    """
    vector = start_vector(len(known), 1)
    vector -= known @ (known.T @ vector)
    basis = np.empty((len(known), min(_SEARCH_STEPS, len(known) - known.shape[1])))
    diagonal, beside = [], []
    values, small, so_far = np.zeros(1), np.zeros((0, 1)), basis[:, :0]
    for step in range(basis.shape[1]):
        basis[:, step] = vector / np.linalg.norm(vector)
        so_far = basis[:, : step + 1]
        vector = apply(basis[:, step])
        share = so_far.T @ vector
        vector = vector - so_far @ share
        vector -= so_far @ (so_far.T @ vector)
        diagonal.append(float(share[-1]))
        beside.append(float(np.linalg.norm(vector)))
        values, small = sl.eigh_tridiagonal(np.array(diagonal), np.array(beside[:-1]))
        residual = beside[-1] * abs(float(small[-1, -1]))
        if step + 1 >= min(_FEWEST, basis.shape[1]) and values[-1] + residual <= limit:
            return None
        if residual <= _SEARCHED * values[-1]:
            break
    return so_far @ small[:, -1] if values[-1] > limit else None


def rayleigh_ritz(chain: Chain, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, slowest first, and vectors in the span of a basis, by sums of squares of differences."""
    if basis.shape[1] == 0:
        return np.zeros(0), basis
    differences = chain.half_difference(basis)
    form = differences.T @ differences + basis.T @ (chain.loss[:, None] * basis)
    _, rotation = sl.eigh(form, basis.T @ basis)
    vectors = basis @ rotation
    vectors /= np.linalg.norm(vectors, axis=0)
    # quotients vector by vector: eigh of the form has absolute accuracy only
    squares = np.sum(chain.half_difference(vectors) ** 2, axis=0) + chain.loss @ vectors**2
    order = np.argsort(squares, kind="stable")
    return -squares[order], vectors[:, order]
