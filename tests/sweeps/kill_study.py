"""Kills workers, schedulers and clients of sweeps with SIGKILL at random moments, resumes them, and compares the bits.

As a script: ``python tests/sweeps/kill_study.py 50`` kills 50 times; the slow test does a few.
"""

import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

HERE = Path(__file__).parent
SPEC = """
function = "slow_points:wave"
[settings]
pause = {pause}
[axes]
x = {{ from = 0.0, to = 1.0, count = 40 }}
seed = {{ count = 5 }}
"""
_PATIENCE = 240.0


class Study:
    """One sweep that is killed over and over until enough."""

    def __init__(self, folder: Path, rng: random.Random, pause: float = 0.1) -> None:
        self.folder, self.rng, self.killed = folder, rng, Counter()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "slow.toml").write_text(SPEC.format(pause=pause))
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self.store = folder / "killed.zarr"

    def start(self, *options: str, out: str = "killed.zarr", group: bool = False) -> subprocess.Popen:
        """Sweep in a process, on request at the head of a group of its own, as under a terminal."""
        command = [sys.executable, "-m", "eos_sde.cli", "sweep", "slow.toml", "--out", out, *options]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0 if group else None,
        )

    def whole(self) -> Path:
        """The store of a run in one process that nobody interrupts."""
        self.end(self.start(out="whole.zarr"))
        return self.folder / "whole.zarr"

    def end(self, run: subprocess.Popen) -> None:
        out, err = run.communicate(timeout=_PATIENCE)
        assert run.returncode == 1, (run.returncode, out, err)  # 1: the points that fail by design
        assert "4 of 200 points failed" in err, err
        assert "Traceback" not in err, err

    def wait(self, run: subprocess.Popen) -> bool:
        """Wait until points are computed, and a random moment more; False if the run has ended before."""
        began = time.monotonic()
        moment = self.rng.uniform(0.0, 3.0)
        journal = self.store.with_name("killed.zarr.journal")
        before, seen = _written(journal), None
        while run.poll() is None and time.monotonic() - began < _PATIENCE:
            if seen is None and _written(journal) != before:
                seen = time.monotonic()
            if seen is not None and time.monotonic() - seen > moment:
                return True
            time.sleep(0.005)
        return False

    def kill(self, process: int) -> None:
        os.kill(process, signal.SIGKILL)

    def client(self) -> None:
        run = self.start("--workers", "2")
        if self.wait(run):
            self.kill(run.pid)
            self.killed["client"] += 1
        _, err = run.communicate()
        assert "Traceback" not in err, err

    def worker(self) -> None:
        run = self.start("--workers", "2")
        if not self.wait(run):
            run.communicate()
            return
        children = [
            one
            for one in psutil.Process(run.pid).children(recursive=True)
            if "spawn_main" in str(one.cmdline())
        ]
        if children:
            self.kill(self.rng.choice(children).pid)
            self.killed["worker"] += 1
        if self.rng.random() < 0.5 and self.wait(
            run
        ):  # and the client too, while the worker is on its way back
            self.kill(run.pid)
            self.killed["client"] += 1
        out, err = run.communicate(timeout=_PATIENCE)
        assert run.returncode in {1, -signal.SIGKILL}, (out, err)
        assert "Traceback" not in err, err

    def scheduler(self) -> None:
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        quiet = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "env": self.environment,
            "cwd": self.folder,
        }
        dask = [sys.executable, "-m", "dask"]
        where = ["--scheduler-file", str(file)]
        scheduler = subprocess.Popen([*dask, "scheduler", "--port", "0", "--no-dashboard", *where], **quiet)
        crew = [
            subprocess.Popen([*dask, "worker", "--nthreads", "1", "--no-nanny", *where], **quiet)
            for _ in "ab"
        ]
        try:
            while not file.exists():
                time.sleep(0.05)
            run = self.start("--scheduler", json.loads(file.read_text())["address"])
            if self.wait(run):
                self.kill(scheduler.pid)
                self.killed["scheduler"] += 1
            _, err = run.communicate(timeout=_PATIENCE)
            assert run.returncode == 1, (run.returncode, err)
            assert "Traceback" not in err, err
            told = ("connection to the scheduler is lost", "does not answer", "points failed")
            assert any(text in err for text in told), err
        finally:
            for process in (scheduler, *crew):
                process.kill()
                process.wait()

    def compare(self, whole: Path) -> None:
        """Every file of the two stores has the same bytes, and nothing is left beside."""
        names = [sorted(str(p.relative_to(s)) for p in s.rglob("*")) for s in (whole, self.store)]
        assert names[0] == names[1]
        files = [name for name in names[0] if (whole / name).is_file()]
        assert files
        unlike = filecmp.cmpfiles(whole, self.store, files, shallow=False)
        assert unlike[1:] == ([], []), unlike
        assert not list(self.folder.glob("killed.zarr.*"))


def _written(path: Path) -> int | None:
    """When a file was last written; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def study(
    folder: Path, kills: int, seed: int, *, each: int = 4, kinds=("client", "worker", "scheduler")
) -> Counter:
    """So many kills, some of them to each sweep, each of which is then resumed to its end and compared."""
    rng, total, whole, number, turn = random.Random(seed), Counter(), None, 0, 0
    while sum(total.values()) < kills:
        one = Study(folder / str(number), rng)
        whole = whole or one.whole()
        while sum(one.killed.values()) < min(each, kills - sum(total.values())):
            before = one.killed.copy()
            getattr(one, kinds[turn % len(kinds)])()
            turn += 1
            if one.killed == before:  # it had ended: begin it again
                break
        one.end(one.start("--workers", "2"))
        one.compare(whole)
        total, number = total + one.killed, number + 1
        sys.stderr.write(f"sweep {number}: {dict(one.killed)}, all {dict(total)}: identical\n")
    return total


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        sys.stderr.write(
            f"{dict(study(Path(place), int(sys.argv[1]), seed=int(sys.argv[2]) if sys.argv[2:] else 0))}\n"
        )
