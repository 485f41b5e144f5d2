"""Lanczos and power iteration for the largest algebraic eigenvalue, warm-started from the last vector."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.optimizers.curvature import vectors
from eos_sde.optimizers.curvature.interface import (
    PRODUCT_COST,
    ROUNDING,
    Params,
    Product,
    positive_integer,
)
from eos_sde.optimizers.curvature.vectors import space_of
from solvers.errors import InvalidInput


class _Ritz(NamedTuple):
    value: jax.Array
    residual: jax.Array
    vector: Params  # of length one
    scale: jax.Array  # of the largest Ritz value in modulus, for rounding


class Krylov(NamedTuple):
    """Orthonormal basis (leaves with a first axis of order), operator in it (order, order), length that is next, scale.

    Rows beyond an invariant subspace are zero, with an entry of the matrix that is coupled to nothing.
    """

    basis: Params
    matrix: jax.Array
    residual: jax.Array
    scale: jax.Array


def krylov_space(operator: Any, start: Params, order: int) -> Krylov:
    """Lanczos with full reorthogonalisation, cut where the space is invariant.

    Parameters
    ----------
    operator : callable
        Symmetric, on pytrees like `start`.
    start : pytree of Array
        Of length one; a vector of shape (d,), or arrays that lie on many devices.
    order : int
        Products with the operator, at most d.

    Returns
    -------
    Krylov
        The space, and what the operator is there.
    """
    dtype = jnp.result_type(*jax.tree.leaves(start))

    # the Arnoldi form, which shows the true lengths below the diagonal
    def extend(index: Any, carry: tuple) -> tuple:
        basis, projected, vector, length = carry
        vector = vectors.combine(lambda leaf: leaf / length, vector)
        basis = vectors.combine(lambda rows, leaf: rows.at[index].set(leaf), basis, vector)
        vector = operator(vector)
        column = vectors.overlaps(basis, vector)
        vector = vectors.combine(jnp.subtract, vector, vectors.combination(column, basis))
        again = vectors.overlaps(basis, vector)
        vector = vectors.combine(jnp.subtract, vector, vectors.combination(again, basis))
        length = vectors.norm(vector)
        return basis, projected.at[:, index].set(column.at[index + 1].set(length)), vector, length

    basis = vectors.combine(lambda leaf: jnp.zeros((order, *leaf.shape), dtype), start)
    first = (basis, jnp.zeros((order, order), dtype), start, vectors.norm(start))
    basis, projected, left, _ = jax.lax.fori_loop(0, order, extend, first)
    diagonal, lengths = jnp.diag(projected), jnp.diag(projected, -1)
    # The Krylov space is invariant where a length is rounding (or 0): the loop goes on from normalised
    # rounding noise (or 0/0), not orthogonal to what came before, which is complete: cut there. The empty
    # rows get a decoupled value below the first Rayleigh quotient, so that none becomes the largest.
    scale = jnp.max(jnp.where(jnp.isfinite(diagonal), jnp.abs(diagonal), 0.0))
    scale = jnp.maximum(scale, jnp.max(jnp.where(jnp.isfinite(lengths), lengths, 0.0), initial=0.0))
    negligible = ROUNDING * jnp.finfo(scale.dtype).eps * scale
    going_on = (lengths > negligible) & jnp.isfinite(diagonal[1:])
    sound = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(going_on).astype(bool)])
    below = diagonal[0] - jnp.where(scale > 0, scale, 1.0)
    diagonal = jnp.where(sound, diagonal, below)
    offdiagonal = jnp.where(sound[1:], lengths, 0.0)
    basis = vectors.combine(
        lambda rows: jnp.where(sound.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0.0), basis
    )
    last = jnp.where(sound[-1], vectors.norm(left), 0.0)
    matrix = jnp.diag(diagonal) + jnp.diag(offdiagonal, 1) + jnp.diag(offdiagonal, -1)
    return Krylov(basis, matrix, last, scale)


def _top_ritz(operator: Any, start: Params, order: int) -> _Ritz:
    """Return the largest Ritz pair of one Lanczos run."""
    found = krylov_space(operator, start, order)
    values, rotation = jnp.linalg.eigh(found.matrix)
    last = found.residual * jnp.abs(rotation[-1, -1])
    # of the two signs the one along the start: the same in every library, so that what `mix` adds is the same
    top = jnp.where(rotation[0, -1] < 0, -rotation[:, -1], rotation[:, -1])
    return _Ritz(values[-1], last, vectors.unit(vectors.combination(top, found.basis)), found.scale)


class LanczosState(NamedTuple):
    """The last Ritz vector (pytree like params, working dtype), the random key, products of last update."""

    vector: Params
    key: jax.Array
    products: jax.Array


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """See `lanczos`."""

    order: int
    tol: float
    restarts: int
    mix: float

    def init(self, params: Params, key: jax.Array) -> LanczosState:
        """Start from a random direction."""
        key, draw = jax.random.split(key)
        return LanczosState(space_of(params).random_unit(draw), key, jnp.zeros((), jnp.int32))

    def update(
        self, hvp: Product, params: Params, state: LanczosState
    ) -> tuple[jax.Array, jax.Array, LanczosState]:
        """Run Lanczos from the last Ritz vector, again from the new one while the residual exceeds tol."""
        space = space_of(params)
        operator = space.operator(hvp)
        order = min(self.order, space.dimension)
        key, draw = jax.random.split(state.key)

        def run(start: Params) -> tuple[Params, jax.Array, jax.Array]:
            ritz = _top_ritz(operator, start, order)
            floor = ROUNDING * space.unit_roundoff * ritz.scale
            return ritz.vector, ritz.value, jnp.maximum(ritz.residual, floor)

        def unfinished(carry: Any) -> jax.Array:
            _, value, bound, runs = carry
            return (runs < 1 + self.restarts) & (bound > self.tol * jnp.abs(value))

        def again(carry: Any) -> Any:
            vector, _, _, runs = carry
            return (*run(vector), runs + 1)

        # A trace of a random direction: a warm start alone never sees an eigenvalue that overtakes it from
        # a subspace to which the Hessian does not couple it.
        noise = space.random_unit(draw)
        start = vectors.unit(vectors.combine(lambda v, r: v + self.mix * r, state.vector, noise))
        infinite = jnp.asarray(jnp.inf, space.dtype)
        first = (start, jnp.zeros((), space.dtype), infinite, jnp.zeros((), jnp.int32))
        vector, value, bound, runs = jax.lax.while_loop(unfinished, again, first)
        return value, bound, LanczosState(vector, key, order * runs)

    def cost(self, params: Params) -> float:
        """Return the cost when every restart is used."""
        return PRODUCT_COST * min(self.order, space_of(params).dimension) * (1 + self.restarts)


def lanczos(*, order: int = 8, tol: float = 0.02, restarts: int = 8, mix: float = 0.01) -> Lanczos:
    """Warm-started Lanczos with full reorthogonalisation: the default, and the one to trust.

    Each update tridiagonalises the Hessian on a Krylov space of dimension `order` that starts at the last
    Ritz vector, and restarts from the new one until the residual is below ``tol * |estimate|``. Along a
    training run the vector turns slowly and one pass is the rule; the first, cold update takes a few.

    The estimate never exceeds the largest eigenvalue (up to rounding). The error bound is the residual
    ``|H v - estimate v| = |beta_k s_k|``: an eigenvalue lies within it (Parlett 1998, Theorem 4.5.1). Once
    the vector has found the top eigenvalue, with a gap g to the next, the error is at most residual^2 / g.

    Parameters
    ----------
    order : int
        Dimension of the Krylov space, the products per pass; cut to the number of parameters. The basis
        takes `order` vectors of memory.
    tol : float
        Residual to reach, relative to the estimate.
    restarts : int
        The most passes beyond the first; 0 for a fixed cost of `order` products.
    mix : float
        Length of the random vector added to each unit warm start.

    Returns
    -------
    Lanczos
        The estimator.

    Raises
    ------
    InvalidInput
        If a setting cannot be used.

    References
    ----------
    C. Lanczos, J. Res. Natl. Bur. Stand. 45 (1950) 255. B. N. Parlett, The Symmetric Eigenvalue Problem,
    SIAM, 1998. Arnoldi with two orthogonalisations, as in matfree (Kraemer et al., NeurIPS 2024), on pytrees.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> estimator = lanczos(order=3)
    >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    >>> hvp = lambda v: {"w": v["w"] * jnp.array([3.0, -50.0]), "b": v["b"]}
    >>> state = estimator.init(params, jax.random.key(0))
    >>> value, bound, state = estimator.update(hvp, params, state)
    >>> round(float(value), 3)
    3.0
    """
    positive_integer("order", order)
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
        raise InvalidInput(f"restarts must be a whole number, 0 or more, got {restarts!r}.")
    if not 0 < tol < 1:
        raise InvalidInput(f"tol must lie between 0 and 1 (it is relative to the estimate), got {tol!r}.")
    if not 0 <= mix < 1:
        raise InvalidInput(f"mix must lie between 0 and 1 (a share of a unit vector), got {mix!r}.")
    return Lanczos(order, tol, restarts, mix)


class PowerState(NamedTuple):
    """The iterate, the vector of the low end (pytrees, working dtype), products of the last update."""

    vector: Params
    lowest: Params
    products: jax.Array


@dataclasses.dataclass(frozen=True)
class Power:
    """See `power`."""

    iterations: int
    shift_order: int

    def init(self, params: Params, key: jax.Array) -> PowerState:
        """Start both vectors from random directions."""
        space = space_of(params)
        top, low = jax.random.split(key)
        return PowerState(space.random_unit(top), space.random_unit(low), jnp.zeros((), jnp.int32))

    def update(
        self, hvp: Product, params: Params, state: PowerState
    ) -> tuple[jax.Array, jax.Array, PowerState]:
        """Bound the low end, shift it to zero, iterate."""
        space = space_of(params)
        operator = space.operator(hvp)
        order = min(self.shift_order, space.dimension)

        def negative(vector: Params) -> Params:
            return vectors.combine(jnp.negative, operator(vector))

        low_end = _top_ritz(negative, vectors.unit(state.lowest), order)  # of -H
        shift = jnp.maximum(0.0, low_end.value + low_end.residual)

        def iterate(carry: Any, _: None) -> tuple[Any, None]:
            vector = carry[0]
            image = operator(vector)
            value = vectors.dot(vector, image)
            residual = vectors.norm(vectors.combine(lambda i, v: i - value * v, image, vector))
            moved = vectors.combine(lambda i, v: i + shift * v, image, vector)
            # a direction of zero image under the shifted operator is an eigenvector: stay there
            moving = vectors.norm(moved) > 0
            moved = vectors.combine(lambda m, v: jnp.where(moving, m, v), moved, vector)
            return (vectors.unit(moved), value, residual), None

        zero = jnp.zeros((), space.dtype)
        start = (vectors.unit(state.vector), zero, zero)
        (vector, value, residual), _ = jax.lax.scan(iterate, start, length=self.iterations)
        scale = jnp.maximum(jnp.abs(value), shift)
        bound = jnp.maximum(residual, ROUNDING * space.unit_roundoff * scale)
        products = jnp.full((), self.iterations + order, jnp.int32)
        return value, bound, PowerState(vector, low_end.vector, products)

    def cost(self, params: Params) -> float:
        """Return the cost of one update, the same each time."""
        return PRODUCT_COST * (self.iterations + min(self.shift_order, space_of(params).dimension))


def power(*, iterations: int = 8, shift_order: int = 4) -> Power:
    """Power iteration, shifted so that it finds the largest algebraic eigenvalue.

    Plain power iteration converges to the eigenvalue of largest magnitude: a strong negative direction
    would pass for sharpness and throttle the learning rate. Here a short Lanczos run of `shift_order`
    products, warm-started at the low end of the spectrum, gives the lowest Ritz value and its residual r;
    the iteration then runs on ``H + s I``, ``s = max(0, r - lowest)``, which is positive semidefinite when
    the low end is right, so that its dominant eigenvector is that of the largest eigenvalue of H. With a
    positive top eigenvalue the low end need only be right to a factor of two.

    The error falls by ``((lambda_2 + s) / (lambda_1 + s))^2`` an iteration: slower than Lanczos always, and
    slow where the negative end is strong. The estimate never exceeds the largest eigenvalue (up to
    rounding); the error bound is the residual ``|H v - estimate v|``, within which an eigenvalue lies.

    Parameters
    ----------
    iterations : int
        Power steps per update.
    shift_order : int
        Lanczos steps per update spent on the low end.

    Returns
    -------
    Power
        The estimator.

    Raises
    ------
    InvalidInput
        If iterations or shift_order is not a positive integer.

    References
    ----------
    B. N. Parlett, The Symmetric Eigenvalue Problem, SIAM, 1998, chapter 4.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> estimator = power(iterations=100)
    >>> hvp = lambda v: v * jnp.array([3.0, -50.0, 1.0])
    >>> state = estimator.init(jnp.zeros(3), jax.random.key(0))
    >>> value, bound, state = estimator.update(hvp, jnp.zeros(3), state)
    >>> round(float(value), 2)
    3.0
    """
    positive_integer("iterations", iterations)
    positive_integer("shift_order", shift_order)
    return Power(iterations, shift_order)
