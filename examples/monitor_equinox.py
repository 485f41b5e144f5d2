"""Train an Equinox network with optax while the stability monitor watches, then ask for the largest stable rate.

Run: python examples/monitor_equinox.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import xarray as xr

from eos_sde import bridge
from eos_sde.thresholds import StabilityMonitor, Threshold, max_stable_lr

BATCH, STEPS = 32, 1200


def main() -> tuple[xr.Dataset, Threshold, float]:
    """Train with momentum and a warm-up of the learning rate.

    Returns
    -------
    Dataset, Threshold, float
        The log of the monitor, the edge at the end, the last loss on the training set.
    """
    images = bridge.load_dataset("digits")
    x = jnp.asarray(images.x_train.reshape(len(images.x_train), -1), jnp.float32)
    y = jax.nn.one_hot(images.y_train, 10)

    model = eqx.nn.MLP(64, 10, 32, depth=2, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)  # the monitor sees arrays only

    def loss(params, x, y):
        outputs = jax.vmap(eqx.combine(params, static))(x)
        return jnp.mean(optax.softmax_cross_entropy(outputs, y))

    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, STEPS // 4, STEPS)
    optimizer = optax.sgd(schedule, momentum=0.9)
    monitor = StabilityMonitor(loss, rule="sgdm", batch_size=BATCH, examples=len(x), every=50)
    probe = (x[:256], y[:256])

    @jax.jit
    def train(params, key):
        def step(carry, now):
            params, opt_state, state = carry
            count, key = now
            rows = jax.random.choice(key, len(x), (BATCH,), replace=False)
            batch = (x[rows], y[rows])
            state, reading = monitor.update(state, params, batch, schedule(count), data=probe)
            gradient = reading.then(jax.grad(loss)(params, *batch))  # no copy of the weights for the monitor
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, state), reading

        start = (params, optimizer.init(params), monitor.init(params))
        steps = (jnp.arange(STEPS), jax.random.split(key, STEPS))
        (params, _, _), readings = jax.lax.scan(step, start, steps)
        return params, readings

    params, readings = train(params, jax.random.key(1))
    log = monitor.dataset(readings)
    edge = max_stable_lr(loss, params, (x, y), rule="sgdm", criterion="deterministic")
    return log, edge, float(loss(params, x, y))


if __name__ == "__main__":
    log, edge, last = main()
    table = log[
        ["learning_rate", "loss", "sharpness", "batch_sharpness", "distance_deterministic", "warning"]
    ]
    print(table.isel(step=slice(None, None, 4)).to_dataframe().round(3))
    print(f"last loss {last:.4f}; the largest stable learning rate there: {edge}")
