"""Train a Flax (NNX) network with Adam while the stability monitor watches; the rate is raised on purpose.

Run: python examples/monitor_flax.py (needs flax, which comes with the extra 'dev')
"""

import jax
import jax.numpy as jnp
import optax
import xarray as xr
from flax import nnx

from eos_sde import bridge
from eos_sde.thresholds import StabilityMonitor

BATCH, STEPS = 64, 400


class Network(nnx.Module):
    """Two layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 48, rngs=rngs)
        self.out = nnx.Linear(48, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch."""
        return self.out(jnp.tanh(self.hidden(x)))


def main() -> tuple[xr.Dataset, list[str]]:
    """Train at 2e-3, and from half way at 1.

    Returns
    -------
    Dataset, list of str
        The log of the monitor, and what it said.
    """
    images = bridge.load_dataset("digits")
    x = jnp.asarray(images.x_train.reshape(len(images.x_train), -1), jnp.float32)
    y = jnp.asarray(images.y_train)

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)  # params is a pytree of arrays

    def loss(params, batch):
        logits = nnx.merge(graph, params)(batch["x"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]))

    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=2e-3)
    monitor = StabilityMonitor(loss, rule="adam", batch_size=BATCH, examples=len(x), every=40)
    probe = {"x": x[:256], "y": y[:256]}

    @jax.jit
    def step(params, opt_state, state, batch, rate):
        opt_state.hyperparams["learning_rate"] = rate
        state, reading = monitor.update(state, params, batch, rate, data=probe, opt_state=opt_state)
        gradient = reading.then(jax.grad(loss)(params, batch))  # no copy of the weights for the monitor
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state, reading

    opt_state, state = optimizer.init(params), monitor.init(params)
    readings, said = [], []
    for count in range(STEPS):
        rows = jax.random.choice(jax.random.key(count), len(x), (BATCH,), replace=False)
        rate = 2e-3 if count < STEPS // 2 else 1.0
        params, opt_state, state, reading = step(params, opt_state, state, {"x": x[rows], "y": y[rows]}, rate)
        readings.append(reading)
        if monitor.message(reading) and not said:
            said.append(monitor.message(reading))
    return monitor.dataset(readings), said


if __name__ == "__main__":
    log, said = main()
    print(
        log[["learning_rate", "loss", "sharpness", "distance_deterministic", "warning"]]
        .to_dataframe()
        .round(3)
    )
    print(*said, sep="\n")
