"""What the Keras optimizers share: they measure the curvature of the loss at an update, and choose its rate by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import keras
import tensorflow as tf

from eos_sde.optimizers import rule
from eos_sde.optimizers.curvature import ESTIMATORS
from eos_sde.optimizers.keras import refresh as refreshing
from eos_sde.optimizers.keras import runaway as watching
from eos_sde.optimizers.keras import state, threefry
from eos_sde.optimizers.keras.hessian import Derivative, Flat, linearize
from eos_sde.optimizers.keras.krylov import Operator, check_estimator, steps
from eos_sde.optimizers.keras.settings import REFUSED, base_rate, check_keywords, check_seed
from eos_sde.optimizers.refresh import Measurement, default_estimator, policy
from solvers.errors import InvalidInput


class Curvature(NamedTuple):
    """What is known at an update when its rate is chosen.

    Attributes
    ----------
    base : tensor
        The base rate, in the working dtype as all here.
    sharpness : tensor
        The largest Hessian eigenvalue: the last estimate, or that followed to where the variables are.
    residual : tensor
        Error bound of the last estimate.
    staleness : tensor
        Updates since that estimate was made, int64; 0 when it was made just now.
    vector : tensor, shape (dimension,)
        The eigenvector that it found, of length one.
    operator : callable
        The Hessian on vectors of shape (dimension,).
    gradients : list of tensor
        Like the variables.
    """

    base: tf.Tensor
    sharpness: tf.Tensor
    residual: tf.Tensor
    staleness: tf.Tensor
    vector: tf.Tensor
    operator: Operator
    gradients: list[Any]


class CurvatureOptimizer(keras.optimizers.Optimizer):
    """Gradient descent at a rate that is chosen by the curvature of the loss: a base class.

    A subclass says by `choose` what the rate is, creates its own state in `build` and adds its own settings to
    `get_config`.

    Parameters
    ----------
    learning_rate : float or keras.optimizers.schedules.LearningRateSchedule or callable
        The base rate, never exceeded.
    delta, curvature, refresh, use_error_bound, seed, name, **kwargs
        See `CAEO`.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used.
    """

    refused: ClassVar[Mapping[str, str]] = REFUSED
    """Settings of Keras optimizers that are refused, each with what to do instead."""

    def __init__(
        self,
        learning_rate: Any,
        *,
        delta: float,
        curvature: Any,
        refresh: Any,
        use_error_bound: bool,
        seed: int,
        name: str,
        **kwargs: Any,
    ) -> None:
        refresh = refreshing.chosen(refresh)
        settings = default_estimator(policy(refresh)) if curvature is None else curvature
        learning_rate = base_rate(learning_rate)
        if delta is None:
            raise InvalidInput("delta must be a number, got None.")
        rule.validate(delta=delta)
        check_seed(seed)
        check_estimator(settings)
        check_keywords(kwargs, owner=type(self).__name__, refused=self.refused)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.delta = float(delta)
        self.curvature = settings
        self.refresh = refresh
        self.use_error_bound = bool(use_error_bound)
        self.seed = int(seed)

    def choose(self, known: Curvature) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Return the rate of this update and what the monitor of the runaway takes for the edge.

        Called once an update, while it is traced; may assign state of its own.

        Parameters
        ----------
        known : Curvature
            The sharpness and all that belongs to it.

        Returns
        -------
        rate : tensor
            At most the base rate, a scalar.
        edge : tensor or None
            As for `eos_sde.optimizers.runaway.watch`.
        """
        raise NotImplementedError

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state: scalars, and the vectors of the estimator and of the refresh policy.

        Parameters
        ----------
        variables : sequence of keras.Variable
            What is trained; real floating point.
        """
        if self.built:
            return
        flat = Flat(variables)
        super().build(variables)
        self._flat = flat
        self._steps = steps(self.curvature, flat)
        dtype = flat.dtype.name
        self.rate = self.add_variable((), "zeros", dtype, name="rate")
        self.sharpness = self.add_variable((), "zeros", dtype, name="sharpness")
        infinite = keras.initializers.Constant(float("inf"))
        self.residual = self.add_variable((), infinite, dtype, name="residual")
        self.staleness = self.add_variable((), "zeros", "int64", name="staleness")
        self.capped = self.add_variable((), "zeros", "bool", name="capped")
        self._plan = refreshing.steps(self.refresh, flat)
        with tf.init_scope():  # values, also where the first update is being traced
            start = self._steps.init(tf.constant(threefry.key(self.seed)))
            plan, monitor = self._plan.init(), watching.start(flat)
        self._estimator, self._schedule, self._monitor = (
            state.add(self, part) for part in (start, plan, monitor)
        )
        self.runaway = self._monitor["runaway"]

    def minimize(self, loss: Callable[[], Any], variables: Sequence[Any] | None = None) -> tf.Tensor:
        """Make one update: evaluate the loss once, measure its curvature if that is due, move the variables.

        Parameters
        ----------
        loss : callable
            Without arguments; returns the scalar loss, computed from the variables.
        variables : sequence of keras.Variable, optional
            What is trained; may be left out once the optimizer is built.

        Returns
        -------
        tensor
            The loss before the update, a scalar.

        Raises
        ------
        InvalidInput
            If `loss` is no function or returns no scalar, or `variables` is missing at the first call.
        """
        if not callable(loss):
            raise InvalidInput(
                f"loss must be a function without arguments that returns the loss, got {loss!r}."
            )
        if variables is None and not self.built:
            raise InvalidInput("variables must be given at the first call: what is trained.")
        trained = list(self._trainable_variables if variables is None else variables)
        value, gradients, product, slope = linearize(loss, trained)
        self.apply(gradients, trained, product=product, slope=slope)
        return value

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        product: Derivative | None = None,
        slope: Derivative | None = None,
    ) -> Any:
        """Make one update from pairs of gradient and variable: see `apply`.

        Parameters
        ----------
        grads_and_vars : iterable of pairs
            Gradient and variable.
        product, slope : callable, optional
            As in `apply`.

        Returns
        -------
        keras.Variable
            The number of updates made.
        """
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(list(gradients), list(variables), product=product, slope=slope)
        return self._iterations

    def apply(
        self,
        grads: Sequence[Any],
        trainable_variables: Sequence[Any] | None = None,
        product: Derivative | None = None,
        slope: Derivative | None = None,
    ) -> None:
        """Make one update from gradients and Hessian-vector products; `minimize` makes both from the loss.

        Parameters
        ----------
        grads : sequence of tensor
            Like the variables.
        trainable_variables : sequence of keras.Variable, optional
            All the variables that the optimizer was built with, in their order.
        product : callable
            Tensors like the variables -> the Hessian of the loss times them. Called while the update is traced.
        slope : callable, optional
            Tensors v like the variables -> the gradient of ``v'H v``, along which a refresh by budget follows the
            sharpness; without it the last estimate is held.

        Raises
        ------
        InvalidInput
            If `product` is missing, as from the training step of a plain ``keras.Model``, or the variables are
            not those that the optimizer was built with, or a strategy of ``tf.distribute`` is in force.
        """
        owner = type(self).__name__
        if product is None:
            raise InvalidInput(
                f"product is missing: {owner} measures the Hessian of the loss, which a plain keras.Model does not "
                "show its optimizer; build the model as eos_sde.optimizers.keras.CurvatureModel, or call "
                "optimizer.minimize(loss, variables)."
            )
        if tf.distribute.has_strategy():
            raise InvalidInput(
                f"{owner} measures the curvature on one device: leave the scope of tf.distribute."
            )
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        if [id(variable) for variable in variables] != [id(known) for known in self._trainable_variables]:
            raise InvalidInput(
                f"trainable_variables must be the {len(self._trainable_variables)} variables that the optimizer was "
                f"built with, in their order, got {len(variables)}; make a new optimizer for others."
            )
        self._measure(self._flat.ravel(variables), list(grads), product, slope)
        super().apply(grads, variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:  # noqa: ARG002
        """Move one variable at the rate that `apply` has found.

        Parameters
        ----------
        gradient : tensor
            Like the variable.
        variable : keras.Variable
            What is moved.
        learning_rate : float or tensor
            The base rate; not used.
        """
        rate = tf.convert_to_tensor(self.rate)
        self.assign_sub(variable, tf.cast(rate * tf.cast(gradient, rate.dtype), variable.dtype))

    def get_config(self) -> dict[str, Any]:
        """Return the settings; the estimator by name and settings.

        Returns
        -------
        dict
            For `from_config`.
        """
        config = {key: value for key, value in super().get_config().items() if key not in self.refused}
        return config | {
            "delta": self.delta,
            "curvature": {
                "name": type(self.curvature).__name__.lower(),
                **dataclasses.asdict(self.curvature),
            },
            "refresh": refreshing.to_config(self.refresh),
            "use_error_bound": self.use_error_bound,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Return an optimizer of the settings of `get_config`.

        Parameters
        ----------
        config : dict
            From `get_config`.
        custom_objects : dict, optional
            Names of objects that Keras does not know, for a learning rate that is one.

        Returns
        -------
        CurvatureOptimizer
            Of this class, not built.
        """
        config = dict(config)
        if "curvature" in config:
            estimator = dict(config["curvature"])
            config["curvature"] = ESTIMATORS[estimator.pop("name")](**estimator)
        if "refresh" in config:
            config["refresh"] = refreshing.from_config(config["refresh"])
        return super().from_config(config, custom_objects=custom_objects)

    def _measure(
        self, params: tf.Tensor, gradients: list[Any], product: Derivative, slope: Derivative | None
    ) -> None:
        """Estimate the sharpness if that is due, or follow it, and set the rate of this update."""
        flat, dtype, plan = self._flat, self._flat.dtype, self._plan

        def operator(vector: tf.Tensor) -> tf.Tensor:
            return flat.ravel(product(flat.unravel(vector)))

        old, schedule, monitor = (
            state.read(part) for part in (self._estimator, self._schedule, self._monitor)
        )
        bound, age = tf.convert_to_tensor(self.residual), tf.convert_to_tensor(self.staleness) + 1
        followed = plan.follow(schedule, params, tf.convert_to_tensor(self.sharpness))

        def measure() -> tuple:
            sharpness, residual, products, new = self._steps.update(operator, old)
            gradient = None if slope is None else _along(flat, slope, new["vector"])
            made = Measurement(params, sharpness, followed, age, products, gradient)
            after = plan.measured(schedule, made)
            # A failed measurement (NaN) reaches the updates, but must not spoil the warm start for good.
            sound = tf.math.is_finite(sharpness)
            new = {entry: tf.where(sound, new[entry], old[entry]) for entry in old}
            return sharpness, residual, tf.zeros_like(age), new, after

        def keep() -> tuple:
            return followed, bound, age, old, schedule

        count = tf.cast(self._iterations, tf.int64)
        due = plan.due(schedule, count, age, followed)
        schedule = plan.earn(schedule)
        sharpness, residual, staleness, new, after = tf.cond(due, measure, keep)
        base = tf.cast(self._get_current_learning_rate(), dtype)
        rate, edge = self.choose(
            Curvature(base, sharpness, residual, staleness, new["vector"], operator, gradients)
        )
        self.rate.assign(rate)
        self.sharpness.assign(sharpness)
        self.residual.assign(residual)
        self.staleness.assign(staleness)
        self.capped.assign(rate < base)
        state.write(self._estimator, new)
        state.write(self._schedule, after)
        state.write(self._monitor, watching.watch(monitor, sharpness, rate < base, edge))


def _along(flat: Flat, slope: Derivative, vector: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the gradient of the quotient of this vector, at the parameters of the last evaluation."""
    return lambda _: flat.ravel(slope(flat.unravel(vector)))
