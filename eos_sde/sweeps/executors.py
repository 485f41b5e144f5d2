"""Where points are evaluated: in this process, one bundle after the other, or on a Dask cluster through a window."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eos_sde.store.errors import StoreFailure
from eos_sde.store.layout import Batch, Layout, joined
from eos_sde.sweeps.bundles import LONGEST_SECONDS, Bundles, Pace
from eos_sde.sweeps.evaluation import Job, Outcome, evaluate, in_words, outcomes, packed

_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 60.0


class ClusterLost(StoreFailure):
    """The scheduler is gone; finished points are kept."""


class NoWorkers(UserWarning):
    """A cluster has had no worker for a minute; a sweep waits for one."""


class Executor(Protocol):
    """Evaluates points."""

    shared: bool

    def tried(self, job: Job, points: list[dict[str, Any]]) -> tuple[list[Outcome], float]:
        """What some points give, and how long they took together."""
        ...

    def run(
        self,
        job: Job,
        layout: Layout,
        pending: Iterator[NDArray[np.int64]],
        pace: Pace,
        line: str | None = None,
    ) -> Iterator[Batch]:
        """Evaluate all pending points, and give them in batches as they are finished."""
        ...


def _timed(job: Job, numbers: NDArray[np.int64], columns: dict[str, list]) -> tuple[Batch, float]:
    began = time.perf_counter()
    batch = evaluate(job, numbers, columns, LONGEST_SECONDS)
    return batch, time.perf_counter() - began


def _tried(job: Job, points: list[dict[str, Any]]) -> tuple[list[Outcome], float]:
    began = time.perf_counter()
    return outcomes(job, points), time.perf_counter() - began


class InProcess:
    """The calling thread; a point's kernels take all threads of the process."""

    shared = False

    def tried(self, job: Job, points: list[dict[str, Any]]) -> tuple[list[Outcome], float]:
        """What some points give, and how long they took together."""
        return _tried(job, points)

    def run(
        self,
        job: Job,
        layout: Layout,
        pending: Iterator[NDArray[np.int64]],
        pace: Pace,
        line: str | None = None,
    ) -> Iterator[Batch]:
        """Evaluate all pending points, in order.

        Yields
        ------
        Batch
        """
        bundles = Bundles(pending, pace, layout, line)
        for numbers in bundles:
            batch, seconds = _timed(job, numbers, layout.parameters(numbers))
            pace.learn(len(batch.points), seconds)
            bundles.give_back(numbers[len(batch.points) :])
            yield batch


class OnCluster:
    """A Dask cluster, whatever it runs on.

    No more tasks are submitted than keep the workers busy, so that memory does not grow with the number of points;
    the window follows the workers that there are, and leaves a queue for a cluster that adapts to see. Bundles that
    finish within some milliseconds of each other are fetched by one message and become one batch.

    Parameters
    ----------
    client : distributed.Client
    """

    shared = True

    def __init__(self, client: Any) -> None:
        self._client = client
        self._window, self._looked, self._manned = 0, -np.inf, time.monotonic()

    def tried(self, job: Job, points: list[dict[str, Any]]) -> tuple[list[Outcome], float]:
        """What some points give, and how long they took together."""
        future = self._client.submit(_tried, job, points, pure=False)
        try:
            self._finished({future: points})
            return future.result()
        except Exception as error:
            raise self._lost(error) from error

    def _tasks(self) -> int:
        self._look()
        return self._window

    def _look(self) -> None:
        """See every two seconds what workers there are, and say it if there are none for long."""
        now = time.monotonic()
        if now - self._looked <= 2.0:
            return
        try:
            threads = sum(self._client.ncores().values())
        except Exception as error:
            raise self._lost(error) from error
        self._window, self._looked = 16 + 3 * threads, now
        if threads:
            self._manned = now
        elif now - self._manned > _PATIENCE_SECONDS:
            self._manned = np.inf  # once, until there are some again
            warnings.warn(
                NoWorkers(
                    f"the cluster has had no worker for {_PATIENCE_SECONDS:.0f} s; look at its jobs: points wait for "
                    "one to come, or interrupt this, finished ones are kept"
                ),
                stacklevel=2,
            )

    def run(
        self,
        job: Job,
        layout: Layout,
        pending: Iterator[NDArray[np.int64]],
        pace: Pace,
        line: str | None = None,
    ) -> Iterator[Batch]:
        """Evaluate all pending points.

        Yields
        ------
        Batch
            As they are finished.

        Raises
        ------
        ClusterLost
            If the scheduler is gone.
        """
        bundles, parcel = Bundles(pending, pace, layout, line), _parcel(job)
        flying: dict[Any, NDArray[np.int64]] = {}
        alone: list[NDArray[np.int64]] = []

        def refill() -> None:
            tasks = [alone.pop() for _ in range(len(alone))]
            while len(flying) + len(tasks) < self._tasks():
                numbers = next(bundles, None)
                if numbers is None:
                    break
                tasks.append(numbers)
            if tasks:
                columns = [layout.parameters(numbers) for numbers in tasks]
                made = self._client.map(
                    _unpacked, [parcel] * len(tasks), tasks, columns, pure=False, retries=0, key="bundle"
                )
                flying.update(zip(made, tasks, strict=True))

        try:
            refill()
            while flying:
                group = self._finished(flying)
                parts = []
                for future, found in zip(group, self._fetched(group), strict=True):
                    numbers = flying.pop(future)
                    if found is None:
                        found = self._deadly(future, job, numbers, line)
                    if found is None:
                        alone.extend(numbers[:, None])
                        continue
                    batch, seconds = found
                    pace.learn(len(batch.points), seconds)
                    bundles.give_back(numbers[len(batch.points) :])
                    parts.append(batch)
                for future in group:
                    future.release()
                refill()  # so that the workers go on while these points become durable
                if parts:
                    yield joined(parts)
        finally:
            for future in flying:
                future.release()

    def _finished(self, flying: dict[Any, Any]) -> list[Any]:
        """Tasks that are no longer pending, at least one; a look every 20 ms costs less than being told of each."""
        while True:
            time.sleep(_LOOK_SECONDS)
            group = [future for future in flying if future.status != "pending"]
            if group:
                return group
            self._look()

    def _fetched(self, group: list[Any]) -> list[tuple[Batch, float] | None]:
        """What tasks gave, None where they gave an error; a result lost with its worker is computed again."""
        try:
            found = self._client.gather(dict(enumerate(group)), errors="skip")
        except Exception as error:
            raise self._lost(error) from error
        return [found[k] for k in range(len(group))]

    def _deadly(
        self, future: Any, job: Job, numbers: NDArray[np.int64], line: str | None
    ) -> tuple[Batch, float] | None:
        """What to keep of a task that took workers down with it; None if its points are to be tried one by one."""
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker:
            pass
        except Exception as error:
            raise self._lost(error) from error
        if len(numbers) > 1 and line is None:
            return None
        text = RuntimeError("the worker that computed it died, several times; it may need more memory")
        return packed(job, numbers, [(text, [])] * len(numbers)), 1.0

    def _lost(self, error: Exception) -> Exception:
        """The error to raise where a task neither finished nor killed its worker."""
        from distributed.client import FutureCancelledError

        if self._client.status != "running" or isinstance(error, OSError | FutureCancelledError):
            return ClusterLost(
                "the connection to the scheduler is lost; finished points are kept: run the same again to go on"
            )
        return ClusterLost(
            f"a worker could not run a point ({in_words(error)}); check that it has this package and the function"
        )


def _parcel(job: Job) -> bytes:
    """A job as bytes, which each worker opens once."""
    import cloudpickle

    return cloudpickle.dumps(job, pickle.HIGHEST_PROTOCOL)


@lru_cache(maxsize=2)
def _opened(parcel: bytes) -> Job:
    return pickle.loads(parcel)  # of our own making, sent by the client of this cluster


def _unpacked(parcel: bytes, numbers: NDArray[np.int64], columns: dict[str, list]) -> tuple[Batch, float]:
    return _timed(_opened(parcel), numbers, columns)
