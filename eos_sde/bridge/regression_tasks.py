"""Regressions whose answer is known: a deep linear network against a linear teacher, and Chebyshev polynomials."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from eos_sde.bridge.networks import ACTIVATIONS, Network, network
from eos_sde.bridge.recipes import (
    SQUARED_ERROR,
    Problem,
    check_activation,
    check_counts,
    check_number,
    recipe,
)
from solvers.errors import InvalidInput


class DeepLinear(eqx.Module):
    """A product of matrices, drawn from a normal distribution of variance gain^2/fan_in.

    Attributes
    ----------
    weights : list of Array
        One per layer, shape (fan_in, fan_out).
    """

    weights: list[jax.Array]

    def __init__(self, layers: Sequence[int], gain: float, *, key: jax.Array) -> None:
        keys = jax.random.split(key, len(layers) - 1)
        self.weights = [
            gain * jax.random.normal(k, (m, n), jnp.float64) / m**0.5
            for k, (m, n) in zip(keys, pairwise(layers), strict=True)
        ]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch, (n, inputs) -> (n, outputs)."""
        for w in self.weights:
            x = x @ w
        return x


class OneHiddenLayer(eqx.Module):
    """A function of one variable: biases inside, none outside.

    Weights are drawn from a normal distribution of variance 2/(1 + width), times 1.9^2 before the nonlinearity
    (Xavier's, with the gain of Cohen et al.'s published code).

    Attributes
    ----------
    slopes, offsets : Array
        Before the nonlinearity, shape (width,); the offsets start at zero.
    heights : Array
        After it, shape (width,).
    activation : str
        Name of the nonlinearity.
    """

    slopes: jax.Array
    offsets: jax.Array
    heights: jax.Array
    activation: str = eqx.field(static=True)

    def __init__(self, width: int, activation: str, *, key: jax.Array) -> None:
        inner, outer = jax.random.split(key)
        spread = (2 / (1 + width)) ** 0.5
        self.slopes = 1.9 * spread * jax.random.normal(inner, (width,), jnp.float64)
        self.offsets = jnp.zeros(width, jnp.float64)
        self.heights = spread * jax.random.normal(outer, (width,), jnp.float64)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch, (n, 1) -> (n, 1)."""
        return (ACTIVATIONS[self.activation](x * self.slopes + self.offsets) @ self.heights)[:, None]


def balanced_spectrum(spectrum: Sequence[float], *, depth: int, inputs: int) -> NDArray[np.float64]:
    """Eigenvalues of the loss Hessian of a deep linear network at its balanced minimum that are not zero by symmetry.

    For half the squared error on white inputs, at W_L ... W_1 = W* with W_l+1' W_l+1 = W_l W_l': every layer has the
    singular values s^(1/L), and the direction that changes the output along u_i v_j' has the eigenvalue
    ``sum_l s_i^(2 (L - l)/L) s_j^(2 (l - 1)/L)`` over the layers l = 1..L (s_j = 0 for j beyond the outputs, 0^0 = 1).
    The largest, L s_1^(2 - 2/L), is the least sharpness of any minimum (Mulayoff and Michaeli, ICML 2020).

    Parameters
    ----------
    spectrum : sequence of float
        Singular values s of the teacher, as many as outputs, at most `inputs`.
    depth : int
        L, the layers.
    inputs : int
        Input dimension.

    Returns
    -------
    ndarray
        ``len(spectrum) * inputs`` eigenvalues, largest first.
    """
    left = np.asarray(spectrum, dtype=float)
    right = np.zeros(inputs)
    right[: left.size] = left
    powers = np.arange(depth)  # l - 1
    outer = left[:, None] ** (2 * (depth - 1 - powers) / depth)
    inner = right[:, None] ** (2 * powers / depth)
    return np.sort((outer @ inner.T).ravel())[::-1]


def _deep_linear(chosen: Mapping[str, Any]) -> Problem:
    check_counts(chosen, "examples", "test_examples", "inputs")
    check_counts(chosen, "data_seed", least=0)
    noise, gain = check_number(chosen, "noise"), check_number(chosen, "gain")
    spectrum = np.asarray(chosen["spectrum"], dtype=float)
    n, inputs, outputs = chosen["examples"], chosen["inputs"], spectrum.size
    if (
        spectrum.ndim != 1
        or not 1 <= outputs <= inputs
        or not np.all((spectrum >= 0) & np.isfinite(spectrum))
    ):
        raise InvalidInput(
            f"spectrum={chosen['spectrum']!r} must be from 1 to inputs={inputs} finite singular values from 0"
        )
    if n <= inputs:
        raise InvalidInput(f"examples={n} must be more than inputs={inputs}: the inputs are made white")
    if min(chosen["hidden"], default=outputs) < outputs:
        raise InvalidInput(f"hidden={chosen['hidden']} must be at least as wide as the {outputs} outputs")
    rng = np.random.default_rng(chosen["data_seed"])
    left, right = (np.linalg.qr(rng.standard_normal((size, outputs)))[0] for size in (outputs, inputs))
    teacher = (right * spectrum) @ left.T  # (inputs, outputs)
    x = np.linalg.qr(rng.standard_normal((n, inputs)))[0] * n**0.5
    errors = rng.standard_normal((n, outputs))
    errors -= x @ (x.T @ errors) / n  # what no linear map fits
    x_test = rng.standard_normal((chosen["test_examples"], inputs))
    test_errors = rng.standard_normal((len(x_test), outputs))
    return Problem(
        _deep_network((inputs, *chosen["hidden"], outputs), gain),
        x,
        x @ teacher + noise * errors,
        x_test,
        x_test @ teacher + noise * test_errors,
        source=f"a linear teacher with singular values {', '.join(f'{s:g}' for s in spectrum)}",
        licence="synthetic",
    )


def _deep_network(layers: tuple[int, ...], gain: float) -> Network:
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in layers):
        raise InvalidInput(f"layer widths {layers} must be positive integers")
    description = f"linear {'-'.join(map(str, layers))}"
    return network(lambda key: DeepLinear(layers, gain, key=key), description)


def _chebyshev(chosen: Mapping[str, Any]) -> Problem:
    check_activation(chosen)
    check_counts(chosen, "examples", "test_examples", "width", "degree")
    width, activation, degree = chosen["width"], chosen["activation"], chosen["degree"]

    def points(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x = np.linspace(-1, 1, count)[:, None]
        return x, chebyshev.chebval(x, [0.0] * degree + [1.0])

    return Problem(
        network(lambda key: OneHiddenLayer(width, activation, key=key), f"{activation} 1-{width}-1"),
        *points(chosen["examples"]),
        *points(chosen["test_examples"]),
        source=f"the Chebyshev polynomial of degree {degree} at evenly spaced points of [-1, 1]",
        licence="synthetic",
    )


RECIPES = {
    "deep-linear": recipe(
        _deep_linear,
        {
            "examples": 100,
            "test_examples": 100,
            "inputs": 8,
            "hidden": (8, 8, 8),
            "spectrum": (1.0, 0.8, 0.6, 0.4),
            "noise": 0.2,
            "gain": 0.8,
            "data_seed": 0,
            "eta": 0.45,
        },
        {
            "examples": 2000,
            "test_examples": 500,
            "inputs": 64,
            "hidden": (64,) * 5,
            "spectrum": tuple(float(s) for s in np.round(np.linspace(1.0, 0.1, 16), 2)),
        },
        losses=SQUARED_ERROR,
    ),
    "chebyshev": recipe(
        _chebyshev,
        {
            "examples": 20,
            "test_examples": 101,
            "degree": 4,
            "width": 100,
            "activation": "tanh",
            "eta": 0.4,
        },
        {"examples": 200, "width": 1000, "degree": 5},
        losses=SQUARED_ERROR,
    ),
}
