"""The alarm of the runaway: hits, misses and false alarms on networks that start beyond the edge or rest below it.

Run: python benchmarks/caeo_alarm.py [--task NAME] [--first SEED] [--seeds 5] [--steps 1200]

CAEO with delta = 0.1 is trained from the start of the task at one and four times its rate, with all examples and with
batches. A run has run away if at its end the cap has bound in more than 90 % of the last third, the sharpness over the
last tenth is a quarter beyond the edge at the base rate, and above that at half-time. For the alarm with and without
the edge at the base rate: hits of such runs, alarms in others, each with its 95 % interval (Wilson), and when it first
came. Runs whose cap binds from the first step on are the same at either rate, and are counted once.

Developed on digits-mlp, seeds 1 to 3 (nine runs: all hits and both others alarm either way; with the edge the first
alarm comes 48 to 55 steps sooner with all examples at four times the task's rate). Judged once on fashion-mlp, seeds
301 to 305: without the edge 5 of 6 hits, on average at step 514, and no alarm in the 9 others; with it 6 of 6 (the five
at 270, the sixth, with batches, at 865) and 2 of 9 false alarms [0.06, 0.55], both of batches of 32 under a cap that
binds at every step. Of the first 800 steps alone: 4 and 5 hits.
"""

import argparse

import numpy as np

from eos_sde import bridge
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.caeo_boundary import capped_runs, wilson
from eos_sde.bridge.precision import double_precision
from eos_sde.optimizers import runaway

SETTINGS = {"examples": 300, "hidden": (16, 16), "pool": 2}
KINDS = ((0, 4.0), (0, 1.0), (32, 4.0), (8, 1.0))  # batch (0: all), base rate over the task's


@double_precision
def train(task, *, base, batch, steps, seed):
    """Sharpness and rate of each update of one run."""
    if batch:
        batches = draw_batches(stream(seed, 0, 0), steps, examples=task.n, batch_size=batch)[None]
    else:
        batches = np.tile(np.arange(task.n), (1, steps, 1))
    sharpness, rate, _ = capped_runs(task, 4)(task.init(seed), base, 0.1, batches)
    return np.asarray(sharpness)[0], np.asarray(rate)[0]


def first_alarm(sharpness, capped, edge):
    """Update at which the alarm first came, or None."""
    monitor = runaway.start()
    for step, (value, binds) in enumerate(zip(sharpness, capped, strict=True)):
        monitor = runaway.watch(monitor, value, binds, edge=edge)
        if monitor.runaway:
            return step
    return None


def main():
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits-mlp")
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1200)
    chosen = parser.parse_args()
    task = bridge.load_task(chosen.task, **SETTINGS)
    print(task.description)
    rows, seen = [], set()
    for batch, multiple in KINDS:
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            base = multiple * task.eta
            sharpness, rate = train(task, base=base, batch=batch, steps=chosen.steps, seed=seed)
            capped = rate < base * (1 - 1e-9)
            key = (batch, seed, rate.tobytes())
            if key in seen:
                continue
            seen.add(key)
            n = chosen.steps
            late, middle = sharpness[-n // 10 :].mean(), sharpness[n // 2 - n // 20 : n // 2 + n // 20].mean()
            away = capped[2 * n // 3 :].mean() > 0.9 and late > max(1.25 * 2 / base, middle)
            alarms = first_alarm(sharpness, capped, None), first_alarm(sharpness, capped, 2 / base)
            rows.append((away, *alarms))
            print(
                f"batch {batch or task.n:4d} base {base:g} seed {seed}: base * sharpness {base * late:.2f}, "
                f"{'ran away' if away else 'did not run away'}; alarm {alarms[0]}, with the edge {alarms[1]}",
                flush=True,
            )
    away = np.array([row[0] for row in rows])
    for column, name in ((1, "rise by a quarter"), (2, "or by 5 % beyond the edge")):
        came = np.array([row[column] is not None for row in rows])
        parts = []
        for which, label in ((away, "hits"), (~away, "false alarms")):
            low, high = wilson([(came & which).sum()], max(int(which.sum()), 1))
            parts.append(f"{label} {(came & which).sum()}/{which.sum()} [{low[0]:.2f}, {high[0]:.2f}]")
        print(f"{name}: {', '.join(parts)}")


if __name__ == "__main__":
    main()
