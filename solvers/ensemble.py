"""simulate(): ensembles of SDE paths with streaming statistics, on any number of threads, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from solvers.checkpoint import Checkpoint
from solvers.parameter_sweep import combined, sweep_points
from solvers.path_store import refuse_store, stored_paths
from solvers.progress import reporting
from solvers.request import checked
from solvers.running import Run, execute
from solvers.statistics import dataset, warn_of_divergence

if TYPE_CHECKING:
    from solvers.sde import SDE
    from solvers.vector_form import VectorSDE


def simulate(
    sde: SDE | VectorSDE,
    y0: Any,
    *,
    t1: float,
    dt: float,
    paths: int,
    seed: int,
    t0: float = 0.0,
    scheme: str = "euler-maruyama",
    resolution: int = 32,
    increments: Any = None,
    save_at: Any = None,
    save_every: int | None = None,
    save_paths: bool | str | Path = False,
    statistics: Sequence[str] | str = ("mean", "variance"),
    histogram: Any = None,
    quantiles: Any = None,
    autocorrelation: Any = None,
    stop: Callable[..., Any] | None = None,
    threads: int | None = None,
    chunk: int | None = None,
    sweep: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Callable[[float], Any] | None = None,
    allow_unstable_step: bool = False,
) -> xr.Dataset:
    """Simulate many paths of an SDE and keep statistics of them.

    Parameters
    ----------
    sde : SDE or VectorSDE
        In any convention; converted exactly to the one the scheme converges to.
    y0 : float, array or Dataset
        Start: a number (d = 1), shape (d,), or shape (paths, d). The result of an earlier run is continued
        from its end to t1 on the same Brownian paths, as if there had been no pause: bit for bit, and with the
        new times only.
    t1, t0, dt : float
        End, start and step; dt must divide t1 - t0.
    paths : int
        How many.
    seed : int
        0 <= seed < 2^64. Path k at a seed has the same bits for any number of paths, threads and chunks.
    resolution : {32, 53}
        Bits behind each normal. 32: fastest, normals up to 6.66 standard deviations with relative errors of
        1e-7; 53: the numbers of `wiener.increments`, up to 8.57 and to rounding error, at about three times the
        cost. The attribute ``normal_resolution_bits`` says which was used.
    scheme : str
        A name of `schemes.SCHEMES`, where orders and conditions stand: "euler-maruyama", "milstein", "platen",
        "sra1" and "sriw1" (Runge-Kutta of strong order 1.5), "implicit-euler" for stiff and "tamed-euler" for
        superlinear drift, "heun" (Stratonovich), "weak-euler" and "weak-platen" (weak orders 1 and 2). "auto"
        chooses by convention and noise; the attribute ``scheme_reason`` says why.
    increments : StudentT, AlphaStable or Resampled, optional
        Heavy-tailed or mini-batch noise in place of the Wiener increments, with "euler-maruyama" and an Ito
        model; exits are then judged at the ends of steps.
    save_at : array of float, optional
        Times on the step grid at which results are kept; every step, t0 included, if not given.
    save_every : int, optional
        Instead: keep every so many steps, and the end.
    save_paths : bool or path
        Keep ``state(path, time, component)``; in memory (True), or in a Zarr v3 store (a name that ends in .zarr)
        that is written while the run goes on, so that memory stays bounded. The store gets its name when it is
        complete, holds the whole result, and its ``state`` is read only where it is used.
    statistics : sequence of str
        Computed while running, over all paths, diverged ones included. "mean", "mean_stderr", "variance",
        "covariance", "skewness", "kurtosis" (excess) at the saved times; (co)variances are divided by the number of
        paths. "maximum", "minimum": of every path over all times, inside steps by a Brownian bridge (exact for
        additive noise); "step_maximum", "step_minimum": over the ends of the steps only, which falls short by
        0.5826 sigma sqrt(dt) on average. Those four also give their means over the paths so far.
    histogram : Grid, optional
        Axes named as the components: keep ``density(time, *names)`` and ``outside(time)``, the fraction of
        paths off the grid.
    quantiles : array of float, optional
        Levels in [0, 1]: ``quantile(time, q, component)`` from counts in fine bins, and ``quantile_error``, a bound
        on its difference from the quantile of these paths: at most (w + distance from the median)/1024, w being
        half the distance of the quartiles. Takes about 200 kB per saved time, component and thread.
    autocorrelation : sequence of float or mapping, optional
        Lags in time, or {"lags": lags, "start": time, "every": time}: ``autocovariance(lag, component)`` and
        ``autocorrelation``, with standard errors, averaged over the paths and over the times from "start" (the
        beginning, if not given) to t1, in which the process should be stationary; taken every so often as "every"
        says (the greatest common divisor of the lags, if not given).
    stop : callable, optional
        ``stop(t, y, p, xp)`` -> bool: a path for which it holds is frozen where it is, and counted so in all
        later statistics. If the condition sets levels for single components (``y[0] > 1``,
        ``xp.abs(y[0]) > p.a``, joined by ``|``), exits inside a step are found by a Brownian bridge and the
        path is frozen on the level; else it is frozen at the end of the step. For a VectorSDE it is
        ``stop(t, y, p)`` over the array y of one path.
    threads : int, optional
        All cores of the process if not given.
    chunk : int, optional
        Paths per task, rounded up to blocks (of 1024; of fewer for many components or at most 64 paths); chosen by
        size if not given. Changes no bit.
    sweep : mapping of str to array, optional
        Values for named parameters of the model: every variable of the result gets their names as leading
        dimensions (the product of all values). Nothing is compiled again, all points share the threads, and
        each point has the bits of a run of its own, on the same Brownian paths.
    checkpoint : path, optional
        File (.npz) to which the finished paths are written every half minute and at the end; the same call
        made again after an interruption goes on from there, to the same bits.
    progress : bool or callable, optional
        True: a bar on the terminal. A callable is called now and then, from the calling thread, with the
        finished fraction in [0, 1].
    allow_unstable_step : bool
        Run even if dt amplifies a mode that the drift damps: Euler-Maruyama with dt equal to the learning
        rate is gradient descent beyond its edge.

    Returns
    -------
    Dataset
        Coordinates time, component, path. ``mean``, ``variance`` (time, component), ``covariance`` (time,
        component, component2), as asked; ``final`` (path, component); ``diverged`` (path); and as asked
        ``state``, ``density``, ``outside``, ``quantile``, ``autocorrelation`` and so on, ``exit_time`` (nan if not
        met) and ``exited`` (path).

    Raises
    ------
    InvalidInput
        If an argument cannot be used, dt is too large for the drift, or the result would not fit in memory.

    Warns
    -----
    AccuracyWarning
        If paths diverged.

    Examples
    --------
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> float(simulate(ou, 0.0, t1=5.0, dt=0.01, paths=100_000, seed=1)["variance"][-1, 0])
    0.50...
    """
    settings = {
        "t0": t0,
        "t1": t1,
        "dt": dt,
        "paths": paths,
        "seed": seed,
        "scheme": scheme,
        "resolution": resolution,
        "increments": increments,
        "save_at": save_at,
        "save_every": save_every,
        "save_paths": save_paths,
        "statistics": statistics,
        "histogram": histogram,
        "quantiles": quantiles,
        "autocorrelation": autocorrelation,
        "stop": stop,
        "threads": threads,
        "chunk": chunk,
        "allow_unstable_step": allow_unstable_step,
    }
    if sweep is not None:
        return _swept(sde, y0, sweep, checkpoint, progress, settings)
    request = checked(sde, y0, **settings)
    run = Run(request)
    store = None if checkpoint is None else Checkpoint(Path(checkpoint), run)
    with stored_paths(run, resumable=store is not None) as kept:
        with reporting(progress, "paths") as report:
            execute([run], request.threads, progress=report, taken=None if store is None else store.taken)
        if store is not None:
            store.write()
        result = dataset(run, convention=sde.convention)
        if kept is not None:
            result = kept.finish(result)
    warn_of_divergence([result])
    return result


def _swept(sde, y0, sweep, checkpoint, progress, settings) -> xr.Dataset:
    """One run for each point of a sweep, all in one pool of tasks."""
    axes, points = sweep_points(sde, sweep, checkpoint)
    refuse_store(settings["save_paths"])
    runs = [Run(checked(point, y0, runs=len(points), **settings)) for point in points]
    with reporting(progress, "points") as report:
        execute(runs, runs[0].request.threads, progress=report)
    results = []
    while runs:  # each run is let go: its arrays are not held twice
        results.append(dataset(runs.pop(0), convention=sde.convention))
    warn_of_divergence(results)
    return combined(results, axes)
