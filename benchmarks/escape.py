"""Where training leaves its basin: every law of `predict_escape` beside bisection of real SGD, on two small networks.

python benchmarks/escape.py [--replicas 32] [--seed 0]

Learning rates are in units of 2/sharpness. A measured value is that at which 1 - 1/e of the replicas has left (or
diverged) within the horizon, with its 95 % interval.
"""

import argparse
import math
import warnings

import numpy as np

from eos_sde import bridge
from solvers.errors import AccuracyWarning

NETWORKS = {  # settings of the task, horizon, batch sizes
    "half squared error": (
        {"examples": 200, "hidden": (6,), "pool": 2, "outputs": "scalar", "eta": 0.05},
        300,
        (4, 16, 200),
    ),
    "cross entropy": (
        {"examples": 60, "hidden": (4,), "pool": 2, "loss": "cross-entropy", "eta": 0.3},
        50,  # the sharpness falls: a longer horizon is no longer that of one Hessian
        (4, 16, 32, 48, 56),
    ),
}
LAWS = ("mean-square", "flip on the line", "flip with feedback", "map on the line", "catapult")


def trained(task):
    run = bridge.record(task, "gd", steps=30_000, seed=1, every=10_000, curvature=False)
    return run["final_params"].values[0]


def measured(task, weights, event, **settings):
    found = bridge.measure_escape(task, weights, event=event, **settings)
    low, middle, high = (float(found[name]) for name in ("relative_low", "relative", "relative_high"))
    last = found.isel(evaluation=int(np.abs(found["tried_eta"].values - float(found["eta"])).argmin()))
    fates = ", ".join(f"{int(last[fate])} {fate}" for fate in ("stayed", "returned", "adrift", "diverged"))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]", fates


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, (settings, horizon, batch_sizes) in NETWORKS.items():
        task = bridge.load_task("digits-mlp", **settings)
        weights = trained(task)
        print(f"\n{name}, {horizon} steps: {task.description}")
        for batch_size in batch_sizes:
            prediction = bridge.predict_escape(task, weights, batch_size=batch_size, horizon=horizon)
            edge = float(prediction.thresholds["loss of stability"])
            told = bridge.applicable_criterion(
                task, weights, eta=0.5 * edge, batch_size=batch_size, horizon=horizon
            )
            print(f"\nbatch {batch_size}; at half the edge applies: {told.criterion}: {told.reason}")
            for law in LAWS:
                if law in prediction.silent:
                    print(f"  {law:20s} -      {prediction.silent[law]}")
                else:
                    value = float(prediction.thresholds[law]) / edge
                    print(f"  {law:20s} {'never' if math.isinf(value) else f'{value:.3f}'}")
            kick = 0.01 if batch_size == task.n else 0.0  # without noise only a kick shows the instability
            for event in ("left", "diverged"):
                value, fates = measured(
                    task, weights, event, batch_size=batch_size, horizon=horizon, seed=options.seed,
                    replicas=options.replicas, radius=kick,
                )  # fmt: skip
                print(f"  measured, {event:10s} {value}  ({fates} nearest to it)")


if __name__ == "__main__":
    warnings.simplefilter("ignore", AccuracyWarning)
    main()
