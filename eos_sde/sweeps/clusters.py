"""Dask clusters for sweeps: processes on this machine that do not get in each other's way, or a scheduler's address."""

from __future__ import annotations

import importlib.util
import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

from eos_sde.sweeps.executors import ClusterLost, OnCluster
from eos_sde.sweeps.quiet_threads import ONE_THREAD
from solvers.errors import InvalidInput
from solvers.interruption import signals_wait

_CONNECT_SECONDS = 15


@contextmanager
def local_cluster(workers: int) -> Iterator[tuple[OnCluster, str]]:
    """So many processes on this machine, each with one thread for everything.

    Yields
    ------
    OnCluster
    str
        Address of the dashboard; empty without bokeh, which draws it.
    """
    with signals_wait():
        import dask
        from distributed import Client, LocalCluster

    _quiet()
    settings = {
        "distributed.nanny.pre-spawn-environ": ONE_THREAD,
        "distributed.worker.daemon": True,
        "distributed.worker.profile.enabled": False,  # which would look at every process 100 times a second
        "distributed.admin.tick.interval": "500ms",  # a heartbeat of every event loop, 50 times a second otherwise
        "distributed.admin.system-monitor.interval": "2s",
    }
    with dask.config.set(settings), ExitStack() as stack:
        with signals_wait(), _no_ctrl_c():
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0",
                silence_logs=logging.CRITICAL, memory_limit=0,
            )  # fmt: skip
            stack.callback(_closed, cluster)
            client = stack.enter_context(Client(cluster))
        yield OnCluster(client), (client.dashboard_link or "") if _drawn() else ""


@contextmanager
def existing_cluster(address: str) -> Iterator[tuple[OnCluster, str]]:
    """The cluster whose scheduler listens at an address.

    Yields
    ------
    OnCluster
    str
        Address of the dashboard.

    Raises
    ------
    InvalidInput
        If the address cannot be read.
    ClusterLost
        If nobody answers there.
    """
    from distributed import Client

    _quiet()
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except OSError as error:
        raise ClusterLost(
            f"scheduler={address} does not answer; start it, or give another address"
        ) from error
    except (ValueError, TypeError, ImportError) as error:
        raise InvalidInput(
            f"scheduler={address!r} is no address such as tcp://10.0.0.1:8786 ({error})"
        ) from error
    try:
        yield OnCluster(client), client.dashboard_link or ""
    finally:
        with suppress(TimeoutError):  # as where the scheduler is gone
            client.close(timeout=5)


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Threads and processes that start meanwhile, and what they start, leave Ctrl-C to this process alone."""
    resource_tracker.ensure_running()  # started by the first of the processes, it would let signals in again
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _closed(cluster: Any) -> None:
    with signals_wait(), suppress(TimeoutError):  # what has not closed by then ends with this process
        cluster.close(timeout=5)


def _drawn() -> bool:
    return importlib.util.find_spec("bokeh") is not None


def _quiet() -> None:
    """Dask's own remarks on workers that die and come back; what matters to a sweep is told by the sweep."""
    for name in (
        "distributed",
        "distributed.client",
        "distributed.nanny",
        "distributed.core",
        "distributed.batched",
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL)
