"""Accuracy against cost of the curvature estimators on the tasks: a table and a figure.

Run: OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python benchmarks/curvature_accuracy.py [task ...]

The weights are those after some steps of SGD; the loss that of a batch of 64; the truth Lanczos of order 30, restarted
to a residual of 1e-4. An estimator is updated from a random vector (cold) and then at each of the next steps (warm,
the median). The cost is that of its products, in gradients. KFAC is left out: it needs a network that tells its layers.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

from eos_sde import bridge
from eos_sde.optimizers import curvature
from eos_sde.optimizers.curvature import PRODUCT_COST, hessian_product

mpl.use("agg")
import matplotlib.pyplot as plt

TASKS = ("digits-mlp", "fashion-mlp", "fashion-cnn")
BATCH, BEFORE, WARM = 64, 150, 12
SETTINGS = {
    "lanczos": [curvature.lanczos(order=k, restarts=0) for k in (1, 2, 3, 4, 8, 16)],
    "power": [curvature.power(iterations=k, shift_order=2) for k in (2, 8, 16)],
    "random_rayleigh": [curvature.random_rayleigh(samples=k) for k in (1, 8, 32)],
    "hutchinson": [curvature.hutchinson(samples=k) for k in (2, 8, 32)],
}


def path_of(task):
    """Weights at some successive steps of SGD, (WARM + 1, d), and the loss of the curvature batch."""

    def loss(theta, rows):
        return jnp.mean(task.per_example_loss(theta, task.x[rows], task.y[rows]))

    @jax.jit
    def walk(theta, batches):
        def step(theta, rows):
            return theta - task.eta * jax.grad(loss)(theta, rows), theta

        return jax.lax.scan(step, theta, batches)[1]

    rows = jax.random.randint(jax.random.key(0), (BEFORE + WARM + 1, BATCH), 0, task.n)
    return walk(task.init(0), rows)[BEFORE:], lambda theta: loss(theta, jnp.arange(BATCH))


def estimates(estimator, loss, path):
    """Estimates along the path, and products of each."""

    def step(state, theta):
        value, _, state = estimator.update(hessian_product(loss, theta), theta, state)
        return state, (value, state.products)

    start = estimator.init(path[0], jax.random.key(3))
    return [np.asarray(a) for a in jax.jit(lambda s, p: jax.lax.scan(step, s, p)[1])(start, path)]


def main(*names):
    names = names or TASKS
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        task = bridge.load_task(name)
        path, loss = path_of(task)
        truth = estimates(curvature.lanczos(order=30, tol=1e-4, restarts=20), loss, path)[0]
        print(f"{name}: {task.size} weights, sharpness {truth[-1]:.3f}")
        for colour, (kind, settings) in enumerate(SETTINGS.items()):
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
    axes[0, 0].set_ylabel("error of the sharpness, relative")
    axes[0, -1].legend(fontsize="small")
    figure.tight_layout()
    target = Path("curvature_accuracy.png")
    figure.savefig(target, dpi=150)
    print(f"figure: {target.resolve()}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*sys.argv[1:])
