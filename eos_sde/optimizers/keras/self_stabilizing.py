"""CAEO for Keras with its runaway cured: the margin is given up where there is descent to pay for an oscillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from eos_sde.optimizers import self_stabilizing_rule
from eos_sde.optimizers.keras.curvature_optimizer import Curvature, CurvatureOptimizer
from eos_sde.optimizers.keras.namespace import OPS
from eos_sde.optimizers.keras.settings import REFUSED

_PLAIN = "the edge is that of a step along the gradient, so leave it out, or use CAEO"


@keras.saving.register_keras_serializable(package="eos_sde")
class SelfStabilizingCAEO(CurvatureOptimizer):
    r"""CAEO that lets the iterate oscillate, for Keras: `eos_sde.optimizers.self_stabilizing_caeo` on TensorFlow.

    Updates are those of `CAEO` while gradient noise takes back all that an update gains. Where it does not, which the
    running mean of :math:`g_t \cdot (g_{t-1} + g_{t-2})` tells by being positive (less the part along the top
    eigenvector), and at any rate where the state tells of a runaway,

    .. math:: \eta_t = \min\left(\eta_{base},\ \frac{2}{R_t},\ \frac{2 + \gamma}{\lambda_t}\right),
        \qquad R_t = \frac{g_t^T H_t g_t}{|g_t|^2},

    with R the directional sharpness and :math:`\gamma` the growth. The oscillation along the top direction then
    grows, paid for by the descent along the others, until self-stabilization turns the sharpness down. The rule is
    the code of the JAX form, derived in `eos_sde.optimizers.self_stabilizing_rule`.

    As for `CAEO`, train a `CurvatureModel` with ``fit``, or call `minimize` in a loop of your own.

    Parameters
    ----------
    learning_rate : float or keras.optimizers.schedules.LearningRateSchedule or callable
        The base rate, never exceeded; a callable takes no arguments, as everywhere in Keras.
    delta : float
        Distance kept from the edge where the margin is not given up, in units of eta * sharpness; below 2.
    growth : float
        The most by which the oscillation grows in an update beyond a factor of one, at least 0.
    least_growth : float, optional
        The least by which it grows where the margin is given up, from 0 to `growth`; if left out, by what the descent
        pays. The JAX form says when 0.05 to 0.2 helps, and at what price.
    release : {"descent", "always"}
        When the margin is given up. "always" costs much where gradient noise makes the iterate oscillate anyway.
    curvature : Lanczos or Power, optional
        ``lanczos(...)`` or ``power(...)`` of `eos_sde.optimizers.curvature`; by default ``lanczos()``. A measurement
        takes one product more than its own.
    refresh : int, "auto" or Budget
        The curvature is estimated at every `refresh`-th update, the first included; or as for `CAEO`.
    use_error_bound : bool
        Whether the error bound is added to the sharpness.
    seed : int
        Seed of the estimator's random vectors: the same seed gives the same run.
    name : str
        Name of the optimizer.
    **kwargs
        ``use_ema``, ``ema_momentum`` and ``ema_overwrite_frequency`` of ``keras.optimizers.Optimizer``. Momentum and
        clipping are refused: the step has to be along the gradient.

    Attributes
    ----------
    rate, sharpness, residual, staleness, capped, runaway : keras.Variable
        As for `CAEO`; `capped` where the last rate was below the base rate, for either reason.
    directional_sharpness : keras.Variable
        g' H g / |g|^2 at the last update; between two measurements of the curvature, followed by `rest`.
    rest : keras.Variable
        The Rayleigh quotient of the gradient orthogonal to the top eigenvector, at the last measurement.
    descent : keras.Variable
        Running mean of the product above.
    released : keras.Variable
        Whether the last rate was on the edge of the directional sharpness.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; when it is applied without the curvature of the loss.

    Notes
    -----
    What was measured of the cure, and where it does not pay, stands with the JAX form. The state holds two gradients
    beside the vectors of `CAEO`.

    See Also
    --------
    CAEO : The rule as proposed, with its warnings of TensorFlow's second derivatives.
    eos_sde.optimizers.self_stabilizing_caeo : The JAX form, and the measurements.

    Examples
    --------
    Along y the loss falls while its curvature along x, which is y, rises. Under `CAEO` x dies out, the rate decays,
    and the sharpness rises for good; here x is let to oscillate, which turns the sharpness down.

    >>> import keras, tensorflow as tf
    >>> from eos_sde.optimizers.keras import CAEO
    >>> def train(optimizer):
    ...     x, y = keras.Variable(1.0), keras.Variable(4.0)
    ...     optimizer.build([x, y])
    ...     @tf.function(autograph=False)
    ...     def step():
    ...         return optimizer.minimize(lambda: 0.5 * y * (tf.square(x) - 1.0))
    ...     for _ in range(300):
    ...         loss = step()
    ...     print(f"sharpness {float(optimizer.sharpness):.1f}, rate {float(optimizer.rate):.2f}, ", end="")
    ...     print(f"runaway {bool(optimizer.runaway.numpy())}")
    >>> train(CAEO(0.5, refresh=1))
    sharpness 24.1, rate 0.08, runaway True
    >>> train(SelfStabilizingCAEO(0.5))
    sharpness 5.2, rate 0.40, runaway False
    """

    refused = REFUSED | dict.fromkeys(
        ("momentum", "nesterov", "clipnorm", "clipvalue", "global_clipnorm"), _PLAIN
    )

    def __init__(
        self,
        learning_rate: Any = 0.01,
        *,
        delta: float = 0.1,
        growth: float = self_stabilizing_rule.GROWTH,
        least_growth: float | None = None,
        release: str = "descent",
        curvature: Any = None,
        refresh: Any = 1,
        use_error_bound: bool = False,
        seed: int = 0,
        name: str = "self_stabilizing_caeo",
        **kwargs: Any,
    ) -> None:
        self_stabilizing_rule.validate_growth(growth)
        if least_growth is not None:
            self_stabilizing_rule.validate_growth(least_growth, name="least_growth", most=float(growth))
        self_stabilizing_rule.validate_release(release)
        super().__init__(
            learning_rate, delta=delta, curvature=curvature, refresh=refresh,
            use_error_bound=use_error_bound, seed=seed, name=name, **kwargs,
        )  # fmt: skip
        self.growth = float(growth)
        self.least_growth = None if least_growth is None else float(least_growth)
        self.release = release

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state: that of every optimizer by curvature, scalars, and the last two gradients.

        Parameters
        ----------
        variables : sequence of keras.Variable
            What is trained; real floating point.
        """
        if self.built:
            return
        super().build(variables)
        dtype = self._flat.dtype.name
        self.directional_sharpness, self.rest, self.descent = (
            self.add_variable((), "zeros", dtype, name=name)
            for name in ("directional_sharpness", "rest", "descent")
        )
        self.released = self.add_variable((), "zeros", "bool", name="released")
        self._previous, self._earlier = (
            self.add_variable((self._flat.dimension,), "zeros", dtype, name=name)
            for name in ("previous", "earlier")
        )

    def choose(self, known: Curvature) -> tuple[tf.Tensor, None]:
        """Return the rate of the proposal, or where it is released that on the edge of the directional sharpness.

        Parameters
        ----------
        known : Curvature
            The sharpness and all that belongs to it.

        Returns
        -------
        rate : tensor
            A scalar.
        edge : None
            Only a rise of the sharpness by a quarter counts as a runaway.
        """
        sharpness, top, dtype = known.sharpness, known.vector, self._flat.dtype
        gradient = self._flat.ravel(known.gradients)
        square, along = tf.tensordot(gradient, gradient, 1), tf.tensordot(gradient, top, 1)
        divisor = tf.where(square > 0, square, 1.0)
        share = tf.minimum(tf.square(along) / divisor, 1.0)
        before = tf.convert_to_tensor(self.rest)

        def measure() -> tf.Tensor:
            bend = tf.tensordot(gradient, known.operator(gradient), 1)
            quotient = tf.where(square > 0, bend / divisor, sharpness)
            return self_stabilizing_rule.rest_quotient(quotient, share, sharpness, xp=OPS)

        rest = tf.cond(tf.equal(known.staleness, 0), measure, lambda: before)
        directional = self_stabilizing_rule.directional_sharpness(sharpness, share, rest)
        previous = tf.convert_to_tensor(self._previous)
        recent = previous + tf.convert_to_tensor(self._earlier)
        product = tf.tensordot(gradient, recent, 1) - along * tf.tensordot(recent, top, 1)
        updates = tf.cast(self._iterations, dtype)
        mean = tf.convert_to_tensor(self.descent)
        descent = self_stabilizing_rule.descent(mean, product, updates, xp=OPS)
        released = (descent > 0) | tf.convert_to_tensor(self.runaway)
        if self.release == "always":
            released = tf.ones_like(released)
        rate = self_stabilizing_rule.self_stabilizing_learning_rate(
            known.base,
            sharpness,
            directional,
            released=released,
            delta=tf.constant(self.delta, dtype),
            growth=tf.constant(self.growth, dtype),
            least_growth=self.least_growth,
            error_bound=known.residual if self.use_error_bound else 0.0,
            xp=OPS,
        )
        self.directional_sharpness.assign(directional)
        self.rest.assign(tf.where(tf.math.is_finite(rest), rest, before))
        self.descent.assign(descent)
        self.released.assign(released)
        self._earlier.assign(previous)
        self._previous.assign(gradient)
        return rate, None

    def get_config(self) -> dict[str, Any]:
        """Return the settings; the estimator by name and settings.

        Returns
        -------
        dict
            For `from_config`.
        """
        settings = {"growth": self.growth, "least_growth": self.least_growth, "release": self.release}
        return super().get_config() | settings
