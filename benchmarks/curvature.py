"""Accuracy against cost of the curvature estimators on a small network. Run: python benchmarks/curvature.py.

A tanh network (16-24-24-4, 1108 weights) is trained by gradient descent; at each of the last steps every
estimator is updated at the current weights, warm from the step before, and compared with the largest
eigenvalue of the dense Hessian. `cold` is its first update, from a random vector. Costs: Hessian products
taken times two (gradient-equivalents, nominal) and seconds beside those of one gradient, both measured.
"""

from __future__ import annotations

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from eos_sde.optimizers import curvature

SIZES = (16, 24, 24, 4)
EXAMPLES = 512

ESTIMATORS = {
    "lanczos(order=2)": curvature.lanczos(order=2),
    "lanczos(order=4)": curvature.lanczos(order=4),
    "lanczos()": curvature.lanczos(),
    "lanczos(tol=0.1)": curvature.lanczos(tol=0.1),
    "lanczos(restarts=0)": curvature.lanczos(restarts=0),
    "lanczos(order=16)": curvature.lanczos(order=16),
    "power()": curvature.power(),
    "power(iterations=32)": curvature.power(iterations=32),
    "random_rayleigh()": curvature.random_rayleigh(),
    "random_rayleigh(128)": curvature.random_rayleigh(samples=128),
    "hutchinson()": curvature.hutchinson(),
    "hutchinson(128)": curvature.hutchinson(samples=128),
}


def network():
    """Return the loss on teacher data and the initial weights."""
    keys = jax.random.split(jax.random.key(1), 16)
    params = [
        (jax.random.normal(keys[i], (m, n)) / np.sqrt(m), jnp.zeros(n))
        for i, (m, n) in enumerate(itertools.pairwise(SIZES))
    ]
    inputs = jax.random.normal(keys[8], (EXAMPLES, SIZES[0])) * 1.5 ** -jnp.arange(SIZES[0])
    targets = jnp.sin(3.0 * inputs @ jax.random.normal(keys[9], (SIZES[0], SIZES[-1])))

    def loss(params):
        hidden = inputs
        for weight, bias in params[:-1]:
            hidden = jnp.tanh(hidden @ weight + bias)
        residual = hidden @ params[-1][0] + params[-1][1] - targets
        return 0.5 * jnp.mean(jnp.sum(residual**2, axis=1))

    return loss, params


def seconds(function, *arguments, repeats=20):
    """Return the median wall time of a compiled function."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="measured steps of training")
    parser.add_argument("--warmup", type=int, default=300, help="steps of training before")
    parser.add_argument("--rate", type=float, default=0.3, help="learning rate")
    settings = parser.parse_args()

    loss, params = network()
    gradient = jax.jit(jax.grad(loss))

    @jax.jit
    def step(params):
        return jax.tree.map(lambda p, g: p - settings.rate * g, params, jax.grad(loss)(params))

    flat, unravel = ravel_pytree(params)
    spectrum = jax.jit(lambda flat: jnp.linalg.eigvalsh(jax.hessian(lambda f: loss(unravel(f)))(flat)))
    for _ in range(settings.warmup):
        params = step(params)
    path = [params]
    for _ in range(settings.steps - 1):
        path.append(step(path[-1]))
    spectra = [np.asarray(spectrum(ravel_pytree(point)[0])) for point in path]
    exact = np.array([values[-1] for values in spectra])
    gradient_seconds = seconds(gradient, params)
    print(f"{flat.size} weights, {flat.dtype}; one gradient takes {1e3 * gradient_seconds:.2f} ms")
    print(
        f"eta * sharpness = {settings.rate * exact[0]:.3f} to {settings.rate * exact[-1]:.3f}; eigenvalues "
        f"from {spectra[0][0]:.2f} to {spectra[0][-2]:.2f}, {spectra[0][-1]:.2f}; "
        f"trace {spectra[0].sum():.1f}\n"
    )
    head = (
        "estimator",
        "cold error",
        "products",
        "warm error",
        "bound",
        "products",
        "gradients",
        "ms",
        "ms/ms(g)",
    )
    print("{:22}{:>12}{:>10}{:>12}{:>12}{:>10}{:>11}{:>9}{:>10}".format(*head))
    for name, estimator in ESTIMATORS.items():

        def update(params, state, estimator=estimator):
            return estimator.update(curvature.hessian_product(loss, params), params, state)

        compiled = jax.jit(update)
        state = estimator.init(params, jax.random.key(0))
        errors, bounds, products = [], [], []
        for point, truth in zip(path, exact, strict=True):
            value, bound, state = compiled(point, state)
            errors.append(float(value) / truth - 1.0)
            bounds.append(float(bound) / truth)
            products.append(int(state.products))
        took = seconds(compiled, path[-1], state)
        warm = products[1:]
        print(
            f"{name:22}{errors[0]:12.1e}{products[0]:10d}{errors[np.argmax(np.abs(errors[1:])) + 1]:12.1e}"
            f"{max(bounds[1:]):12.1e}{np.mean(warm):10.1f}{curvature.PRODUCT_COST * np.mean(warm):11.1f}"
            f"{1e3 * took:9.2f}{took / gradient_seconds:10.1f}"
        )
    print("\nerrors are relative and signed, the largest in modulus over the warm steps; bound likewise")


if __name__ == "__main__":
    main()
