"""Tasks: their losses by hand, their networks in numpy, and double precision without the user's help."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from eos_sde.bridge.interpolation_tasks import interpolating, interpolation_task
from eos_sde.bridge.recorder import record
from eos_sde.bridge.task_library import load_task, tasks
from solvers.errors import InvalidInput


def numpy_mlp(task, theta, x):
    """Outputs by hand; the order of the flat vector is taken from the network itself."""
    arrays = task.network.unravel(jnp.asarray(theta))
    hidden = np.asarray(x)
    for w, b in zip(arrays.weights[:-1], arrays.biases[:-1], strict=True):
        hidden = np.tanh(hidden @ np.asarray(w) + np.asarray(b))
    return hidden @ np.asarray(arrays.weights[-1]) + np.asarray(arrays.biases[-1])


def test_names_and_sizes():
    assert tasks()[:2] == ("fashion-mlp", "digits-mlp")
    assert interpolating() == ("fashion-mlp", "digits-mlp", "fashion-cnn")
    assert len(tasks()) == 12
    digits, fashion = load_task("digits-mlp"), load_task("fashion-mlp")
    assert digits.size == 64 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10
    assert fashion.size == 196 * 24 + 24 + 24 * 24 + 24 + 24 * 10 + 10
    assert (digits.n, digits.eta, fashion.n, fashion.eta) == (1000, 0.2, 1000, 0.1)
    assert "1000 examples" in digits.description


@pytest.mark.parametrize("name", ["fashion-mlp", "digits-mlp"])
def test_half_squared_error_by_hand(name):
    task = load_task(name, examples=20)
    theta = task.init(3)
    outputs = numpy_mlp(task, theta, task.x)
    per_example = 0.5 * np.sum((outputs - np.asarray(task.y)) ** 2, axis=1)
    assert np.allclose(task.per_example_loss(theta), per_example, rtol=1e-13)
    assert np.isclose(task.loss(theta), per_example.mean(), rtol=1e-13)
    assert np.isclose(task.loss(theta, task.x[:5], task.y[:5]), per_example[:5].mean(), rtol=1e-13)


def test_cross_entropy_by_hand():
    task = load_task("digits-mlp", examples=20, loss="cross-entropy")
    theta = task.init(0)
    outputs = numpy_mlp(task, theta, task.x)
    picked = outputs[np.arange(20), np.argmax(task.y, axis=1)]
    expected = np.mean(np.log(np.exp(outputs).sum(axis=1)) - picked)
    assert np.isclose(task.loss(theta), expected, rtol=1e-13)


def test_pooling_is_the_mean_of_squares():
    fine, coarse = (load_task("fashion-mlp", examples=10, pool=p) for p in (1, 2))
    squares = np.asarray(fine.x).reshape(10, 14, 2, 14, 2).mean(axis=(2, 4))
    assert np.allclose(coarse.x, squares.reshape(10, -1), rtol=0, atol=1e-15)


def test_centred_inputs_have_no_mean():
    task = load_task("digits-mlp", examples=50, centre=True)
    assert np.abs(np.asarray(task.x).mean(axis=0)).max() < 1e-15


def test_smoothed_parities():
    task = interpolation_task("digits-mlp", examples=20, loss="cross-entropy")
    assert np.allclose(np.asarray(task.y)[:4], [[0.95, 0.05], [0.05, 0.95]] * 2, rtol=0, atol=1e-15)
    ten = load_task("digits-mlp", examples=20, loss="cross-entropy", smoothing=0.2)
    assert np.allclose(np.asarray(ten.y)[3], 0.02 + 0.8 * np.eye(10)[3], rtol=0, atol=1e-15)


def test_convolution_by_hand():
    task = load_task("digits-mlp", examples=5, channels=3, hidden=(4,), activation="softplus")
    theta = task.init(2)
    arrays = task.network.unravel(theta)
    kernel = np.asarray(arrays.kernel).reshape(3, 3, 3)
    softplus = lambda z: np.log1p(np.exp(z))  # noqa: E731
    expected = []
    for image in np.asarray(task.x).reshape(5, 8, 8):
        maps = [correlate2d(image, kernel[:, :, k], mode="valid") + float(arrays.bias[k]) for k in range(3)]
        pooled = softplus(np.stack(maps, axis=-1)).reshape(3, 2, 3, 2, 3).mean(axis=(1, 3)).ravel()
        first, last = (
            (np.asarray(w), np.asarray(b))
            for w, b in zip(arrays.head.weights, arrays.head.biases, strict=True)
        )
        expected.append(softplus(pooled @ first[0] + first[1]) @ last[0] + last[1])
    assert np.allclose(task.apply(theta), expected, rtol=1e-12)
    assert task.size == 9 * 3 + 3 + 27 * 4 + 4 + 4 * 10 + 10
    assert "convolution 3x3x3" in task.description


def test_scalar_targets_are_parities():
    task = interpolation_task("digits-mlp")
    assert task.y.shape == (100, 1)
    assert np.array_equal(np.asarray(task.y)[:10, 0], np.tile([1.0, -1.0], 5))
    assert task.size == 64 * 32 + 32 + 32 + 1


def test_seed_gives_the_same_bits_and_other_seeds_others():
    task = load_task("digits-mlp", examples=10)
    assert np.array_equal(task.init(1), task.init(1))
    assert not np.array_equal(task.init(1), task.init(2))


def test_first_layer_has_the_stated_variance():
    task = load_task("fashion-mlp", examples=10)
    first = np.asarray(task.network.unravel(task.init(0)).weights[0])
    # 4704 normal entries: the sample variance scatters by sqrt(2/4704) = 2 %; 4 of that, false alarm 6e-5
    assert np.isclose(first.var() * 196, 0.64, rtol=0.083)


def test_accuracy_counts():
    task = load_task("digits-mlp", examples=30)
    theta = task.init(0)
    right = np.argmax(numpy_mlp(task, theta, task.x_test), axis=1) == np.argmax(task.y_test, axis=1)
    assert np.isclose(task.accuracy(theta), right.mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mnist-mlp"}, "choose one of fashion-mlp, digits-mlp"),
        ({"name": "digits-mlp", "width": 3}, "width=3 is not a setting of digits-mlp"),
        ({"name": "digits-mlp", "loss": "hinge"}, "loss='hinge'"),
        ({"name": "digits-mlp", "outputs": "two"}, "outputs='two'"),
        ({"name": "digits-mlp", "activation": "sine"}, "activation='sine'"),
        ({"name": "digits-mlp", "examples": 0}, "examples=0 must be a positive integer"),
        ({"name": "digits-mlp", "examples": 2000}, "examples=2000 must lie between 1 and 1500"),
        ({"name": "fashion-mlp", "pool": 3}, "pool=3 must divide"),
        ({"name": "fashion-mlp", "hidden": (0,)}, "must be positive integers"),
        ({"name": "fashion-mlp", "eta": -0.1}, "eta=-0.1"),
        ({"name": "fashion-mlp", "channels": -1}, "channels=-1"),
        ({"name": "fashion-mlp", "channels": 2, "pool": 4}, "images of 7 x 7 pixels"),
        ({"name": "digits-mlp", "smoothing": 1.0}, "smoothing=1.0 must lie"),
        ({"name": "digits-mlp", "smoothing": 0.1}, "is for loss='cross-entropy'"),
        ({"name": "fashion-mlp", "loss": "cross-entropy", "outputs": "scalar"}, "needs outputs='one-hot'"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(settings, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        load_task(**settings)
    assert "\n" not in str(caught.value)


def test_task_functions_are_differentiable_and_vmappable():
    task = load_task("digits-mlp", examples=10)
    thetas = jnp.stack([task.init(0), task.init(1)])
    gradients = jax.jit(jax.vmap(jax.grad(task.loss)))(thetas)
    assert gradients.shape == (2, task.size)
    assert gradients.dtype == jnp.float64


@pytest.mark.slow
def test_double_precision_without_the_flag():
    """A process that never set the flag gets the same bits as this one, which has it on."""
    code = (
        "import numpy as np, jax.numpy as jnp; from eos_sde.bridge import load_task, record\n"
        "task = load_task('digits-mlp', examples=20, hidden=(4,)); theta = task.init(0)\n"
        "data = record(task, 'sgd', steps=3, seed=0, batch_size=2)\n"
        "assert jnp.ones(1).dtype == jnp.float32\n"
        "assert theta.dtype == task.x.dtype == task.loss(theta).dtype == np.float64\n"
        "print(float(task.loss(theta)).hex(), float(data.sharpness[0, -1]).hex())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    task = load_task("digits-mlp", examples=20, hidden=(4,))
    data = record(task, "sgd", steps=3, seed=0, batch_size=2)
    here = [float(task.loss(task.init(0))).hex(), float(data.sharpness[0, -1]).hex()]
    assert run.stdout.split() == here
