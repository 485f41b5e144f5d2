"""When CAEO measures the curvature anew, and how it follows the sharpness in between."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.core
import jax.numpy as jnp

from eos_sde.optimizers.curvature import vectors
from eos_sde.optimizers.curvature.interface import (
    PRODUCT_COST,
    Params,
    Product,
    positive_integer,
)
from eos_sde.optimizers.curvature.krylov import Lanczos, lanczos
from solvers.errors import InvalidInput

LINEARIZATION_COST = 1.0
"""Gradient-equivalents spent once at a measurement: the forward and backward pass that its products share."""

SLOPE_COST = 5.0
"""Gradient-equivalents of the gradient of v'Hv (backward through a product), as measured where matrices dominate."""

_FURTHEST = 1.0  # the largest change of log sharpness that is followed
_AIM = 3.0  # the value followed shall be off by tol over this where it is measured anew
_TINY = 1.2e-38  # the least positive normal number in single precision
_SPREAD = 8  # the k-th measurement on the allowance is not before update 2 k^2
_REACH = 2.0  # what the slope leaves out is foreseen for this many intervals like that where it was seen
_MOST_LEFT_OUT = 0.3  # of log sharpness in one interval


class Policy(Protocol):
    """When to measure. Settings only; the methods are pure and can be compiled."""

    def init(self, params: Params) -> Any:
        """Return the state before the first update, from the shapes and dtypes of `params`."""
        ...

    def follow(self, state: Any, params: Params, sharpness: jax.Array) -> jax.Array:
        """Return the sharpness at `params`, from the last measurement and `sharpness`, the value held so far."""
        ...

    def due(self, state: Any, count: jax.Array, age: jax.Array, sharpness: jax.Array) -> jax.Array:
        """Return whether update number `count` measures, `age` updates after the last that did."""
        ...

    def earn(self, state: Any) -> Any:
        """Return the state of a new update, once it is known whether it measures."""
        ...

    def measured(self, state: Any, measurement: Measurement) -> Any:
        """Return that state after a measurement."""
        ...


class Measurement(NamedTuple):
    """What a policy is told of a measurement.

    Attributes
    ----------
    params : pytree
        Where it was made.
    sharpness : scalar
        The estimate.
    expected : scalar
        What `follow` gave there.
    age : int32
        Updates since the measurement before.
    products : int32
        Hessian-vector products that it took.
    quotient : Quotient or None
        ``v'H v`` of the unit vector v that was found, as a function of the parameters; None if none is kept.
    """

    params: Params
    sharpness: Any
    expected: Any
    age: Any
    products: Any
    quotient: Any


@dataclasses.dataclass(frozen=True)
class Every:
    """Measure at every `interval`-th update, the first included; in between the last estimate stands."""

    interval: Any

    def init(self, params: Params) -> tuple[()]:  # noqa: ARG002
        """Nothing to remember."""
        return ()

    def follow(self, state: Any, params: Params, sharpness: jax.Array) -> jax.Array:  # noqa: ARG002
        """Hold the last estimate."""
        return sharpness

    def due(self, state: Any, count: jax.Array, age: jax.Array, sharpness: jax.Array) -> jax.Array:  # noqa: ARG002
        """By the number of the update alone."""
        return count % self.interval == 0

    def measured(self, state: Any, measurement: Measurement) -> tuple[()]:  # noqa: ARG002
        """Nothing to remember."""
        return ()

    def earn(self, state: Any) -> tuple[()]:  # noqa: ARG002
        """Nothing to remember."""
        return ()


class BudgetState(NamedTuple):
    """What `Budget` remembers.

    Attributes
    ----------
    measured : scalar
        The last measured sharpness.
    slope : pytree
        Its gradient in the parameters, in the working dtype.
    offset : scalar
        The slope times the parameters where it was measured.
    wait : float
        Updates after which the next measurement is wished for.
    balance : float
        Gradient-equivalents that may be spent.
    price : float
        What the cheapest measurement so far cost of them; infinite before the first.
    age : float
        Updates since the last measurement.
    span : float
        Updates between the last measurement and the one before.
    missed : float
        Log sharpness an update by which the slope fell short in that interval.
    before : float
        The same of the interval before that one.
    bend : float
        The rise that both these and the interval before them fell short by: what is foreseen; 0 if it is not.
    """

    measured: Any
    slope: Params
    offset: Any
    wait: Any
    balance: Any
    price: Any
    age: Any
    span: Any
    missed: Any
    before: Any
    bend: Any


@dataclasses.dataclass(frozen=True)
class Budget:
    """See `budget`."""

    share: float
    tol: float
    allowance: float
    size: float
    longest: int
    bend: bool = True

    def init(self, params: Params) -> BudgetState:
        """Nothing measured, the allowance unspent."""
        dtype = vectors.space_of(params).dtype
        slope = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), dtype), params)
        level, offset = (jnp.zeros((), dtype) for _ in range(2))  # buffers of their own, to be donated
        return BudgetState(level, slope, offset, *(jnp.full((), x, jnp.float32) for x in self.at_first))

    @property
    def at_first(self) -> tuple[float, ...]:
        """Wait, balance, price, age, span, missed, before and bend, before anything is measured."""
        return 0.0, self.allowance, math.inf, 0.0, 0.0, 0.0, 0.0, 0.0

    def follow(self, state: BudgetState, params: Params, sharpness: jax.Array) -> jax.Array:
        """Follow a positive sharpness along its gradient and its bend, in the logarithm; hold any other."""
        return self.followed(state, _dot(state.slope, params, state.measured.dtype), sharpness)

    def followed(self, state: BudgetState, position: Any, sharpness: Any, *, xp: Any = jnp) -> Any:
        """As `follow`, from the slope times the parameters; this and the following also run on ``keras.ops``."""
        positive = state.measured > 0
        change = (position - state.offset) / xp.where(positive, state.measured, 1.0)
        if self.bend:
            change = change + xp.array(self._left_out(state, state.age + 1.0, xp), state.measured.dtype)
        return xp.where(positive, state.measured * xp.exp(xp.clip(change, -_FURTHEST, _FURTHEST)), sharpness)

    @staticmethod
    def _left_out(state: BudgetState, age: Any, xp: Any) -> Any:
        """Log sharpness that the slope is expected to leave out, `age` updates after a measurement."""
        return state.bend * xp.minimum(age, _REACH * state.span)

    def due(self, state: BudgetState, count: Any, age: Any, sharpness: Any, *, xp: Any = jnp) -> Any:
        """When wished for and paid for; at the first update, and at once after a failed measurement."""
        count, age = (xp.array(number, "float32") for number in (count, age))
        positive = (state.measured > 0) & (sharpness > 0)
        change = xp.log(xp.where(positive, sharpness, 1.0) / xp.where(positive, state.measured, 1.0))
        wished = (age >= state.wait) | (change**2 > 2.0 * self.tol)  # the order that is left out
        income = (age * self.share >= state.price) & (state.balance >= -self.allowance)
        savings = (state.balance >= state.price) & (xp.square(age) >= _SPREAD * (count - 1.0))
        return (count == 0) | ~xp.isfinite(sharpness) | (wished & (income | savings))

    def measured(self, state: BudgetState, measurement: Measurement) -> BudgetState:
        """Take the slope, pay, and set the wait by how far off the expectation was."""
        dtype = state.measured.dtype
        slope = state.slope
        if measurement.quotient is not None:
            fresh = measurement.quotient.slope(measurement.params)
            slope = jax.tree.map(lambda leaf: leaf.astype(dtype), fresh)
        sound = jnp.isfinite(measurement.sharpness)
        for leaf in jax.tree.leaves(slope):
            sound &= jnp.all(jnp.isfinite(leaf))
        slope = jax.tree.map(lambda leaf: jnp.where(sound, leaf, 0.0), slope)
        return self.settled(state, measurement, slope, _dot(slope, measurement.params, dtype))

    def settled(
        self, state: BudgetState, measurement: Measurement, slope: Any, offset: Any, *, xp: Any = jnp
    ) -> BudgetState:
        """As `measured`, with the slope and the slope times the parameters at hand."""
        sharpness = measurement.sharpness
        off = xp.abs(sharpness - measurement.expected) / xp.maximum(xp.abs(sharpness), _TINY)
        age, products, off = (
            xp.array(number, "float32") for number in (measurement.age, measurement.products, off)
        )
        cost = self.size * (LINEARIZATION_COST + PRODUCT_COST * products)
        if measurement.quotient is not None:
            cost += self.size * SLOPE_COST
        # The error grows with the age at most, and shrinks no faster: bounded, as steps of an integrator are.
        scale = xp.clip(self.tol / xp.maximum(_AIM * off, 1e-6), 0.25, 1.5)
        wait = xp.clip(xp.where(xp.isfinite(off), scale, 0.25) * age, 1.0, float(self.longest))
        price = xp.minimum(cost, state.price)
        missed = self._missed(state, measurement, age, xp)
        # A rise by as much as three intervals in turn agree on: two agree too often where each is off by its noise.
        since, bend = xp.zeros_like(age), xp.zeros_like(age)
        if self.bend:
            bend = xp.maximum(xp.minimum(xp.minimum(missed, state.missed), state.before), bend)
        balance, before = state.balance - cost, state.missed
        return BudgetState(sharpness, slope, offset, wait, balance, price, since, age, missed, before, bend)

    def _missed(self, state: BudgetState, measurement: Measurement, age: Any, xp: Any) -> Any:
        """Log sharpness an update that the slope left out of the interval that ends; 0 where it was not followed."""
        ratio = measurement.sharpness / xp.where(measurement.expected > 0, measurement.expected, 1.0)
        sound = (state.measured > 0) & (measurement.expected > 0) & (ratio > 0) & xp.isfinite(ratio)
        beyond = xp.array(xp.log(xp.where(sound, ratio, 1.0)), "float32") + self._left_out(state, age, xp)
        bounded = xp.clip(beyond, -_MOST_LEFT_OUT, _MOST_LEFT_OUT) / xp.maximum(age, 1.0)
        return xp.where(sound, bounded, xp.zeros_like(bounded))

    def earn(self, state: BudgetState, *, xp: Any = jnp) -> BudgetState:
        """Receive the share of one update, and count it."""
        balance = xp.minimum(state.balance + self.share, self.allowance)
        return state._replace(balance=balance, age=state.age + 1.0)


def budget(
    *,
    share: float = 0.05,
    tol: float = 0.02,
    allowance: float = 60.0,
    size: float = 1.0,
    longest: int = 10_000,
    bend: bool = True,
) -> Budget:
    r"""Measure when the sharpness asks for it and the budget pays, and follow it along its gradient in between.

    With v the unit eigenvector found, :math:`\nabla \lambda = \nabla (v' H v)` costs about two products, taken at each
    measurement. At every later step one dot product follows the sharpness to where the parameters have come,

    .. math:: \lambda_t = \lambda_k \exp(\nabla \lambda_k \cdot (\theta_t - \theta_k) / \lambda_k + b_k (t - k)),

    through progressive sharpening and through the oscillation of the iterate at the edge alike: of that the linear
    part, which a held estimate misses altogether. What the line leaves out does not average out: as the eigenvector
    turns away from v, the largest eigenvalue rises above v'Hv, by
    :math:`\sum_j (v_j' \Delta H v)^2 / (\lambda - \lambda_j)` to second order in the change of H, and under gradient
    noise this sum grows in proportion to the updates. With `bend` b is its rate, as far as the three last intervals
    between measurements agree on a rise, and acts for two intervals like the last at most; without it b is zero.

    A measurement is wished for once the change followed, x, is such that the order left out, :math:`x^2/2`, exceeds
    `tol`, and after a wait that is cut to a quarter or lengthened by half at most between measurements, so that the
    value followed is off by `tol`/3 when measured anew. It is made when paid for. Every update earns `share`: a
    measurement is paid for when its usual price was earned since the last. Others, in the fast changes of early
    training above all, are paid for by the allowance, the k-th not before update :math:`2 k^2`. What more than the
    usual price a measurement costs is a debt, at most the allowance again. So up to any step the cost of all is at
    most `share` times the steps, twice the allowance, and that of one measurement.

    Parameters
    ----------
    share : float
        Gradient-equivalents per update that may be spent in the long run: the cost beside plain gradient descent.
    tol : float
        Relative error of the sharpness that is aimed at.
    allowance : float
        Gradient-equivalents that may be spent beyond the share, once; the share refills what is left unspent.
    size : float
        What a gradient of `value_fn` costs, in gradients of the training batch: 1 when both are of as many examples.
    longest : int
        The most updates between measurements that is wished for.
    bend : bool
        Whether the rise that the slope leaves out is foreseen: with many weights it is most of the error.

    Returns
    -------
    Budget
        The policy, for the argument `refresh` of ``caeo``.

    Raises
    ------
    InvalidInput
        If a setting cannot be used.

    Notes
    -----
    Gradient-equivalents are counted, not timed: `PRODUCT_COST` a product, `LINEARIZATION_COST` and `SLOPE_COST` a
    measurement, 12 for one of three products. In time that was 7 to 16 gradients on networks from 5e3 to 1e7 weights
    (``benchmarks/caeo_step.py``, ``curvature_cost.py``): a share of 5 % is 3 to 7 % of it. To follow the sharpness is
    one dot product an update, which shows beside gradients of small batches.

    An estimator without a vector (``random_rayleigh``, ``hutchinson``) has no slope: its estimate is held.

    Examples
    --------
    >>> budget(share=0.05).share
    0.05
    """
    for name, value, most in (("share", share, 1e6), ("tol", tol, 1.0), ("size", size, 1e6)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < most:
            raise InvalidInput(f"{name} must be a positive number below {most:g}, got {value!r}.")
    if isinstance(allowance, bool) or not isinstance(allowance, int | float) or not 0 <= allowance < 1e6:
        raise InvalidInput(f"allowance must be a number of gradients, 0 or more, got {allowance!r}.")
    positive_integer("longest", longest)
    if not isinstance(bend, bool):
        raise InvalidInput(f"bend must be True or False, got {bend!r}.")
    return Budget(float(share), float(tol), float(allowance), float(size), longest, bend)


def policy(refresh: Any) -> Policy:
    """Return the policy that an argument `refresh` means.

    Parameters
    ----------
    refresh : int, "auto" or policy
        A number of updates means `Every`, "auto" the default `budget`.

    Returns
    -------
    Policy
        With the methods of the protocol.

    Raises
    ------
    InvalidInput
        If it is none of these.
    """
    if isinstance(refresh, str):
        if refresh == "auto":
            return budget()
    elif all(hasattr(refresh, name) for name in ("init", "follow", "due", "earn", "measured")):
        return refresh
    elif isinstance(refresh, jax.core.Tracer) or (
        jnp.ndim(refresh) == 0 and refresh >= 1 and int(refresh) == refresh
    ):
        return Every(refresh)
    raise InvalidInput(
        f"refresh must be a positive whole number of updates, 'auto' or a policy such as refresh.budget(share=0.05), "
        f"got {refresh!r}."
    )


def default_estimator(plan: Policy) -> Lanczos:
    """Return Lanczos: thorough where the user says when, in short passes where products are paid for.

    Parameters
    ----------
    plan : Policy
        The refresh policy.
    """
    return lanczos(order=3, tol=0.05, restarts=2) if isinstance(plan, Budget) else lanczos()


@dataclasses.dataclass(frozen=True, eq=False)
class Quotient:
    """``v'H v`` of a unit vector as a function of the parameters.

    Attributes
    ----------
    product : callable
        Parameters -> ``v -> H v`` there.
    vector, tangent : pytree
        The vector in the working dtype, and in the dtypes of the parameters.
    """

    product: Callable[[Params], Product]
    vector: Params
    tangent: Params

    def __call__(self, at: Params) -> jax.Array:
        """Its value."""
        image = self.product(at)(self.tangent)
        return _dot(self.vector, image, jnp.result_type(*jax.tree.leaves(self.vector)))

    def slope(self, at: Params) -> Params:
        """Its gradient; by the product's own way where it has one."""
        own = getattr(self.product, "slope", None)
        return jax.grad(self)(at) if own is None else own(at, self.tangent)


def quotient(product: Callable[[Params], Product], params: Params, state: Any) -> Quotient | None:
    """Return ``v'H v`` as a function of the parameters, for the unit vector v that an estimator keeps.

    Parameters
    ----------
    product : callable
        Parameters -> ``v -> H v`` there.
    params : pytree
        Only dtypes are read.
    state : NamedTuple
        Of the estimator.

    Returns
    -------
    Quotient or None
        None for an estimator that keeps no vector.
    """
    if not hasattr(state, "vector"):
        return None
    tangent = jax.tree.map(lambda leaf, like: leaf.astype(jnp.result_type(like)), state.vector, params)
    return Quotient(product, state.vector, tangent)


def _dot(one: Params, two: Params, dtype: Any) -> jax.Array:
    return vectors.dot(one, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), two))
