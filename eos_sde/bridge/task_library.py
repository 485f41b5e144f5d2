"""Tasks: a network, real data and a loss, with the settings under which their physics is shown.

Adding a task is one `Recipe` in `_RECIPES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.datasets import load_dataset
from eos_sde.bridge.losses import LOSSES
from eos_sde.bridge.networks import ACTIVATIONS, Network, convolutional, mlp
from eos_sde.bridge.precision import double_precision
from solvers.errors import InvalidInput

OUTPUTS = ("one-hot", "scalar", "parity")


@dataclass(frozen=True, eq=False)
class Task:
    """A training problem: loss(theta) = mean over examples of per_example_loss.

    All functions are pure JAX of a flat float64 vector and compute in double precision whatever the user's JAX
    settings. They may be jitted, differentiated and vmapped; a transformation of the user's own runs under the
    user's settings, so enable ``jax_enable_x64`` (or use ``with jax.enable_x64():``) around it.

    Attributes
    ----------
    name : str
        Registered name.
    network : Network
        The network as a function of the flat vector.
    x, y : Array
        Inputs (n, inputs) and targets (n, c), float64.
    x_test, y_test : Array
        The same of the test examples.
    loss_name : str
        "half-squared-error" or "cross-entropy".
    eta : float
        Learning rate at which the task's physics is shown; in units of time per step.
    settings : mapping
        Everything that defines the task, as accepted by `load_task`.
    source, licence : str
        Of the data.
    """

    name: str
    network: Network
    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array
    loss_name: str
    eta: float
    settings: Mapping[str, Any]
    source: str
    licence: str

    @property
    def n(self) -> int:
        """Number of training examples."""
        return self.x.shape[0]

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.network.size

    @property
    def outputs(self) -> int:
        """Number of outputs c of the network."""
        return self.y.shape[1]

    @property
    def description(self) -> str:
        """One line for people."""
        loss = self.loss_name.replace("-", " ")
        return (
            f"{self.network.description} ({self.size} weights) on {self.n} examples of {self.source}; "
            f"{loss}, eta = {self.eta:g}"
        )

    def init(self, seed: int) -> jax.Array:
        """Random initial weights.

        Parameters
        ----------
        seed : int
            Any integer; the same seed gives the same bits.

        Returns
        -------
        Array
            Shape (size,), float64.
        """
        return self.network.init(seed)

    @double_precision
    def apply(self, theta: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """Outputs of the network.

        Parameters
        ----------
        theta : Array
            Weights, shape (size,).
        x : Array, optional
            Inputs, shape (m, inputs); the training inputs if left out.

        Returns
        -------
        Array
            Shape (m, c).
        """
        return self.network.apply(theta, self.x if x is None else x)

    @double_precision
    def per_example_loss(
        self, theta: jax.Array, x: jax.Array | None = None, y: jax.Array | None = None
    ) -> jax.Array:
        """Loss of each example.

        Parameters
        ----------
        theta : Array
            Weights, shape (size,).
        x, y : Array, optional
            Inputs (m, inputs) and targets (m, c); the training examples if left out.

        Returns
        -------
        Array
            Shape (m,).
        """
        outputs = self.network.apply(theta, self.x if x is None else x)
        return LOSSES[self.loss_name](outputs, self.y if y is None else y)

    @double_precision
    def loss(self, theta: jax.Array, x: jax.Array | None = None, y: jax.Array | None = None) -> jax.Array:
        """Mean loss over the examples.

        Parameters
        ----------
        theta : Array
            Weights, shape (size,).
        x, y : Array, optional
            Inputs (m, inputs) and targets (m, c); the training examples if left out.

        Returns
        -------
        Array
            Scalar.
        """
        return jnp.mean(self.per_example_loss(theta, x, y))

    @double_precision
    def accuracy(self, theta: jax.Array, *, part: str = "test") -> jax.Array:
        """Fraction of examples classified correctly.

        Parameters
        ----------
        theta : Array
            Weights, shape (size,).
        part : {"test", "train"}
            On which examples.

        Returns
        -------
        Array
            Scalar in [0, 1]; with a scalar output, the sign decides.
        """
        x, y = (self.x_test, self.y_test) if part == "test" else (self.x, self.y)
        outputs = self.network.apply(theta, x)
        if self.outputs == 1:
            return jnp.mean(jnp.sign(outputs) == jnp.sign(y))
        return jnp.mean(jnp.argmax(outputs, axis=1) == jnp.argmax(y, axis=1))


@dataclass(frozen=True)
class _Recipe:
    """Defaults of a task; what `load_task` accepts are the keys of `defaults`."""

    dataset: str
    defaults: Mapping[str, Any]


def _recipe(dataset: str, **own: Any) -> _Recipe:
    common = {
        "activation": "tanh",
        "loss": "half-squared-error",
        "outputs": "one-hot",
        "smoothing": 0.0,
        "channels": 0,
        "centre": False,
        "test_examples": None,
        "source": "subset",
        "seed": 0,
    }
    return _Recipe(dataset, MappingProxyType(common | own))


_RECIPES = {
    "fashion-mlp": _recipe("fashion", examples=1000, hidden=(24, 24), pool=2, eta=0.1),
    "digits-mlp": _recipe("digits", examples=1000, hidden=(32, 32), pool=1, eta=0.2),
}


def tasks() -> tuple[str, ...]:
    """Names of the tasks; the first is the default.

    Returns
    -------
    tuple of str
        As accepted by `load_task`.
    """
    return tuple(_RECIPES)


def task_defaults(name: str) -> Mapping[str, Any]:
    """Settings of a task and their defaults.

    Parameters
    ----------
    name : str
        One of `tasks()`.

    Returns
    -------
    mapping
        Setting to default.

    Raises
    ------
    InvalidInput
        For an unknown task.
    """
    if name not in _RECIPES:
        raise InvalidInput(f"task={name!r} is not known: choose one of {', '.join(_RECIPES)}")
    return _RECIPES[name].defaults


@double_precision
def load_task(name: str, **settings: Any) -> Task:
    """Build a task from real data.

    Inputs are pixels in [0, 1], average-pooled by `pool`. They are not centred by default: the mean image
    carries the sharpest direction, which rests at the edge; centred inputs stay below it for longer. The
    examples are balanced over the classes and the same on every machine.

    Parameters
    ----------
    name : str
        "fashion-mlp" (tanh 196-24-24-10, eta = 0.1) or "digits-mlp" (tanh 64-32-32-10, eta = 0.2).
    **settings
        ``examples`` (int), ``test_examples`` (int; all if left out), ``hidden`` (tuple of widths),
        ``channels`` (int; above 0 a 3x3 convolution with so many channels comes before the hidden layers),
        ``activation`` ("tanh", "gelu", "relu", "softplus"), ``loss`` ("half-squared-error", "cross-entropy"),
        ``outputs`` ("one-hot": ten; "scalar": one, with target +1 for even and -1 for odd labels; "parity": two
        classes, even and odd), ``smoothing`` (s in [0, 1): cross entropy against the probabilities
        (1 - s) one-hot + s/c),
        ``pool`` (images are averaged over squares of pool x pool pixels), ``centre`` (bool: subtract the mean
        training image), ``eta`` (default learning rate),
        ``source`` (see `load_dataset`), ``seed`` (kept with the task as the default of its users).

    Returns
    -------
    Task
        With its settings complete.

    Raises
    ------
    InvalidInput
        For an unknown task, setting or value.
    """
    defaults = task_defaults(name)
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise InvalidInput(
            f"{unknown[0]}={settings[unknown[0]]!r} is not a setting of {name}: "
            f"choose from {', '.join(defaults)}"
        )
    chosen = {**defaults, **settings}
    hidden = chosen["hidden"]
    chosen["hidden"] = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    _check(chosen)
    data = load_dataset(_RECIPES[name].dataset, source=chosen["source"])
    if data.x_train.shape[1] % chosen["pool"]:
        raise InvalidInput(f"pool={chosen['pool']} must divide the image size {data.x_train.shape[1]}")
    test_examples = len(data.y_test) if chosen["test_examples"] is None else chosen["test_examples"]
    images, labels = data.balanced(chosen["examples"])
    test_images, test_labels = data.balanced(test_examples, "test")
    x, x_test = _inputs(images, chosen["pool"]), _inputs(test_images, chosen["pool"])
    mean = x.mean(axis=0) if chosen["centre"] else 0.0
    y, y_test = (
        _targets(one, chosen["outputs"], len(data.classes), chosen["smoothing"])
        for one in (labels, test_labels)
    )
    return Task(
        name=name,
        network=_network(images.shape[1] // chosen["pool"], y.shape[1], chosen),
        x=jnp.asarray(x - mean),
        y=jnp.asarray(y),
        x_test=jnp.asarray(x_test - mean),
        y_test=jnp.asarray(y_test),
        loss_name=chosen["loss"],
        eta=float(chosen["eta"]),
        settings=MappingProxyType(chosen),
        source=data.source,
        licence=data.licence,
    )


def interpolation_task(name: str, **settings: Any) -> Task:
    """Small version of a task that its network can fit exactly, for the stability of minima.

    100 examples, one output (+1 for even labels, -1 for odd), one hidden layer of 32 tanh units;
    Fashion images pooled to 7x7, so that measuring an onset takes seconds. With cross entropy, two classes (even,
    odd) with probabilities 0.95 and 0.05 (smoothing = 0.1): hard targets have no minimum at finite weights.

    Parameters
    ----------
    name : str
        One of `tasks()`.
    **settings
        As for `load_task`, over these.

    Returns
    -------
    Task
        The small task.
    """
    small: dict[str, Any] = {"examples": 100, "outputs": "scalar", "hidden": (32,)}
    if name == "fashion-mlp":
        small["pool"] = 4
    if settings.get("loss") == "cross-entropy":
        small |= {"outputs": "parity", "smoothing": 0.1}
    return load_task(name, **(small | settings))


def _check(chosen: Mapping[str, Any]) -> None:
    """Refuse values that the data cannot refuse itself."""
    for key, allowed in (("loss", LOSSES), ("outputs", OUTPUTS), ("activation", ACTIVATIONS)):
        if chosen[key] not in allowed:
            raise InvalidInput(f"{key}={chosen[key]!r} is not known: choose one of {', '.join(allowed)}")
    for key in ("examples", "test_examples", "pool"):
        value = chosen[key]
        if value is None and key == "test_examples":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{key}={value!r} must be a positive integer")
    channels = chosen["channels"]
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 0:
        raise InvalidInput(f"channels={channels!r} must be an integer from 0: 0 for no convolution")
    if not 0 <= chosen["smoothing"] < 1:
        raise InvalidInput(f"smoothing={chosen['smoothing']!r} must lie in [0, 1)")
    if chosen["smoothing"] and chosen["loss"] != "cross-entropy":
        raise InvalidInput(f"smoothing={chosen['smoothing']} is for loss='cross-entropy': leave it out")
    if not chosen["eta"] > 0:
        raise InvalidInput(f"eta={chosen['eta']!r} must be a positive learning rate")
    if chosen["loss"] == "cross-entropy" and chosen["outputs"] == "scalar":
        raise InvalidInput(
            "loss='cross-entropy' needs outputs='one-hot' or 'parity': a single output has no softmax"
        )


def _inputs(images: NDArray[np.float64], pool: int) -> NDArray[np.float64]:
    n, height, width = images.shape
    pooled = images.reshape(n, height // pool, pool, width // pool, pool).mean(axis=(2, 4))
    return pooled.reshape(n, -1)


def _network(side: int, outputs: int, chosen: Mapping[str, Any]) -> Network:
    layers, activation = (*chosen["hidden"], outputs), chosen["activation"]
    if chosen["channels"]:
        return convolutional(side, chosen["channels"], layers, activation)
    return mlp((side**2, *layers), activation)


def _targets(labels: NDArray[np.int64], outputs: str, classes: int, smoothing: float) -> NDArray[np.float64]:
    if outputs == "scalar":
        return np.where(labels % 2 == 0, 1.0, -1.0)[:, None]
    if outputs == "parity":
        labels, classes = labels % 2, 2
    return (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
