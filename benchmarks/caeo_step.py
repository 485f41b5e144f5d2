"""What CAEO at its defaults, and without `bend`, adds to a step of SGD, and how far its sharpness is off: side by side.

Run: OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python benchmarks/caeo_step.py [steps [seed [case]]]

Both optimizers train a Transformer, a CNN and an MLP from their initial weights, on the same batches, in single
precision. They take turns at every twentieth of the steps; the time is that of the process, all threads, and of every
twentieth the least over five repeats of the same work is taken. The ratio is that of whole runs, the dense measurements
of the first steps included, and that of their second halves, with a jackknife error over the repeats. The curvature is
that of a batch of the same size, drawn once. The truth is Lanczos at every fifth step of the same trajectory, to a
residual of 0.3 %, whose square over the gap is the error: 1e-5 and less.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eos_sde import bridge
from eos_sde.optimizers import caeo, curvature, refresh
from eos_sde.optimizers.curvature import hessian_product

BATCH = 64
CASES = {
    "transformer": ("shakespeare-transformer", {}),
    "cnn": ("fashion-cnn", {}),
    "mlp": ("fashion-mlp", {}),
    "wide-mlp": ("fashion-mlp", {"hidden": (256, 256)}),
    "wide-mlp-line": ("fashion-mlp", {"hidden": (256, 256)}),  # what the slope leaves out is not foreseen
}
STEPS, TRUTH_EVERY = 2000, 5
REPEATS, PARTS = 5, 20


class Case:
    """A network, its data, and the runs of both optimizers."""

    def __init__(self, name, steps, seed):
        task, settings = CASES[name]
        self.task, self.steps, self.seed = bridge.load_task(task, **settings), steps, seed
        self.x, self.y = (single(a) for a in (self.task.x, self.task.y))
        self.params = jax.tree.map(single, self.task.network.unravel(self.task.init(seed)))
        probe = (self.x[:BATCH], self.y[:BATCH])
        self.curvature_loss = lambda params: self.loss(params, *probe)
        plan = refresh.budget(bend=not name.endswith("-line"))
        self.caeo, self.sgd = caeo(self.task.eta, refresh=plan), optax.sgd(self.task.eta)

    def loss(self, params, x, y):
        """Mean loss of a batch."""
        outputs = self.task.network.apply_arrays(params, x)
        if jnp.issubdtype(y.dtype, jnp.integer):
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))
        return 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=1))

    def step(self, carry, rows, optimizer):
        """One update of either."""
        params, state = carry
        gradient = jax.grad(self.loss)(params, self.x[rows], self.y[rows])
        extra = {"value_fn": self.curvature_loss} if optimizer is self.caeo else {}
        updates, state = optimizer.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    def run(self, optimizer):
        """The compiled run of a part of the steps, of ((weights, state), batches)."""

        def part(carry, batches):
            return jax.lax.scan(lambda c, rows: (self.step(c, rows, optimizer), None), carry, batches)[0]

        return jax.jit(part)

    @property
    def batches(self):
        """Rows of every batch, shape (steps, BATCH)."""
        return jax.random.randint(jax.random.key(self.seed), (self.steps, BATCH), 0, self.task.n)

    def accuracy(self):
        """Held and true sharpness at every fifth step, which of them measured, and measurements in all."""
        truth = curvature.lanczos(order=4, tol=3e-3, restarts=6)

        def one(carry, rows):
            params, state, known = carry
            new = self.step((params, state), rows, self.caeo)

            def look():
                value, _, found = truth.update(hessian_product(self.curvature_loss, params), params, known)
                return value, found

            blind = (jnp.float32(jnp.nan), known)
            value, known = jax.lax.cond(state.count % TRUTH_EVERY == 0, look, lambda: blind)
            return (*new, known), (new[1].sharpness, value, new[1].staleness, new[1].capped)

        start = (self.params, self.caeo.init(self.params), truth.init(self.params, jax.random.key(1)))
        seen = jax.jit(lambda c, b: jax.lax.scan(one, c, b)[1])(start, self.batches)
        return [np.asarray(a) for a in seen]


def single(array):
    """Floating-point arrays in single precision."""
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def side_by_side(case):
    """CPU seconds (repeat, optimizer, part) of runs that take turns at every part."""
    optimizers = (case.sgd, case.caeo)
    runs = [case.run(optimizer) for optimizer in optimizers]
    starts = [(case.params, optimizer.init(case.params)) for optimizer in optimizers]
    parts = case.batches.reshape(PARTS, -1, BATCH)
    for run, start in zip(runs, starts, strict=True):
        jax.block_until_ready(run(start, parts[0]))
    seconds = np.zeros((REPEATS, 2, PARTS))
    for turn in seconds:
        carries = list(starts)
        for part, rows in enumerate(parts):
            for which, run in enumerate(runs):
                begun = time.process_time()
                carries[which] = jax.block_until_ready(run(carries[which], rows))
                turn[which, part] = time.process_time() - begun
    return seconds


def ratio_of(seconds):
    """CAEO over SGD, of each part's least time over the repeats, and its jackknife error over them."""

    def ratio(chosen):
        sgd, ours = chosen.min(axis=0).sum(axis=1)
        return ours / sgd

    without = [ratio(np.delete(seconds, k, axis=0)) for k in range(len(seconds))]
    spread = np.sqrt((len(seconds) - 1) * np.var(without))
    return ratio(seconds), spread


def main(steps=STEPS, seed=0, *names):
    for name in names or CASES:
        case = Case(name, int(steps), int(seed))
        seconds = side_by_side(case)
        text = f"{name}: {case.task.size} weights, batch {BATCH}, {case.steps} steps, seed {seed}\n"
        for label, chosen in (("whole run", seconds), ("second half", seconds[:, :, PARTS // 2 :])):
            ratio, error = ratio_of(chosen)
            least = chosen[:, 0].min(axis=0).mean() * PARTS / case.steps
            text += f"  {label:12} SGD {1e3 * least:.3f} ms a step, CAEO/SGD {ratio:.3f} +- {error:.3f}\n"
        held, true, age, capped = case.accuracy()
        error = np.abs(held / true - 1)
        for label, chosen in (("whole run", slice(None)), ("second half", slice(case.steps // 2, None))):
            known = error[chosen][np.isfinite(error[chosen])]
            text += f"  {label:12} sharpness off by {100 * np.median(known):.2f} % (median), "
            text += f"{100 * np.quantile(known, 0.9):.2f} % (9 of 10), "
            text += f"within 2 % at {100 * np.mean(known < 0.02):.0f} % of steps; "
            text += f"{int(np.sum(age[chosen] == 0))} measurements, capped at {100 * capped[chosen].mean():.0f} %\n"
        print(text, end="", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", False)
    main(*sys.argv[1:])
