"""What each ingredient of the stochastic central flow is worth: forecasts without it, against the same runs.

python benchmarks/flow_ingredients.py [--task fashion-mlp] [--seed 13] [--batch 4 16] [--replicas 8] [--quick]

The network and its checkpoint are those of `eos-sde campaign`, at another seed: 200 steps of SGD from weights after
100. Printed are sharpness of single iterates and mean loss in the last third of the steps, forecast over measured in
% off, and the distance of the final weights from the mean of the runs, beside the sampling error of that mean. A
batch of "all" is judged without the complementarity problem: by gradient flow, which knows of no edge (descent at a
tenth of the rate in ten times the steps).
"""

import argparse

import numpy as np

from eos_sde import bridge
from eos_sde.bridge.campaign import NETWORKS, QUICK
from eos_sde.bridge.campaign_cells import stderr_of_mean
from eos_sde.bridge.campaign_runs import Cell, Plan, measure, reach_checkpoint

LEFT_OUT = (
    ("nothing", {}),
    ('without=("unresolved modes",)', {"without": ("unresolved modes",)}),
    ('without=("curvature noise",)', {"without": ("curvature noise",)}),
    ('without=("feedback",)', {"without": ("feedback",)}),
    ("modes=2", {"modes": 2}),
    ("modes=2, without unresolved modes", {"modes": 2, "without": ("unresolved modes",)}),
)


def late(values, plan):
    return float(np.asarray(values)[plan.late].mean())


def flows(cell, begin, plan):
    """Name and dataset of each forecast."""
    given = {"steps": plan.steps, "save_every": plan.save_every, "stride": 5, "eta": cell.eta}
    if cell.full:
        yield "nothing", bridge.central_flow(cell.task, begin.theta, **given)
        slow = {"eta": cell.eta / 10} | {key: 10 * given[key] for key in ("steps", "save_every", "stride")}
        yield "the complementarity problem", bridge.central_flow(cell.task, begin.theta, **slow)
        return
    given |= {"batch_size": cell.batch_size, "seed": cell.seed}
    for name, settings in LEFT_OUT:
        yield name, bridge.stochastic_central_flow(cell.task, begin.theta, **given, **settings)


def table(task, batch, seed, plan):
    full = batch == "all"
    cell = Cell(task, "gd" if full else "sgd", task.n if full else int(batch), seed)
    begin = reach_checkpoint(cell, plan)
    run = measure(cell, begin, plan)
    sharpness, loss = (late(run.series[f"measured_{name}"], plan) for name in ("sharpness", "loss"))
    errors = [0.0 if full else run.series[f"late_{name}_stderr"] for name in ("sharpness", "loss")]
    mean = run.weights.mean(axis=0)
    print(
        f"\n{task.name}, seed {seed}, batch {batch}: "
        f"eta * sharpness {cell.eta * sharpness:.3f}, loss {loss:.4g}, known to "
        f"{100 * errors[0] / sharpness:.1f} and {100 * errors[1] / loss:.1f} %; mean of the weights known to "
        f"{0.0 if full else stderr_of_mean(run.weights):.3f}"
    )
    print("| left out | sharpness | loss | distance |\n|---|---|---|---|")
    for name, flow in flows(cell, begin, plan):
        if flow.attrs["stopped"]:
            print(f"| {name} | stopped at {flow.attrs['stopped']} | | |", flush=True)
            continue
        off = [
            100 * (late(flow[a], plan) / b - 1)
            for a, b in (("iterate_sharpness", sharpness), ("mean_loss", loss))
        ]
        distance = np.linalg.norm(flow["final_params"].values - mean)
        print(f"| {name} | {off[0]:+.1f} | {off[1]:+.1f} | {distance:.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="fashion-mlp", choices=sorted(NETWORKS))
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--batch", nargs="+", default=["4", "16"], help="sizes, or all")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="tiny networks, 60 steps")
    given = parser.parse_args()
    task = bridge.load_task(given.task, **(QUICK if given.quick else NETWORKS)[given.task])
    plan = Plan(60 if given.quick else 200, given.replicas, 100, 10)
    for batch in given.batch:
        table(task, batch, given.seed, plan)


if __name__ == "__main__":
    main()
