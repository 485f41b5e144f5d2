"""The training step of Keras for optimizers that need the loss, as a mixin and as a ready model class."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from eos_sde.optimizers.keras.curvature_optimizer import CurvatureOptimizer


class CurvatureTraining:
    """Mixin that lets ``fit`` train with an optimizer of this package: it shows the optimizer the loss of the batch.

    Name it before the model class: ``class Network(CurvatureTraining, keras.Model)``. With any other optimizer
    the step is that of Keras.

    The Hessian is that of the loss that is trained: on the batch, regularizers and weights of the samples
    included, with the dropout masks and batch statistics of the very pass that gave the gradient.
    """

    def train_step(self: Any, data: Any) -> dict[str, Any]:
        """Make one update on one batch, as ``keras.Model.train_step`` does.

        Parameters
        ----------
        data : tuple
            ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns
        -------
        dict
            The metrics by name.
        """
        if not isinstance(self.optimizer, CurvatureOptimizer):
            return super().train_step(data)  # pyright: ignore[reportAttributeAccessIssue]
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = []

        def loss() -> tf.Tensor:
            outputs.append(self(x, training=True) if self._call_has_training_arg else self(x))
            return self.compute_loss(x=x, y=y, y_pred=outputs[0], sample_weight=sample_weight, training=True)

        value = self.optimizer.minimize(loss, self.trainable_variables)
        size = tf.shape(keras.tree.flatten(x)[0])[0]
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(value, sample_weight=size)
        return self.compute_metrics(x, y, outputs[0], sample_weight=sample_weight)


@keras.saving.register_keras_serializable(package="eos_sde")
class CurvatureModel(CurvatureTraining, keras.Model):
    """A ``keras.Model`` whose ``fit`` trains with the optimizers of this package, and any other.

    ``CurvatureModel(inputs, outputs)`` in the functional style, or a base class. A functional or sequential
    model that exists becomes one, sharing its weights, by ``CurvatureModel(model.inputs, model.outputs)``.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from eos_sde.optimizers.keras import CAEO, CurvatureModel
    >>> keras.utils.set_random_seed(0)
    >>> inputs = keras.Input((2,))
    >>> model = CurvatureModel(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    >>> model.compile(CAEO(5.0, delta=1.0), loss="mse")  # the Hessian is 2 X'X / n = diag(10, 1)
    >>> x = np.array([[10.0**0.5, 0.0], [0.0, 1.0]], "float32")
    >>> history = model.fit(x, np.zeros((2, 1)), batch_size=2, epochs=3, shuffle=False, verbose=0)
    >>> print(f"sharpness {float(model.optimizer.sharpness):.2f}, rate {float(model.optimizer.rate):.2f}")
    sharpness 10.00, rate 0.10
    """
