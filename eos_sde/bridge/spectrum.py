"""Hessian-vector products and top eigenpairs of a task's loss, warm-started."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.sparse.linalg import lobpcg_standard

from eos_sde.bridge.evaluation_groups import in_groups
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure, InvalidInput

_DENSE = 100  # weights, up to which the whole Hessian costs less than an iteration


def hessian_products(
    task: Task, theta: jax.Array, directions: jax.Array, scale: jax.Array | None = None
) -> jax.Array:
    """Full-batch Hessian times the columns of a matrix; traceable.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    directions : Array
        Shape (d, k).
    scale : Array, optional
        r, shape (d,): the products are those of r H r, the Hessian in the coordinates w/r.

    Returns
    -------
    Array
        Shape (d, k).
    """
    _, products = jax.linearize(jax.grad(task.loss), theta)
    if scale is None:
        return in_groups(products, directions.T, task).T
    return scale[:, None] * in_groups(products, (scale[:, None] * directions).T, task).T


def curvature_along(loss: Callable[[jax.Array], jax.Array], direction: jax.Array) -> Callable:
    """The second derivative u' H(w) u of a loss along a direction, as a function of the weights; traceable.

    Parameters
    ----------
    loss : callable
        Of the weights.
    direction : Array
        u, shape (d,).

    Returns
    -------
    callable
        Weights to a scalar.
    """

    def curvature(w: jax.Array) -> jax.Array:
        slope = partial(jax.jvp, loss, tangents=(direction,))
        return jax.jvp(lambda v: slope((v,))[1], (w,), (direction,))[1]

    return curvature


def curvature_gradients(task: Task, theta: jax.Array, directions: jax.Array) -> jax.Array:
    """Gradients in the weights of every entry of U' H(w) U, for fixed directions U; traceable.

    Third derivatives of the loss: ``result[i, j] @ v`` is the rate of u_i' H u_j along v, and
    ``einsum("ij,ija", X, result)`` the gradient of <U X U', H>.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    directions : Array
        U, shape (d, m).

    Returns
    -------
    Array
        Shape (m, m, d), symmetric in the first two.
    """

    def entry(pair: jax.Array) -> jax.Array:
        def bilinear(w: jax.Array) -> jax.Array:
            return jax.jvp(lambda z: jax.jvp(task.loss, (z,), (pair[0],))[1], (w,), (pair[1],))[1]

        return jax.grad(bilinear)(theta)

    m = directions.shape[1]
    rows, columns = jnp.triu_indices(m)
    pairs = jnp.stack([directions[:, rows].T, directions[:, columns].T], axis=1)
    gradients = in_groups(entry, pairs, task)
    full = jnp.zeros((m, m, theta.size)).at[rows, columns].set(gradients)
    return full.at[columns, rows].set(gradients)


def random_block(size: int, modes: int, seed: int = 0) -> jax.Array:
    """Orthonormal random start for `improve_modes`, shape (size, modes)."""
    return jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (size, modes)))[0]


def improve_modes(
    task: Task, theta: jax.Array, block: jax.Array, iterations: int, scale: jax.Array | None = None
):
    """Iterate LOBPCG from a block towards the largest algebraic eigenpairs; traceable.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    block : Array
        Start, shape (d, k), full rank; eigenvectors at nearby weights are best.
    iterations : int
        At most so many.
    scale : Array, optional
        As for `hessian_products`.

    Returns
    -------
    eigenvalues, eigenvectors : Array
        Shapes (k,), largest first, and (d, k), orthonormal.
    """
    products = partial(hessian_products, task, theta, scale=scale)
    values, vectors, _ = lobpcg_standard(products, block, iterations)
    return values, vectors


def follow_modes(task: Task, theta: jax.Array, block: jax.Array, scale: jax.Array | None = None):
    """One step of orthogonal iteration with Rayleigh-Ritz: follows known modes along a path; traceable.

    A sixth of the cost of an LOBPCG step (one block of Hessian products), and enough where the weights move
    little: the error of an eigenvalue is the square of the angle, which each step shrinks by the ratio of the
    first eigenvalue outside the block to its own.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    block : Array
        Orthonormal, shape (d, k), near the top eigenvectors.
    scale : Array, optional
        As for `hessian_products`.

    Returns
    -------
    values, modes, following : Array
        Ritz values, shape (k,), largest first, and vectors in the block, (d, k); an improved block.
    """
    products = hessian_products(task, theta, block, scale)
    values, rotation = jnp.linalg.eigh(block.T @ products)
    rotation = rotation[:, ::-1]
    return values[::-1], block @ rotation, jnp.linalg.qr(products @ rotation)[0]


@partial(jax.jit, static_argnames="iterations")
def _improve(task: Task, theta: jax.Array, block: jax.Array, iterations: int):
    values, vectors = improve_modes(task, theta, block, iterations)
    residuals = hessian_products(task, theta, vectors) - vectors * values
    return values, vectors, jnp.linalg.norm(residuals, axis=0)


@jax.jit
def _whole_spectrum(task: Task, theta: jax.Array):
    hessian = hessian_products(task, theta, jnp.eye(task.size))
    hessian = (hessian + hessian.T) / 2
    values, vectors = jnp.linalg.eigh(hessian)
    residuals = jnp.linalg.norm(hessian @ vectors - vectors * values, axis=0)
    return values[::-1], vectors[:, ::-1], residuals[::-1]


def most_modes(size: int) -> int:
    """How many eigenpairs `top_modes` finds of a Hessian of so many weights, at most."""
    return size if size <= _DENSE else (size - 1) // 5


@double_precision
def top_modes(
    task: Task, theta: jax.Array, modes: int, *, block: jax.Array | None = None, tol: float = 1e-6
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Largest algebraic eigenpairs of the full-batch Hessian.

    By LOBPCG, which needs more than five times as many weights as modes; from the whole Hessian where the weights are
    few (at most 100).

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    modes : int
        How many, k >= 1. Of d <= 100 weights all are found where k is more; else 5 k must be below d.
    block : Array, optional
        Warm start, shape (d, k).
    tol : float
        Residual norm of the leading mode, relative to its eigenvalue, at which to stop.

    Returns
    -------
    eigenvalues, eigenvectors, residuals : Array
        Shapes (k,), largest first, (d, k) and (k,), with d for k if that is less. An eigenvalue lies within its
        residual of the truth.

    Raises
    ------
    InvalidInput
        If k is out of range.
    ConvergenceFailure
        If the tolerance is not reached in 200 iterations.
    """
    if modes >= 1 and task.size <= _DENSE:
        values, vectors, residuals = _whole_spectrum(task, jnp.asarray(theta))
        return values[:modes], vectors[:, :modes], residuals[:modes]
    if not 1 <= modes < task.size / 5:
        raise InvalidInput(f"k={modes} modes of {task.size} weights; choose from 1 to {(task.size - 1) // 5}")
    vectors = random_block(task.size, modes) if block is None else block
    for attempt in range(20):
        values, vectors, residuals = _improve(task, theta, vectors, 10)
        if residuals[0] <= tol * jnp.abs(values[0]):
            return values, vectors, residuals
        if attempt == 19:
            raise ConvergenceFailure(
                f"the top eigenvector has residual {residuals[0]:.2e} after 200 iterations, above {tol:g} of the "
                f"eigenvalue {values[0]:.4g}; raise k to separate a cluster, or tol"
            )
    raise AssertionError("unreachable")
