"""Estimators from independent random vectors: the proposal's Rayleigh quotients, Hutchinson's trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matfree import stochtrace

from eos_sde.optimizers.curvature import vectors
from eos_sde.optimizers.curvature.interface import (
    PRODUCT_COST,
    ROUNDING,
    Flat,
    Params,
    Product,
    flat_view,
    positive_integer,
)


class SamplingState(NamedTuple):
    """The random key and the number of products of the last update."""

    key: jax.Array
    products: jax.Array


@dataclasses.dataclass(frozen=True)
class _Sampler:
    samples: int

    def init(self, params: Params, key: jax.Array) -> SamplingState:
        """Keep the key; there is nothing to warm-start."""
        flat_view(params)  # refuses what cannot be differentiated
        return SamplingState(key, jnp.zeros((), jnp.int32))

    def cost(self, params: Params) -> float:  # noqa: ARG002  (the interface of all estimators)
        """Return the cost of one update, the same each time."""
        return PRODUCT_COST * self.samples


@dataclasses.dataclass(frozen=True)
class RandomRayleigh(_Sampler):
    """See `random_rayleigh`."""

    def update(
        self, hvp: Product, params: Params, state: SamplingState
    ) -> tuple[jax.Array, jax.Array, SamplingState]:
        """Return the largest of the quotients, with the residual norm of its vector."""
        space = vectors.space_of(params)
        operator = space.operator(hvp)
        key, draw = jax.random.split(state.key)

        def quotient(draw: jax.Array) -> tuple[jax.Array, jax.Array]:
            vector = space.random_unit(draw)
            image = operator(vector)
            value = vectors.dot(vector, image)
            floor = ROUNDING * space.unit_roundoff * vectors.norm(image)
            rest = vectors.combine(lambda i, v: i - value * v, image, vector)
            return value, jnp.maximum(vectors.norm(rest), floor)

        values, residuals = jax.lax.map(quotient, jax.random.split(draw, self.samples))
        best = jnp.argmax(values)
        new_state = SamplingState(key, jnp.full((), self.samples, jnp.int32))
        return values[best], residuals[best], new_state


def random_rayleigh(*, samples: int = 8) -> RandomRayleigh:
    """The proposal's estimate: the largest ``v' H v`` over random unit vectors of rotation-invariant law.

    A lower bound, and a poor one in high dimension: ``v_1^2 ~ Beta(1/2, (d - 1)/2)`` has mean 1/d, so that
    in d dimensions each quotient sits near ``trace(H) / d`` and an isolated top eigenvalue is missed by a
    factor of about ``d / (2 log samples)``. A learning rate of ``2 / estimate`` is then far beyond the edge.
    It is shipped to be measured against; use `lanczos`.

    The error bound is the residual ``|H v - estimate v|`` of the best vector. Some eigenvalue lies within
    it, but not the largest: it is no bound on what is missed.

    Parameters
    ----------
    samples : int
        Random vectors (and products) per update.

    Returns
    -------
    RandomRayleigh
        The estimator.

    Raises
    ------
    InvalidInput
        If samples is not a positive integer.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> estimator = random_rayleigh(samples=8)
    >>> hvp = lambda v: v * jnp.zeros(1000).at[0].set(1000.0)
    >>> state = estimator.init(jnp.zeros(1000), jax.random.key(0))
    >>> value, bound, state = estimator.update(hvp, jnp.zeros(1000), state)
    >>> bool(value < 50.0)
    True
    """
    positive_integer("samples", samples)
    return RandomRayleigh(samples)


@dataclasses.dataclass(frozen=True)
class Hutchinson(_Sampler):
    """See `hutchinson`."""

    def update(
        self, hvp: Product, params: Params, state: SamplingState
    ) -> tuple[jax.Array, jax.Array, SamplingState]:
        """Return the upper bound by trace and Frobenius norm, and its distance from the lower one."""
        flat = flat_view(params)
        operator = flat.operator(hvp)
        key, draw = jax.random.split(state.key)

        (trace, square), (trace_error, square_error) = _trace_and_square(flat, operator, draw, self.samples)
        mean = trace / flat.dimension
        spread = jnp.sqrt(jnp.maximum(square / flat.dimension - mean**2, 0.0))
        reach = jnp.sqrt(jnp.asarray(max(flat.dimension - 1, 1), flat.dtype))
        upper = mean + spread * reach
        width = spread * (reach - 1.0 / reach)
        # first order: d(spread) = d(square) / (2 d spread), and d(mean) = d(trace) / d
        tiny = jnp.finfo(flat.dtype).tiny
        sampling = trace_error / flat.dimension
        sampling += reach * square_error / (2.0 * flat.dimension * jnp.maximum(spread, tiny))
        sampling = jnp.where(spread > 0, sampling, trace_error / flat.dimension)
        bound = jnp.maximum(width + sampling, ROUNDING * flat.unit_roundoff * jnp.abs(upper))
        return upper, bound, SamplingState(key, jnp.full((), self.samples, jnp.int32))


def _trace_and_square(flat: Flat, operator: Callable, key: jax.Array, samples: int) -> tuple:
    """Means over random signs v of v'Hv and |Hv|^2, whose means are trace(H) and |H|_F^2, and their errors."""

    def integrand(matvec: Product, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = matvec(vector)
        return vector @ image, image @ image

    sampler = stochtrace.sampler_signs(jnp.zeros(flat.dimension, flat.dtype), num=samples)
    return stochtrace.estimator_monte_carlo_mean_and_sem(integrand, sampler)(operator, key)


def hutchinson_trace(
    hvp: Product, params: Params, key: jax.Array, *, samples: int = 8
) -> tuple[jax.Array, jax.Array]:
    """Unbiased estimate of the trace of the Hessian: the mean of ``v' H v`` over random signs v.

    Parameters
    ----------
    hvp : callable
        The operator at the current point, ``v -> H v``, on pytrees of the shapes and dtypes of `params`.
    params : pytree of real arrays
        Only shapes and dtypes are read.
    key : jax.Array
        A JAX random key: the same key draws the same signs, whose errors cancel in a difference of traces.
    samples : int
        Random vectors (and products, taken at once).

    Returns
    -------
    trace, stderr : Array
        Scalars. The variance of one sample is twice the sum of the squares off the diagonal of H.

    Raises
    ------
    InvalidInput
        If samples is not a positive integer.

    References
    ----------
    M. F. Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433. Monte Carlo by matfree.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> trace, stderr = hutchinson_trace(lambda v: 3.0 * v, jnp.zeros(5), jax.random.key(0))
    >>> float(trace), float(stderr)
    (15.0, 0.0)
    """
    positive_integer("samples", samples)
    flat = flat_view(params)
    (trace, _), (stderr, _) = _trace_and_square(flat, flat.operator(hvp), key, samples)
    return trace, stderr


def hutchinson(*, samples: int = 8) -> Hutchinson:
    """An upper bound from the trace and the Frobenius norm, both by Hutchinson's random signs.

    With ``m = trace(H)/d`` and ``s^2 = |H|_F^2/d - m^2`` any symmetric H obeys
    ``m + s/sqrt(d - 1) <= lambda_max <= m + s sqrt(d - 1)`` (Wolkowicz and Styan 1980, Theorem 2.1). The
    upper end is the estimate, the width of the interval (plus one standard error of sampling) the error
    bound, so that ``estimate - error_bound <= lambda_max <= estimate`` up to sampling. Never above the trace
    for positive semidefinite H, and exact for a single spike; but of negative curvature it sees only the
    square, so that, unlike the other estimators, it can throttle where the curvature is negative.

    Parameters
    ----------
    samples : int
        Random vectors (and products) per update.

    Returns
    -------
    Hutchinson
        The estimator.

    Raises
    ------
    InvalidInput
        If samples is not a positive integer.

    References
    ----------
    M. F. Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433. H. Wolkowicz and G. P. H. Styan, Linear
    Algebra Appl. 29 (1980) 471. Monte Carlo by matfree.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> estimator = hutchinson(samples=4)
    >>> hvp = lambda v: v * jnp.zeros(100).at[0].set(7.0)
    >>> state = estimator.init(jnp.zeros(100), jax.random.key(0))
    >>> value, bound, state = estimator.update(hvp, jnp.zeros(100), state)
    >>> round(float(value), 3)
    7.0
    """
    positive_integer("samples", samples)
    return Hutchinson(samples)
