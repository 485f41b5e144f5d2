"""What is asked of weights where training ended: sharpness, trace, losses and accuracy, there or about their mean."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import hessian_products, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers import curvature
from solvers.errors import InvalidInput

QUANTITIES: Mapping[str, tuple[str, str]] = {
    "sharpness": ("1/time", "top eigenvalue of the full-batch Hessian"),
    "trace": ("1/time", "trace of the full-batch Hessian"),
    "loss": ("1", "training loss"),
    "test_loss": ("1", "loss on the test examples"),
    "test_accuracy": ("1", "fraction of the test examples classified correctly"),
}
_NOT_SMOOTH = ("test_accuracy",)
# taken out of the trace exactly: a handful of outliers carries most of the variance of its estimate
_MODES = 16
PROBES_TOGETHER = 16
"""Random vectors of a trace whose products are taken at once."""


@partial(jax.jit, static_argnames="task")
def _trace(task: Task, theta: jax.Array, modes: jax.Array, keys: jax.Array):
    product = curvature.hessian_product(task.loss, theta)

    def outside(v: jax.Array) -> jax.Array:
        v = v - modes @ (modes.T @ v)
        image = product(v)
        return image - modes @ (modes.T @ image)

    def group(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return curvature.hutchinson_trace(outside, theta, key, samples=PROBES_TOGETHER)

    means, errors = jax.lax.map(group, keys)
    inside = jnp.sum(modes * hessian_products(task, theta, modes))
    return inside + means.mean(), jnp.sqrt(jnp.sum(errors**2)) / errors.size


@partial(jax.jit, static_argnames="task")
def _losses(task: Task, theta: jax.Array):
    accuracy = jnp.nan if task.regression else task.accuracy(theta)
    return task.loss(theta), task.loss(theta, task.x_test, task.y_test), jnp.asarray(accuracy)


@double_precision
def quantities_at(task: Task, weights: ArrayLike, *, probes: int = 64, seed: int = 0) -> dict[str, float]:
    """Sharpness, trace, training and test loss and test accuracy at weights.

    The trace is that of the top 16 modes, exactly, and Hutchinson's estimate of the rest, so that it is unbiased and
    the outliers of the spectrum add nothing to its error; of at most 100 weights it is exact. The probes are the same
    at any weights: their errors largely cancel in the ratio of two traces.

    Parameters
    ----------
    task : Task
        The training problem, with test examples.
    weights : array
        Shape (d,).
    probes : int
        Random vectors of the trace, a multiple of 16.
    seed : int
        Of the probes.

    Returns
    -------
    dict
        The `QUANTITIES` (``test_accuracy`` is NaN for a regression) and ``trace_stderr``, the error by the probes.

    Raises
    ------
    InvalidInput
        If `probes` is no multiple of 16, or the weights are not finite or do not fit.
    ConvergenceFailure
        If the top eigenvector is not found.
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1 or probes % PROBES_TOGETHER:
        raise InvalidInput(f"probes={probes!r} must be a positive multiple of {PROBES_TOGETHER}")
    theta = checked_weights(task, weights)
    few = task.size <= 100
    values, modes, _ = top_modes(
        task, theta, task.size if few else min(_MODES, (task.size - 1) // 5), tol=1e-3
    )
    keys = jax.random.split(jax.random.key(seed), probes // PROBES_TOGETHER)
    trace, error = (values.sum(), 0.0) if few else _trace(task, theta, modes, keys)
    loss, test_loss, accuracy = _losses(task, theta)
    found = {
        "sharpness": values[0], "trace": trace, "trace_stderr": error, "loss": loss, "test_loss": test_loss,
        "test_accuracy": accuracy,
    }  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def over_runs(task: Task, weights: NDArray, *, probes: int = 64, seed: int = 0) -> dict[str, float]:
    """Means of the quantities over the weights of several runs.

    Parameters
    ----------
    task : Task
        The training problem.
    weights : ndarray
        Shape (runs, d).
    probes, seed : int
        as for `quantities_at`.

    Returns
    -------
    dict
        Each of the `QUANTITIES` and its ``_stderr`` over the runs, which is 0 for one.
    """
    each = [quantities_at(task, one, probes=probes, seed=seed) for one in weights]
    found = {}
    for name in QUANTITIES:
        values = np.array([one[name] for one in each])
        found[name] = float(values.mean())
        found[f"{name}_stderr"] = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return found


def at_their_mean(task: Task, weights: NDArray, *, probes: int = 64, seed: int = 0) -> dict[str, float]:
    """The quantities at the weights of which several runs are samples about the mean, by the jackknife.

    The mean of R runs still carries 1/R of their fluctuation, and so do the quantities there, to second order. The
    jackknife takes this bias out and tells the error: R f(mean) - (R - 1) <f(mean without one)>. On digits-mlp, SGD at
    batch 4, six runs gave what the plain mean of 48 gives, and told the scatter between groups of six. An accuracy is
    not smooth (one example more or less would count R times): it is taken at the mean as it is.

    Parameters
    ----------
    task : Task
        The training problem.
    weights : ndarray
        Shape (runs, d); one run is taken as it is.
    probes, seed : int
        as for `quantities_at`.

    Returns
    -------
    dict
        Each of the `QUANTITIES`, its ``_stderr`` over the runs, and ``trace_probe_stderr``.
    """
    runs = len(weights)
    whole = quantities_at(task, weights.mean(axis=0), probes=probes, seed=seed)
    found = {name: whole[name] for name in QUANTITIES} | {f"{name}_stderr": 0.0 for name in QUANTITIES}
    if runs > 1:
        without = [
            quantities_at(task, np.delete(weights, r, axis=0).mean(axis=0), probes=probes, seed=seed)
            for r in range(runs)
        ]
        for name in QUANTITIES:
            values = np.array([one[name] for one in without])
            value, found[f"{name}_stderr"] = jackknifed(whole[name], values)
            found[name] = whole[name] if name in _NOT_SMOOTH else value
    return found | {"trace_probe_stderr": whole["trace_stderr"]}


def jackknifed(whole: float, without: NDArray) -> tuple[float, float]:
    """A value without its bias of order 1/runs, and its error, from the values without one run each."""
    runs, mean = len(without), without.mean()
    return float(runs * whole - (runs - 1) * mean), float(
        np.sqrt((runs - 1) / runs * ((without - mean) ** 2).sum())
    )
