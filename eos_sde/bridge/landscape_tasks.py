"""Minimalist landscapes as tasks: functions of few weights whose training is known in closed form."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.bridge.networks import network
from eos_sde.bridge.recipes import SQUARED_ERROR, Problem, check_counts, check_number, recipe
from solvers.errors import InvalidInput


class ScalarProduct(eqx.Module):
    """The product x y z w of four weights, or (x y)^2 of two, times the input.

    Attributes
    ----------
    factors : Array
        x, y, z, w, or x, y.
    """

    factors: jax.Array

    def __init__(self, start: tuple[float, ...], spread: float, *, key: jax.Array) -> None:
        self.factors = jnp.asarray(start, jnp.float64) + spread * jax.random.normal(
            key, (len(start),), jnp.float64
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch, (n, 1) -> (n, 1)."""
        first, second, *others = self.factors
        third, fourth = others or (first, second)
        return x * (first * second * third * fourth)


class TwoLayerProduct(eqx.Module):
    """A linear network with one hidden layer and one input, f = u . v x / sqrt(m), weights of variance 1.

    Attributes
    ----------
    u, v : Array
        Shape (m,).
    """

    u: jax.Array
    v: jax.Array

    def __init__(self, width: int, *, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.u = jax.random.normal(first, (width,), jnp.float64)
        self.v = jax.random.normal(second, (width,), jnp.float64)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch, (n, 1) -> (n, 1)."""
        return x * (self.u @ self.v) / self.u.size**0.5


def edge_minimum(eta: float) -> float:
    """Where the minimum of (1/2)(1 - x y z w)^2 with x = z, y = w has the sharpness 2/eta.

    The sharpness of such a minimum is 2 (x^2 + y^2), with y = 1/x; the larger x at which it is 2/eta is
    ``2^-1/2 (sqrt(eta^-2 - 4) + 1/eta)^1/2`` (Zhu et al., arXiv:2210.03294).

    Parameters
    ----------
    eta : float
        Learning rate, above 0, at most 1/2: no minimum is flatter than 4.

    Returns
    -------
    float
        x.

    Raises
    ------
    InvalidInput
        If no minimum is so flat.
    """
    if not 0 < eta <= 0.5:
        raise InvalidInput(f"eta={eta!r} must be from above 0 to 1/2: the flattest minimum has sharpness 4")
    return float(np.sqrt((np.sqrt(eta**-2 - 4) + 1 / eta) / 2))


def _scalar_product(chosen: Mapping[str, Any]) -> Problem:
    check_counts(chosen, "examples")
    check_counts(chosen, "data_seed", least=0)
    noise, spread, tied = check_number(chosen, "noise"), check_number(chosen, "spread"), chosen["tied"]
    if not isinstance(tied, bool):
        raise InvalidInput(f"tied={tied!r} must be True (x = z, y = w) or False")
    start = chosen["start"]
    if len(start) != 2 or not np.all(np.isfinite(start)):
        raise InvalidInput(f"start={start!r} must be two finite numbers x, y; z and w start at the same")
    whole = tuple(start) if tied else (*start, *start)
    scale = 0.5**0.5 if tied else 1.0  # so that two weights move as four do
    x = np.full((chosen["examples"], 1), scale)
    y = scale * (1 + noise * _zero_sum(chosen))
    formula = "(1/4)(1 - x^2 y^2)^2" if tied else "(1/2)(1 - x y z w)^2"
    return Problem(
        network(lambda key: ScalarProduct(whole, spread, key=key), formula),
        x,
        y,
        x,
        y,
        source="target 1" if noise == 0 else f"target 1 with label noise {noise:g}",
        licence="synthetic",
    )


def _zero_sum(chosen: Mapping[str, Any]) -> np.ndarray:
    """Normal numbers less their mean, so that noise does not move the minimum, shape (examples, 1)."""
    draws = np.random.default_rng(chosen["data_seed"]).standard_normal((chosen["examples"], 1))
    return draws - draws.mean()


def _two_layer_product(chosen: Mapping[str, Any]) -> Problem:
    check_counts(chosen, "examples", "width")
    check_counts(chosen, "data_seed", least=0)
    n, width = chosen["examples"], chosen["width"]
    x = np.ones((n, 1))
    if n > 1:
        x = np.random.default_rng(chosen["data_seed"]).standard_normal((n, 1))
        x /= np.sqrt(np.mean(x**2))
    y = np.zeros_like(x)
    return Problem(
        network(
            lambda key: TwoLayerProduct(width, key=key), f"linear network u.v x/sqrt(m) of width m = {width}"
        ),
        x,
        y,
        x,
        y,
        source="inputs of mean square 1, target 0",
        licence="synthetic",
    )


RECIPES = {
    "landscape-xyzw": recipe(
        _scalar_product,
        {
            "examples": 1,
            "tied": False,
            "start": (2.3, 0.5),
            "spread": 0.01,
            "noise": 0.0,
            "data_seed": 0,
            "eta": 0.2,
        },
        {"examples": 1000, "noise": 0.1},
        losses=SQUARED_ERROR,
    ),
    "uv-catapult": recipe(
        _two_layer_product,
        {"examples": 1, "width": 128, "data_seed": 0, "eta": 1.4},
        {"examples": 1000, "width": 4096},
        losses=SQUARED_ERROR,
    ),
}
