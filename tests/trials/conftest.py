"""A trial small enough that compiling it is most of its time, and compiling with few optimisations."""

import jax
import pytest

from eos_sde.trials import Trial

TINY = {"loss": "cross-entropy", "examples": 50, "test_examples": 40, "hidden": (4,), "pool": 2}


@pytest.fixture(autouse=True, scope="package")
def quick_compilation():
    """Compile with few optimisations, and drop what was compiled so: the option is not part of JAX's cache keys."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def tiny():
    """40 examples for training in batches of 8: five updates an epoch; six rows of two updates."""

    def make(rule="caeo", **settings):
        given = {"steps": 12, "batch_size": 8, "every": 2, "task_settings": TINY, "seed": 3}
        return Trial("digits-mlp", rule, **(given | settings))

    return make
