"""Time and memory of the mean-square threshold: 2000 images, 10 outputs, a network of 1e5 weights.

Run from the root: ``python benchmarks/mean_square.py [--loss cross-entropy] [--data digits-mlp] [--steps 300]``
"""

import argparse
import resource
import time

import jax
import optax

from eos_sde import bridge, thresholds

HIDDEN = {"fashion-mlp": (300, 128), "digits-mlp": (350, 210)}


def trained(task, steps):
    """Weights after some steps of full-batch Adam."""
    adam = optax.adam(1e-3)

    def step(carry, _):
        theta, state = carry
        updates, state = adam.update(jax.grad(task.loss)(theta), state)
        return (theta + updates, state), None

    @jax.jit
    def run(theta):
        return jax.lax.scan(step, (theta, adam.init(theta)), None, length=steps)[0][0]

    return run(task.init(0))


class Clock:
    """Wall and CPU seconds since the last look."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self, what):  # noqa: D102
        wall, cpu = time.perf_counter(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{what}: {wall - self.wall:.1f} s, {cpu - self.cpu:.1f} s of CPU; peak {peak:.2f} GiB",
            flush=True,
        )
        self.__init__()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion-mlp", choices=HIDDEN)
    parser.add_argument("--loss", default="half-squared-error")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    task = bridge.load_task(
        arguments.data, examples=arguments.examples, hidden=HIDDEN[arguments.data], loss=arguments.loss
    )
    theta = trained(task, arguments.steps)
    print(task.description, f"loss {float(task.loss(theta)):.3g}")
    clock = Clock()
    gram = bridge.curvature_gram(task.network.apply, theta, task.x, task.y, loss=arguments.loss)
    clock("set up")
    basis, start = thresholds.GramBasis(gram), None
    for batch_size in arguments.batches:
        start = thresholds.sgd_mean_square(
            basis, batch_size=batch_size, tolerance=arguments.tolerance, start=start
        )
        print(
            f"batch {batch_size}: {start.value:.6g} in [{start.lower:.6g}, {start.upper:.6g}], {start.method}"
        )
        clock(f"batch {batch_size}, {basis.rank} directions")
    for batch_size in arguments.batches:
        bounds = [thresholds.sgd_sufficient_bound(gram, batch_size=batch_size)]
        bounds += thresholds.sgd_necessary_bounds(basis, batch_size=batch_size)
        print(
            f"batch {batch_size}: bounds",
            ", ".join(f"{bound.value:.6g} {bound.criterion}" for bound in bounds),
        )
    clock("bounds")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
