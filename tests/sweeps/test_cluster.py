"""Sweeps on Dask clusters: the bits of one process, windows, workers that die, signals, and random kills."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import psutil
import pytest

import eos_sde
from eos_sde.store import StoreFailure
from eos_sde.store.layout import Layout, Template
from eos_sde.sweeps import clusters
from eos_sde.sweeps.bundles import Bundles, Pace
from eos_sde.sweeps.clusters import existing_cluster, local_cluster
from eos_sde.sweeps.engine import carried_out
from eos_sde.sweeps.executors import InProcess, OnCluster
from eos_sde.sweeps.plan import planned
from tests.sweeps import kill_study
from tests.sweeps.slow_points import wave
from tests.sweeps.stores import AXES, Counted, counting, same_files

pytestmark = pytest.mark.filterwarnings("ignore::eos_sde.sweeps.FailedPoints")
WAVES = {"x": [0.0, 0.25, 0.5, 0.75, 1.0], "seed": range(4)}


@pytest.fixture(scope="module")
def client():
    """Two worker threads in this process: the whole protocol without the cost of processes."""
    from distributed import Client

    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0") as made:
        yield made


def test_a_cluster_has_the_bits_of_one_process(client, tmp_path):
    eos_sde.sweep(wave, WAVES, store=tmp_path / "one.zarr")
    eos_sde.sweep(wave, WAVES, store=tmp_path / "many.zarr", client=client)
    assert same_files(tmp_path / "one.zarr", tmp_path / "many.zarr")


def test_a_cluster_that_stays_without_workers_is_told_and_waited_for(tmp_path, monkeypatch):
    """A worker comes as soon as it is missed; of a cluster that has one nothing is said."""
    from distributed import Client, LocalCluster

    from eos_sde.sweeps import executors

    monkeypatch.setattr(executors, "_PATIENCE_SECONDS", 1.0)
    said = []
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as one,
    ):

        def told(message, *args, **kwargs):
            said.append(message)
            cluster.scale(1)

        monkeypatch.setattr("warnings.showwarning", told)
        with warnings.catch_warnings(record=False):
            warnings.simplefilter("always", executors.NoWorkers)
            for name in ("first.zarr", "second.zarr"):
                table = eos_sde.sweep(lambda x: x * x, {"x": [1.0, 2.0]}, store=tmp_path / name, client=one)
                assert table["value"].values.tolist() == [1.0, 4.0]
    assert [type(one) for one in said] == [executors.NoWorkers]
    assert "has had no worker for 1 s; look at its jobs" in str(said[0])


def test_no_more_tasks_than_the_window_are_in_flight(client, tmp_path, monkeypatch):
    taken, submit = [], client.map

    def counted(function, *columns, **more):
        taken.extend(columns[0])
        return submit(function, *columns, **more)

    monkeypatch.setattr(client, "map", counted)
    monkeypatch.setattr(Pace, "size", 1)
    plan = planned(lambda x: x, {"x": np.arange(300.0)}, command="test")
    most = [0]

    def progress(done, failed, total):
        most[0] = max(most[0], len(taken) - done)

    table = carried_out(plan, tmp_path / "s.zarr", executor=OnCluster(client), progress=progress)
    np.testing.assert_array_equal(table.value, np.arange(300.0))
    assert len(taken) == 299  # the first was tried before
    assert most[0] <= 16 + 3 * 2


def test_points_that_a_worker_left_are_the_next_bundle():
    plan = planned(counting(Counted()), AXES, command="test")
    pace = Pace(8)
    bundles = Bundles(
        iter([np.arange(6), np.arange(6, 12)]), pace, Layout(plan.axes, Template({}), (2, 3)), None
    )
    pace.learn(4, 0.5)
    assert next(bundles).tolist() == [0, 1, 2, 3]
    bundles.give_back(np.array([2, 3]))
    assert [one.tolist() for one in bundles] == [[2, 3], [4, 5], [6, 7, 8, 9], [10, 11]]


def now_and_then_slow(x):
    time.sleep(0.4 if x > 100 else 0.0)
    return x


@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_bundle_that_takes_longer_than_forecast_is_given_back_in_part(where, request, tmp_path):
    """100 quick points make large bundles; those after them take 0.4 s each, and a bundle ends after 1 s."""
    executor = InProcess() if where == "here" else OnCluster(request.getfixturevalue("client"))
    plan, seen = planned(now_and_then_slow, {"x": np.arange(109.0)}, command="test"), []
    table = carried_out(
        plan, tmp_path / "s.zarr", executor=executor,
        progress=lambda done, *_: seen.append((time.monotonic(), done)),
    )  # fmt: skip
    np.testing.assert_array_equal(table.value, np.arange(109.0))
    late = [done for _, done in seen if done > 101]
    assert len(late) > 1  # else all that was slow came at once, at the end


def test_tasks_grow_to_half_a_second_and_keep_below_what_fits():
    pace = Pace(8)
    sizes = []
    for _ in range(20):
        sizes.append(pace.size)
        pace.learn(pace.size, 1e-4 * pace.size)
    assert sizes[0] == 1
    assert all(later <= 4 * earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[-1] == 5000
    large = Pace(1 << 22)
    large.learn(100, 1e-3)
    assert large.size == 2  # 8 MiB of results


def test_a_scheduler_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(clusters, "_CONNECT_SECONDS", 1)
    with (
        pytest.raises(StoreFailure, match=r"scheduler=tcp://127.0.0.1:9 does not answer"),
        existing_cluster("tcp://127.0.0.1:9"),
    ):
        pass


def fatal(x):
    if x == 2.0:
        os._exit(11)
    return x


@pytest.mark.slow
def test_processes_have_the_bits_of_one_and_a_deadly_point_fails_alone(tmp_path):
    eos_sde.sweep(wave, WAVES, store=tmp_path / "one.zarr")
    with local_cluster(2) as (executor, _):
        for name, function, axes in (("many", wave, WAVES), ("fatal", fatal, {"x": [0.0, 1.0, 2.0, 3.0]})):
            table = carried_out(
                planned(function, axes, command="eos_sde.sweep"), tmp_path / f"{name}.zarr", executor=executor
            )
    assert same_files(tmp_path / "one.zarr", tmp_path / "many.zarr")
    assert table.status.values.tolist() == [1, 1, 2, 1]
    assert "the worker that computed it died" in str(table.error.values[2])


@pytest.mark.slow
def test_an_adaptive_cluster_grows_from_nothing(tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=0, maximum=2, interval="200ms")
        table = eos_sde.sweep(wave, WAVES, store=tmp_path / "s.zarr", client=client, settings={"pause": 0.2})
    assert (table.status == 1).sum() == 19


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_signals_end_a_sweep_within_seconds_and_keep_what_is_finished(number, options, tmp_path):
    one = kill_study.Study(tmp_path, random.Random(1), pause=0.3)
    run = one.start(*options)
    started = began = time.monotonic()
    while not one.store.with_name("killed.zarr.journal").exists():
        assert time.monotonic() - began < 120
        time.sleep(0.05)
    time.sleep(3)
    run.send_signal(number)
    began = time.monotonic()
    _, err = run.communicate(timeout=60)
    lasted = time.monotonic() - started
    assert time.monotonic() - began < 15
    assert run.returncode == 130, err
    assert err == "eos-sde: interrupted; what was finished is kept where the output goes\n"
    table = eos_sde.open_sweep(one.store, check=True)
    assert 3 <= int((table.status == 1).sum()) < 200
    told = subprocess.run(
        [sys.executable, "-m", "eos_sde.cli", "sweep", "slow.toml", "--out", "killed.zarr", "--dry-run", "--json"],
        cwd=tmp_path, env=one.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    estimate = json.loads(told.stdout)
    assert estimate["pending"] == 200 - int((table.status == 1).sum())
    assert estimate["measured"].endswith("finished points")
    finished = int(estimate["measured"].split()[0])
    assert estimate["seconds_per_point"] >= 0.3  # what a point sleeps
    assert (
        finished * estimate["seconds_per_point"] <= max(1, len(options)) * lasted
    )  # no second is counted twice


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_a_signal_while_a_sweep_starts_is_one_sentence_and_leaves_no_process(moment, tmp_path):
    """As in the background of a shell script, where SIGINT is ignored; sent to all processes, as Ctrl-C is."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = kill_study.Study(tmp_path, random.Random(1), pause=0.3).start("--workers", "2", group=True)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(moment)
    children = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err == "eos-sde: interrupted; what was finished is kept where the output goes\n"
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


@pytest.mark.slow
def test_random_kills_lose_nothing(tmp_path):
    """One kill of each kind, in one sweep; ``python tests/sweeps/kill_study.py 50`` is the study."""
    seed, kinds = int(os.environ.get("EOS_SDE_KILL_SEED", "0")), ("scheduler", "worker", "client")
    killed = kill_study.study(
        tmp_path, 3, seed, each=3, kinds=kinds
    )  # a worker's death may take the client with it
    assert set(killed) == {"client", "worker", "scheduler"}


def test_lines_are_cut_whole():
    plan = planned(counting(Counted()), AXES, command="test")
    layout = Layout(plan.axes, Template({}), (4, 3))
    bundles = Bundles(iter([np.array([5, 7])]), Pace(8), layout, "x")
    assert [line.tolist() for line in bundles] == [[1, 4, 7, 10], [2, 5, 8, 11]]
