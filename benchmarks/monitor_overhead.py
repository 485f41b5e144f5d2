"""What the stability monitor adds to training: the same loop with and without it, taking turns, CPU time.

Run: OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/monitor_overhead.py

Every loop is watched twice: with the default settings, which count gradients, and with `paced`, which goes by the
clock. Two whole intervals are timed in the long run of the schedule; what the first steps and the compilation cost is
told apart, since it is paid once. Two programs that do the same arithmetic differ by some per cent in how their
arrays lie in the caches: no single number is better than that.
"""

import time

import jax
import jax.numpy as jnp
import optax

from eos_sde import bridge
from eos_sde.training import StabilityMonitor
from solvers import InvalidInput

REPEATS, SECONDS = 5, 3.0  # at least so many turns, and so long
BY_CLOCK = 0.08  # share asked for
CASES = [  # hidden widths, batch, probe examples, rule
    ((32, 32), 32, 64, "sgd"),
    ((64, 64), 64, 256, "sgdm"),
    ((256, 256), 64, 128, "sgdm"),
    ((256, 256), 128, 256, "adam"),
    ((256, 256), 1024, 1024, "gd"),
]


class Loop:
    """A training loop of one case, and the monitors that watch it."""

    def __init__(self, hidden, batch_size, probe_size, rule):
        self.task = bridge.load_task("fashion-mlp", hidden=hidden, examples=1024 if rule == "gd" else 2000)
        self.x, self.y = self.task.x.astype(jnp.float32), self.task.y.astype(jnp.float32)
        self.sizes, self.rule = (batch_size, probe_size), rule
        apply = self.task.network.apply_arrays
        self.params = jax.tree.map(
            lambda a: a.astype(jnp.float32), self.task.network.unravel(self.task.init(0))
        )
        self.loss = lambda params, x, y: 0.5 * jnp.mean(jnp.sum((apply(params, x) - y) ** 2, axis=1))
        self.rate = {"adam": 1e-3, "sgdm": 0.002}.get(rule, 0.02)
        self.optimizer = bridge.make_rule(rule, eta=self.rate)
        self.probe = None if rule == "gd" else (self.x[:probe_size], self.y[:probe_size])

    def monitor(self, **settings):
        """A monitor of this loop."""
        return StabilityMonitor(
            self.loss, rule=self.rule, batch_size=self.sizes[0], examples=self.task.n, **settings
        )

    def paced(self):
        """One that goes by the clock, or what it says when it cannot."""
        batch = (self.x[: self.sizes[0]], self.y[: self.sizes[0]])
        memory = self.optimizer.init(self.params)
        try:
            return self.monitor(overhead=BY_CLOCK).paced(
                self.params, batch, data=self.probe, opt_state=memory
            )
        except InvalidInput as refusal:
            return str(refusal)

    def compiled(self, monitor, steps):
        """The run of some steps, watched or (monitor None) not, of (weights, optimizer state, monitor state)."""
        rows = jax.random.randint(jax.random.key(0), (steps, self.sizes[0]), 0, self.task.n)

        def step(carry, index):
            params, memory, state = carry
            batch = (self.x, self.y) if self.rule == "gd" else (self.x[index], self.y[index])
            reading = None
            if monitor is not None:
                state, reading = monitor.update(
                    state, params, batch, self.rate, data=self.probe, opt_state=memory
                )
            gradient = jax.grad(self.loss)(params, *batch)
            if reading is not None:
                gradient = reading.then(gradient)
            updates, memory = self.optimizer.update(gradient, memory, params)
            return (optax.apply_updates(params, updates), memory, state), reading

        return jax.jit(lambda carry: jax.lax.scan(step, carry, rows))


def side_by_side(one, two, carry):
    """Least CPU seconds of two runs that take turns."""
    for run in (one, two):
        jax.block_until_ready(run(carry))
    times = [[], []]
    while len(times[0]) < REPEATS or sum(times[0]) < SECONDS:
        for run, kept in zip((one, two), times, strict=True):
            begun = time.process_time()
            jax.block_until_ready(run(carry))
            kept.append(time.process_time() - begun)
    return min(times[0]), min(times[1])


def watch(loop, monitor):
    """Seconds of a bare step, share added in the long run, interval, one-off seconds at the start."""
    interval = monitor.steps_between(*loop.sizes)
    bare, watched = (loop.compiled(m, interval) for m in (None, monitor))
    start = (loop.params, loop.optimizer.init(loop.params), monitor.init(loop.params))
    first = side_by_side(bare, watched, start)
    params, memory, state = watched(start)[0]
    # past the burst of the start and its debt: the regular measurements alone, two of them
    late = (
        params,
        memory,
        state._replace(schedule=state.schedule._replace(due=state.count, debt=0 * state.count)),
    )
    bare, watched = (loop.compiled(m, 2 * interval) for m in (None, monitor))
    later = side_by_side(bare, watched, late)
    return later[0] / (2 * interval), later[1] / later[0] - 1, interval, first[1] - first[0]


def main():
    for case in CASES:
        loop = Loop(*case)
        _, batch, probe, rule = case
        print(f"{rule}, {loop.task.size} weights, batch {batch}, probe {probe}")
        for name, monitor in (("counted", loop.monitor()), ("by the clock", loop.paced())):
            if isinstance(monitor, str):
                print(f"  {name:12} {monitor}", flush=True)
                continue
            step, added, interval, once = watch(loop, monitor)
            asked = 100 * monitor.overhead
            line = f"  {name:12} {1e6 * step:6.0f} us a step, measured every {interval:5}, {asked:.0f} % asked for, "
            line += f"{100 * added:5.1f} % added; once {once:.2f} s"
            if monitor.pace is not None:
                line += f", compilation {monitor.pace.compilation:.1f} s"
            print(line, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", False)
    main()
