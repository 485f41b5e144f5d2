"""The outer regions of CAEO's stability map against networks: rates below the cap, no margin, divergence.

Run: python benchmarks/caeo_regions.py [NETWORK ...] [--replicas N] [--steps N]

From a checkpoint of SGD alpha, beta and the noise are calibrated, and `thresholds.caeo_stability` names the regime of
every setting within the horizon. Then CAEO is trained there, and the share of runs with each outcome is printed with
its 95 % interval (Wilson). Base rates are in units of 2/sharpness at the checkpoint.

Found, eight runs of 200 steps a setting: where the map says "uncapped" no update was capped on any network; at margins
of 0 and -0.05 no run ran away on any, as the map says, also where SGD diverges; "diverging" (a first step at 4 or
more, the edge of two-layer linear networks) is too wide for deeper ones. At margins -6 and -3 there diverged 8 and 8
of 8 runs of the network with one hidden layer (batch 8), 5 and 3 of that with two (batch 32), where SGD itself survives
in 3, and 8 and none of that at its edge. "outside", where the model ends, was held in every run at margins of 0 and
below. Chebyshev has alpha < 0 at its checkpoint, for which there is no map; at -6 and -3 there diverged 8 and 7.
"""

import argparse

import numpy as np

from eos_sde import bridge, thresholds
from eos_sde.bridge.caeo_regions import OUTCOMES, measure_caeo_regimes

NETWORKS = {  # task, settings, eta and steps of SGD to the checkpoint, seed, batch size
    "one layer": ("digits-mlp", {"examples": 200, "hidden": (16,), "pool": 2}, 0.05, 300, 21, 8),
    "two layers": ("digits-mlp", {"examples": 200, "hidden": (12, 12), "pool": 2}, 0.05, 150, 22, 32),
    "at its edge": ("digits-mlp", {"examples": 300, "hidden": (16, 16), "pool": 2}, 0.2, 150, 11, 32),
    "chebyshev": ("chebyshev", {}, 0.4, 600, 23, 10),
}
BASES = (0.25, 0.9, 3.0)
DELTAS = (-6.0, -3.0, -1.5, -0.05, 0.0, 0.1)


def judge(name: str, *, steps: int, replicas: int) -> None:
    """Print map and runs of one network side by side."""
    kind, settings, eta, warm, seed, batch = NETWORKS[name]
    task = bridge.load_task(kind, **settings)
    theta = bridge.checkpoint(task, eta=eta, steps=warm, seed=seed, batch_size=batch)
    found = bridge.calibrate(task, theta, batch_size=batch, k=1)
    sharpness, alpha = float(found["eigenvalue"][0]), float(found["alpha"])
    print(
        f"\n{name}: {task.description}\n  sharpness {sharpness:.3g}, alpha {alpha:.3g}, batch {batch}, seed {seed}"
    )
    rates = [base * 2 / sharpness for base in BASES]
    runs = measure_caeo_regimes(
        task,
        theta,
        eta_base=rates,
        batch_size=batch,
        deltas=DELTAS,
        steps=steps,
        replicas=replicas,
        seed=seed,
    )
    for base, rate in zip(BASES, rates, strict=True):
        lost = int(runs["sgd_diverged"].sel(eta_base=rate).sum())
        print(f"  base rate {base:g} x 2/sharpness; SGD diverges in {lost}/{replicas}")
        for delta in DELTAS:
            cell = runs.sel(eta_base=rate, delta=delta)
            if alpha > 0:
                regime = thresholds.caeo_stability(
                    alpha=alpha, beta=float(found["beta"]), gradient_variance=float(found["noise_covariance"][0, 0]),
                    sharpness=sharpness, eta_base=rate, delta=delta, horizon=steps,
                ).regime  # fmt: skip
            else:
                regime = "(alpha <= 0)"
            shares = ", ".join(
                f"{label} {share:.2f} [{low:.2f}, {high:.2f}]"
                for label, share, low, high in zip(
                    OUTCOMES,
                    *(cell[f"share{end}"].values for end in ("", "_low", "_high")),
                    strict=True,
                )
                if share > 0
            )
            print(
                f"    delta {delta:5.2f}: map {regime:12s} runs {shares}; capped {float(np.mean(cell['capped'])):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    for network in given.networks:
        judge(network, steps=given.steps, replicas=given.replicas)
