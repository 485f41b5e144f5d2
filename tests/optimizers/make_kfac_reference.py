"""Write kfac_reference.json: the Kronecker factors of a small network by kfac-jax, to hold ours against.

Run in an environment of its own (kfac-jax 0.0.8 needs jax < 0.9), from the root of the repository:

    python -m venv kfac-venv && kfac-venv/bin/pip install kfac-jax==0.0.8 'jax<0.9'
    kfac-venv/bin/python tests/optimizers/make_kfac_reference.py

The network has a convolution, a dense layer that shares its weights among positions, attention over them, and a dense
layer at the end; the loss is the cross entropy. kfac-jax forms the factors by its mode ``ggn_exact``.
"""

import importlib.metadata
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np

jax.config.update("jax_enable_x64", True)


def problem():
    """Weights, images and labels, by NumPy's generator: the same wherever this is read."""
    rng = np.random.default_rng(20)
    shapes = {
        "kernel": (3, 3, 2, 3),
        "kernel_b": (3,),
        "mix": (3, 5),
        "mix_b": (5,),
        "out": (5, 4),
        "out_b": (4,),
    }
    weights = {name: 0.7 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return weights, rng.standard_normal((7, 5, 5, 2)), rng.integers(0, 4, 7)


def loss(weights, batch):
    """The cross entropy; kfac-jax finds the layers by their pattern."""
    images, labels = batch
    numbers = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(
        images, weights["kernel"], (2, 2), "SAME", dimension_numbers=numbers
    )
    hidden = jnp.tanh(hidden + weights["kernel_b"])
    tokens = hidden.reshape(len(images), -1, 3)
    mixed = tokens @ weights["mix"] + weights["mix_b"]
    attention = jax.nn.softmax(mixed @ jnp.swapaxes(mixed, 1, 2), axis=-1)
    pooled = jnp.mean(attention @ mixed, axis=1)
    logits = pooled @ weights["out"] + weights["out_b"]
    kfac_jax.register_softmax_cross_entropy_loss(logits, labels)
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))


def main():
    weights, images, labels = problem()
    batch = (jnp.asarray(images), jnp.asarray(labels))
    weights = {name: jnp.asarray(value) for name, value in weights.items()}
    estimator = kfac_jax.BlockDiagonalCurvature(loss, index_to_block_ctor=None)
    state = estimator.init(
        jax.random.PRNGKey(0),
        (weights, batch),
        exact_powers_to_cache=None,
        approx_powers_to_cache=None,
        cache_eigenvalues=False,
    )
    state = estimator.update_curvature_matrix_estimate(
        state,
        0.0,
        1.0,
        identity_weight=0.0,
        batch_size=len(labels),
        rng=jax.random.PRNGKey(0),
        func_args=(weights, batch),
        estimation_mode="ggn_exact",
    )
    blocks = {}
    for block, kept in zip(estimator.blocks, state.blocks_states, strict=True):
        factors = [np.linalg.eigvalsh(np.asarray(factor.value)) for factor in kept.factors]
        scale = float(block.fixed_scale()) if hasattr(block, "fixed_scale") else 1.0
        blocks[str(block)] = {"scale": scale, "eigenvalues": [values.tolist() for values in factors]}
    found = {
        "versions": {name: importlib.metadata.version(name) for name in ("kfac-jax", "jax", "numpy")},
        "blocks": blocks,
    }
    text = json.dumps(found, indent=1) + "\n"
    Path(__file__).with_name("kfac_reference.json").write_text(text)


if __name__ == "__main__":
    main()
