"""expectation(): multilevel Monte Carlo for E f(X), to a given root-mean-square error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from solvers import level_statistics as ls
from solvers import schemes, wiener
from solvers.coupled_levels import LEVEL_SHIFT, OVER, Level, Workers, sampling
from solvers.errors import InvalidInput
from solvers.level_schemes import compiled_observable, coupling, truncated_milstein
from solvers.level_search import FINEST, PILOT, Run, refuse_diverged
from solvers.provenance import provenance
from solvers.request import available_cores, checked_start, refuse_other
from solvers.sde import SDE
from solvers.stability import refuse_unstable_step

if TYPE_CHECKING:
    from solvers.level_statistics import Bias


def expectation(
    sde: SDE,
    y0: Any,
    observable: Callable[..., Any],
    *,
    t1: float,
    error: float,
    seed: int,
    t0: float = 0.0,
    scheme: str = "auto",
    over: str = "end",
    antithetic: bool = False,
    levels: int = 24,
    refinement: int = 2,
    first_steps: int | None = None,
    max_cost: float | None = None,
    threads: int | None = None,
    progress: Callable[[float], Any] | None = None,
) -> xr.Dataset:
    """E f(X) for the solution of an SDE, to a root-mean-square error, by multilevel Monte Carlo.

    Differences between a fine and a coarse path on one Brownian path are summed over levels of ever finer
    steps, most samples being taken where they are cheap. Cost grows as error^-2 where these differences have
    variance of order dt^beta with beta > 1 (beta is twice the strong order: additive noise, or commutative
    noise by Milstein's scheme), as error^-2 log(error)^2 for beta = 1 (Euler-Maruyama with other noise). Plain
    Monte Carlo needs error^(-2 - 1/weak order).

    Parameters
    ----------
    sde : SDE
        In any convention; converted exactly to the one the scheme converges to.
    y0 : float or array (d,)
        Start.
    observable : callable
        ``observable(t, y, p, xp)``: f, one real number from the d-tuple y; written like a drift.
    t0, t1 : float
        Start and end.
    error : float
        Root-mean-square error of the value, sampling and time steps together.
    seed : int
        0 <= seed < 2^64. Level l uses the paths l 2^40, l 2^40 + 1, ..., with normals of 53 bits; the result has
        the same bits for any number of threads.
    scheme : str
        As in `simulate`, but one that draws Gaussian numbers: only those add up to longer steps. "auto" takes
        the strongest that the noise allows, and the attribute ``scheme`` says which.
    over : {"end", "mean", "max", "min"}
        f(X) at t1; or its time average (trapezoidal rule), maximum or minimum over the time steps. The last
        two are the extremes of the continuous path in the limit, with bias of order dt^(1/2).
    antithetic : bool
        For noise="general" that does not commute: Milstein's scheme without the Levy areas, averaged over two
        fine paths in which they cancel, so that beta = 2 for smooth f without any area being drawn (Giles and
        Szpruch 2014). Replaces `scheme`; needs refinement=2.
    levels : int
        At most so many, 3 or more.
    refinement : int
        Steps of a level per step of the coarser one.
    first_steps : int, optional
        Steps of the coarsest level. If not given: the fewest at which the scheme damps what the drift damps
        at y0, no trial path diverges, and a coarser level saves work.
    max_cost : float, optional
        Refuse, as soon as the plan shows it, a run of more time steps (summed over all paths) than this.
    threads : int, optional
        All cores of the process if not given.
    progress : callable, optional
        Called now and then, from the calling thread, with the estimated finished fraction in [0, 1].

    Returns
    -------
    Dataset
        ``value``; ``stderr``; ``bias``, estimated from the decay of the levels (not subtracted), with
        ``bias_stderr``; ``rms_error``, the root of their summed squares; ``low`` and ``high``, a 95 % interval:
        value -+ (1.96 stderr + |bias|). Per level: ``steps``, ``dt``, ``mean``, ``variance``, ``kurtosis``,
        ``samples``, ``unit_cost``, ``level_cost``. ``cost`` in time steps and ``plain_cost``, what plain Monte
        Carlo would need by these data, on its best grid of ``plain_steps`` and to the standard error
        ``plain_stderr`` (to measure it: `plain_expectation`). ``alpha``, ``beta``,
        ``gamma``, the fitted rates in refinement^(-rate level) of means, variances and cost (negative), with
        ``alpha_stderr`` and ``beta_stderr``.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, or the run would cost more than `max_cost`.
    ConvergenceFailure
        If paths diverge, or the bias is still too large at the finest level allowed.

    Notes
    -----
    Three quarters of the squared error are given to sampling. The bias is the sum of the levels left out,
    extrapolated from the last three with the weak order of the scheme, or with the fitted rate where the
    levels contradict it; refinement stops when its size plus its standard error is within tolerance. Euler's
    scheme on a drift that grows faster than linearly has infinite moments, which multilevel differences do
    not cancel (Hutzenthaler, Jentzen, Kloeden 2013, Ann. Appl. Probab. 23, 1913): use a tamed or implicit one.

    References
    ----------
    Giles 2008, Operations Research 56, 607; Giles 2015, Acta Numerica 24, 259.

    Examples
    --------
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> result = expectation(ou, 1.0, lambda t, y, p, xp: y[0] ** 2, t1=1.0, error=0.01, seed=1)
    >>> abs(float(result["value"]) - (0.5 + 0.5 * math.exp(-2))) < 0.04
    True
    """
    found, start = _checked(sde, y0, t0, t1, error, "error", scheme, over)
    if antithetic:
        if scheme != "auto" or refinement != 2:
            raise InvalidInput("antithetic=True brings its own scheme and refinement=2; leave both out")
        found = truncated_milstein(sde)
    for name, value, least in (("levels", levels, 3), ("refinement", refinement, 2)):
        if wiener.checked_integer(name, value) < least:
            raise InvalidInput(f"{name}={value} must be at least {least}")
    if first_steps is not None and wiener.checked_integer("first_steps", first_steps) < 1:
        raise InvalidInput(f"first_steps={first_steps} must be at least 1")
    if max_cost is not None and not max_cost > 0:
        raise InvalidInput(f"max_cost={max_cost} must be positive")
    if first_steps is not None:
        refuse_unstable_step(sde, start, t0, (t1 - t0) / first_steps, found)
    first = first_steps or _stable_steps(sde, start, t0, t1, found, refinement)
    weak = min(found.weak, 0.5 if over in {"max", "min"} else math.inf)
    kernel, model = _prepared(sde, start, observable, over, found, t0, t1, seed, antithetic)
    with Workers(model, _checked_threads(threads)) as workers:
        run = Run(
            kernel, workers, float(error), levels, refinement, weak, max_cost, progress, 1 + bool(antithetic)
        )
        run.begin(first, fixed=first_steps is not None)
        bias = run.finish()
    details = provenance(
        title="multilevel Monte Carlo",
        convention=sde.convention,
        scheme=found.name,
        over=over,
        t0=float(t0),
        t1=float(t1),
        refinement=refinement,
        requested_error=float(error),
        seed=int(seed),
        confidence="value -+ (1.96 stderr + |bias|) holds the expectation with probability 0.95, if the levels "
        "beyond the last go on decaying as the fitted or stated rate says",
    )
    return _dataset(run, bias, (t0, t1), details)


def plain_expectation(
    sde: SDE,
    y0: Any,
    observable: Callable[..., Any],
    *,
    t1: float,
    steps: int,
    stderr: float,
    seed: int,
    t0: float = 0.0,
    scheme: str = "auto",
    over: str = "end",
    threads: int | None = None,
) -> xr.Dataset:
    """E f(X) by plain Monte Carlo on one grid, to a standard error: the comparison for `expectation`.

    Parameters
    ----------
    sde, y0, observable, t0, t1, scheme, over, seed, threads
        As for `expectation`.
    steps : int
        Time steps; their bias is not estimated.
    stderr : float
        Standard error to reach.

    Returns
    -------
    Dataset
        ``value``, ``stderr``, ``variance`` (of f), ``samples`` and ``cost`` in time steps.

    Raises
    ------
    InvalidInput
        If an argument cannot be used.
    ConvergenceFailure
        If paths diverge.
    """
    found, start = _checked(sde, y0, t0, t1, stderr, "stderr", scheme, over)
    if wiener.checked_integer("steps", steps) < 1:
        raise InvalidInput(f"steps={steps} must be at least 1")
    refuse_unstable_step(sde, start, t0, (t1 - t0) / steps, found)
    kernel, model = _prepared(sde, start, observable, over, found, t0, t1, seed)
    level = Level(kernel, 0, steps, 1, coupled=False)
    with Workers(model, _checked_threads(threads)) as workers:
        wanted = PILOT
        while level.drawn < wanted:
            workers.fill(level, wanted, lambda cost: None)  # noqa: ARG005
            refuse_diverged(level)
            wanted = math.ceil(level.tally.variance / stderr**2)
    tally = level.tally
    return xr.Dataset(
        {
            "value": ((), tally.mean, _about("expectation of the observable")),
            "stderr": ((), math.sqrt(tally.variance / tally.samples), _about("standard error")),
            "variance": ((), tally.variance, _about("variance of the observable")),
            "samples": ((), tally.samples, _about("paths")),
            "cost": ((), level.cost, _about("time steps of all paths")),
        },
        attrs=provenance(
            title="plain Monte Carlo",
            convention=sde.convention,
            scheme=found.name,
            over=over,
            steps=int(steps),
            seed=int(seed),
        ),
    )


def _checked(sde, y0, t0, t1, error, name, scheme, over) -> tuple[schemes.Scheme, np.ndarray]:
    refuse_other(sde, SDE, "sde")
    found = schemes.find(scheme, sde)
    if over not in OVER:
        raise InvalidInput(f"over={over!r} is unknown; choose one of {', '.join(OVER)}")
    for label, value in (("t0", t0), ("t1", t1), (name, error)):
        if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise InvalidInput(f"{label}={value!r} is not a finite number; give one")
    if not t1 > t0:
        raise InvalidInput(f"t1={t1} must be later than t0={t0}")
    if not error > 0:
        raise InvalidInput(f"{name}={error} must be positive")
    return found, checked_start(sde, y0, 1)


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return available_cores()
    if wiener.checked_integer("threads", threads) < 1:
        raise InvalidInput(f"threads={threads} must be at least 1")
    return int(threads)


def _prepared(sde, start, observable, over, scheme, t0, t1, seed, antithetic=False) -> tuple[Any, Any]:
    """The kernel and what it is called with for any level."""
    observe = compiled_observable(observable, sde)
    kernel = sampling(coupling(scheme, sde), observe, over, bool(antithetic))
    return kernel, (sde.params, start[0], (float(t0), float(t1)), wiener.checked_seed(seed))


def _stable_steps(sde, start, t0, t1, scheme, refinement) -> int:
    """The smallest power of `refinement` at which the scheme amplifies no damped mode at the start."""
    steps = 1
    while steps < FINEST:
        try:
            refuse_unstable_step(sde, start, t0, (t1 - t0) / steps, scheme)
        except InvalidInput:  # the answer to the question asked here: too large a step
            steps *= refinement
        else:
            return steps
    raise InvalidInput(
        f"the drift at y0 is too stiff for {scheme.name!r} on {FINEST} steps; use an implicit one"
    )


def _about(text: str, units: str = "1") -> dict[str, str]:
    return {"units": units, "long_name": text}


def _dataset(run: Run, bias: Bias, times: tuple[float, float], details: dict[str, Any]) -> xr.Dataset:
    levels = run.levels
    means, variances = run.means(), run.variances()
    value, stderr = float(means.sum()), float(np.sqrt((run.stderrs() ** 2).sum()))
    reach = 1.96 * stderr + abs(bias.value)
    alpha, beta = run.alpha(), run.beta()
    units = np.array([level.unit_cost for level in levels], dtype=float)
    gamma = -ls.fitted_rate(units, 0 * units, run.refinement).value
    steps = np.array([level.steps for level in levels])
    cost = sum(level.cost for level in levels) + run.discarded
    rate = ls.used_rate(alpha, run.weak)
    rms = math.hypot(stderr, bias.value)
    plain = ls.plain_monte_carlo(
        max(rms, 1e-300), levels[-1].tally.fine_variance, bias.value, int(steps[-1]), rate
    )
    scalars = {
        "value": (value, "expectation of the observable"),
        "stderr": (stderr, "standard error"),
        "bias": (bias.value, "estimated sum of the levels left out"),
        "bias_stderr": (bias.stderr, "standard error of the estimated bias"),
        "rms_error": (rms, "root of stderr^2 + bias^2"),
        "low": (value - reach, "lower end of the 95 % interval"),
        "high": (value + reach, "upper end of the 95 % interval"),
        "cost": (cost, "time steps of all paths, trials included"),
        "plain_cost": (plain.cost, "time steps that plain Monte Carlo would need for rms_error"),
        "plain_steps": (plain.steps, "time steps of a path of plain Monte Carlo for rms_error"),
        "plain_stderr": (plain.stderr, "standard error of plain Monte Carlo for rms_error"),
        "alpha": (alpha.value, "fitted decay rate of the means"),
        "alpha_stderr": (alpha.stderr, "standard error of alpha"),
        "beta": (beta.value, "fitted decay rate of the variances"),
        "beta_stderr": (beta.stderr, "standard error of beta"),
        "gamma": (gamma, "growth rate of the cost of a sample"),
    }
    per_level = {
        "mean": (means, "mean of the samples"),
        "variance": (variances, "variance of the samples"),
        "kurtosis": ([level.tally.kurtosis for level in levels], "kurtosis of the samples"),
        "samples": ([level.tally.samples for level in levels], "samples"),
        "unit_cost": (units, "time steps of a sample"),
        "level_cost": ([level.cost for level in levels], "time steps of the level"),
        "steps": (steps, "time steps of the finer path"),
    }
    data: dict[str, Any] = {name: ((), v, _about(text)) for name, (v, text) in scalars.items()}
    data |= {name: ("level", np.asarray(v), _about(text)) for name, (v, text) in per_level.items()}
    data["dt"] = ("level", (times[1] - times[0]) / steps, _about("step of the finer path", "time"))
    details["path_offset_log2"] = LEVEL_SHIFT
    numbers = [level.number for level in levels]
    return xr.Dataset(
        data,
        coords={"level": ("level", numbers, _about("number of the level, part of the random keys"))},
        attrs=details,
    )
