"""Does the rate of CAEO run away, is it seen, and what does the cure cost or gain? Side by side with plain descent.

Run: python benchmarks/caeo_runaway.py [--task NAME] [--bases 1 4] [--batches 0 4] [--seeds 3] [--steps 800]
     python benchmarks/caeo_runaway.py --reduced

Bases are multiples of the learning rate of the task; batch 0 is the full batch. For every rule: loss and sharpness
(times the base rate: the edge is 2) over the last tenth of the steps, the rate over the base rate, the steps until the
loss is for good at or below the end loss of the proposal's rule (mean over seeds), in how many runs and when the state
first told of a runaway, and how many runs diverged. Errors are standard errors over seeds; "-" is never. The rules are
alike in everything else: curvature of all examples at every update, the same starts and batches.

Developed on digits-mlp (400 examples), seed 1. Judged once on fashion-mlp, seeds 11 to 13 (``--first 11``), end loss
and sharpness*base:

| batch, base, steps | gd or sgd     | caeo           | caeo-ss        | caeo-ss always |
|--------------------|---------------|----------------|----------------|----------------|
| all, 0.1, 800      | 0.1638, 2.07  | 0.1739, 2.81   | 0.1638, 2.07   | 0.1641, 2.06   |
| all, 0.4, 800      | diverges 3/3  | 0.1739, 11.23  | 0.1441, 3.28   | 0.1434, 3.29   |
| 64, 0.4, 500       | diverges 3/3  | 0.1894, 5.99   | 0.1835, 5.12   |                |
| 4, 0.4, 500        | diverges 3/3  | 0.2992, 1.70   | 0.2983, 1.70   |                |

Gradient descent is best at 0.2 of the rates 0.1, 0.2, 0.3 (diverges) and 0.4, with 0.1455 +- 0.0011: the cure comes
to that of the tuned rate, from a base rate at which it diverges. Standard errors of the loss: 0.001 to 0.003 (all),
0.006 (64), 0.008 (4): with batches caeo and caeo-ss are equal within them. The alarm sounded in one of three full-batch
runs of caeo, at step 418: the runs start beyond the edge, and within 800 steps the sharpness of the others had not
risen by a quarter, and significantly, from its least.

On chebyshev (all, base 0.4, 10000 steps, the same seeds) the cure halts the runaway but does not pay within the run:
GD 0.0009, 2.00; caeo 0.0064, 9.91 (alarm in 3 of 3, on average at step 812, as the cap begins to bind); caeo -0.05
0.0034, 2.01; caeo-ss 0.018 +- 0.009, 3.29. Gradient descent at the base rate is the better choice there. The cure
stalls: at the edge of the directional sharpness the loss stands still to second order, and two modes of nearly the same
curvature oscillate for thousands of steps (`self_stabilizing_caeo` has the numbers). With a floor of the growth
("caeo-ss 0.05", "caeo-ss 0.2") it does not, at the price of bursts (the loss rises to 0.5 and to 2).

The alarm has since been given the edge at the base rate; `benchmarks/caeo_alarm.py` counts hits and false alarms.
"""

import argparse
import warnings

import numpy as np

from eos_sde import bridge
from eos_sde.optimizers import reduced_model
from solvers.errors import AccuracyWarning

RULES = {
    "gd or sgd": ("sgd", {}, 0.1),
    "caeo": ("caeo", {}, 0.1),
    "caeo 0.01": ("caeo", {}, 0.01),
    "caeo -0.05": ("caeo", {}, -0.05),
    "caeo-ss": ("caeo-ss", {}, 0.1),
    "caeo-ss always": ("caeo-ss", {"release": "always"}, 0.1),
    "caeo-ss 0.05": ("caeo-ss", {"least_growth": 0.05}, 0.1),
    "caeo-ss 0.2": ("caeo-ss", {"least_growth": 0.2}, 0.1),
}
HEAD = f"{'rule':15s} {'end loss':>18s} {'sharpness*base':>15s} {'rate/base':>9s} {'steps to':>8s} {'alarms':>10s} lost"


def measure(task, rule, *, base, batch, steps, seeds):
    """Return one row of numbers for each seed: loss path, end sharpness, rate, alarm, whether it diverged."""
    name, options, delta = RULES[rule]
    rows = []
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)  # divergence is counted in the table
            run = bridge.record(
                task, name, steps=steps, seed=seed, eta=base, batch_size=batch or task.n, delta=delta,
                every=max(1, steps // 100), batches_measured=1, options=options,
            ).isel(replica=0)  # fmt: skip
        alarm = np.flatnonzero(run["runaway"].values > 0)
        last = run["step"].values > 0.9 * steps
        rows.append(
            {
                "step": run["step"].values,
                "loss": run["loss"].values,
                "end": run["loss"].values[last].mean() if not run["diverged"] else np.nan,
                "sharpness": base * run["sharpness"].values[last].mean() if not run["diverged"] else np.nan,
                "rate": run["rate"].values[-steps // 10 :].mean() / base,
                "alarm": alarm[0] if alarm.size else None,
                "lost": bool(run["diverged"]),
            }
        )
    return rows


def reached(row, target):
    """Return the measured step from which on the loss stays at or below the target, or None."""
    above = np.flatnonzero(~(row["loss"] <= target))
    first = 0 if above.size == 0 else above[-1] + 1
    return row["step"][first] if first < row["step"].size else None


def with_error(values, digits):
    """Return "mean +- standard error" of the finite values."""
    values = np.asarray([v for v in values if np.isfinite(v)])
    if values.size == 0:
        return "-"
    error = values.std(ddof=1) / values.size**0.5 if values.size > 1 else np.nan
    return f"{values.mean():.{digits}f} +- {error:.{digits}f}"


def table(task, rules, *, base, batch, steps, seeds):
    """Print one table."""
    title = f"{task.name}, {f'batch {batch}' if batch else f'full batch ({task.n})'}, base rate {base:g}"
    print(f"\n{title}, {steps} steps, seeds {seeds.start} to {seeds.stop - 1}\n{HEAD}", flush=True)
    found = {"caeo": measure(task, "caeo", base=base, batch=batch, steps=steps, seeds=seeds)}
    target = np.nanmean([row["end"] for row in found["caeo"]])
    for rule in rules:
        rows = found.get(rule) or measure(task, rule, base=base, batch=batch, steps=steps, seeds=seeds)
        times = [time for time in (reached(row, target) for row in rows) if time is not None]
        alarms = [row["alarm"] for row in rows if row["alarm"] is not None]
        first = f" at {np.mean(alarms):.0f}" if alarms else ""
        time = f"{np.mean(times):.0f}" if len(times) == len(rows) else "-"
        lost = sum(row["lost"] for row in rows)
        print(
            f"{rule:15s} {with_error([r['end'] for r in rows], 4):>18s} "
            f"{with_error([r['sharpness'] for r in rows], 2):>15s} {np.mean([r['rate'] for r in rows]):9.2f} "
            f"{time:>8s} {f'{len(alarms)}/{len(rows)}{first}':>10s} {lost}/{len(rows)}",
            flush=True,
        )


def reduced():
    """Print how the rules fare on the reduced model, from near and far beyond the edge, with and without noise."""
    print(
        f"{'landscape':24s} {'start/edge':>10s} " + " ".join(f"{rule:>16s}" for rule in reduced_model.RULES)
    )
    print("mean sharpness * base over the last quarter of 4000 steps (the edge is 2); 'lost' where x left")
    for name, settings in reduced_model.LANDSCAPES.items():
        for excess in (1.1, 3.0, 5.0, 10.0):
            cells = []
            for rule in reduced_model.RULES:
                path = reduced_model.reduced_path(rule, start=2.0 * excess, steps=4000, seed=0, **settings)
                cells.append("lost" if path["lost"] else f"{path['sharpness'][3000:].mean():.2f}")
            print(f"{name:24s} {excess:10.1f} " + " ".join(f"{cell:>16s}" for cell in cells), flush=True)


def main():
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="digits-mlp")
    parser.add_argument(
        "--examples", type=int, help="of the task; by default its own number, 400 of digits-mlp"
    )
    parser.add_argument("--bases", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--batches", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rules", nargs="+", default=["gd or sgd", "caeo", "caeo-ss"], choices=list(RULES))
    parser.add_argument("--reduced", action="store_true", help="the reduced model instead of a network")
    chosen = parser.parse_args()
    if chosen.reduced:
        reduced()
        return
    settings = {} if chosen.examples is None else {"examples": chosen.examples}
    if chosen.task == "digits-mlp":
        settings = {"examples": 400, **settings}
    task = bridge.load_task(chosen.task, **settings)
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    for batch in chosen.batches:
        for base in chosen.bases:
            table(task, chosen.rules, base=base * task.eta, batch=batch, steps=chosen.steps, seeds=seeds)


if __name__ == "__main__":
    main()
