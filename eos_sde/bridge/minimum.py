"""An interpolating minimum of a small network: train, then polish by Levenberg-Marquardt in example space."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure, InvalidInput

_MAX_RESIDUALS = 3000
_MAX_ITERATIONS = 200
_MAX_DAMPING = 1e8


@dataclass(frozen=True)
class Minimum:
    """Where a network fits every example.

    Attributes
    ----------
    theta : ndarray
        Weights, shape (size,).
    jacobian : ndarray
        Derivative of each output of each example, shape (n, c, size): the Gauss-Newton factors of the
        half squared error, whose Hessian here is exactly their mean outer product.
    sharpness : float
        Largest eigenvalue of that Hessian, in 1/time.
    loss : float
        Training loss that is left.
    """

    theta: NDArray[np.float64]
    jacobian: NDArray[np.float64]
    sharpness: float
    loss: float


@double_precision
def find_minimum(
    task: Task, *, seed: int, steps: int = 1000, learning_rate: float = 1e-3, tolerance: float = 1e-20
) -> Minimum:
    """Train to zero loss.

    Full-batch Adam first, so that the network learns features and leaves the neighbourhood of its start;
    then Levenberg-Marquardt steps of least norm, J^T (J J^T + mu I)^-1 r, which converge quadratically
    where the network can fit all examples.

    Parameters
    ----------
    task : Task
        With half squared error and fewer residuals than weights.
    seed : int
        Of the initial weights.
    steps : int
        Adam steps before the polish.
    learning_rate : float
        Of Adam.
    tolerance : float
        Loss at which the minimum counts as interpolating.

    Returns
    -------
    Minimum
        Weights, Jacobian, sharpness and what is left of the loss.

    Raises
    ------
    InvalidInput
        If the loss is not the half squared error, or there are too many residuals.
    ConvergenceFailure
        If the loss does not reach the tolerance.
    """
    if task.loss_name != "half-squared-error":
        raise InvalidInput(f"loss={task.loss_name!r} has no zero-loss minimum: choose 'half-squared-error'")
    residuals = task.n * task.outputs
    if residuals >= task.size or residuals > _MAX_RESIDUALS:
        raise InvalidInput(
            f"examples={task.n} give {residuals} residuals for {task.size} weights: "
            f"interpolation needs fewer of them than weights, and at most {_MAX_RESIDUALS}"
        )

    def residual(theta: jax.Array) -> jax.Array:
        return (task.network.apply(theta, task.x) - task.y).ravel()

    adam = optax.adam(learning_rate)

    @jax.jit
    def train(theta: jax.Array) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple:
            theta, state = carry
            updates, state = adam.update(jax.grad(task.loss)(theta), state)
            return (theta + updates, state), None

        return jax.lax.scan(step, (theta, adam.init(theta)), None, length=steps)[0][0]

    @jax.jit
    def trial(theta: jax.Array, jacobian: jax.Array, r: jax.Array, damping: jax.Array) -> tuple:
        gram = jacobian @ jacobian.T
        scale = jnp.trace(gram) / len(r)
        moved = theta - jacobian.T @ jnp.linalg.solve(gram + damping * scale * jnp.eye(len(r)), r)
        return moved, residual(moved)

    derivative = jax.jit(jax.jacrev(residual))
    theta = train(task.init(seed))
    r, jacobian, damping = residual(theta), derivative(theta), 1e-2
    loss = np.inf
    for _ in range(_MAX_ITERATIONS):
        loss = float(r @ r) / (2 * task.n)
        if loss < tolerance or damping > _MAX_DAMPING:
            break
        moved, r_moved = trial(theta, jacobian, r, damping)
        if float(r_moved @ r_moved) < float(r @ r):
            theta, r, damping = moved, r_moved, damping / 5
            jacobian = derivative(theta)
        else:
            damping *= 4
    if not loss < tolerance:
        raise ConvergenceFailure(
            f"the loss stopped at {loss:.2e}, above tolerance={tolerance:.0e}: take fewer examples, "
            "a wider network, or more steps"
        )
    factors = np.asarray(jacobian)
    sharpness = float(np.linalg.eigvalsh(factors @ factors.T)[-1]) / task.n
    return Minimum(np.asarray(theta), factors.reshape(task.n, task.outputs, task.size), sharpness, loss)
