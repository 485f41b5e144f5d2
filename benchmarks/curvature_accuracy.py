"""Accuracy against cost of the curvature estimators on the tasks: a table and a figure.

Run: OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python benchmarks/curvature_accuracy.py [task ...]

The weights are those after some steps of SGD; the loss that of a batch of 64; the truth Lanczos of order 30, restarted
to a residual of 1e-4. An estimator is updated from a random vector (cold) and then at each of the next steps (warm,
the median). The cost is that of its products, in gradients. KFAC sees every matrix that multiplies activations, without
biases, norms and embeddings. Without names all small tasks that train are taken; cifar-resnet by its name, with
CIFAR=path of the images in the environment.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

from eos_sde import bridge
from eos_sde.bridge.losses import LOSSES
from eos_sde.optimizers import curvature
from eos_sde.optimizers.curvature import PRODUCT_COST, hessian_product

mpl.use("agg")
import matplotlib.pyplot as plt

TASKS = ("digits-mlp", "fashion-mlp", "fashion-cnn", "shakespeare-transformer", "deep-linear", "chebyshev")
MATRIXLESS = ("chebyshev",)  # of one input and one output: KFAC finds no layer
LOOKED_UP = ("tokens", "positions")  # matrices of which rows are taken
BATCH, BEFORE, WARM = 64, 150, 12
SETTINGS = {
    "lanczos": [curvature.lanczos(order=k, restarts=0) for k in (1, 2, 3, 4, 8, 16)],
    "power": [curvature.power(iterations=k, shift_order=2) for k in (2, 8, 16)],
    "random_rayleigh": [curvature.random_rayleigh(samples=k) for k in (1, 8, 32)],
    "hutchinson": [curvature.hutchinson(samples=k) for k in (2, 8, 32)],
}


class Tapped:
    """A matrix that computes ``x @ matrix`` as a layer that KFAC sees."""

    def __init__(self, layers, name, matrix):
        self.layers, self.name, self.matrix = layers, name, matrix

    def __rmatmul__(self, x):
        return self.layers.dense(self.name, x, self.matrix)


def kfac_of(task, rows, samples):
    """KFAC of a task's own network on some examples, of its flat weights."""
    x, y = task.x[rows], task.y[rows]

    def model(theta, layers):
        leaves, tree = jax.tree_util.tree_flatten_with_path(task.network.unravel(theta))
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
        tapped = [
            Tapped(layers, name, leaf)
            if leaf.ndim == 2 and not any(word in name for word in LOOKED_UP)
            else leaf
            for name, (_, leaf) in zip(names, leaves, strict=True)
        ]
        return task.network.apply_arrays(tree.unflatten(tapped), x)

    return curvature.kfac(
        model, lambda outputs: jnp.mean(LOSSES[task.loss_name](outputs, y)), samples=samples
    )


def path_of(task, rows):
    """Weights at some successive steps of SGD, (WARM + 1, d), and the loss of the curvature batch."""

    def loss(theta, rows):
        return jnp.mean(task.per_example_loss(theta, task.x[rows], task.y[rows]))

    @jax.jit
    def walk(theta, batches):
        def step(theta, rows):
            return theta - task.eta * jax.grad(loss)(theta, rows), theta

        return jax.lax.scan(step, theta, batches)[1]

    drawn = jax.random.randint(jax.random.key(0), (BEFORE + WARM + 1, BATCH), 0, task.n)
    return walk(task.init(0), drawn)[BEFORE:], lambda theta: loss(theta, rows)


def estimates(estimator, loss, path):
    """Estimates along the path, and products of each."""

    def step(state, theta):
        value, _, state = estimator.update(hessian_product(loss, theta), theta, state)
        return state, (value, state.products)

    start = estimator.init(path[0], jax.random.key(3))
    return [np.asarray(a) for a in jax.jit(lambda s, p: jax.lax.scan(step, s, p)[1])(start, path)]


def main(*names):
    names = names or TASKS
    columns = min(3, len(names))
    size = -(-len(names) // columns), columns
    figure, axes = plt.subplots(*size, figsize=(4 * size[1], 3.4 * size[0]), sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        task = bridge.load_task(name, **({"path": os.environ["CIFAR"]} if name == "cifar-resnet" else {}))
        rows = jnp.arange(min(BATCH, task.n))
        path, loss = path_of(task, rows)
        truth = estimates(curvature.lanczos(order=30, tol=1e-4, restarts=20), loss, path)[0]
        print(f"{name}: {task.size} weights, sharpness {truth[-1]:.3f}")
        every = dict(SETTINGS)
        if name not in MATRIXLESS:
            every["kfac"] = [kfac_of(task, rows, samples) for samples in (1, 4, 16)]
        for colour, (kind, settings) in enumerate(every.items()):
            costs, warm = [], []
            for estimator in settings:
                values, products = estimates(estimator, loss, path)
                errors = values / truth - 1
                costs.append(PRODUCT_COST * products[-1])
                warm.append(np.median(np.abs(errors[1:])))
                middle = np.median(errors[1:])
                line = f"  {kind:16} {costs[-1]:5.0f} gradients, cold {100 * errors[0]:+9.2f} %"
                print(f"{line}, warm {100 * middle:+9.3f} %", flush=True)
            axis.loglog(costs, np.maximum(warm, 1e-8), "o-", color=f"C{colour}", label=kind)
        axis.axhline(0.02, color="0.5", lw=0.8, ls="--")
        axis.set(title=name, xlabel="cost [gradients]")
        axis.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
        axis.set_xticks([], minor=True)
    for row in axes:
        row[0].set_ylabel("error of the sharpness, relative")
    axes[0, 0].legend(fontsize="small")
    figure.tight_layout()
    target = Path("curvature_accuracy.png")
    figure.savefig(target, dpi=150)
    print(f"figure: {target.resolve()}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*sys.argv[1:])
