"""The fluctuation of SGD about its averaged path: forecast from a checkpoint or a noisy minimum, beside recorded runs.

python benchmarks/fluctuations.py [--task fashion-mlp] [--seed 3] [--at checkpoint|minimum] [--batch 4 16 64]
                                  [--replicas 256] [--tails] [--figure FILE]

At a checkpoint (150 steps of SGD at batch 32) the averaged path moves: the stochastic central flow carries the
weights to the middle of the window, steps 40 to 119, without a look at the run. At a minimum every example is there
twice, with its output missed by 0.1 either way: the gradient is zero, its noise is not, and SGD is as good as
stationary.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde import bridge, plots

STATISTICS = (
    "variance",
    "kurtosis",
    "autocorrelation",
    "amplitude",
    "flip_rate",
    "hysteresis_flip_rate",
    "tail",
)
WIDTH, MISSED, EDGE_FRACTION = (24, 24), 0.1, 0.75


def checkpoint(name, seed, examples):
    task = bridge.load_task(name, examples=examples, hidden=WIDTH)
    weights = bridge.checkpoint(task, eta=task.eta, steps=150, seed=seed)
    return task, weights, {"horizon": (40, 119), "eta": task.eta}


def noisy_minimum(name, seed):
    """A minimum that fits every example, then each example twice with opposite errors of its target."""
    task = bridge.interpolation_task(name)
    minimum = bridge.find_minimum(task, seed=seed)
    with jax.enable_x64(True):
        pairs = dataclasses.replace(
            task,
            name=f"{name}, paired errors",
            x=jnp.concatenate([task.x, task.x]),
            y=jnp.concatenate([task.y + MISSED, task.y - MISSED]),
        )
    eta = 2 * EDGE_FRACTION / minimum.sharpness
    return pairs, minimum.theta, {"horizon": (100, 299), "eta": eta, "follow": False}


def shown(value, error):
    return f"{value:.4g}" if not error else f"{value:.4g}({error:.1g})"


def compared(forecast, measured):
    """Lines of a table."""
    models = [str(model) for model in forecast["model"].values]
    lines = [("direction", "quantity", *models, "measured")]
    for i in forecast["direction"].values:
        for name in STATISTICS:
            one = [
                shown(float(forecast[name][m, i]), float(forecast[f"{name}_stderr"][m, i]))
                for m in range(len(models))
            ]
            found = shown(float(measured[name][i]), float(measured[f"{name}_stderr"][i]))
            lines.append((str(i), name, *one, found))
    excess, sampled = (
        shown(float(forecast[name]), float(forecast[f"{name}_stderr"]))
        for name in ("excess_loss", "loss_deviation_sampled")
    )
    found = [
        shown(float(measured[name]), float(measured[f"{name}_stderr"]))
        for name in ("excess_loss", "loss_deviation")
    ]
    lines.append(("-", "excess loss", excess, "", "", "", found[0]))
    lines.append(
        ("-", "deviation of the loss", shown(float(forecast["loss_deviation"]), 0), sampled, "", "", found[1])
    )
    return lines


def printed(lines):
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="fashion-mlp", choices=bridge.tasks())
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--at", default="checkpoint", choices=("checkpoint", "minimum"))
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--replicas", type=int, default=256)
    parser.add_argument("--tails", action="store_true", help="solve for the tail exponent in four modes")
    parser.add_argument("--figure", help="write the histograms there")
    options = parser.parse_args()
    if options.at == "checkpoint":
        task, weights, settings = checkpoint(options.task, options.seed, options.examples)
    else:
        task, weights, settings = noisy_minimum(options.task, options.seed)
    print(f"{task.description}; seed {options.seed}, {options.at}, steps {settings['horizon']}")
    pairs = []
    for batch in options.batch:
        started = time.perf_counter()
        forecast = bridge.forecast_fluctuations(
            task, weights, batch_size=batch, seed=options.seed, tails=options.tails, **settings
        )
        between = time.perf_counter()
        measured = bridge.measure_fluctuations(
            task, weights, forecast=forecast, replicas=options.replicas, seed=options.seed + 1000
        )
        pairs.append((forecast, measured))
        eta = forecast.attrs["eta"]
        print(
            f"\nbatch {batch}: eta h = {np.round(eta * forecast['eigenvalue'].values, 3)}, radius "
            f"{float(forecast['radius']):.3f}; forecast {between - started:.0f} s, "
            f"measured {time.perf_counter() - between:.0f} s"
        )
        printed(compared(forecast, measured))
        resolved, outside, low, high = (
            float(forecast[f"excess_loss_{part}"])
            for part in ("resolved", "unresolved", "unresolved_low", "unresolved_high")
        )
        print(
            f"excess loss: {resolved:.4g} in the modes, {outside:.4g} outside, between {low:.4g} and {high:.4g}"
        )
        along = [
            f"{float(value):.3g} (at least {float(least):.3g})"
            for value, least in zip(forecast["tail_exponent"], forecast["tail_exponent_low"], strict=True)
        ]
        print(f"Kesten exponent along the directions: {', '.join(along)}; {forecast.attrs['tail_reasons']}")
        if options.tails:
            whole = forecast["tail_exponent_modes"]
            print(f"in four modes together: {float(whole):.3g} +- {float(forecast['tail_exponent_modes_stderr']):.2g}; "
                  f"{whole.attrs['reason']}")  # fmt: skip
    if options.figure:
        plots.save(plots.fluctuation_figure(pairs), options.figure)


if __name__ == "__main__":
    main()
