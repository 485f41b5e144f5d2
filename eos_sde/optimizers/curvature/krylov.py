"""Lanczos and power iteration for the largest algebraic eigenvalue, warm-started from the last vector."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matfree import decomp

from eos_sde.optimizers.curvature.interface import (
    PRODUCT_COST,
    ROUNDING,
    Params,
    Product,
    flat_view,
    positive_integer,
    unit,
)
from solvers.errors import InvalidInput


class _Ritz(NamedTuple):
    value: jax.Array
    residual: jax.Array
    vector: jax.Array  # (dimension,), of length one
    scale: jax.Array  # of the largest Ritz value in modulus, for rounding


class Krylov(NamedTuple):
    """Orthonormal basis (order, d), the operator in it (order, order), the length that comes next, and a scale.

    Rows beyond an invariant subspace are zero, with an entry of the matrix that is coupled to nothing.
    """

    basis: jax.Array
    matrix: jax.Array
    residual: jax.Array
    scale: jax.Array


def krylov_space(operator: Any, start: jax.Array, order: int) -> Krylov:
    """Lanczos with full reorthogonalisation, cut where the space is invariant.

    Parameters
    ----------
    operator : callable
        Symmetric, on vectors of shape (d,).
    start : Array
        Of length one, shape (d,).
    order : int
        Products with the operator, at most d.

    Returns
    -------
    Krylov
        The space, and what the operator is there.
    """
    # the Arnoldi form of tridiag_sym(reortho="full"), which alone shows the true lengths below the diagonal
    arnoldi = decomp.hessenberg(order, reortho="full", custom_vjp=False)
    result = arnoldi(operator, start)
    basis: Any = result.Q_tall
    projected: Any = result.J_small
    diagonal, lengths = jnp.diag(projected), jnp.diag(projected, -1)
    # The Krylov space is invariant where a length is rounding (or 0): the library goes on from normalised
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
    basis = jnp.where(sound[:, None], basis, 0.0)
    last = jnp.where(sound[-1], jnp.linalg.norm(result.residual), 0.0)
    matrix = jnp.diag(diagonal) + jnp.diag(offdiagonal, 1) + jnp.diag(offdiagonal, -1)
    return Krylov(basis, matrix, last, scale)


def _top_ritz(operator: Any, start: jax.Array, order: int) -> _Ritz:
    """Return the largest Ritz pair of one Lanczos run."""
    found = krylov_space(operator, start, order)
    values, vectors = jnp.linalg.eigh(found.matrix)
    last = found.residual * jnp.abs(vectors[-1, -1])
    # of the two signs the one along the start: the same in every library, so that what `mix` adds is the same
    top = jnp.where(vectors[0, -1] < 0, -vectors[:, -1], vectors[:, -1])
    return _Ritz(values[-1], last, unit(top @ found.basis), found.scale)


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
        flat = flat_view(params)
        key, draw = jax.random.split(key)
        return LanczosState(flat.unravel(flat.random_unit(draw)), key, jnp.zeros((), jnp.int32))

    def update(
        self, hvp: Product, params: Params, state: LanczosState
    ) -> tuple[jax.Array, jax.Array, LanczosState]:
        """Run Lanczos from the last Ritz vector, again from the new one while the residual exceeds tol."""
        flat = flat_view(params)
        operator = flat.operator(hvp)
        order = min(self.order, flat.dimension)
        key, draw = jax.random.split(state.key)

        def run(start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            ritz = _top_ritz(operator, start, order)
            floor = ROUNDING * flat.unit_roundoff * ritz.scale
            return ritz.vector, ritz.value, jnp.maximum(ritz.residual, floor)

        def unfinished(carry: Any) -> jax.Array:
            _, value, bound, runs = carry
            return (runs < 1 + self.restarts) & (bound > self.tol * jnp.abs(value))

        def again(carry: Any) -> Any:
            vector, _, _, runs = carry
            return (*run(vector), runs + 1)

        # A trace of a random direction: a warm start alone never sees an eigenvalue that overtakes it from
        # a subspace to which the Hessian does not couple it.
        start = unit(flat.ravel(state.vector) + self.mix * flat.random_unit(draw))
        infinite = jnp.asarray(jnp.inf, flat.dtype)
        first = (start, jnp.zeros((), flat.dtype), infinite, jnp.zeros((), jnp.int32))
        vector, value, bound, runs = jax.lax.while_loop(unfinished, again, first)
        return value, bound, LanczosState(flat.unravel(vector), key, order * runs)

    def cost(self, params: Params) -> float:
        """Return the cost when every restart is used."""
        return PRODUCT_COST * min(self.order, flat_view(params).dimension) * (1 + self.restarts)


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
    SIAM, 1998. Tridiagonalisation by matfree (Kraemer et al., NeurIPS 2024).

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
        flat = flat_view(params)
        top, low = jax.random.split(key)
        vectors = (flat.unravel(flat.random_unit(top)), flat.unravel(flat.random_unit(low)))
        return PowerState(*vectors, jnp.zeros((), jnp.int32))

    def update(
        self, hvp: Product, params: Params, state: PowerState
    ) -> tuple[jax.Array, jax.Array, PowerState]:
        """Bound the low end, shift it to zero, iterate."""
        flat = flat_view(params)
        operator = flat.operator(hvp)
        order = min(self.shift_order, flat.dimension)
        low_end = _top_ritz(lambda v: -operator(v), unit(flat.ravel(state.lowest)), order)  # of -H
        shift = jnp.maximum(0.0, low_end.value + low_end.residual)

        def iterate(carry: Any, _: None) -> tuple[Any, None]:
            vector = carry[0]
            image = operator(vector)
            value = vector @ image
            residual = jnp.linalg.norm(image - value * vector)
            moved = image + shift * vector
            # a direction of zero image under the shifted operator is an eigenvector: stay there
            moved = jnp.where(jnp.linalg.norm(moved) > 0, moved, vector)
            return (unit(moved), value, residual), None

        zero = jnp.zeros((), flat.dtype)
        start = (unit(flat.ravel(state.vector)), zero, zero)
        (vector, value, residual), _ = jax.lax.scan(iterate, start, length=self.iterations)
        scale = jnp.maximum(jnp.abs(value), shift)
        bound = jnp.maximum(residual, ROUNDING * flat.unit_roundoff * scale)
        products = jnp.full((), self.iterations + order, jnp.int32)
        low = flat.unravel(low_end.vector)
        return value, bound, PowerState(flat.unravel(vector), low, products)

    def cost(self, params: Params) -> float:
        """Return the cost of one update, the same each time."""
        return PRODUCT_COST * (self.iterations + min(self.shift_order, flat_view(params).dimension))


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
