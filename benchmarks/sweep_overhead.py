"""What a sweep costs beside its points: time a point, bytes of the client, for trivial points; extrapolated to 1e7.

``python benchmarks/sweep_overhead.py [points]``: 1e5 by default, and four times as many. Each row is a process of its
own. "one point a task" switches the grouping of points into tasks off: it is what a point costs that takes longer than
half a second.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

FAR = 1e7


def trivial(x):
    return x * x


def case(points: int, workers: int, grouped: bool) -> None:
    """One row: measured in this process, printed as JSON."""
    from contextlib import nullcontext

    from eos_sde.sweeps.bundles import Pace
    from eos_sde.sweeps.clusters import local_cluster
    from eos_sde.sweeps.engine import carried_out
    from eos_sde.sweeps.executors import InProcess
    from eos_sde.sweeps.plan import planned

    if not grouped:
        Pace.size = 1
    with (
        tempfile.TemporaryDirectory() as place,
        local_cluster(workers) if workers else nullcontext((InProcess(), "")) as (executor, _),
    ):
        carried_out(
            planned(trivial, {"x": [0.0, 1.0]}, command="warm"), Path(place, "warm.zarr"), executor=executor
        )
        rss, seen = psutil.Process().memory_info, []
        before = rss().rss
        plan = planned(trivial, {"x": np.arange(float(points))}, command="benchmark")
        began = time.perf_counter()
        table = carried_out(
            plan, Path(place, "s.zarr"), executor=executor, progress=lambda *_: seen.append(rss().rss)
        )
        seconds = time.perf_counter() - began
        assert float(table["value"][points - 1]) == (points - 1.0) ** 2
    sys.stdout.write(json.dumps({"seconds": seconds, "bytes": max(seen) - before}) + "\n")


def measured(points: int, workers: int, grouped: bool) -> dict:
    command = [sys.executable, __file__, "--case", str(points), str(workers), str(int(grouped))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(points: int) -> None:
    print(f"{'':44}{'points':>9}{'ms a point':>12}{'client grew by':>16}")
    for name, workers, grouped, sizes in (
        ("this process", 0, True, (points, 4 * points)),
        ("two workers", 2, True, (points, 4 * points)),
        ("two workers, one point a task", 2, False, (min(points, 3000),)),
    ):
        found = [measured(size, workers, grouped) for size in sizes]
        for size, one in zip(sizes, found, strict=True):
            print(f"{name:44}{size:9d}{1e3 * one['seconds'] / size:12.3f}{one['bytes'] / 2**20:12.1f} MiB")
        if len(found) == 2:
            slope = max(0.0, (found[1]["bytes"] - found[0]["bytes"]) / (sizes[1] - sizes[0]))
            hours = found[1]["seconds"] / sizes[1] * FAR / 3600
            more = found[1]["bytes"] + slope * (FAR - sizes[1])
            print(f"{name + ', extrapolated':44}{FAR:9.0e}{'':12}{more / 2**20:12.0f} MiB, {hours:.2f} h")


if __name__ == "__main__":
    if "--case" in sys.argv:
        case(int(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
    else:
        main(int(float(sys.argv[1])) if sys.argv[1:] else 100_000)
