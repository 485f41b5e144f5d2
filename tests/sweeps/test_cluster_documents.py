"""The code of docs/clusters.md makes a job script and a specification that say one thread for everything."""

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "clusters.md"


def code_of(kind):
    """The one piece of code of that kind in the document."""
    (found,) = re.findall(rf"```python {kind}\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    return found


def made_by(code):
    """The names that a piece of code leaves behind."""
    names = {}
    exec(code, names)
    return names


@pytest.mark.filterwarnings("ignore")
def test_the_slurm_script_has_one_thread_for_everything():
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    cluster = made_by(code_of("slurm"))["cluster"]
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    for part in (
        "#SBATCH --cpus-per-task=1", "#SBATCH -t 04:00:00", "export OMP_NUM_THREADS='1'",
        "export NUMBA_NUM_THREADS='1'", "export XLA_FLAGS='--xla_cpu_multi_thread_eigen=false", "--nthreads 1",
        "--lifetime 230m",
    ):  # fmt: skip
        assert part in script


@pytest.mark.filterwarnings("ignore")
def test_the_kubernetes_specification_has_one_thread_for_everything():
    pytest.importorskip("dask_kubernetes", reason="dask-kubernetes is not installed")
    worker = made_by(code_of("kubernetes"))["specification"]["spec"]["worker"]
    container = worker["spec"]["containers"][0]
    assert worker["replicas"] == 4
    assert container["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in container["env"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "4Gi"}
