"""Where moment Lyapunov exponents cross zero: in the moment, and in a parameter of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from solvers.angular_spectrum import GrowthRates
from solvers.errors import InvalidInput
from solvers.linearisation import linearised
from solvers.provenance import provenance
from solvers.root_search import Point, Quantity, checked_bracket, root_by_values

_FARTHEST = 64.0
_NEWTON = 30


def stability_index(sde: Any, *, at: Any) -> xr.Dataset:
    """The moment p other than 0 with Lambda(p) = 0, for the SDE linearised at a fixed point.

    Moments between 0 and p decay, those beyond grow (p > 0, an almost surely stable point); a stationary density
    of the nonlinear model near an unstable point, p < 0, behaves like |y|^(-p - d).

    Parameters
    ----------
    sde : SDE
        In any convention.
    at : sequence of d floats
        The fixed point.

    Returns
    -------
    Dataset
        ``value`` (0 if the Lyapunov exponent is zero to within its error), ``error`` from that of Lambda,
        ``slope`` = Lambda'(p) in 1/time; the number of solves in the attribute ``evaluations``.

    Raises
    ------
    InvalidInput
        If Lambda does not cross 0 again up to |p| = 64, as without noise along y.
    ConvergenceFailure
        If a spectral method does not converge, see `moment_lyapunov_exponent`.

    Notes
    -----
    Lambda is convex, with Lambda(0) = 0. A Newton step from where its slope points away from 0 ends beyond the root,
    and all further ones approach it from there.

    References
    ----------
    Arnold and Khasminskii 1993, in Stochastic Analysis, Proc. Symp. Pure Math. 57, 543.
    """
    drift, noises = linearised(sde, at)
    rates = GrowthRates(drift, noises)
    top = rates.exponent()
    solves = 1
    if abs(top.value) <= 2 * top.error:
        return _index(sde, 0.0, top.error / max(top.slope, 1e-300), top.value, solves)
    away = -math.copysign(1.0, top.value)
    p = -2 * top.value / top.slope if top.slope > 0 else away
    p = away * min(max(abs(p), 1e-6), _FARTHEST)
    for _ in range(_NEWTON):
        rate = rates.moment(p, slope=True)
        solves += 1
        if away * rate.slope <= 0:
            if abs(p) >= _FARTHEST:
                break
            p = away * min(2 * abs(p), _FARTHEST)
            continue
        step = rate.value / rate.slope
        p -= step
        if abs(p) > _FARTHEST:
            break
        if abs(step) <= max(1e-13 * abs(p), rate.error / abs(rate.slope)):
            return _index(sde, p, max(rate.error / abs(rate.slope), 1e-14 * abs(p)), rate.slope, solves)
    raise InvalidInput(
        f"Lambda(p) does not cross 0 again up to p={away * _FARTHEST:g} (Lyapunov exponent {top.value:.4g}, variance "
        f"of log|y| {top.slope:.3g} per time): there is no stability index; look at moment_lyapunov_exponent"
    )


def _index(sde: Any, value: float, error: float, slope: float, solves: int) -> xr.Dataset:
    return xr.Dataset(
        {
            "value": ((), value, {"units": "1", "long_name": "moment with Lambda(p) = 0"}),
            "error": ((), error, {"units": "1", "long_name": "estimated error"}),
            "slope": ((), slope, {"units": "1/time", "long_name": "Lambda'(p) there"}),
        },
        attrs=provenance(convention=sde.convention, method="spectral", evaluations=solves),
    )


def stability_threshold(
    build: Callable[[float], Any],
    bracket: tuple[float, float],
    *,
    at: Any,
    p: float = 0.0,
    tolerance: float = 1e-10,
) -> xr.Dataset:
    """Value of a parameter at which Lambda(p) of the linearisation is 0; for p = 0 the Lyapunov exponent.

    Parameters
    ----------
    build : callable
        ``build(value)`` returns the SDE.
    bracket : (float, float)
        Two values between which Lambda(p) changes sign.
    at : sequence of d floats or callable
        The fixed point, or ``at(value)``.
    p : float
    tolerance : float
        Of the root, as a fraction of the bracket.

    Returns
    -------
    Dataset
        ``value``, ``error`` (tolerance, and the error of Lambda over its slope), ``slope``: d Lambda(p)/dvalue;
        the number of solves in the attribute ``evaluations``.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, or Lambda(p) has one sign at both ends.
    ConvergenceFailure
        As for `stability_index`.

    Notes
    -----
    The root of Lambda(p)/p, which tends to the exponent as p -> 0, by Alefeld, Potra and Shi's algorithm 748.
    """
    ends = checked_bracket(bracket)
    if not callable(build):
        raise InvalidInput(
            f"build={build!r} is not callable; give a function of the value that returns the SDE"
        )
    if not (isinstance(p, (int, float, np.number)) and math.isfinite(p)):
        raise InvalidInput(f"p={p!r}; give a finite number")
    if not (isinstance(tolerance, (int, float, np.number)) and 0 < tolerance < 1):
        raise InvalidInput(f"tolerance={tolerance!r}; give a fraction of the bracket between 0 and 1")
    conventions: list[str] = []
    order = float(p)

    def rate(value: float) -> Point:
        sde = build(value)
        point: Any = at(value) if callable(at) else at
        rates = GrowthRates(*linearised(sde, point))
        found = rates.moment(order) if order else rates.exponent()
        conventions.append(sde.convention)
        per = order or 1.0
        return Point(value, found.value / per, found.value, error=found.error / abs(per))

    what = f"Lambda({order:g})" if order else "the Lyapunov exponent"
    root = root_by_values(rate, ends, Quantity(what, 0.0), tol=tolerance)
    return xr.Dataset(
        {
            "value": ((), root.value, {"units": "1", "long_name": f"parameter at which {what} is 0"}),
            "error": ((), root.error, {"units": "1", "long_name": "estimated error"}),
            "slope": (
                (),
                root.slope * (order or 1.0),
                {"units": "1/time", "long_name": f"change of {what} with it"},
            ),
        },
        attrs=provenance(convention=conventions[0], method="spectral", evaluations=len(root.points)),
    )
