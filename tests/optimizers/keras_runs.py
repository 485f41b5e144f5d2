"""One network trained by an optimizer of Keras and by its JAX form, and the comparison of the two paths."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eos_sde.optimizers import caeo, refresh

pytest.importorskip("tensorflow", reason="TensorFlow is not installed; it comes with the extra 'tensorflow'")
keras = pytest.importorskip("keras", reason="Keras is not installed; it comes with the extra 'tensorflow'")

from eos_sde.optimizers.keras import CAEO, CurvatureModel  # noqa: E402

PENALTY = 1 / 64  # exact in single precision, where Keras keeps it
AGREEMENT = 1e-5  # what the two forms promise each other; float64 must do far better
OFTEN = refresh.budget(
    share=2.0, tol=0.005, allowance=20.0
)  # soon measures on what was earned since the last


def compute_in(dtype):
    """Make Keras compute in this dtype: it takes losses in its global one."""
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


class Network(NamedTuple):
    """A 5-8-3 tanh network with its data: sizes at which the default order of Lanczos (8) is far from exact."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: list

    def loss(self, params, inputs=None, targets=None):
        """Mean over the batch of the mean square error of the outputs, and a penalty on the first layer, in JAX."""
        inputs = self.inputs if inputs is None else inputs
        targets = self.targets if targets is None else targets
        outputs = jnp.tanh(inputs @ params[0] + params[1]) @ params[2] + params[3]
        return jnp.mean((outputs - targets) ** 2) + PENALTY * jnp.sum(params[0] ** 2)

    def model(self, dtype):
        """The same network as a Keras model, with the same weights; `dtype` becomes that of all of Keras."""
        compute_in(dtype)
        kernel = keras.regularizers.L2(PENALTY)
        inputs = keras.Input((5,))
        hidden = keras.layers.Dense(8, "tanh", kernel_regularizer=kernel)(inputs)
        model = CurvatureModel(inputs, keras.layers.Dense(3)(hidden))
        model.set_weights(self.weights)
        return model


def network(dtype):
    random = np.random.default_rng(0)
    shapes = [(5, 8), (8,), (8, 3), (3,)]
    weights = [random.standard_normal(shape) / np.sqrt(shape[0]) for shape in shapes]
    inputs, targets = random.standard_normal((32, 5)), random.standard_normal((32, 3))
    return Network(inputs.astype(dtype), targets.astype(dtype), [weight.astype(dtype) for weight in weights])


CURE = ("directional_sharpness", "rest", "descent", "released")
"""What only the self-stabilizing form remembers, by the same names in both."""


class Path(NamedTuple):
    """What is seen at every update, each of shape (steps,) and `cure` (steps, 4); at the end, what is remembered."""

    loss: np.ndarray
    sharpness: np.ndarray
    rate: np.ndarray
    staleness: np.ndarray
    cure: np.ndarray
    weights: list
    schedule: dict
    monitor: dict


def with_jax(shared, steps, *, make=caeo, batch=None, rate=4.0, **settings):
    """Train by the JAX form, over the batches in turn."""
    made, params = make(rate, **settings), [jnp.asarray(weight) for weight in shared.weights]
    state, rows, cure, inner = made.init(params), [], [], None
    size = len(shared.inputs) if batch is None else batch

    @jax.jit
    def step(params, state, inputs, targets):
        loss, grads = jax.value_and_grad(shared.loss)(params, inputs, targets)
        updates, state = made.update(
            grads, state, params, value_fn=shared.loss, inputs=inputs, targets=targets
        )
        return optax.apply_updates(params, updates), state, loss

    for count in range(steps):
        low = count * size % len(shared.inputs)
        batch_now = shared.inputs[low : low + size], shared.targets[low : low + size]
        params, state, loss = step(params, state, *batch_now)
        inner = getattr(state, "caeo", state)
        inner = inner if hasattr(inner, "sharpness") else inner[-1]  # of a chain
        rows.append((loss, inner.sharpness, inner.learning_rate, inner.staleness))
        cure.append([getattr(state, name) for name in CURE if hasattr(state, name)])
    schedule = {}
    if inner.schedule:
        flat, _ = jax.flatten_util.ravel_pytree(inner.schedule.slope)
        schedule = inner.schedule._replace(slope=flat)._asdict()
    columns = *np.array(rows, float).T, np.array(cure, float)
    return Path(*columns, [np.asarray(w) for w in params], schedule, inner.monitor._asdict())


class Log(keras.callbacks.Callback):
    """What the optimizer shows at every update."""

    def __init__(self):
        super().__init__()
        self.rows, self.cure = [], []

    def on_train_batch_end(self, _batch, logs=None):
        made = self.model.optimizer
        self.rows.append((logs["loss"], float(made.sharpness), float(made.rate), int(made.staleness)))
        self.cure.append([getattr(made, name).numpy() for name in CURE if hasattr(made, name)])


def with_keras(shared, epochs, *, kind=CAEO, batch=None, rate=4.0, jit=False, **settings):
    """Train by ``fit``, batches in their order; the loss is the running mean of the epoch, as Keras logs it."""
    model, log = shared.model(shared.inputs.dtype.name), Log()
    model.compile(kind(rate, **settings), loss="mse", jit_compile=jit)
    size = len(shared.inputs) if batch is None else batch
    data = {"x": shared.inputs, "y": shared.targets, "batch_size": size, "shuffle": False}
    model.fit(**data, epochs=epochs, verbose=0, callbacks=[log])
    made = model.optimizer
    remembered = (
        {name: value.numpy() for name, value in part.items()} for part in (made._schedule, made._monitor)
    )
    columns = *np.array(log.rows, float).T, np.array(log.cure, float)
    return Path(*columns, model.get_weights(), *remembered), model


def agree(ours, theirs, tolerance):
    """Demand the same path, to a relative tolerance, and the same decisions."""
    np.testing.assert_allclose(ours.sharpness, theirs.sharpness, rtol=tolerance)
    np.testing.assert_allclose(ours.rate, theirs.rate, rtol=tolerance)
    np.testing.assert_array_equal(ours.staleness, theirs.staleness)
    for mine, yours in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(mine, yours, rtol=tolerance, atol=tolerance)
    for mine, yours in ((ours.schedule, theirs.schedule), (ours.monitor, theirs.monitor)):
        assert mine.keys() == yours.keys()
        for name, value in mine.items():
            single = value.dtype == np.float32  # as the balance always is
            loose = max(tolerance, 1e-6) if single else tolerance
            np.testing.assert_allclose(value, yours[name], rtol=10 * loose, atol=10 * loose, err_msg=name)


def quadratic(variable, curvatures=(0.5, 2.0, 10.0)):
    """A loss of known curvatures over one variable."""
    return lambda: 0.5 * keras.ops.sum(keras.ops.array(curvatures, variable.dtype) * variable**2)
