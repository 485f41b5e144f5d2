"""CAEO as a Keras optimizer: gradient descent at a rate kept from the edge of stability, on TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from eos_sde.optimizers import descent, rule
from eos_sde.optimizers.keras.curvature_optimizer import Curvature, CurvatureOptimizer
from eos_sde.optimizers.keras.namespace import OPS
from eos_sde.optimizers.keras.settings import check_momentum
from eos_sde.optimizers.refresh import Budget


@keras.saving.register_keras_serializable(package="eos_sde")
class CAEO(CurvatureOptimizer):
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
        each gradient keeps the rate it met). The edge moves to lambda = (2 + 2 b)/eta.
    nesterov : bool
        Whether the momentum is Nesterov's: (2 + 2 b)/((1 + 2 b) eta), which is nearer.
    momentum_edge : bool
        Whether the cap moves with the edge, to ``(1 + b)(2 - delta)/lambda``, Nesterov's divided by (1 + 2 b). Left
        out by default: under gradient noise the edge of heavy ball moves the other way (T7 of the thresholds).
    use_error_bound : bool
        Whether the error bound is added to the sharpness: a more careful rate.
    seed : int
        Seed of the estimator's random vectors: the same seed gives the same run.
    lipschitz : float, optional
        rho, the fastest rise of the sharpness per length of the path, in units of sharpness/weight: the rate is then
        `eos_sde.optimizers.descent.certified_learning_rate`, so low that the loss of a fixed batch is certain to fall
        at every update. Without momentum, and with `refresh` a number; gradients may be clipped.
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
    travelled : keras.Variable
        Length of the path since the last estimate; only where `lipschitz` is given.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; when it is applied without the curvature of the loss.

    Warnings
    --------
    With ``delta > 0`` the rate can decay for good (undershoot runaway): watch ``runaway``; `SelfStabilizingCAEO` is
    the cure.

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
        momentum_edge: bool = False,
        use_error_bound: bool = False,
        seed: int = 0,
        lipschitz: float | None = None,
        name: str = "caeo",
        **kwargs: Any,
    ) -> None:
        check_momentum(momentum)
        super().__init__(
            learning_rate, delta=delta, curvature=curvature, refresh=refresh,
            use_error_bound=use_error_bound, seed=seed, name=name, **kwargs,
        )  # fmt: skip
        if lipschitz is not None:
            held = not isinstance(self.refresh, Budget)
            descent.validate_lipschitz(lipschitz, held=held, momentum=momentum)
        self.momentum = None if momentum is None else float(momentum)
        self.nesterov = bool(nesterov)
        self.momentum_edge = bool(momentum_edge)
        self.lipschitz = None if lipschitz is None else float(lipschitz)

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state: that of every optimizer by curvature, a trace for each variable with momentum, the path.

        Parameters
        ----------
        variables : sequence of keras.Variable
            What is trained; real floating point.
        """
        if self.built:
            return
        super().build(variables)
        if self.momentum is not None:
            self._traces = self.add_optimizer_variables(variables, "trace")
        if self.lipschitz is not None:
            self.travelled = self.add_variable((), "zeros", self._flat.dtype.name, name="travelled")

    def choose(self, known: Curvature) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the capped rate, and the sharpness at which the base rate is at its edge.

        Parameters
        ----------
        known : Curvature
            The sharpness and all that belongs to it.

        Returns
        -------
        rate, edge : tensor
            Scalars.
        """
        base, sharpness, error = known.base, known.sharpness, known.residual
        factor = rule.edge_factor(self.momentum, nesterov=self.nesterov) if self.momentum_edge else 1.0
        edge = 2.0 * factor / base
        if self.lipschitz is None:
            margin = error / factor if self.use_error_bound else 0.0
            rate = rule.learning_rate(base, sharpness / factor, self.delta, error_bound=margin, xp=OPS)
            return rate, edge
        norm = tf.norm(self._flat.ravel(self._clip_gradients(known.gradients)))
        before = tf.convert_to_tensor(self.travelled)
        travelled = tf.where(tf.equal(known.staleness, 0), tf.zeros_like(before), before)
        given = {"gradient_norm": norm, "lipschitz": self.lipschitz, "travelled": travelled}
        rate = descent.certified_learning_rate(
            base, sharpness, self.delta, error_bound=error, **given, xp=OPS
        )
        self.travelled.assign(travelled + rate * norm)
        return rate, edge

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
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
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Return the settings; the estimator by name and settings.

        Returns
        -------
        dict
            For `from_config`.
        """
        return super().get_config() | {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "momentum_edge": self.momentum_edge,
            "lipschitz": self.lipschitz,
        }
