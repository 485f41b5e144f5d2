"""Curvature of single examples from Hessian products: low-rank factors, or Hessians on leading modes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from eos_sde.training.local_loss import Local
from eos_sde.training.objective import rows
from solvers.errors import ConvergenceFailure

_PILOT = 8
_RANKS = (2, 4, 8, 16, 32, 64)
_DENSE = 32  # weights up to which the whole Hessian is formed
_RESTARTS = 100
_PRODUCTS = 3  # fresh products by which a factorisation is judged


class Modes(NamedTuple):
    """Largest eigenpairs, the largest first: (k,), (d, k), residual of the first."""

    values: np.ndarray
    vectors: np.ndarray
    residual: float


def leading_modes(
    local: Local, count: int = 1, *, tol: float | None = None, below: float | None = None
) -> Modes:
    """Largest algebraic eigenpairs of the Hessian on all data, by implicitly restarted Lanczos.

    Parameters
    ----------
    local : Local
        The loss about a point.
    count : int
        How many; at most d.
    tol : float, optional
        Residual, relative to the eigenvalue; the square root of rounding if left out.
    below : float, optional
        The pairs of ``below - H`` are found instead: the low end of H, to an absolute accuracy of tol * below even
        where it is 0.

    Returns
    -------
    Modes
        The pairs.

    Raises
    ------
    ConvergenceFailure
        If Lanczos does not converge.
    """
    d, dtype = local.dimension, local.point.dtype
    rounding = float(np.finfo(dtype).eps)

    def apply(vector: np.ndarray) -> np.ndarray:
        image = np.asarray(local.product(jnp.asarray(vector.ravel(), dtype)), float)
        return image if below is None else below * vector.ravel() - image

    if d <= max(2 * count, _DENSE):
        full = np.stack([apply(column) for column in np.eye(d)], axis=1)
        values, vectors = np.linalg.eigh((full + full.T) / 2)
        error = rounding * float(np.max(np.abs(values)))
        return Modes(values[::-1][:count], vectors[:, ::-1][:, :count], error)
    operator = LinearOperator((d, d), matvec=apply, dtype=float)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(d)
    goal: Any = rounding**0.5 if tol is None else tol
    try:
        values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=goal, maxiter=_RESTARTS)
    except ArpackNoConvergence as error:
        raise ConvergenceFailure(
            f"Lanczos found {len(error.eigenvalues)} of {count} Hessian modes in {_RESTARTS} restarts; ask for fewer "
            "modes, or give the parameters in double precision"
        ) from error
    values, vectors = values[::-1], vectors[:, ::-1]
    residual = float(np.linalg.norm(apply(vectors[:, 0]) - values[0] * vectors[:, 0]))
    return Modes(values, vectors, max(residual, rounding * abs(float(values[0]))))


class Sketch(NamedTuple):
    """Directions (r, d) that capture the Hessian of each example, and the relative error that is left."""

    directions: jax.Array
    rank: int
    error: float


def find_sketch(local: Local, seed: int, goal: float) -> Sketch:
    """Find how many random directions capture the Hessian of an example as a positive low-rank matrix.

    At an interpolating minimum the Hessian of an example has the rank of its outputs. Eight examples are tried
    with ever more directions until their Nystrom factors reproduce fresh Hessian products.

    Parameters
    ----------
    local : Local
        The loss about a point.
    seed : int
        Of the examples and directions.
    goal : float
        Relative error at which to stop.

    Returns
    -------
    Sketch
        The smallest that reaches the goal, or the best.
    """
    rng = np.random.default_rng(seed)
    d, dtype = local.dimension, local.point.dtype
    pilot = rows(local.data, np.sort(rng.choice(local.n, min(local.n, _PILOT), replace=False)))
    ranks = [r for r in _RANKS if r < d] or [d]
    draws = jnp.asarray(rng.standard_normal((ranks[-1] + _PRODUCTS, d)), dtype)

    found = np.asarray(local.images(pilot, draws), float)  # (pilot, r + fresh, d)
    omega = np.asarray(draws, float)
    tests, truths = omega[ranks[-1] :], found[:, ranks[-1] :]
    best = Sketch(draws[: ranks[0]], ranks[0], np.inf)
    for r in ranks:
        factors = [_nystrom(omega[:r], y[:r], _cutoff(dtype), np) for y in found]
        miss = [tests @ f.T @ f - t for f, t in zip(factors, truths, strict=True)]
        error = float(np.linalg.norm(np.stack(miss)) / max(np.linalg.norm(truths), 1e-300))
        if error < 0.9 * best.error:
            rank = max(int(np.sum(np.any(f != 0, axis=1))) for f in factors)
            best = Sketch(draws[:r], max(rank, 1), error)
        if error <= goal:
            break
    return best


class ExampleFactors(NamedTuple):
    """Factors F_i, (n, rank, d) or on k directions (n, rank, k), and the whole F_i F_i^T, (n, rank, rank)."""

    rows: np.ndarray
    blocks: np.ndarray


def example_factors(local: Local, sketch: Sketch, basis: np.ndarray | None = None) -> ExampleFactors:
    """Factors F_i of the examples' Hessians, H_i = F_i^T F_i up to the error of the sketch.

    Parameters
    ----------
    local : Local
        The loss about a point.
    sketch : Sketch
        From `find_sketch`.
    basis : array, shape (d, k), optional
        Directions on which the factors are projected.

    Returns
    -------
    ExampleFactors
        In float64.
    """
    project = None if basis is None else jnp.asarray(basis, local.point.dtype)
    factors, blocks = local.factors(local.data, sketch.directions, project, _form(local, sketch))
    return ExampleFactors(np.asarray(factors, float), np.asarray(blocks, float))


@lru_cache
def _leading_rows(cutoff: float, rank: int):
    return lambda directions, images: _nystrom(directions, images, cutoff, jnp)[:rank]


def _form(local: Local, sketch: Sketch):
    """How a factor is made of the images of the sketch; one object for each cutoff and rank."""
    return _leading_rows(_cutoff(local.point.dtype), sketch.rank)


def example_gram(local: Local, sketch: Sketch, numbers: int) -> np.ndarray:
    """Gram matrix F F^T / n of the factors of all examples, without holding them: pairs of pieces, taken anew.

    Parameters
    ----------
    local : Local
        The loss about a point.
    sketch : Sketch
        From `find_sketch`.
    numbers : int
        Of the factors in one piece at most, an example at least; two pieces are held.

    Returns
    -------
    array
        Shape (n rank, n rank). The products are of single precision: 1e-6 of the largest eigenvalue.
    """
    n, rank = local.n, sketch.rank
    size = max(1, min(n, numbers // (rank * local.dimension)))
    gram, form = np.empty((n * rank, n * rank), np.float32), _form(local, sketch)

    def piece(first: int) -> np.ndarray:
        taken = rows(local.data, np.arange(first, min(first + size, n)))
        found, _ = local.factors(taken, sketch.directions, None, form)
        return np.asarray(found, np.float32).reshape(-1, local.dimension)

    for first in range(0, n, size):
        own = piece(first)
        here = slice(first * rank, first * rank + len(own))
        for second in range(first, n, size):
            other = own if second == first else piece(second)
            there = slice(second * rank, second * rank + len(other))
            gram[here, there] = own @ other.T / n
            gram[there, here] = gram[here, there].T
    return gram


def example_hessians(local: Local, basis: np.ndarray) -> np.ndarray:
    """Hessians of the examples on some directions, as they are: definite or not.

    Parameters
    ----------
    local : Local
        The loss about a point.
    basis : array, shape (d, k)
        The directions.

    Returns
    -------
    array
        Shape (n, k, k), float64.
    """
    each = np.asarray(local.projections(jnp.asarray(basis, local.point.dtype)), float)
    return (each + each.transpose(0, 2, 1)) / 2


def _cutoff(dtype: Any) -> float:
    """Relative size below which an eigenvalue of a sketch is rounding."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def _nystrom(directions: Any, images: Any, cutoff: float, xp: Any) -> Any:
    """Factor F (r, d) with F^T F = Y (Omega^T Y)^+ Y^T on the positive part, largest rows first."""
    core = images @ directions.T
    values, vectors = xp.linalg.eigh((core + core.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > cutoff * xp.max(xp.abs(values))
    root = xp.where(keep, 1.0 / xp.sqrt(xp.where(keep, values, 1.0)), 0.0)
    return root[:, None] * (vectors.T @ images)
