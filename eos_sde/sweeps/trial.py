"""The first point that gives a result: what all results look like; and from its time, what a sweep would take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from eos_sde.store.layout import DONE, Axis, Layout, Template
from eos_sde.store.origin import differences
from eos_sde.store.reading import open_sweep
from eos_sde.store.sweep_store import check_name
from eos_sde.sweeps.bundles import lines_through
from eos_sde.sweeps.evaluation import as_arrays, in_words
from eos_sde.sweeps.executors import Executor, InProcess
from eos_sde.sweeps.plan import Plan
from solvers.errors import ConvergenceFailure, InvalidInput

_TRIES = 32


class PointFailed(ConvergenceFailure):
    """A point failed, and the sweep was to stop there; or no point gave a result."""


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


def pace_file(path: Path) -> Path:
    """Where an interrupted sweep notes how long its points took."""
    return path.with_name(f"{path.name}.pace")


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
        notes = pace_file(path)
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
