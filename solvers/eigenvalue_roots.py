"""The parameter at which an eigenvalue, or a ratio of two, takes a given value, with few eigen-solves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from solvers.decay_rates import Mode, RateSearch, checked_mode, checked_region
from solvers.errors import InvalidInput
from solvers.perturbation import checked_number
from solvers.progress import reporting
from solvers.provenance import provenance
from solvers.regions import Region
from solvers.root_search import Quantity, checked_bracket, root_by_slopes
from solvers.spectral_problem import Build


def eigenvalue_root(
    build: Build,
    bracket: Sequence[float],
    *,
    target: float,
    mode: Mode = 1,
    absorbed: Region | None = None,
    tol: float = 1e-8,
    max_solves: int = 40,
    progress: bool | Callable[[float], Any] | None = None,
) -> xr.Dataset:
    """Where a decay rate, or the ratio of two, crosses a target: a spectral threshold.

    Parameters
    ----------
    build : callable
        ``build(value)`` returns a FokkerPlanck or TransferOperator; at one value always on the same grid.
    bracket : (float, float)
        Two values between which the target is crossed.
    target : float
        A decay rate in 1/time: minus the real part of the eigenvalue of a generator, or ``-log|mu| / step`` of a
        transfer operator (a negative number is read as the eigenvalue); with a pair of modes their ratio.
    mode : int, (int, int), "gap" or "gap-ratio"
        Its place, slowest first: 1 is the gap between reflecting walls, 0 the escape rate with an absorbing
        one. A pair (i, j): the rate of mode i divided by that of mode j. "gap": the slowest that decays, however
        many are stationary; "gap-ratio": the next one divided by it.
    absorbed : callable, optional
        ``absorbed(x, y, ...)`` is true where the process is removed, as the target of `escape_rate`.
    tol : float
        Of the root, as a fraction of the bracket.
    max_solves : int
        Eigen-solves after which it gives up.
    progress : bool or callable
        True for a bar, or a function of the share of the bracket (in digits) that is settled.

    Returns
    -------
    Dataset
        ``root``, ``error`` (of the root, from the last correction), and of every eigen-solve, in order,
        ``value(solve)``, ``rate(solve)`` and ``rate_derivative(solve)``; ``rate`` is the ratio for a pair. Their
        number is ``attrs["eigen_solves"]``.

    Raises
    ------
    InvalidInput
        If an argument is unusable, or the target is not crossed between the ends: both rates are told.
    ConvergenceFailure
        After `max_solves`; or as for `eigenmodes`.

    Notes
    -----
    Newton steps on the logarithm of the rate (escape rates are exponential in parameters) with the derivative of
    perturbation theory, so that each eigen-solve gives two numbers; between two of them the inverse function is
    interpolated by a cubic. A step that leaves the bracket or does not halve the last one is replaced by bisection.
    Where rounding of the eigenvectors spoils a slope, as of rates below about 1e-12, that between two values takes its
    place, and the last step is the error. The two ends cost two solves; a smooth rate takes two to four more.
    Iterations start from the modes of the two nearest values solved before.

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-p.k * y[0],), lambda t, y, p, xp: (1.0,), params={"k": 1.0}, convention="ito")
    >>> grid = Grid.uniform(x=(-6, 6, 600))
    >>> found = eigenvalue_root(lambda k: FokkerPlanck(ou.replace(k=k), grid), (0.5, 3.0), target=1.3)
    >>> round(float(found.root), 3)
    1.3
    """
    ends = checked_bracket(bracket)
    mode, absorbed = checked_mode(mode), checked_region(absorbed)
    target, tol = checked_number("target", target), checked_number("tol", tol)
    ratio = isinstance(mode, tuple) or mode == "gap-ratio"
    if target == 0 or (target < 0 and ratio):
        raise InvalidInput(
            f"target={target:g} is never crossed; give a decay rate above 0 (or the eigenvalue, below 0), or a ratio"
        )
    if not 0 < tol < 1:
        raise InvalidInput(f"tol={tol:g}; give a fraction of the bracket between 0 and 1")
    if not (isinstance(max_solves, (int, np.integer)) and max_solves >= 3):
        raise InvalidInput(f"max_solves={max_solves!r}; give an integer of at least 3")
    search = RateSearch(lambda _: build, mode, abs(target), ends[1] - ends[0], absorbed)
    what, units = ("ratio of rates", "1") if ratio else ("decay rate", "1/time")
    with reporting(progress, "digits of the root") as report:
        root = root_by_slopes(
            search.point,
            ends,
            Quantity(f"the {what}", abs(target)),
            tol=tol,
            most=int(max_solves),
            report=report,
        )
    seen = root.points
    return xr.Dataset(
        {
            "root": ((), root.value, {"units": "1", "long_name": "value at which the target is met"}),
            "error": ((), root.error, {"units": "1", "long_name": "error of the root, root finding only"}),
            "value": (
                "solve",
                [p.value for p in seen],
                {"units": "1", "long_name": "value of the parameter"},
            ),
            "rate": ("solve", [p.shown for p in seen], {"units": units, "long_name": what}),
            "rate_derivative": (
                "solve",
                [p.shown * p.slope for p in seen],
                {"units": units, "long_name": f"derivative of the {what}"},
            ),
        },
        coords={"solve": ("solve", np.arange(len(seen)), {"units": "1", "long_name": "eigen-solve"})},
        attrs=provenance(convention=search.convention, eigen_solves=len(seen), target=target, tol=tol),
    )
