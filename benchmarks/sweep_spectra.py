"""A large sweep of real spectra by its command, killed once, interrupted once and resumed: time, memory, store, bits.

``python benchmarks/sweep_spectra.py [SPEC.toml] [FOLDER]``: by default examples/flip_gap_map.toml, 100 000 gaps on two
workers, in a temporary folder. At a third of the points the client gets SIGKILL, at two thirds SIGINT; each time the
same command goes on. Processor time and resident memory of the client (with the scheduler) and of the workers are
looked at every two seconds meanwhile. At the end some points are computed here, alone: what a spectrum takes without a
sweep, and the same bits. A run that was stopped goes on in the same FOLDER.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

import eos_sde
from eos_sde.sweeps.evaluation import as_arrays, outcomes
from eos_sde.sweeps.spec import read_spec

HERE = Path(__file__).parents[1]
WORKERS, LOOK, ALONE = 2, 2.0, 300


class Watch:
    """Processor seconds and resident bytes of a client and of its workers, as far as they were seen."""

    def __init__(self, client: int) -> None:
        self.client = psutil.Process(client)
        self.seconds: dict[int, float] = {}
        self.memory: list[tuple[float, int, int]] = []

    def look(self) -> None:
        """Look once."""
        try:
            children = self.client.children(recursive=True)
            for one in (self.client, *children):
                self.seconds[one.pid] = sum(one.cpu_times()[:2])
            crew = max((one.memory_info().rss for one in children), default=0)
            self.memory.append((time.perf_counter(), self.client.memory_info().rss, crew))
        except psutil.NoSuchProcess:  # it has just ended
            return

    def report(self, points: int) -> str:
        """Processor time a point, and memory from the first tenth of the time to its end."""
        mine = self.seconds.pop(self.client.pid, 0.0)
        parts = [
            f"client {1e3 * mine / points:.2f} and workers {1e3 * sum(self.seconds.values()) / points:.2f} ms"
        ]
        for place, who in ((1, "client"), (2, "worker")):
            held = [row[place] / 2**20 for row in self.memory[len(self.memory) // 10 :] if row[place]]
            parts.append(f"{who} {held[0]:.0f} to {held[-1]:.0f} MiB, at most {max(held):.0f}")
        return "; ".join(parts)


def done(store: Path) -> int:
    if not store.exists():
        return 0
    return int((eos_sde.open_sweep(store)["status"] == 1).sum())


def phase(spec: Path, store: Path, until: float, number: int | None) -> None:
    """Run the command until so many points are in the arrays, then send the signal."""
    before, began = done(store), time.perf_counter()
    command = [sys.executable, "-m", "eos_sde.cli", "sweep", str(spec), "--out", str(store)]
    run = subprocess.Popen(
        [*command, "--workers", str(WORKERS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watch, looked, sent = Watch(run.pid), 0, ""
    while run.poll() is None:
        time.sleep(LOOK)
        watch.look()
        looked += 1
        if number is not None and looked % 8 == 0 and done(store) >= until:
            run.send_signal(number)
            told = time.perf_counter()
            run.wait()
            sent = f", {signal.Signals(number).name} obeyed within {time.perf_counter() - told:.1f} s"
            break
    _, err = run.communicate()
    assert run.returncode in {0, 130, -signal.SIGKILL}, err
    seconds, points = time.perf_counter() - began, done(store) - before
    print(
        f"{before} to {before + points} points in {seconds:.0f} s{sent}: {1e3 * seconds / points:.2f} ms a point"
    )
    print(f"  {watch.report(points)}; load {os.getloadavg()[0]:.1f}", flush=True)


def alone(spec: Path, store: Path) -> None:
    plan, table = read_spec(spec), eos_sde.open_sweep(store, check=True)
    assert (table["status"] == 1).all()
    from eos_sde.store.layout import Layout, Template

    layout = Layout(plan.axes, Template({}), (1,) * len(plan.axes))
    numbers = np.random.default_rng(0).choice(layout.size, ALONE, replace=False)
    columns = layout.parameters(numbers)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    outcomes(plan.job, rows[:3])
    began = time.process_time()
    found = outcomes(plan.job, rows)
    taken = time.process_time() - began
    for name in as_arrays(found[0][0]).values:
        held = table[name].values.reshape(layout.size, -1)[numbers]
        mine = np.array([as_arrays(value).values[name] for value, _ in found]).reshape(ALONE, -1)
        assert held.tobytes() == mine.tobytes()
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    print(
        f"alone a point takes {1e3 * taken / ALONE:.2f} ms of a processor; {ALONE} of them have the same bits"
    )
    print(f"store {size / 2**20:.2f} MiB, {size / layout.size:.1f} bytes a point")


def main(spec: Path, folder: Path) -> None:
    points, store = read_spec(spec).points, folder / "spectra.zarr"
    for share, number in ((1 / 3, signal.SIGKILL), (2 / 3, signal.SIGINT), (1.0, None)):
        if done(store) < share * points:
            phase(spec, store, share * points, number)
    alone(spec, store)


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if sys.argv[1:] else HERE / "examples" / "flip_gap_map.toml"
    if sys.argv[2:]:
        main(chosen, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(chosen, Path(place))
