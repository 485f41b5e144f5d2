"""Time and memory of the products that CAEO takes, beside a gradient, up to 1e7 weights: O(d) or not.

Run: OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python benchmarks/curvature_cost.py [width ...]

A tanh network of ten square layers in single precision, 64 examples. The time is the least CPU time of some turns; the
memory what XLA reserves for intermediate results, in vectors of the weights; Lanczos keeps its basis beside it, one
vector a product, and draws one random vector: beside so few examples that counts.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.optimizers import caeo, curvature
from eos_sde.optimizers.curvature import hessian_product
from eos_sde.optimizers.refresh import quotient

WIDTHS, LAYERS, BATCH, TURNS = (32, 100, 320, 1024), 10, 64, 5


class Direction:
    """What `quotient` reads of an estimator's state."""

    def __init__(self, vector):
        self.vector = vector


def programs(width):
    """Compiled programs of (weights, vector), by name, and these."""
    keys = jax.random.split(jax.random.key(0), LAYERS + 1)
    params = [jax.random.normal(key, (width, width)) / np.sqrt(width) for key in keys[:-1]]
    inputs = jax.random.normal(keys[-1], (BATCH, width))

    def loss(params):
        hidden = inputs
        for weight in params:
            hidden = jnp.tanh(hidden @ weight)
        return 0.5 * jnp.mean(jnp.sum(hidden[:, :10] ** 2, axis=1))

    def product(params):
        return hessian_product(loss, params)

    estimator = curvature.lanczos(order=3, restarts=0)

    known = estimator.init(jnp.zeros(1), jax.random.key(1))

    def measure(params, vector):
        return estimator.update(product(params), params, known._replace(vector=vector))

    functions = {
        "gradient": lambda params, _: jax.grad(loss)(params),
        "one product": lambda params, vector: product(params)(vector),
        "slope of v'Hv": lambda params, vector: jax.grad(quotient(product, params, Direction(vector)))(
            params
        ),
        "Lanczos, order 3": measure,
    }
    size = LAYERS * width**2
    arguments = (params, [weight / jnp.sqrt(size) for weight in map(jnp.ones_like, params)])
    memory = caeo(0.1).init(params)
    vectors = sum(np.size(leaf) for leaf in jax.tree.leaves(memory)) / size
    return (
        {name: jax.jit(f).lower(*arguments).compile() for name, f in functions.items()},
        arguments,
        size,
        vectors,
    )


def main(*widths):
    for width in map(int, widths or WIDTHS):
        compiled, arguments, size, vectors = programs(width)
        least = dict.fromkeys(compiled, np.inf)
        for _ in range(TURNS):
            for name, program in compiled.items():
                begun = time.process_time()
                jax.block_until_ready(program(*arguments))
                least[name] = min(least[name], time.process_time() - begun)
        print(f"{size:.2e} weights; CAEO's state holds {vectors:.1f} vectors of them")
        for name, program in compiled.items():
            reserved = program.memory_analysis().temp_size_in_bytes / (4 * size)
            ratio = least[name] / least["gradient"]
            each = 1e9 * least[name] / size
            print(f"  {name:17} {ratio:6.2f} gradients, {each:7.2f} ns a weight, {reserved:5.2f} vectors")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", False)
    main(*sys.argv[1:])
