"""Calibration: what the reduced models need to know of a network at given weights, each with its error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from eos_sde.bridge.covariance import per_example_modes
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import curvature_along, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers.errors import InvalidInput
from solvers.provenance import provenance

_GROUPS = 10  # of the jackknife, where each has two examples or more


@partial(jax.jit, static_argnames="task")
def _projected(task: Task, theta, modes):
    """Per-example gradients in the modes, and second derivatives of each example's loss along each: (n, k)."""

    def bend(direction):
        def slope(s):
            line = partial(jax.jvp, lambda r: task.per_example_loss(theta + r * direction))
            return line((s,), (jnp.ones_like(s),))[1]

        zero = jnp.zeros((), theta.dtype)
        return jax.jvp(slope, (zero,), (jnp.ones_like(zero),))[1]

    return per_example_modes(task, theta, modes)[0], jax.lax.map(bend, modes.T).T


@partial(jax.jit, static_argnames="task")
def _line_derivatives(task: Task, theta, direction):
    """First to fourth derivative of each example's loss along a line, shape (4, n)."""

    def along(s):
        return task.per_example_loss(theta + s * direction)

    derivatives = []
    function = along
    for _ in range(4):
        function = partial(lambda f, s: jax.jvp(f, (s,), (jnp.ones_like(s),))[1], function)
        derivatives.append(function)
    return jnp.stack([f(jnp.zeros((), theta.dtype)) for f in derivatives])


@partial(jax.jit, static_argnames="task")
def _group_gradients(task: Task, theta, direction, order):
    """Gradients of the loss and of the curvature along the direction: over all examples, and per row of the order."""

    def one(rows):
        def loss(w):
            return task.loss(w, task.x[rows], task.y[rows])

        return jax.grad(loss)(theta), jax.grad(curvature_along(loss, direction))(theta)

    return one(jnp.arange(task.n)), jax.lax.map(one, order)


@double_precision
def calibrate(task: Task, params: jax.Array, *, batch_size: int, k: int = 8, seed: int = 0) -> xr.Dataset:
    """Measure the coefficients of the reduced models at given weights.

    With u the top Hessian eigenvector, S(w) = u' H(w) u the curvature along it and L the full-batch loss:

    - ``alpha = -grad L . grad S`` and ``beta = |grad S|^2``, both without their parts along u: progressive
      sharpening and self-stabilization (Damian, Nichani and Lee, arXiv:2209.15594);
    - ``slope``, ``curvature``, ``third``, ``fourth``: derivatives of L along u;
    - ``per_example_variance``: population variance over the examples of the gradient along u, and
      ``curvature_variance`` of the second derivative along u;
    - ``noise_covariance``: covariance of the batch gradient in the span of the top k eigenvectors,
      (n - B)/(B (n - 1)) times that of one example.

    Parameters
    ----------
    task : Task
        The training problem.
    params : Array
        Weights, shape (d,).
    batch_size : int
        B, from 1 to n, drawn without replacement.
    k : int
        Number of eigenpairs; all of fewer weights.
    seed : int
        Of the random grouping of the examples for the jackknife.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)`` largest first with ``eigenvalue_residual(mode)`` (a bound on its error),
        ``eigenvector(mode, weight)``, ``params(weight)`` and the quantities above. Each of these has a ``*_stderr``:
        the sampling error over the examples as draws from their population; from per-example values where the quantity
        is a mean over examples, else by a jackknife over ten groups (over the examples if fewer than twenty; NaN if
        there is one). For the given training set itself the quantities are exact to rounding.

    Raises
    ------
    InvalidInput
        If the weights are not finite or of the wrong size, or B or k are out of range.
    """
    theta = jnp.asarray(params, dtype=jnp.float64)
    n = task.n
    if theta.shape != (task.size,) or not bool(jnp.all(jnp.isfinite(theta))):
        raise InvalidInput(f"params must be {task.size} finite weights of {task.name}, got {theta.shape}")
    if not 1 <= batch_size <= n:
        raise InvalidInput(f"batch_size={batch_size} must be from 1 to the {n} examples of {task.name}")
    with threadpool_limits(1, "blas"):
        eigenvalues, modes, residuals = top_modes(task, theta, k)
        gradients, curvatures = (np.asarray(v) for v in _projected(task, theta, modes))
        direction = modes[:, 0]
        line = line_statistics(task, theta, direction)
        alpha, beta = _sharpening(task, theta, direction, seed)
    centred = gradients - gradients.mean(axis=0)
    products = centred[:, :, None] * centred[:, None, :]
    p = noise_fraction(n, batch_size)
    square, across = ("mode", "mode2"), "of the batch gradient in the eigenvectors"
    values: dict[str, tuple] = {
        "params": ("weight", np.asarray(theta), "1", "weights at which all is measured"),
        "eigenvalue": ("mode", np.asarray(eigenvalues), "1/time", "Hessian eigenvalue, largest first"),
        "eigenvalue_residual": ("mode", np.asarray(residuals), "1/time", "residual of the eigenpair"),
        "eigenvalue_stderr": ("mode", curvatures.std(axis=0) / n**0.5, "1/time", "standard error"),
        "eigenvector": (("mode", "weight"), np.asarray(modes).T, "1", "Hessian eigenvector"),
        "noise_covariance": (square, p * products.mean(axis=0), "1/weight^2", f"covariance {across}"),
        "noise_covariance_stderr": (square, p * products.std(axis=0) / n**0.5, "1/weight^2", "its error"),
    }
    scalars = line | {
        "alpha": (*alpha, "1/time^2", "progressive sharpening -grad L . grad S across the top eigenvector"),
        "beta": (*beta, "1/weight^6", "|grad S|^2 across the top eigenvector"),
    }
    for name, (value, stderr, units, text) in scalars.items():
        values[name] = ((), value, units, text)
        values[f"{name}_stderr"] = ((), stderr, units, f"standard error of {text}")
    return xr.Dataset(
        {
            name: (dims, value, {"units": units, "long_name": text})
            for name, (dims, value, units, text) in values.items()
        },
        attrs=provenance(
            task=task.name, examples=n, batch_size=batch_size, loss=float(task.loss(theta)), seed=seed
        ),
    )


@double_precision
def line_statistics(task: Task, theta: jax.Array, direction: jax.Array) -> dict[str, tuple]:
    """Derivatives of the loss along a line, and the spread of the first two over the examples.

    Parameters
    ----------
    task : Task
        The training problem.
    theta, direction : Array
        Weights and unit vector, shape (d,).

    Returns
    -------
    dict
        ``slope``, ``curvature``, ``third``, ``fourth``, ``per_example_variance`` (of the slope),
        ``curvature_variance``: (value, standard error over the examples, units, description).
    """
    derivatives = np.asarray(_line_derivatives(task, jnp.asarray(theta), jnp.asarray(direction)))
    root = task.n**0.5
    statistics: dict[str, tuple] = {}
    for order, (row, name) in enumerate(
        zip(derivatives, ("slope", "curvature", "third", "fourth"), strict=True), 1
    ):
        text = f"derivative {order} of the loss along the top eigenvector"
        statistics[name] = (row.mean(), row.std() / root, f"1/weight^{order}", text)
    for row, name, what in (
        (derivatives[0], "per_example_variance", "gradient"),
        (derivatives[1], "curvature_variance", "curvature"),
    ):
        squares = (row - row.mean()) ** 2
        text = f"variance over examples of the {what} along the top eigenvector"
        units = "1/weight^2" if what == "gradient" else "1/weight^4"
        statistics[name] = (squares.mean(), squares.std() / root, units, text)
    return statistics


def _sharpening(task: Task, theta, direction, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Alpha and beta with jackknife errors over groups of examples."""
    groups = _GROUPS if task.n >= 2 * _GROUPS else task.n
    order = np.random.default_rng(seed).permutation(task.n)[: task.n - task.n % groups].reshape(groups, -1)
    u = np.asarray(direction)

    def across(gradients) -> np.ndarray:
        rows = np.asarray(gradients)
        return rows - np.multiply.outer(rows @ u, u)

    def both(g: np.ndarray, s: np.ndarray) -> tuple[float, float]:
        return -float(g @ s), float(s @ s)

    everything, parts = _group_gradients(task, theta, direction, jnp.asarray(order))
    whole = both(*map(across, everything))
    if groups == 1:
        return (whole[0], np.nan), (whole[1], np.nan)
    loss, sharp = map(across, parts)
    others = (1 - np.eye(groups)) / (groups - 1)
    left_out = np.array([both(g, s) for g, s in zip(others @ loss, others @ sharp, strict=True)])
    errors = np.sqrt((groups - 1) * left_out.var(axis=0))
    return (whole[0], float(errors[0])), (whole[1], float(errors[1]))
