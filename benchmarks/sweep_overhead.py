"""What a sweep costs beside its points: time, processor time, bytes of the client; for bundles, and for a task a point.

``python benchmarks/sweep_overhead.py [points]``: 1e5 by default, and four times as many. Each row is a process of its
own. Trivial points travel in bundles of half a second of work; "a task a point" switches that off, and is what a point
costs that takes longer than half a second. In "0.3 s a point" points sleep, and what they sleep is taken off: wall time
times workers, less the sleep, over points. A part comes once (the first point is evaluated alone, one worker waits at
the end), so two lengths tell a point's share. Processor time counts what other programs of the machine do not lengthen.
The last rows hold 1e7 points, on one axis and on two, and evaluate none: what the client keeps however long it goes on.

A sweep of real spectra is ``examples/flip_gap_map.toml``; `benchmarks/sweep_spectra.py` measures it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

FAR = 10_000_000
PAUSE = 0.3


def trivial(x):
    return x * x


def product(x, y):
    return x * y


def sleeping(x):
    time.sleep(PAUSE)
    return x * x


def _processors() -> tuple[float, float]:
    """Seconds of this process, with the scheduler that it holds, and of its children."""
    mine = psutil.Process()
    return sum(mine.cpu_times()[:2]), sum(sum(one.cpu_times()[:2]) for one in mine.children(recursive=True))


def case(points: int, workers: int, bundled: bool, slow: bool) -> dict:
    """One row, measured in this process."""
    from contextlib import nullcontext

    from eos_sde.sweeps.bundles import Pace
    from eos_sde.sweeps.clusters import local_cluster
    from eos_sde.sweeps.engine import carried_out
    from eos_sde.sweeps.executors import InProcess
    from eos_sde.sweeps.plan import planned

    if not bundled:
        Pace.size = 1
    with (
        tempfile.TemporaryDirectory() as place,
        local_cluster(workers) if workers else nullcontext((InProcess(), "")) as (executor, _),
    ):
        warm = planned(trivial, {"x": np.arange(20.0)}, command="warm")
        carried_out(warm, Path(place, "warm.zarr"), executor=executor)
        rss, seen = psutil.Process().memory_info, []
        before = rss().rss
        plan = planned(sleeping if slow else trivial, {"x": np.arange(float(points))}, command="benchmark")
        used, began = _processors(), time.perf_counter()
        table = carried_out(
            plan, Path(place, "s.zarr"), executor=executor, progress=lambda *_: seen.append(rss().rss)
        )
        seconds = time.perf_counter() - began
        client, crew = (1e3 * (now - then) / points for now, then in zip(_processors(), used, strict=True))
        assert float(table["value"][points - 1]) == (points - 1.0) ** 2
    beside = 1e3 * (seconds * max(1, workers) / points - PAUSE) if slow else 1e3 * seconds / points
    return {"ms": beside, "client": client, "crew": crew, "bytes": max(seen) - before}


def held(axes: dict) -> dict:
    """Bytes of a client that has opened a sweep with many points, while it runs and when it has returned the table."""
    from eos_sde.store.reading import open_sweep
    from eos_sde.store.sweep_store import Place, SweepStore
    from eos_sde.sweeps.engine import _begun
    from eos_sde.sweeps.executors import InProcess
    from eos_sde.sweeps.plan import planned

    rss = psutil.Process().memory_info
    with tempfile.TemporaryDirectory() as folder:
        small = planned(product, {name: values[:2] for name, values in axes.items()}, command="warm")
        for plan, name in ((small, "warm.zarr"), (None, "s.zarr")):
            before = rss().rss
            plan = plan or planned(product, axes, command="benchmark")
            place = Place(Path(folder, name))
            place.create(_begun(plan, InProcess())[0], plan.attrs)
            store = SweepStore(place, plan.axes, plan.attrs)
            store.counts()
            running = rss().rss - before
            store.close()
            place.release()
            table = open_sweep(place.path)
            returned = rss().rss - before
            assert table["status"].size == plan.points
    return {"running": running, "returned": returned}


def measured(*arguments: object) -> dict:
    command = [sys.executable, __file__, "--case", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(points: int) -> None:
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    heads = ("points", "ms a point", "client ms", "workers ms", "client grew")
    print(f"{'':40}" + "".join(f"{head:>12}" for head in heads))
    for name, workers, bundled, slow, sizes in (
        ("this process", 0, 1, 0, (points, 4 * points)),
        ("two workers", 2, 1, 0, (points, 4 * points)),
        ("two workers, a task a point", 2, 0, 0, (min(points, 3000),)),
        ("two workers, 0.3 s a point", 2, 1, 1, (min(points, 200), 4 * min(points, 200))),
    ):
        beside = {}
        for size in sizes:
            one = measured(size, workers, bundled, slow)
            beside[size] = one["ms"] * size
            print(
                f"{name:40}{size:12d}{one['ms']:12.3f}{one['client']:12.3f}{one['crew']:12.3f}"
                f"{one['bytes'] / 2**20:8.1f} MiB",
                flush=True,
            )
        if slow:
            share = (beside[sizes[1]] - beside[sizes[0]]) / (sizes[1] - sizes[0])
            once = beside[sizes[0]] - share * sizes[0]
            print(f"{'  of which for a point, and once':40}{share:24.3f} ms, {1e-3 * once:.2f} s")
    for name in ("one axis of 1e7 values", "two axes of 3163"):
        one = measured(name)
        print(
            f"{name:40}{FAR:12d}   client {one['running'] / 2**20:.0f} MiB while it runs, "
            f"{one['returned'] / 2**20:.0f} MiB with the table open"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"] and len(sys.argv) > 3:
        found = case(*map(int, sys.argv[2:]))
    elif sys.argv[1:2] == ["--case"]:
        long = {"x": np.arange(float(FAR)), "y": [1.0]}
        square = {"x": np.arange(3163.0), "y": np.arange(3163.0)}
        found = held(long if sys.argv[2].startswith("one") else square)
    else:
        main(int(float(sys.argv[1])) if sys.argv[1:] else 100_000)
        sys.exit()
    sys.stdout.write(json.dumps(found) + "\n")
