"""sweep(): every point of a product evaluated once, kept at once, and given back as a lazy Dataset."""

from __future__ import annotations

import json
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr

from eos_sde.store.errors import StoreFailure
from eos_sde.store.layout import DONE, FAILED, Axis, Layout, Template, chunks_for
from eos_sde.store.origin import as_json, differences, origin
from eos_sde.store.reading import open_sweep
from eos_sde.store.sweep_store import Place, SweepStore, check_name
from eos_sde.sweeps.evaluation import Job, as_arrays, in_words, packed
from eos_sde.sweeps.executors import Executor, InProcess, OnCluster, Pace
from eos_sde.sweeps.functions import check_takes, digest, named
from eos_sde.sweeps.observables import bound_observable
from eos_sde.sweeps.points import checked_axes
from solvers.errors import ConvergenceFailure, InvalidInput

_TRIES = 32
Progress = Callable[[int, int, int], None]
"""Called with the points that are done, that failed, and all."""


class PointFailed(ConvergenceFailure):
    """A point failed, and the sweep was to stop there; or no point gave a result."""


class FailedPoints(UserWarning):
    """Some points of a sweep failed; the variable ``error`` says why."""


@dataclass(frozen=True)
class Plan:
    """A sweep that was checked and can begin.

    Attributes
    ----------
    job : Job
        What is done at a point.
    axes : tuple of Axis
    attrs : mapping
        Of the store.
    line : str, optional
        The axis along which points are computed one from the other, whole lines at a time.
    """

    job: Job
    axes: tuple[Axis, ...]
    attrs: Mapping[str, Any]
    line: str | None = None

    @property
    def points(self) -> int:
        """How many."""
        return int(np.prod([axis.size for axis in self.axes], dtype=float))


def sweep(
    function: Callable[..., Any] | str,
    axes: Mapping[Any, Any],
    *,
    store: str | Path,
    resume: bool = True,
    client: Any = None,
    settings: Mapping[str, Any] | None = None,
    fail_fast: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Evaluate a function at every point of a product of parameters, and keep each point as soon as it is finished.

    Parameters
    ----------
    function : callable or str
        Called with the parameters of a point, by name. It returns a number, a mapping of numbers, a DataArray or a
        Dataset, of the same variables, shapes and coordinates at every point. Or the name of an observable of
        `eos_sde.sweeps.observables`, such as "gap". It must give the same at the same point, whichever process asks:
        anything random takes a seed from the point.
    axes : mapping
        Parameter to values (different finite numbers, or different texts; a seed is an axis like others). A tuple of
        names, to rows of values: these go together along one dimension, named by all of them joined by "_".
    store : path
        A Zarr v3 store, ending in .zarr.
    resume : bool
        Go on in a store of the same sweep: points that are done are not computed again, those that failed are. Its axes
        may have got new values, which are put at their ends. Without, a sweep that is there is replaced.
    client : distributed.Client, optional
        Where points are evaluated: any Dask cluster. This process by default.
    settings : mapping, optional
        Arguments that are the same at every point; numbers, texts, and lists and mappings of them.
    fail_fast : bool
        Stop at the first point that fails.
    progress : callable, optional
        Called with the numbers of points that are done, that failed, and of all.

    Returns
    -------
    Dataset
        As from `eos_sde.open_sweep`: lazy, over the axes and then the dimensions of one result, in float64 or
        complex128, with ``status``, ``error`` and ``warning``.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, or the store was made by another function, with other settings, versions or
        values; the difference is told.
    PointFailed
        If no point gives a result, or with `fail_fast` one does not.
    StoreFailure
        If the store cannot be written, another process writes it, or the connection to the cluster is lost.

    Warns
    -----
    FailedPoints
        If points failed.
    DamagedChunk
        If chunks of the store had to be computed again.

    Notes
    -----
    The same bits come out in one process, with any number of workers, and after any number of interruptions: points
    are evaluated with one thread of BLAS. A point counts as done when it is in the journal beside the store, and on the
    disk; whole batches go from there into the arrays. Killing any process at any time loses the points in flight, at
    most. Tasks have some half a second of points each, and no more are submitted than keep the workers busy.

    A cluster is whatever Dask runs on, for example, with dask-jobqueue on SLURM, or dask-kubernetes::

        cluster = dask_jobqueue.SLURMCluster(cores=1, memory="4GB", walltime="04:00:00", job_script_prologue=[
            "export NUMBA_NUM_THREADS=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1"])
        cluster = dask_kubernetes.operator.KubeCluster(name="sweep", image="an-image-with-eos-sde")
        cluster.adapt(minimum=0, maximum=100)
        sweep("gap", axes, store="gap.zarr", client=distributed.Client(cluster))

    Only the calling process needs the store; results travel to it.

    Examples
    --------
    >>> table = sweep(lambda x, y: x * y, {"x": [1.0, 2.0], "y": [3.0, 4.0, 5.0]}, store="product.zarr")
    >>> table.value.sel(x=2.0, y=4.0).item()  # doctest: +SKIP
    8.0
    """
    plan = planned(function, axes, settings=settings, command="eos_sde.sweep")
    executor = InProcess() if client is None else OnCluster(client)
    return carried_out(plan, store, resume=resume, executor=executor, fail_fast=fail_fast, progress=progress)


def planned(
    function: Callable[..., Any] | str,
    axes: Mapping[Any, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    command: str,
    spec: str | None = None,
) -> Plan:
    """Check a sweep before any work.

    Parameters
    ----------
    function, axes, settings
        As for `sweep`.
    command : str
        Kept in the store.
    spec : str, optional
        The specification it came from, kept in the store.

    Returns
    -------
    Plan

    Raises
    ------
    InvalidInput
        If an argument cannot be used.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise InvalidInput(f"settings={settings!r}; give a mapping of names to values")
    made, given, line = checked_axes(axes), dict(settings or {}), None
    names = [name for axis in made for name in axis.values]
    for name in names:
        if name in given:
            raise InvalidInput(f"{name!r} is an axis and a setting; give it once")
    try:
        plain = as_json(given)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"settings={given!r} are not numbers, texts, lists and mappings ({error})"
        ) from error
    if isinstance(function, str):
        bound = bound_observable(function, made, given)
        called, code, line = function, "", bound.line
        job = Job(bound.one, given, bound.together)
    elif callable(function):
        called, code = named(function), digest(function)
        check_takes(function, [*names, *given])
        job = Job(function, given)
    else:
        raise InvalidInput(f"function={function!r}; give a function, or the name of an observable")
    attrs = origin(
        function=called, code=code, settings=plain, line=line or "", command=command, spec=spec,
        dimensions=[[axis.dim, list(axis.values)] for axis in made],
    )  # fmt: skip
    return Plan(job, made, attrs, line)


def carried_out(
    plan: Plan,
    store: str | Path,
    *,
    resume: bool = True,
    executor: Executor | None = None,
    fail_fast: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Carry a plan out, as `sweep` does.

    Parameters
    ----------
    plan : Plan
    store, resume, fail_fast, progress
        As for `sweep`.
    executor : Executor, optional
        Where points are evaluated.

    Returns
    -------
    Dataset

    Raises
    ------
    InvalidInput, PointFailed, StoreFailure
        As for `sweep`.
    """
    place, executor = Place(store), executor or InProcess()
    plan = replace(plan, job=replace(plan.job, shared=executor.shared))
    try:
        with _termination_interrupts():
            first = None
            if not (resume and place.exists):
                layout, first = _begun(plan, executor)
                place.create(layout, plan.attrs)
            opened = SweepStore(place, plan.axes, plan.attrs)
            try:
                if first is not None:
                    opened.record(packed(plan.job.with_template(opened.layout.template), *first))
                failed = _run(plan, opened, executor, fail_fast, progress)
            finally:
                opened.close()
    finally:
        place.release()
    if failed:
        warnings.warn(
            FailedPoints(
                f"{failed} of {plan.points} points failed; the variable error says why, and running the same again "
                "tries them again"
            ),
            stacklevel=3,
        )
    return open_sweep(store)


def _run(
    plan: Plan, store: SweepStore, executor: Executor, fail_fast: bool, progress: Progress | None
) -> int:
    """Evaluate what is pending; how many points failed."""
    done, _ = store.counts()
    failed, total = 0, store.layout.size
    template = store.layout.template
    pace, notes = Pace(template.point_bytes), _pace_file(store.path)
    if progress is not None:
        progress(done, failed, total)
    batches = executor.run(plan.job.with_template(template), store.layout, store.pending(), pace, plan.line)
    try:
        for batch in batches:
            store.record(batch)
            lost = np.flatnonzero(batch.status == FAILED)
            failed += len(lost)
            done += int((batch.status == DONE).sum())
            if progress is not None:
                progress(min(done, total), failed, total)
            if fail_fast and len(lost):
                at = store.layout.parameters(batch.points[lost[:1]])
                where = ", ".join(f"{name}={values[0]}" for name, values in at.items())
                raise PointFailed(f"the point {where} failed: {batch.errors[lost[0]]}")
    except BaseException:
        if pace.points:
            notes.write_text(json.dumps({"points": pace.points, "seconds": pace.seconds}))
        raise
    finally:
        batches.close()
    notes.unlink(missing_ok=True)
    return failed


def _begun(plan: Plan, executor: Executor) -> tuple[Layout, tuple[np.ndarray, list]]:
    """The layout, from the first point that gives a result; and that result, to keep."""
    bare = Layout(plan.axes, Template({}), (1,) * len(plan.axes))
    template, numbers, found, _ = tried(plan, bare, executor)
    layout = Layout(plan.axes, template, chunks_for(plan.axes, template, plan.line))
    return layout, (numbers, found)


def tried(plan: Plan, bare: Layout, executor: Executor) -> tuple[Template, np.ndarray, list, float]:
    """The first point, or line, that gives a result: what it looks like, its numbers, its outcomes, seconds a point.

    The first and the last are tried, then others in between.

    Raises
    ------
    InvalidInput
        If none of them does, because of what was asked for.
    PointFailed
        If none of them does, for other reasons.
    """
    spread = np.linspace(0, bare.size - 1, min(_TRIES, bare.size)).astype(np.int64)
    order, reason = dict.fromkeys([0, bare.size - 1, *spread.tolist()]), None
    for number in order:
        numbers = np.array([number])
        if plan.line is not None:
            from eos_sde.sweeps.executors import lines_through

            numbers = next(lines_through(numbers, bare, plan.line))
        columns = bare.parameters(numbers)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        found, seconds = executor.tried(plan.job, rows)
        for value, _ in found:
            try:
                if isinstance(value, Exception):
                    raise value
                template = as_arrays(value).template
            except Exception as failure:  # the next may do; if none does, the first reason is told
                reason = reason or failure
                continue
            _refuse_clash(template, plan.axes)
            return template, numbers, found, seconds / len(rows)
    if isinstance(reason, InvalidInput):
        raise InvalidInput(f"no point gives a result: {reason}") from reason
    assert reason is not None
    raise PointFailed(f"no point gives a result ({len(order)} were tried): {in_words(reason)}") from reason


def _refuse_clash(template: Template, axes: tuple[Axis, ...]) -> None:
    taken = {name for axis in axes for name in (axis.dim, *axis.values)}
    own = {
        *template.variables,
        *template.coords,
        *(d for one in template.variables.values() for d in one.dims),
    }
    for name in sorted(taken & own):
        raise InvalidInput(f"axis {name!r} is also a variable or dimension of the result; rename one")


def _pace_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.pace")


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that a sweep ends in peace; in the main thread only, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@dataclass(frozen=True)
class Estimate:
    """What a sweep would take.

    Attributes
    ----------
    points, pending : int
        All, and those that are not done.
    seconds : float
        For a point, on one worker.
    measured : str
        What that is from.
    result_bytes : int
        All results, before compression.
    peak_bytes : int
        The most that this process has held, with everything that it loaded.
    """

    points: int
    pending: int
    seconds: float
    measured: str
    result_bytes: int
    peak_bytes: int


def estimated(plan: Plan, store: str | Path, *, resume: bool = True) -> Estimate:
    """What a sweep would take: from the points that an interrupted one finished, or by timing one; nothing is written.

    Parameters
    ----------
    plan : Plan
    store, resume
        As for `sweep`.

    Returns
    -------
    Estimate

    Raises
    ------
    InvalidInput, PointFailed, StoreFailure
        As for `sweep`.
    """
    path, pending, notes = Path(store), plan.points, None
    check_name(path)
    if resume and path.exists():
        table = open_sweep(path)
        unlike = differences(table.attrs, plan.attrs)
        if unlike:
            raise InvalidInput(f"store={path} was made otherwise: {'; '.join(unlike)}")
        pending -= int((table["status"] == DONE).sum())
        notes = _pace_file(path)
    bare = Layout(plan.axes, Template({}), (1,) * len(plan.axes))
    template, numbers, _, seconds = tried(plan, bare, InProcess())
    what = "one point" if len(numbers) == 1 else f"a line of {len(numbers)} points"
    if notes is not None and notes.exists():
        known = json.loads(notes.read_text())
        seconds, what = known["seconds"] / known["points"], f"{known['points']} finished points"
    else:
        _, _, _, seconds = tried(plan, bare, InProcess())  # once more: the first compiles
    return Estimate(
        plan.points,
        pending,
        seconds,
        what,
        template.point_bytes * plan.points,
        psutil.Process().memory_info().rss,
    )


__all__ = ["FailedPoints", "PointFailed", "StoreFailure", "estimated", "planned", "sweep"]
