"""Where points are evaluated: in this process, one batch after the other, or on a Dask cluster through a window."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eos_sde.store.errors import StoreFailure
from eos_sde.store.layout import Batch, Layout
from eos_sde.sweeps.evaluation import Job, Outcome, evaluate, in_words, outcomes, packed

_TASK_SECONDS = 0.5
_MOST_POINTS = 20_000
_MOST_BYTES = 1 << 23
_GROWTH = 4


class ClusterLost(StoreFailure):
    """The scheduler is gone; finished points are kept."""


class Pace:
    """How many points make a task of about half a second, from what finished ones took.

    The scheduler's work for a task, some milliseconds, is shared by its points; and no more than about so much is lost
    when a worker dies.
    """

    def __init__(self, point_bytes: int) -> None:
        self._most = max(1, min(_MOST_POINTS, _MOST_BYTES // max(1, point_bytes)))
        self._size, self.seconds = 1, 0.0
        self.points = 0

    @property
    def size(self) -> int:
        """Points in the next task."""
        return self._size

    def learn(self, points: int, seconds: float) -> None:
        """A task of so many points took so long."""
        self.points, self.seconds = self.points + points, self.seconds + seconds
        wanted = _TASK_SECONDS * points / max(seconds, 1e-9)
        self._size = int(max(1, min(wanted, _GROWTH * max(self._size, points), self._most)))


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


def cut(
    pending: Iterator[NDArray[np.int64]], pace: Pace, layout: Layout, line: str | None
) -> Iterator[NDArray]:
    """Points in tasks of the size that the pace says; along a line, all points of one line in each."""
    for points in pending:
        if line is not None:
            yield from lines_through(points, layout, line)
            continue
        start = 0
        while start < len(points):
            size = pace.size
            yield points[start : start + size]
            start += size


def lines_through(points: NDArray[np.int64], layout: Layout, line: str) -> Iterator[NDArray[np.int64]]:
    """The whole lines that any of the points is on."""
    axis = layout.dims.index(line)
    places = np.array(np.unravel_index(points, layout.shape))
    places[axis] = 0
    for start in np.unique(np.ravel_multi_index(tuple(places), layout.shape)):
        at = [np.full(layout.shape[axis], place) for place in np.unravel_index(start, layout.shape)]
        at[axis] = np.arange(layout.shape[axis])
        yield np.asarray(np.ravel_multi_index(tuple(at), layout.shape), np.int64)


def _timed(job: Job, numbers: NDArray[np.int64], columns: dict[str, list]) -> tuple[Batch, float]:
    began = time.perf_counter()
    batch = evaluate(job, numbers, columns)
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
        for numbers in cut(pending, pace, layout, line):
            batch, seconds = _timed(job, numbers, layout.parameters(numbers))
            pace.learn(len(numbers), seconds)
            yield batch


class OnCluster:
    """A Dask cluster, whatever it runs on.

    No more tasks are submitted than keep the workers busy, so that memory does not grow with the number of points;
    the window follows the workers that there are, and leaves a queue for a cluster that adapts to see.

    Parameters
    ----------
    client : distributed.Client
    """

    shared = True

    def __init__(self, client: Any) -> None:
        self._client = client
        self._window, self._looked = 0, -np.inf

    def tried(self, job: Job, points: list[dict[str, Any]]) -> tuple[list[Outcome], float]:
        """What some points give, and how long they took together."""
        future = self._client.submit(_tried, job, points, pure=False)
        try:
            return future.result()
        except Exception as error:
            raise self._lost(error) from error

    def _tasks(self) -> int:
        now = time.monotonic()
        if now - self._looked > 2.0:
            self._window, self._looked = 16 + 3 * sum(self._client.ncores().values()), now
        return self._window

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
        from distributed import as_completed

        tasks = cut(pending, pace, layout, line)
        flying: dict[Any, NDArray[np.int64]] = {}
        finished = as_completed(loop=self._client.loop)

        def submit(numbers: NDArray[np.int64]) -> None:
            future = self._client.submit(
                _timed, job, numbers, layout.parameters(numbers), pure=False, retries=0
            )
            flying[future] = numbers
            finished.add(future)

        def refill() -> None:
            room = self._tasks() - len(flying)
            while room > 0:
                numbers = next(tasks, None)
                if numbers is None:
                    return
                submit(numbers)
                room -= 1

        try:
            refill()
            while flying:
                future = next(finished)
                numbers = flying.pop(future)
                batch, smaller = self._taken(future, job, numbers, line)
                future.release()
                for part in smaller:
                    submit(part)
                if batch is not None:
                    pace.learn(len(numbers), batch[1])
                    yield batch[0]
                refill()
        finally:
            for future in flying:
                future.release()

    def _taken(
        self, future: Any, job: Job, numbers: NDArray[np.int64], line: str | None
    ) -> tuple[tuple[Batch, float] | None, list[NDArray[np.int64]]]:
        """What a task gave, or the smaller ones to do in its place where it took workers down with it."""
        from distributed import KilledWorker

        try:
            return (
                future.result(),
                [],
            )  # a result that was lost with its worker is computed again, and waited for
        except KilledWorker:
            pass
        except Exception as error:
            raise self._lost(error) from error
        if len(numbers) > 1 and line is None:
            return None, list(numbers[:, None])
        text = RuntimeError("the worker that computed it died, several times; it may need more memory")
        return (packed(job, numbers, [(text, [])] * len(numbers)), 1.0), []

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
