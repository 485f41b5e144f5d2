"""CAEO as a Keras optimizer: gradient descent at a rate kept from the edge of stability, on TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from eos_sde.optimizers import rule
from eos_sde.optimizers.curvature import ESTIMATORS
from eos_sde.optimizers.keras import refresh as refreshing
from eos_sde.optimizers.keras import runaway as watching
from eos_sde.optimizers.keras import state, threefry
from eos_sde.optimizers.keras.hessian import Derivative, Flat, linearize
from eos_sde.optimizers.keras.krylov import check_estimator, steps
from eos_sde.optimizers.keras.settings import REFUSED, base_rate, check_keywords, check_settings
from eos_sde.optimizers.refresh import Measurement, default_estimator, policy
from solvers.errors import InvalidInput


@keras.saving.register_keras_serializable(package="eos_sde")
class CAEO(keras.optimizers.Optimizer):
    r"""Curvature-adaptive edge-of-stability optimizer for Keras: `eos_sde.optimizers.caeo` on TensorFlow.

    .. math:: \theta_{t+1} = \theta_t - \eta_t g_t, \qquad
        \eta_t = \min\left(\eta_{base}, \frac{2 - \delta}{\lambda_t}\right) \ (\lambda_t > 0), \qquad
        \eta_t = \eta_{base} \ (\lambda_t \le 0)

    with :math:`\lambda_t` the largest *algebraic* eigenvalue of the Hessian of the loss of the current batch.
    Rule, estimators, start vectors and momentum are those of the JAX form: the same seed gives the same run up
    to rounding.

    A Keras optimizer sees gradients only, and the curvature needs the loss. Train a `CurvatureModel` (or mix
    `CurvatureTraining` into a model class) with ``fit``; call `minimize` in a loop of your own.

    Parameters
    ----------
    learning_rate : float or keras.optimizers.schedules.LearningRateSchedule or callable
        The base rate, never exceeded; a callable takes no arguments, as everywhere in Keras.
    delta : float
        Distance kept from the edge, in units of eta * sharpness; below 2. Zero rests on the edge, negative
        values stay beyond it.
    curvature : Lanczos or Power, optional
        ``lanczos(...)`` or ``power(...)`` of `eos_sde.optimizers.curvature`; by default
        ``lanczos()``, in passes of three products where `refresh` is by budget.
    refresh : int, "auto" or Budget
        With a number, the curvature is estimated at every `refresh`-th update, the first included; in between the
        last estimate stands, and the state tells its age. With "auto" it is estimated when its change asks for it
        and the budget pays, and in between followed along its gradient: `eos_sde.optimizers.refresh.budget`, whose
        settings may be given instead.
    momentum : float, optional
        Heavy-ball momentum as in ``optax.sgd``: the rate multiplies the whole trace (in ``keras.optimizers.SGD``
        each gradient keeps the rate it met). The cap is left as it is, although the edge moves to
        (2 + 2 momentum)/eta.
    nesterov : bool
        Whether the momentum is Nesterov's.
    use_error_bound : bool
        Whether the error bound is added to the sharpness: a more careful rate.
    seed : int
        Seed of the estimator's random vectors: the same seed gives the same run.
    name : str
        Name of the optimizer.
    **kwargs
        ``clipnorm``, ``clipvalue``, ``global_clipnorm``, ``use_ema``, ``ema_momentum`` and
        ``ema_overwrite_frequency`` of ``keras.optimizers.Optimizer``. They act on gradients and on averages; the
        measured Hessian is that of the loss.

    Attributes
    ----------
    rate : keras.Variable
        The rate of the last update, eta_t (`learning_rate` is the base rate). This and the following exist
        once the optimizer is built, are scalars, and are saved with the model.
    sharpness : keras.Variable
        The largest Hessian eigenvalue, where the last update was made: the last estimate, or that followed.
    residual : keras.Variable
        Error bound of the last estimate (infinite before the first estimate).
    staleness : keras.Variable
        Updates since that estimate was made, int64; 0 when it was made at the last update.
    capped : keras.Variable
        Whether the last rate was below the base rate.
    runaway : keras.Variable
        Whether the cap keeps binding while the sharpness keeps rising, so that the rate decays:
        `eos_sde.optimizers.runaway.watch`.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; when it is applied without the curvature of the loss.

    Warnings
    --------
    With ``delta > 0`` the rate can decay for good (undershoot runaway): watch ``runaway``, and see
    `eos_sde.optimizers.caeo`.

    TensorFlow's ``tf.nn.moments``, and so Keras's batch normalization (in training) and layer normalization, has the
    right gradient but a wrong Hessian: in a network with them the sharpness is off. ``tf.math.reduce_variance`` is
    right. The third derivative of ``x**2`` is NaN at 0, and the estimate is then held: write ``tf.square(x)``.

    See Also
    --------
    eos_sde.optimizers.caeo : The JAX form, and the references.
    eos_sde.optimizers.rule.learning_rate : The rule, the same code for both.

    Examples
    --------
    Gradient descent at rate 0.5 diverges along the curvature 10; the cap (2 - 0.5)/10 holds it.

    >>> import keras, tensorflow as tf
    >>> params, stretch = keras.Variable([1.0, 1.0]), tf.constant([1.0, 10.0])
    >>> optimizer = CAEO(0.5, delta=0.5)
    >>> @tf.function
    ... def step():
    ...     return optimizer.minimize(lambda: 0.5 * tf.reduce_sum(stretch * params**2), [params])
    >>> for _ in range(40):
    ...     loss = step()
    >>> print(f"rate {float(optimizer.rate):.3f}, sharpness {float(optimizer.sharpness):.2f}")
    rate 0.150, sharpness 10.00
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        *,
        delta: float = 0.1,
        curvature: Any = None,
        refresh: Any = "auto",
        momentum: float | None = None,
        nesterov: bool = False,
        use_error_bound: bool = False,
        seed: int = 0,
        name: str = "caeo",
        **kwargs: Any,
    ) -> None:
        refresh = refreshing.chosen(refresh)
        settings = default_estimator(policy(refresh)) if curvature is None else curvature
        learning_rate = base_rate(learning_rate)
        check_settings(delta=delta, momentum=momentum, seed=seed)
        check_estimator(settings)
        check_keywords(kwargs)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.delta = float(delta)
        self.curvature = settings
        self.refresh = refresh
        self.momentum = None if momentum is None else float(momentum)
        self.nesterov = bool(nesterov)
        self.use_error_bound = bool(use_error_bound)
        self.seed = int(seed)

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state: scalars, the estimator's vectors, and a trace for each variable with momentum.

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
        if self.momentum is not None:
            self._traces = self.add_optimizer_variables(variables, "trace")

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
            not those that the optimizer was built with.
        """
        if product is None:
            raise InvalidInput(
                "product is missing: CAEO measures the Hessian of the loss, which a plain keras.Model does not show "
                "its optimizer; build the model as eos_sde.optimizers.keras.CurvatureModel, or call "
                "optimizer.minimize(loss, variables)."
            )
        if tf.distribute.has_strategy():
            raise InvalidInput("CAEO measures the curvature on one device: leave the scope of tf.distribute.")
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        if [id(variable) for variable in variables] != [id(known) for known in self._trainable_variables]:
            raise InvalidInput(
                f"trainable_variables must be the {len(self._trainable_variables)} variables that the optimizer was "
                f"built with, in their order, got {len(variables)}; make a new optimizer for others."
            )
        self._measure(self._flat.ravel(variables), product, slope)
        super().apply(grads, variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:  # noqa: ARG002
        """Move one variable at the capped rate, which `apply` has found.

        Parameters
        ----------
        gradient : tensor
            Like the variable.
        variable : keras.Variable
            What is moved.
        learning_rate : float or tensor
            The base rate; not used.
        """
        gradient = tf.cast(gradient, variable.dtype)
        if self.momentum is not None:
            trace = self._traces[self._get_variable_index(variable)]
            new = gradient + self.momentum * tf.convert_to_tensor(trace)
            self.assign(trace, new)
            gradient = gradient + self.momentum * new if self.nesterov else new
        rate = tf.convert_to_tensor(self.rate)
        self.assign_sub(variable, tf.cast(rate * tf.cast(gradient, rate.dtype), variable.dtype))

    def get_config(self) -> dict[str, Any]:
        """Return the settings; the estimator by name and settings.

        Returns
        -------
        dict
            For `from_config`.
        """
        config = {key: value for key, value in super().get_config().items() if key not in REFUSED}
        return config | {
            "delta": self.delta,
            "curvature": {
                "name": type(self.curvature).__name__.lower(),
                **dataclasses.asdict(self.curvature),
            },
            "refresh": refreshing.to_config(self.refresh),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "use_error_bound": self.use_error_bound,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> CAEO:
        """Return an optimizer of the settings of `get_config`.

        Parameters
        ----------
        config : dict
            From `get_config`.
        custom_objects : dict, optional
            Names of objects that Keras does not know, for a learning rate that is one.

        Returns
        -------
        CAEO
            Not built.
        """
        config = dict(config)
        if "curvature" in config:
            estimator = dict(config["curvature"])
            config["curvature"] = ESTIMATORS[estimator.pop("name")](**estimator)
        if "refresh" in config:
            config["refresh"] = refreshing.from_config(config["refresh"])
        return super().from_config(config, custom_objects=custom_objects)

    def _measure(self, params: tf.Tensor, product: Derivative, slope: Derivative | None) -> None:
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
        margin = residual if self.use_error_bound else 0.0
        rate = rule.learning_rate(base, sharpness, self.delta, error_bound=margin, xp=keras.ops)
        self.rate.assign(rate)
        self.sharpness.assign(sharpness)
        self.residual.assign(residual)
        self.staleness.assign(staleness)
        self.capped.assign(rate < base)
        state.write(self._estimator, new)
        state.write(self._schedule, after)
        state.write(self._monitor, watching.watch(monitor, sharpness, rate < base, 2.0 / base))


def _along(flat: Flat, slope: Derivative, vector: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the gradient of the quotient of this vector, at the parameters of the last evaluation."""
    return lambda _: flat.ravel(slope(flat.unravel(vector)))
