"""CAEO's stability map of networks: forecast from one checkpoint, then runs at margins around the boundary.

Run: python benchmarks/caeo_stability_map.py [NETWORK ...] [--out FOLDER] [--steps N] [--replicas N] [--keep]

The checkpoint is taken after 150 steps of SGD. From it the flow of plain SGD and the reduced model give the margin at
which one runaway is expected within the run, with its error. Then CAEO is trained at five margins, four runs each, and
the margin at which half of them run away is fitted, with the 95 % interval of the profile likelihood. The method was
developed on "digits", at margins chosen by hand; "fashion", with a seed used for nothing else, was judged once, and
"shallow" run after it with nothing changed.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import xarray as xr

from eos_sde import bridge
from eos_sde.bridge.caeo_boundary import boundary_from_counts, measure_caeo_boundary
from eos_sde.bridge.caeo_forecast import forecast_caeo_stability
from eos_sde.stability_plots import stability_figure

NETWORKS = {  # task, settings, eta, seed, batch sizes that are run
    "digits": ("digits-mlp", {"examples": 500, "hidden": (24, 24)}, 0.2, 1, (8, 32, 64)),
    "shallow": ("digits-mlp", {"examples": 500, "hidden": (48,)}, 0.3, 5, (8, 32)),
    "fashion": ("fashion-mlp", {"examples": 500, "hidden": (24, 24), "pool": 2}, 0.1, 71, (8, 32)),
}
MULTIPLES = (0.5, 0.75, 1.0, 1.35, 2.0)  # of the predicted boundary
CHECKPOINT = 150


def judge(name: str, out: Path, steps: int, replicas: int, *, keep: bool) -> None:
    """Forecast, run, print and draw one network."""
    kind, settings, eta, seed, batches = NETWORKS[name]
    task = bridge.load_task(kind, **settings)
    print(f"\n{task.description}\nseed {seed}, eta {eta:g}, {replicas} runs a margin", flush=True)
    theta = bridge.checkpoint(task, eta=eta, steps=CHECKPOINT, seed=seed, batch_size=min(32, max(batches)))
    file = out / f"{name}_forecast.nc"
    if keep and file.exists():
        forecast = xr.load_dataset(file, engine="h5netcdf")
        steps = int(forecast.attrs["horizon"])
    else:
        sizes = np.unique(np.geomspace(min(batches), max(batches), 9).round().astype(int)).tolist()
        forecast = forecast_caeo_stability(
            task, theta, batch_size=sorted({*sizes, *batches}), flows_at=batches, steps=steps, eta=eta,
            delta=np.geomspace(0.01, 1.6, 41), eta_base=eta * 2 ** np.linspace(-1.0, 0.5, 7),
        )  # fmt: skip
        forecast.to_netcdf(file, engine="h5netcdf")
    print(f"  forecast over {steps} steps", flush=True)
    measured, lines = {}, []
    for size in batches:
        column = forecast.sel(batch_size=size, eta_base=eta)
        predicted, error = float(column["delta_escape"]), float(column["delta_escape_stderr"])
        if not math.isfinite(predicted):
            print(f"  batch {size}: no onset predicted", flush=True)
            continue
        margins = [m for m in predicted * np.array(MULTIPLES) if m < 1.9]
        runs = measure_caeo_boundary(
            task,
            theta,
            eta=eta,
            batch_size=size,
            deltas=margins,
            steps=steps,
            replicas=replicas,
            seed=seed + 10000,
        )
        runs.to_netcdf(out / f"{name}_runs_{size}.nc", engine="h5netcdf")
        counts = runs["runs_away"].values
        shares = "  ".join(
            f"{d:.3f}: {k}/{replicas} [{low:.2f}, {high:.2f}]"
            for d, k, low, high in zip(
                margins, counts, runs["share_low"].values, runs["share_high"].values, strict=True
            )
        )
        print(f"  batch {size}: ran away (Wilson 95 %)  {shares}", flush=True)
        if 0 < counts.sum() < counts.size * replicas:
            onset, low, high = boundary_from_counts(margins, counts, replicas)
            measured[size] = (float(onset), low, high)
            apart = (predicted - float(onset)) / math.hypot(error, onset.stderr)
            lines.append(
                f"  {size:5d}   {predicted:.3f} +- {error:.3f}   {float(onset):.3f} [{low:.3f}, {high:.3f}]"
                f"   {apart:+.2f}   {float(column['delta_c']):.3f} +- {float(column['delta_c_stderr']):.3f}"
                f"   {2 - eta * float(runs['plateau']):.3f}"
            )
    print("  batch   predicted        measured [95 %]        apart/error   fold           SGD's own gap")
    print("\n".join(lines), flush=True)
    draw(name, forecast, measured, out)


def draw(name: str, forecast: xr.Dataset, measured: dict, out: Path) -> None:
    figure = stability_figure(
        forecast, measured=measured, title=f"CAEO on {forecast.attrs['task']}: which margin is safe?"
    )
    figure.savefig(out / f"caeo_stability_{name}.png", dpi=130)
    print(f"  picture: {out / f'caeo_stability_{name}.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument(
        "--keep", action="store_true", help="use the forecasts that are in the folder, and their steps"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for network in given.networks:
        judge(network, given.out, given.steps, given.replicas, keep=given.keep)
