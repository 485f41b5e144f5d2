"""sweep(): every point of a product evaluated once, kept at once, and given back as a lazy Dataset."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.store.layout import DONE, FAILED, Layout, Template, chunks_for
from eos_sde.store.reading import open_sweep
from eos_sde.store.sweep_store import Place, SweepStore
from eos_sde.sweeps.bundles import Pace
from eos_sde.sweeps.evaluation import packed
from eos_sde.sweeps.executors import Executor, InProcess, OnCluster
from eos_sde.sweeps.plan import Plan, planned
from eos_sde.sweeps.trial import PointFailed, pace_file, tried
from solvers.interruption import signals_interrupt

Progress = Callable[[int, int, int], None]
"""Called with the points that are done, that failed, and all."""


class FailedPoints(UserWarning):
    """Some points of a sweep failed; the variable ``error`` says why."""


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
    NoWorkers
        If a cluster has had no worker for a minute; the sweep waits for one.

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
    >>> axes = {"x": [1.0, 2.0], "y": [3.0, 4.0, 5.0]}
    >>> table = sweep(lambda x, y: x * y, axes, store="product.zarr")  # doctest: +SKIP
    >>> float(table.value.sel(x=2.0, y=4.0))  # doctest: +SKIP
    8.0
    """
    plan = planned(function, axes, settings=settings, command="eos_sde.sweep")
    executor = InProcess() if client is None else OnCluster(client)
    return carried_out(plan, store, resume=resume, executor=executor, fail_fast=fail_fast, progress=progress)


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
        with signals_interrupt():
            first = None
            if not (resume and place.exists):
                layout, first = _begun(plan, executor)
                place.create(layout, plan.attrs)
            opened = SweepStore(place, plan.axes, plan.attrs)
            try:
                if first is not None:
                    opened.record(packed(plan.job.with_template(opened.layout.template), *first))
                    opened.flush()  # so that it is not pending
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
    pace, notes = Pace(template.point_bytes), pace_file(store.path)
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
