"""What the stability monitor adds to training: the same loop with and without it, taking turns, CPU time.

Run: OMP_NUM_THREADS=1 python benchmarks/monitor_overhead.py
"""

import time

import jax
import jax.numpy as jnp
import optax

from eos_sde import bridge
from eos_sde.training import StabilityMonitor

REPEATS = 5
CASES = [  # hidden widths, batch, probe examples, rule
    ((32, 32), 32, 64, "sgd"),
    ((64, 64), 64, 256, "sgdm"),
    ((256, 256), 64, 128, "sgdm"),
    ((256, 256), 128, 256, "adam"),
    ((256, 256), 1024, 1024, "gd"),
]


def loops(hidden, batch_size, probe_size, rule):
    """Two compiled runs over a whole number of intervals, with and without the monitor, and their lengths."""
    task = bridge.load_task("fashion-mlp", hidden=hidden, examples=1024 if rule == "gd" else 2000)
    x, y = task.x.astype(jnp.float32), task.y.astype(jnp.float32)
    apply = task.network.apply_arrays
    params = jax.tree.map(lambda a: a.astype(jnp.float32), task.network.unravel(task.init(0)))

    def loss(params, x, y):
        return 0.5 * jnp.mean(jnp.sum((apply(params, x) - y) ** 2, axis=1))

    rate = 1e-3 if rule == "adam" else 0.02 if rule != "sgdm" else 0.002
    optimizer = bridge.make_rule(rule, eta=rate)
    monitor = StabilityMonitor(loss, rule=rule, batch_size=batch_size, examples=task.n)
    every = monitor.steps_between(batch_size, probe_size)
    steps = every if rule == "gd" else 2 * every
    probe = None if rule == "gd" else (x[:probe_size], y[:probe_size])
    rows = jax.random.randint(jax.random.key(0), (steps, batch_size), 0, task.n)

    def step(carry, index, *, watched):
        params, memory, state = carry
        batch = (x, y) if rule == "gd" else (x[index], y[index])
        reading = None
        if watched:
            state, reading = monitor.update(state, params, batch, rate, data=probe, opt_state=memory)
        updates, memory = optimizer.update(jax.grad(loss)(params, *batch), memory, params)
        return (optax.apply_updates(params, updates), memory, state), reading

    start = (params, optimizer.init(params), monitor.init(params))
    runs = [
        jax.jit(
            lambda carry, watched=watched: jax.lax.scan(lambda c, i: step(c, i, watched=watched), carry, rows)
        )
        for watched in (False, True)
    ]
    return [lambda run=run: jax.block_until_ready(run(start)) for run in runs], steps, every, task.size


def main():
    for case in CASES:
        runs, steps, every, size = loops(*case)
        times = [[], []]
        for run in runs:
            run()
        for _ in range(REPEATS):
            for run, kept in zip(runs, times, strict=True):
                begun = time.process_time()
                run()
                kept.append(time.process_time() - begun)
        bare, watched = (min(kept) for kept in times)
        _, batch, probe, rule = case
        print(
            f"{rule:5} {size:7} weights, batch {batch:4}, probe {probe:4}: {1e6 * bare / steps:7.0f} us a step, "
            f"measured every {every:4}, overhead {100 * (watched / bare - 1):5.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", False)
    main()
