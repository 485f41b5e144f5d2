"""How early, and how often in vain, the stability monitor warns: many training runs, some of which diverge.

Run: python benchmarks/monitor_alarms.py [design | judge] [--every K] [--out FILE.nc]

The rule of the warning is fixed in `StabilityMonitor`. Its one free number, `limit`, was chosen on the set "design"
(digits, tanh, half squared error); the set "judge" (other data, activations, losses, rules, seeds) was run after. A run
counts as diverged at the first step whose batch loss is not finite or exceeds 1000 times the larger of 1 and the first
loss (the definition of `bridge.record`). Lead time: steps from the onset of the warning that is on at that moment.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from eos_sde import bridge
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.training import StabilityMonitor, max_stable_lr
from solvers.provenance import provenance

STEPS = 2000
BATCH = 64
JUMP = STEPS // 2
ADAM_UNIT = 2e-3  # Adam's moments are not yet there at the start, so its rates are multiples of this
SCHEDULES = {
    **{f"constant {c}": np.full(STEPS, float(c)) for c in (0.5, 1, 2, 4, 8)},
    "ramp": 0.1 * 1000 ** (np.arange(STEPS) / STEPS),
    **{f"jump {f}": np.where(np.arange(STEPS) < JUMP, 0.5, 0.5 * f) for f in (4, 16, 64)},
}
DESIGN = [("digits-mlp", {"examples": 500, "hidden": (32, 32)})]
JUDGE = [
    ("fashion-mlp", {"examples": 640, "hidden": (24, 24)}),
    ("fashion-mlp", {"examples": 640, "hidden": (48,), "activation": "relu"}),
    ("fashion-mlp", {"examples": 640, "hidden": (32, 16), "activation": "gelu", "loss": "cross-entropy"}),
    ("digits-mlp", {"examples": 640, "hidden": (40, 40), "activation": "gelu"}),
]
RULES = ("gd", "sgd", "sgdm", "adam")


def unit_rate(task, theta, rule):
    """The rate that the schedules multiply: the deterministic edge at the start."""
    if rule == "adam":
        return ADAM_UNIT
    return max_stable_lr(task.loss, theta, (task.x, task.y), rule=rule, criterion="deterministic").value


def runner(task, rule, batch_size, every):
    """Compiled (weights, rates, batches) -> batch losses and readings."""
    loss = task.loss
    monitor = StabilityMonitor(loss, rule=rule, batch_size=batch_size, examples=task.n, every=every)
    probe = None if batch_size == task.n else (task.x[:batch_size], task.y[:batch_size])
    optimizer = bridge.make_rule(rule, eta=1.0)  # the rate of these rules is a factor of the update

    @jax.jit
    def run(theta, rates, batches):
        def step(carry, now):
            theta, memory, state = carry
            rate, index = now
            batch = (task.x[index], task.y[index]) if probe is not None else (task.x, task.y)
            state, reading = monitor.update(state, theta, batch, rate, data=probe, opt_state=memory)
            value, gradient = jax.value_and_grad(loss)(theta, *batch)
            updates, memory = optimizer.update(gradient, memory, theta)
            return (theta + rate * updates, memory, state), (value, reading)

        start = (theta, optimizer.init(theta), monitor.init(theta))
        return jax.lax.scan(step, start, (rates, batches))[1]

    return run, monitor


def judge(values, warnings):
    """Step of divergence (or -1), lead (or 0), whether any warning came before, whether the run ended above its start."""
    with np.errstate(invalid="ignore"):
        bad = ~(values <= 1e3 * max(1.0, values[0]))
    diverged = int(np.argmax(bad)) if bad.any() else -1
    seen = warnings[: diverged + 1] if diverged >= 0 else warnings
    lead = 0
    if diverged >= 0 and seen[-1]:
        quiet = np.flatnonzero(~seen)
        lead = diverged - (int(quiet[-1]) + 1 if quiet.size else 0)
    spoiled = diverged < 0 and bool(np.mean(values[-100:]) > values[0])
    return diverged, lead, bool(seen.any()), spoiled


def wilson(hits, total, z=1.96):
    """Interval of 95 % of a rate."""
    if total == 0:
        return 0.0, 1.0
    rate, spread = hits / total, z**2 / total
    middle = (rate + spread / 2) / (1 + spread)
    half = z * np.sqrt(rate * (1 - rate) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(rows, name):
    diverged = [r for r in rows if r["diverged"] >= 0]
    kept = [r for r in rows if r["diverged"] < 0]
    warned = [r for r in diverged if r["lead"] > 0]
    false = [r for r in kept if r["warned"]]
    spoiled = [r for r in false if r["spoiled"]]
    leads = np.array([r["lead"] for r in warned]) if warned else np.zeros(1)
    low, high = wilson(len(warned), len(diverged))
    low2, high2 = wilson(len(false), len(kept))
    print(
        f"{name:28} diverged {len(diverged):3}, warned before {len(warned):3} [{low:.2f}, {high:.2f}], lead "
        f"{np.median(leads):5.0f} ({leads.min():.0f} to {leads.max():.0f}) | kept {len(kept):3}, warned {len(false):3} "
        f"[{low2:.2f}, {high2:.2f}], of these {len(spoiled)} ended above their first loss"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", choices=("design", "judge"), nargs="?", default="judge")
    parser.add_argument(
        "--every", type=int, help="steps between measurements; what 5 % of overhead allow by default"
    )
    parser.add_argument("--out", help="NetCDF file for the table")
    options = parser.parse_args()
    tasks, seeds = (DESIGN, (100, 101)) if options.runs == "design" else (JUDGE, (0, 1))
    rows = []
    for name, settings in tasks:
        task = bridge.load_task(name, **settings)
        for rule in RULES:
            size = task.n if rule == "gd" else BATCH
            run, _ = runner(task, rule, size, options.every)
            for seed in seeds:
                theta = task.init(seed)
                unit = unit_rate(task, theta, rule)
                batches = jnp.asarray(draw_batches(stream(seed, 0), STEPS, examples=task.n, batch_size=size))
                for label, factors in SCHEDULES.items():
                    values, readings = run(theta, jnp.asarray(unit * factors), batches)
                    outcome = judge(np.asarray(values), np.asarray(readings.warning))
                    row = dict(zip(("diverged", "lead", "warned", "spoiled"), outcome, strict=True))
                    worst = float(
                        jnp.nanmax(
                            jnp.where(jnp.isfinite(readings.predicted_loss), readings.predicted_loss, 0)
                        )
                    )
                    rows.append(
                        {"task": task.description, "rule": rule, "seed": seed, "schedule": label, **row}
                    )
                    print(
                        f"{task.description[:34]:34} {rule:5} {seed:3} {label:12} diverged {row['diverged']:5} lead "
                        f"{row['lead']:5} warned {row['warned']:1} spoiled {row['spoiled']:1} first {float(values[0]):.2g} "
                        f"last {float(values[-1]):.2g} peak {worst:.2g} edge {float(np.mean(readings.edge)):.2f}",
                        flush=True,
                    )
    print()
    for rule in RULES:
        summary([r for r in rows if r["rule"] == rule], rule)
    for kind in ("constant", "ramp", "jump"):
        summary([r for r in rows if r["schedule"].startswith(kind)], kind)
    summary(rows, "all")
    if options.out:
        columns = {key: ("run", np.array([r[key] for r in rows])) for key in rows[0]}
        xr.Dataset(columns, attrs=provenance(runs=options.runs, steps=STEPS, every=options.every)).to_netcdf(
            options.out
        )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
