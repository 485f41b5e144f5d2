"""The command sweep: a specification in TOML, on this machine or on any Dask cluster, into a store that survives."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from eos_sde.cli.terminal import JSON, check_folder
from solvers.errors import InvalidInput

app = typer.Typer()
_FAILED = 1
_NO_DASHBOARD = "none, for it needs bokeh where the scheduler runs: pip install 'eos-sde[dashboard]'"


@app.command()
def sweep(
    spec: Annotated[Path, typer.Argument(help="A TOML file; see examples/gap_sweep.toml.")],
    out: Annotated[
        Path, typer.Option(help="The store, .zarr; or .nc, which is written from a store beside it.")
    ],
    workers: Annotated[
        int | None,
        typer.Option(help="Processes on this machine. (default: this process, with all its threads)"),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler, such as tcp://10.0.0.1:8786.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on in a store of the same sweep, or replace it.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell points, time and memory; compute nothing.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first point that fails.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="In place of the seed of the file; the first one where it is an axis.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Evaluate an observable, or a function of yours, at every point of a product of parameters.

    Each point is kept as soon as it is finished; the same command goes on where an interrupted one stopped, to the same
    bits. Example: eos-sde sweep examples/gap_sweep.toml --out gap.zarr --workers 2
    """
    from eos_sde.store import export_netcdf
    from eos_sde.store.sweep_store import check_name
    from eos_sde.sweeps.engine import FailedPoints, carried_out
    from eos_sde.sweeps.spec import read_spec

    if workers is not None and scheduler is not None:
        raise InvalidInput("--workers and --scheduler exclude each other; give one")
    if workers is not None and not 1 <= workers <= 4096:
        raise InvalidInput(f"workers={workers} must be from 1 to 4096")
    if seed is not None and not 0 <= seed < 2**63:
        raise InvalidInput(f"seed={seed} must be at least 0 and below 2^63")
    if out.suffix not in {".zarr", ".nc"}:
        raise InvalidInput(f"out={out} must end in .zarr or .nc")
    check_folder(out.parent)
    if out.is_dir() and out.suffix == ".nc":
        raise InvalidInput(f"out={out} is a folder; choose another name")
    store = out.with_suffix(".zarr")
    check_name(store)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a function may be in a module of the user's folder
    plan = read_spec(spec, seed=seed)
    if dry_run:
        _tell_estimate(plan, store, resume, workers, as_json)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FailedPoints)  # told below, and by the exit status
        with _executor(workers, scheduler) as executor, _bar() as progress:
            table = carried_out(
                plan, store, resume=resume, executor=executor, fail_fast=fail_fast, progress=progress.moved
            )
    if out != store:
        export_netcdf(table, out)
    _tell_result(table, progress.failed, plan.points, out, as_json)
    if progress.failed:
        sys.stderr.write(
            f"eos-sde: {progress.failed} of {plan.points} points failed; the variable error says why, and the same "
            "command tries them again\n"
        )
        raise typer.Exit(_FAILED)


class _Moved:
    """What was last told of the progress."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._task, self.failed = bar, None, 0

    def moved(self, done: int, failed: int, total: int) -> None:
        """Points that are done, that failed, and all."""
        self.failed = failed
        if self._task is None:
            self._task = self._bar.add_task("points", total=total, completed=done, failed="")
        self._bar.update(self._task, completed=done, failed=f"{failed} failed" if failed else "")


@contextmanager
def _bar() -> Iterator[_Moved]:
    """Points, time and time left on a terminal's standard error, nothing in a pipe."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[failed]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _Moved(bar)


@contextmanager
def _executor(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """The calling process, a local cluster, or a cluster that runs already."""
    from eos_sde.sweeps.clusters import existing_cluster, local_cluster
    from eos_sde.sweeps.executors import InProcess

    if workers is None and scheduler is None:
        yield InProcess()
        return
    with (
        local_cluster(workers or 1) if scheduler is None else existing_cluster(scheduler) as (executor, link)
    ):
        if sys.stderr.isatty():
            sys.stderr.write(f"dashboard: {link or _NO_DASHBOARD}\n")
        yield executor


def _tell_estimate(plan: Any, store: Path, resume: bool, workers: int | None, as_json: bool) -> None:
    from eos_sde.sweeps.trial import estimated

    found = estimated(plan, store, resume=resume)
    count = workers or 1
    told = {
        "points": found.points, "pending": found.pending, "seconds_per_point": found.seconds,
        "seconds": found.pending * found.seconds / count, "measured": found.measured,
        "result_bytes": found.result_bytes, "peak_bytes": found.peak_bytes,
    }  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
        return
    sys.stdout.write(
        f"points:  {found.points}, of which {found.pending} are not done\n"
        f"time:    {found.seconds:.3g} s a point ({found.measured}), {told['seconds']:.3g} s with "
        f"{count} worker{'s' if count > 1 else ''}\n"
        f"results: {found.result_bytes / 2**20:.3g} MiB before compression\n"
        f"memory:  {found.peak_bytes / 2**20:.0f} MiB at most in the process that timed it; a writer holds some 100 "
        "MiB more, whatever the number of points\n"
    )


def _tell_result(table: Any, failed: int, points: int, out: Path, as_json: bool) -> None:
    axes = {str(name): size for name, size in table["status"].sizes.items()}
    variables = [str(name) for name in table.data_vars if name not in ("status", "error", "warning")]
    if as_json:
        told = {"store": str(out), "points": points, "failed": failed, "axes": axes, "variables": variables}
        sys.stdout.write(json.dumps(told) + "\n")
        return
    shape = " x ".join(f"{name} {size}" for name, size in axes.items())
    sys.stdout.write(f"{points} points ({shape}), {failed} failed: {', '.join(variables)}\nstore: {out}\n")
