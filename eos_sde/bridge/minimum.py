"""An interpolating minimum of a small network: train, then polish by Levenberg-Marquardt in example space."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from eos_sde.bridge.losses import softmax_curvature, softmax_curvature_root
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure, InvalidInput

_MAX_RESIDUALS = 3000
_MAX_ITERATIONS = 200
_MAX_DAMPING = 1e8


@dataclass(frozen=True)
class Minimum:
    """Where a network fits every example: each output has its target, or each softmax its target probabilities.

    Attributes
    ----------
    theta : ndarray
        Weights, shape (size,).
    jacobian : ndarray
        Derivative of each output of each example, shape (n, c, size).
    weights : ndarray or None
        Curvature W_i of the loss in the outputs, shape (n, c, c): diag(p) - p p^T of the cross entropy; None for the
        identity of the half squared error. The Hessian here is exactly the mean of J_i^T W_i J_i, since the slopes of
        all examples in their outputs are zero.
    factors : ndarray
        Rows of W_i^(1/2) J_i without those that vanish, shape (n c, size), or (n (c - 1), size) for cross entropy.
    sharpness : float
        Largest eigenvalue of the Hessian, in 1/time.
    loss : float
        Training loss that is left above that of a perfect fit (to second order in the residuals).
    """

    theta: NDArray[np.float64]
    jacobian: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    factors: NDArray[np.float64]
    sharpness: float
    loss: float


@double_precision
def find_minimum(
    task: Task, *, seed: int, steps: int = 1000, learning_rate: float = 1e-3, tolerance: float = 1e-20
) -> Minimum:
    """Train until every example is fitted.

    Full-batch Adam first, so that the network learns features and leaves the neighbourhood of its start;
    then Levenberg-Marquardt steps of least norm, J^T (J J^T + mu I)^-1 r, which converge quadratically
    where the network can fit all examples. The residuals of cross entropy are W^(1/2) (outputs - log q) at the target
    probabilities q; a common shift of the outputs of an example is no residual.

    Parameters
    ----------
    task : Task
        With fewer residuals than weights: n c of them, n (c - 1) with cross entropy.
    seed : int
        Of the initial weights.
    steps : int
        Adam steps before the polish.
    learning_rate : float
        Of Adam.
    tolerance : float
        Loss, above that of a perfect fit, at which the minimum counts as interpolating.

    Returns
    -------
    Minimum
        Weights, Jacobian, curvatures, sharpness and what is left of the loss.

    Raises
    ------
    InvalidInput
        If the targets of the cross entropy are not all positive, or there are too many residuals.
    ConvergenceFailure
        If the loss does not reach the tolerance.
    """
    goal, root, weights = _perfect_fit(task)
    residuals = task.n * root.shape[1]
    if residuals >= task.size or residuals > _MAX_RESIDUALS:
        raise InvalidInput(
            f"examples={task.n} give {residuals} residuals for {task.size} weights: "
            f"interpolation needs fewer of them than weights, and at most {_MAX_RESIDUALS}"
        )

    def residual(theta: jax.Array) -> jax.Array:
        return jnp.einsum("nkc,nc->nk", root, task.network.apply(theta, task.x) - goal).ravel()

    theta, r = _polish(residual, _train(task, seed, steps, learning_rate), task.n, tolerance)
    loss = float(r @ r) / (2 * task.n)
    if not loss < tolerance:
        raise ConvergenceFailure(
            f"the loss stopped at {loss:.2e}, above tolerance={tolerance:.0e}: take fewer examples, "
            "a wider network, or more steps"
        )
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda w: task.network.apply(w, task.x)))(theta))
    factors = np.matmul(root, jacobian).reshape(residuals, task.size)
    sharpness = float(np.linalg.eigvalsh(factors @ factors.T)[-1]) / task.n
    return Minimum(np.asarray(theta), jacobian, weights, factors, sharpness, loss)


def _perfect_fit(task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """Outputs that fit every example, and the roots (n, k, c) and whole (n, c, c) of the curvature there."""
    targets = np.asarray(task.y)
    if targets.shape[1:] != task.output_shape:
        raise InvalidInput(
            f"{task.name} has classes or sequences for targets: no minimum that fits them is sought"
        )
    if task.loss_name == "half-squared-error":
        return targets, np.broadcast_to(np.eye(task.outputs), (task.n, task.outputs, task.outputs)), None
    if np.min(targets) <= 0:
        raise InvalidInput(
            f"loss={task.loss_name!r} against hard targets has no minimum at finite weights: choose smoothing above 0"
        )
    return np.log(targets), softmax_curvature_root(targets), softmax_curvature(targets)


def _train(task: Task, seed: int, steps: int, learning_rate: float) -> jax.Array:
    adam = optax.adam(learning_rate)

    @jax.jit
    def train(theta: jax.Array) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple:
            theta, state = carry
            updates, state = adam.update(jax.grad(task.loss)(theta), state)
            return (theta + updates, state), None

        return jax.lax.scan(step, (theta, adam.init(theta)), None, length=steps)[0][0]

    return train(task.init(seed))


def _polish(residual, theta: jax.Array, examples: int, tolerance: float) -> tuple[jax.Array, jax.Array]:
    """Weights and residuals at the end of the Levenberg-Marquardt steps."""

    @jax.jit
    def trial(theta: jax.Array, jacobian: jax.Array, r: jax.Array, damping: jax.Array) -> tuple:
        gram = jacobian @ jacobian.T
        scale = jnp.trace(gram) / len(r)
        moved = theta - jacobian.T @ jnp.linalg.solve(gram + damping * scale * jnp.eye(len(r)), r)
        return moved, residual(moved)

    derivative = jax.jit(jax.jacrev(residual))
    r, jacobian, damping = residual(theta), derivative(theta), 1e-2
    for _ in range(_MAX_ITERATIONS):
        if float(r @ r) / (2 * examples) < tolerance or damping > _MAX_DAMPING:
            break
        moved, r_moved = trial(theta, jacobian, r, damping)
        if float(r_moved @ r_moved) < float(r @ r):
            theta, r, damping = moved, r_moved, damping / 5
            jacobian = derivative(theta)
        else:
            damping *= 4
    return theta, r
