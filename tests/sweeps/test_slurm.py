"""A sweep on a SLURM that runs here, with the cluster of docs/clusters.md: jobs are killed, and the bits stay."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import eos_sde
from tests.sweeps.slow_points import wave
from tests.sweeps.stores import same_files
from tests.sweeps.test_cluster_documents import code_of, made_by

ROOT = Path(__file__).parents[2]
AXES = {"x": np.linspace(0.0, 1.0, 30).tolist(), "seed": range(4)}


def jobs_running():
    listed = subprocess.run(
        ["squeue", "-h", "-o", "%i %t"], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[0] for line in listed.splitlines() if line.endswith(" R")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_jobs_that_are_killed_or_end_cost_no_bits(tmp_path, monkeypatch):
    """Two jobs at most, three of which are killed; the others end by their own lifetime and are replaced."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    from distributed import Client

    if shutil.which("sbatch") is None:
        pytest.skip("there is no SLURM here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]))
    code = code_of("slurm")
    for long, short in (("230m", "15s"), ("5m", "3s"), ("maximum=100", "maximum=2")):
        assert long in code
        code = code.replace(long, short)
    killed, over = [], threading.Event()

    def kill():
        """Kill the first job, where all workers are there: dask-jobqueue does not replace one that dies before."""
        while len(killed) < 3 and not over.wait(2.0):
            jobs = jobs_running()
            if jobs and len(cluster.scheduler_info["workers"]) == len(jobs):
                subprocess.run(["scancel", "--signal=KILL", jobs[0]], check=True)
                killed.append(jobs[0])
                over.wait(5.0)

    killer = threading.Thread(target=kill)
    with made_by(code)["cluster"] as cluster, Client(cluster) as client:
        killer.start()
        try:
            table = eos_sde.sweep(wave, AXES, store="slurm.zarr", settings={"pause": 0.4}, client=client)
        finally:
            over.set()
            killer.join()
    assert len(killed) == 3
    # a log of each job: the killed ones, and two that went on
    assert len(list(tmp_path.glob("slurm-*.out"))) >= 5
    assert int((table["status"] == 2).sum()) == 3  # by design
    eos_sde.sweep(wave, AXES, store="here.zarr", settings={"pause": 0.4})
    assert same_files(tmp_path / "here.zarr", tmp_path / "slurm.zarr")
