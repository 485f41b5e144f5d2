"""How early, and how often in vain, the stability monitor warns: many training runs, some of which diverge.

Run: python benchmarks/monitor_alarms.py [design | judge] [--every K] [--out FILE.nc]

The rule of the warning is fixed in `StabilityMonitor`. It was chosen on the set "design"; the set "judge" (other
networks, losses and seeds) was run after. After a first look at it the clause beyond 12/sharpness was added, by the
design runs and an example, and it was run again. Three kinds of runs are told apart: "blow-up", where
the batch loss is not finite or exceeds 1000 times the larger of 1 and the first loss (the definition of
`bridge.record`); "excursion", where it exceeds 10 times the first loss (the monitor's own `limit`), a blow-up included;
and quiet ones. Lead time: steps from the onset of the warning that is on at the first such step.
"""

import argparse

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
SCHEDULES = {  # multiples of the edge at the start; none is a value that the rule itself singles out
    **{f"constant {c}": np.full(STEPS, float(c)) for c in (0.5, 0.9, 1.5, 3, 6)},
    "ramp": 0.1 * 1000 ** (np.arange(STEPS) / STEPS),
    **{f"jump {f}": np.where(np.arange(STEPS) < JUMP, 0.5, 0.5 * f) for f in (4, 16, 64)},
}
DESIGN = [
    ("digits-mlp", {"examples": 500, "hidden": (32, 32)}, (100, 101)),
    ("fashion-mlp", {"examples": 640, "hidden": (24, 24)}, (2, 3)),
    ("fashion-mlp", {"examples": 640, "hidden": (48,), "activation": "relu"}, (2, 3)),
    (
        "fashion-mlp",
        {"examples": 640, "hidden": (32, 16), "activation": "gelu", "loss": "cross-entropy"},
        (2, 3),
    ),
    ("digits-mlp", {"examples": 640, "hidden": (40, 40), "activation": "gelu"}, (2, 3)),
]
JUDGE = [
    ("fashion-mlp", {"examples": 640, "hidden": (32, 32), "activation": "softplus"}, (7, 8)),
    (
        "digits-mlp",
        {"examples": 640, "hidden": (48, 24), "activation": "relu", "loss": "cross-entropy"},
        (7, 8),
    ),
    ("fashion-mlp", {"examples": 640, "hidden": (40, 24), "activation": "gelu"}, (7, 8)),
    ("digits-mlp", {"examples": 640, "hidden": (), "channels": 8, "centre": True}, (7, 8)),
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


def judge(warnings, bad):
    """Step of the event (or -1), lead (or 0), whether a warning was on at any step until then."""
    event = int(np.argmax(bad)) if bad.any() else -1
    seen = warnings[: event + 1] if event >= 0 else warnings
    lead = 0
    if event >= 0 and seen[-1]:
        quiet = np.flatnonzero(~seen)
        lead = event - (int(quiet[-1]) + 1 if quiet.size else 0)
    return {"at": event, "lead": lead, "warned": bool(seen.any())}


def wilson(hits, total, z=1.96):
    """Interval of 95 % of a rate."""
    if total == 0:
        return 0.0, 1.0
    rate, spread = hits / total, z**2 / total
    middle = (rate + spread / 2) / (1 + spread)
    half = z * np.sqrt(rate * (1 - rate) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(rows, name, event):
    """One line of the table: share of the events warned of, the lead, share of the other runs that were warned."""
    happened = [r for r in rows if r[f"{event}_at"] >= 0]
    others = [r for r in rows if r[f"{event}_at"] < 0]
    warned = [r[f"{event}_lead"] for r in happened if r[f"{event}_lead"] > 0]
    false = [r for r in others if r[f"{event}_warned"]]
    low, high = wilson(len(warned), len(happened))
    low2, high2 = wilson(len(false), len(others))
    quartiles = np.percentile(warned, [0, 50, 100]) if warned else np.zeros(3)
    print(
        f"{event:9} {name:16} {len(warned):3} of {len(happened):3} warned of [{low:.2f}, {high:.2f}], lead "
        f"{quartiles[1]:4.0f} ({quartiles[0]:.0f} to {quartiles[2]:.0f}) steps; {len(false):3} of {len(others):3} "
        f"others warned [{low2:.2f}, {high2:.2f}]"
    )


def label_of(row, key):
    """By what runs are grouped: schedules by their kind, the rest by name."""
    return row[key].split()[0] if key == "schedule" else row[key]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", choices=("design", "judge"), nargs="?", default="judge")
    parser.add_argument(
        "--every", type=int, help="steps between measurements; what the overhead allows by default"
    )
    parser.add_argument("--out", help="NetCDF file for the table")
    options = parser.parse_args()
    rows = []
    for name, settings, seeds in DESIGN if options.runs == "design" else JUDGE:
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
                    values, warnings = np.asarray(values), np.asarray(readings.warning)
                    events = {"blow-up": 1e3 * max(1.0, values[0]), "excursion": 10 * values[0]}
                    row = {"network": task.description.split(" (")[0], "loss": task.loss_name, "rule": rule}
                    row |= {
                        "seed": seed,
                        "schedule": label,
                        "first": float(values[0]),
                        "last": float(values[-1]),
                    }
                    for event, limit in events.items():
                        found = judge(warnings, ~(values <= limit))
                        row |= {f"{event}_{key}": value for key, value in found.items()}
                    rows.append(row)
                    print(*row.values(), flush=True)
    for event in ("blow-up", "excursion"):
        print()
        for key in ("rule", "network", "schedule"):
            for kind in dict.fromkeys(label_of(r, key) for r in rows):
                summary([r for r in rows if label_of(r, key) == kind], kind, event)
        summary(rows, "all", event)
    if options.out:
        columns = {key: ("run", np.array([r[key] for r in rows])) for key in rows[0]}
        xr.Dataset(columns, attrs=provenance(runs=options.runs, steps=STEPS, every=options.every)).to_netcdf(
            options.out
        )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
