"""Tasks: a network, data and a loss, with the settings under which their physics is shown.

Adding a task is one recipe in the ``RECIPES`` of its module.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from eos_sde.bridge import (
    character_tasks,
    cifar,
    image_folder_tasks,
    image_tasks,
    landscape_tasks,
    masked_text,
    regression_tasks,
    text,
)
from eos_sde.bridge.losses import LOSSES, of_classes
from eos_sde.bridge.networks import Network
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.recipes import SIZES, SQUARED_ERROR, Recipe, check_common
from eos_sde.bridge.streamed_images import ImageStream
from solvers.errors import InvalidInput

_RECIPES: dict[str, Recipe] = {
    **image_tasks.RECIPES,
    **text.RECIPES,
    **cifar.RECIPES,
    **character_tasks.RECIPES,
    **image_folder_tasks.RECIPES,
    **masked_text.RECIPES,
    **regression_tasks.RECIPES,
    **landscape_tasks.RECIPES,
}


@jax.tree_util.register_static
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
        Inputs (n, inputs) and targets (n, c), float64; of a sequence task the tokens and the next tokens, both
        (n, T), int32.
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
    regression : bool
        Whether the targets are values instead of classes.
    stream : ImageStream or None
        Where the batches of `trials.train` come from, if not from x and y, on which it measures then.
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
    regression: bool = False
    stream: ImageStream | None = None

    @property
    def n(self) -> int:
        """Number of training examples."""
        return self.x.shape[0]

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.network.size

    @cached_property
    @double_precision
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the outputs for one example: (c,), or (T, c) for a sequence of T positions."""
        theta = jax.ShapeDtypeStruct((self.size,), jnp.float64)
        outputs = jax.eval_shape(
            lambda w, x: self.network.apply_arrays(self.network.unravel(w), x), theta, self.x[:1]
        )
        return outputs.shape[1:]

    @property
    def outputs(self) -> int:
        """Number of outputs of the network for one example, over all positions of a sequence."""
        return math.prod(self.output_shape)

    @property
    def description(self) -> str:
        """One line for people."""
        examples = f"{self.n} example{'s' if self.n > 1 else ''} of {self.source}"
        return _description(self.network, examples, self.loss_name, self.eta)

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
            Shape (m, c), or (m, T, c) for sequences.
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
            Shape (m,); of a sequence, the mean over its positions.
        """
        return LOSSES[self.loss_name](self.apply(theta, x), self.y if y is None else y)

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
        """Fraction of examples, or of the positions of all sequences, classified correctly.

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

        Raises
        ------
        InvalidInput
            For a regression.
        """
        if self.regression:
            raise InvalidInput(f"{self.name} is a regression: it has a loss and no accuracy")
        x, y = (self.x_test, self.y_test) if part == "test" else (self.x, self.y)
        outputs = self.network.apply(theta, x)
        if self.outputs == 1:
            right = jnp.sign(outputs) == jnp.sign(y)
        else:
            right = jnp.argmax(outputs, axis=-1) == (y if of_classes(y) else jnp.argmax(y, axis=-1))
        return jnp.mean(right, dtype=jnp.float64)


def _description(network: Network, examples: str, loss: str, eta: float) -> str:
    words = loss.replace("-", " ")
    return f"{network.description} ({network.size} weights) on {examples}; {words}, eta = {eta:g}"


def tasks() -> tuple[str, ...]:
    """Names of the tasks; the first is the default.

    Returns
    -------
    tuple of str
        As accepted by `load_task`.
    """
    return tuple(_RECIPES)


def task_defaults(name: str, *, size: str = "small") -> Mapping[str, Any]:
    """Settings of a task and their defaults.

    Parameters
    ----------
    name : str
        One of `tasks()`.
    size : {"small", "large"}
        For two processor cores and minutes, or for an accelerator: more examples, wider and deeper.

    Returns
    -------
    mapping
        Setting to default.

    Raises
    ------
    InvalidInput
        For an unknown task or size.
    """
    if name not in _RECIPES:
        raise InvalidInput(f"task={name!r} is not known: choose one of {', '.join(_RECIPES)}")
    if size not in SIZES:
        raise InvalidInput(f"size={size!r} is not known: choose one of {', '.join(SIZES)}")
    return _RECIPES[name].settings(size)


def defining_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What defines a task, and so names what is stored of it.

    Parameters
    ----------
    name : str
        One of `tasks()`.
    settings : mapping
        Those given, of `load_task`.

    Returns
    -------
    dict
        The settings, complete but for those that came when runs had been stored already and have their default, which
        is what runs did before: see `recipes.Recipe`.

    Raises
    ------
    InvalidInput
        For an unknown task or size.
    """
    defaults = task_defaults(name, size=settings.get("size", "small"))
    later = _RECIPES[name].later
    whole = {**defaults, **settings}
    return {key: value for key, value in whole.items() if not (key in later and value == defaults[key])}


@double_precision
def load_task(name: str, **settings: Any) -> Task:
    """Build a task.

    Images are pixels in [0, 1], average-pooled by `pool`. Those of the digits and of Fashion-MNIST are not centred by
    default: the mean image carries the sharpest direction, which rests at the edge; centred inputs stay below it for
    longer. Examples are balanced over the classes, or spread evenly over the text, and the same on every machine.

    Parameters
    ----------
    name : str
        "fashion-mlp", "digits-mlp", "fashion-cnn": images, tanh networks; "shakespeare-transformer": the next
        character, cross entropy averaged over the positions of a window, which is one example; "cifar-resnet",
        "chars74k-cnn", "imagefolder-vit", "pubmed-bert": images and text from files of yours; "deep-linear",
        "chebyshev": regressions whose answer is known; "landscape-xyzw", "uv-catapult": functions of few weights whose
        training is known. `tasks()` has all names.
    **settings
        Of every task: ``size`` ("small", or "large" for accelerators: other defaults of the settings below, which
        `task_defaults` shows), ``examples`` (int), ``eta`` (default learning rate), ``loss`` ("half-squared-error",
        "cross-entropy"; the regressions have the first only), ``seed`` (kept with the task as the default of its
        users). Of single tasks, as `task_defaults` lists:
        ``test_examples`` (int; all if left out), ``hidden`` (tuple of widths), ``width``, ``activation`` ("tanh",
        "gelu", "relu", "softplus");
        images: ``channels`` (int; above 0 a 3x3 convolution with so many channels comes before the hidden layers),
        ``outputs`` ("one-hot": ten; "scalar": one, with target +1 for even and -1 for odd labels; "parity": two
        classes, even and odd), ``smoothing`` (s in [0, 1): cross entropy against the probabilities
        (1 - s) one-hot + s/c), ``pool`` (images are averaged over squares of pool x pool pixels), ``centre`` (bool:
        subtract the mean training image), ``source`` (see `load_dataset`);
        transformer: ``context`` (characters in a window), ``heads``, ``blocks``;
        CIFAR: ``path`` (see `eos_sde.bridge.cifar.load_cifar`; colours are standardised), ``channels``, ``stages``,
        ``blocks``;
        Chars74k: ``path``, ``form`` (see `eos_sde.bridge.readers.chars74k.load_chars74k`; ink is standardised),
        ``side`` (pixels along an edge), ``channels``, ``characters`` (the classes: all, digits, letters, capitals or
        small);
        image folders: ``path``, ``classes`` (see `eos_sde.bridge.image_folder_tasks.open_images`; colours are
        standardised), ``side``, ``patch``, ``heads``, ``blocks``, ``stream`` (bool: `trials.train` draws its batches
        from all training images as they are on disk, and measures on the ``examples``, which are in memory),
        ``augment`` (of what is streamed: "none"; "crop-flip", random resized crops and flips, see
        `eos_sde.bridge.readers.random_cuts.random_cut`; what is measured on is never augmented);
        masked text: ``path``, ``vocabulary``, ``bytes`` (read at most; see
        `eos_sde.bridge.readers.plain_text.text_tokens`), ``context``, ``masked`` (part of a window that is to be told),
        ``mask_seed``, ``heads``, ``blocks``; an example is a window, its loss the mean over what is to be told;
        deep linear: ``spectrum`` (singular values of the teacher), ``inputs``, ``noise`` (standard deviation of the
        part of the targets that no linear map fits), ``gain`` (of the start), ``data_seed``;
        Chebyshev: ``degree``;
        landscapes: ``tied`` (x = z, y = w: two weights that move as the four do), ``start`` (x, y), ``spread`` (of
        the start about it), ``noise`` (of the labels; they keep their mean), ``data_seed``.

    Returns
    -------
    Task
        With its settings complete.

    Raises
    ------
    InvalidInput
        For an unknown task, setting or value, or data that have to be given and are not.
    """
    defaults = task_defaults(name, size=settings.get("size", "small"))
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise InvalidInput(
            f"{unknown[0]}={settings[unknown[0]]!r} is not a setting of {name}: "
            f"choose from {', '.join(defaults)}"
        )
    chosen = {**defaults, **settings}
    if "hidden" in chosen:
        hidden = chosen["hidden"]
        chosen["hidden"] = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    made_by = _RECIPES[name]
    check_common(name, made_by, chosen)
    problem = made_by.build(chosen)
    return Task(
        name=name,
        network=problem.network,
        x=jnp.asarray(problem.x),
        y=jnp.asarray(problem.y),
        x_test=jnp.asarray(problem.x_test),
        y_test=jnp.asarray(problem.y_test),
        loss_name=chosen["loss"],
        eta=float(chosen["eta"]),
        settings=MappingProxyType(chosen),
        source=problem.source,
        licence=problem.licence,
        regression=made_by.losses == SQUARED_ERROR,
        stream=problem.stream,
    )


def describe_task(name: str) -> str:
    """One line on a task with its default settings: network, weights, examples, loss, learning rate, data, licence.

    Parameters
    ----------
    name : str
        One of `tasks()`.

    Returns
    -------
    str
        For people; says what has to be given, if something has.
    """
    defaults, made_by = task_defaults(name), _RECIPES[name]
    if made_by.preview is None:
        task = load_task(name)
        return f"{task.description}; data: {task.licence}"
    network, examples = made_by.preview(defaults)
    return f"{_description(network, examples, defaults['loss'], defaults['eta'])}; needs {made_by.needs}"
