"""estimate_order(): the order at which a scheme converges, with an interval, on shared Brownian paths."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import optimize, stats

from solvers import wiener
from solvers.end_errors import BATCHES, Study, strong_errors, weak_errors
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.model_forms import form_of
from solvers.provenance import provenance
from solvers.request import checked_start

if TYPE_CHECKING:
    from solvers.sde import SDE
    from solvers.vector_form import VectorSDE

_MODEL_ERROR = 0.01
"""Half width that the interval has even without noise, for terms of the expansion beyond the second."""
_NEGLECTED = 0.05
"""Relative error of the fitted law at the largest step, assumed for the weights."""
_STEPS = {"strong": (16, 32, 64, 128, 256), "weak": (8, 16, 32, 64)}
_PATHS = {"strong": 4000, "weak": 50_000}


def estimate_order(
    sde: SDE | VectorSDE,
    *,
    scheme: str,
    kind: str = "strong",
    y0: Any = 1.0,
    t1: float = 1.0,
    t0: float = 0.0,
    steps: Sequence[int] | None = None,
    paths: int | None = None,
    seed: int = 0,
    exact: Callable[..., Any] | None = None,
    observable: Callable[..., Any] | None = None,
    expected: float | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """Fit the order of convergence of a scheme on one SDE.

    Parameters
    ----------
    sde : SDE or VectorSDE
        The model, in any convention.
    scheme : str
        As in `simulate`.
    kind : {"strong", "weak"}
        Strong: mean distance of the end points, ``E |X_h(t1) - X(t1)|``, on the same Brownian paths. Weak:
        ``|E f(X_h) - E f(X)|``.
    y0 : float or array (d,)
        Start.
    t0, t1 : float
        Start and end.
    steps : sequence of int, optional
        Numbers of steps; each must divide the largest. 16 to 256 (strong) or 8 to 64 (weak) if not given.
    paths : int, optional
        Number of paths, at least 40; 4000 (strong) or 50 000 (weak) if not given. For kind="weak" each is
        used with its mirror image as well.
    seed : int
        Of the Brownian paths.
    exact : callable, optional
        ``exact(t, y0, w, p)``: d-tuple of arrays, the solution at t for the Wiener processes' values w (tuple
        of m arrays). Without it and `expected` the reference is the scheme itself on 16 times more steps than
        the largest number, and the fit allows for the error of that reference.
    observable : callable, optional
        ``observable(y)`` for kind="weak": f, on a d-tuple of arrays; the first component if not given.
    expected : float, optional
        ``E f(X(t1))`` for kind="weak". A scheme without Gaussian numbers needs it or `exact`.
    level : float
        Confidence of the interval.

    Returns
    -------
    Dataset
        ``order``, ``order_low``, ``order_high``; ``error`` and ``stderr`` over ``dt``. The fit is
        ``error = C dt^order exp(c dt)``, the last factor for the next term of the expansion; the interval is
        the jackknife's over 20 batches of paths, widened on both sides by 0.01 or, if more, by what leaving out
        the largest step changes beyond its sampling error. Attribute ``stated_order`` is what
        the scheme claims for this noise.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, or the strong order is asked of a scheme that has none.

    Warns
    -----
    AccuracyWarning
        If an error is not resolved above its sampling noise.

    Notes
    -----
    Weak errors are differences on the same Brownian path where there is one, and a regression on polynomials
    of the increments with known means removes most of the noise that is left. A scheme of two-point or
    three-point numbers is compared with ``f(exact)`` at the sum of its own numbers, whose expectation is a
    finite sum over their lattice; that of the normal is a Gauss-Hermite sum of 100 nodes per process.
    """
    form = form_of(sde)
    found, _ = form.scheme(scheme, sde)
    if kind not in _STEPS:
        raise InvalidInput(f"kind={kind!r} is unknown: choose 'strong' or 'weak'")
    if kind == "strong" and found.strong is None:
        raise InvalidInput(
            f"scheme={found.name!r} follows no Brownian path and has no strong order; ask for kind='weak'"
        )
    if kind == "strong" and expected is not None:
        raise InvalidInput(f"expected={expected} is for kind='weak'; give exact= or nothing")
    number = _PATHS[kind] if paths is None else wiener.checked_integer("paths", paths)
    if number < 2 * BATCHES:
        raise InvalidInput(f"paths={paths} is too few for an interval; give at least {2 * BATCHES}")
    steps = _STEPS[kind] if steps is None else steps
    counts = np.unique([wiener.checked_integer("steps", n) for n in steps])
    if counts.size < 4 or counts[0] < 1 or (counts[-1] % counts).any():
        raise InvalidInput(f"steps={list(steps)} must be four or more numbers that divide the largest")
    if not t1 > t0:
        raise InvalidInput(f"t1={t1} must be later than t0={t0}")
    if not 0 < level < 1:
        raise InvalidInput(f"level={level} must lie between 0 and 1")
    start = checked_start(sde, y0, 1)[0]
    draws = form.draws(found, sde)
    if not draws.gaussian and exact is None and expected is None:
        raise InvalidInput(
            f"scheme={found.name!r} draws no Gaussian numbers, so that nothing on its own path can replace the "
            "truth; give expected= or exact="
        )
    study = Study(
        sde, found, draws, start, t0, t1, counts, number // BATCHES, seed, exact, observable, expected
    )
    errors = strong_errors(study) if kind == "strong" else weak_errors(study)
    return _fitted(study, kind, errors, level)


def _fitted(study: Study, kind: str, errors: np.ndarray, level: float) -> xr.Dataset:
    scheme, dt, finest = study.scheme, study.dt, study.reference_dt
    mean = errors.mean(axis=0)
    stderr = errors.std(axis=0, ddof=1) / math.sqrt(BATCHES)
    if not np.isfinite(mean).all():
        raise InvalidInput(f"{scheme.name!r} diverged on this problem at dt={dt[~np.isfinite(mean)].max():g}")
    size = np.abs(mean)
    blurred = size < 3 * stderr
    if blurred.any():
        warnings.warn(
            f"the {kind} error at dt={dt[blurred].max():.4g} is {size[blurred][0]:.2g} with a sampling error "
            f"of {stderr[blurred][0]:.2g}; use more paths or larger steps",
            AccuracyWarning,
            stacklevel=3,
        )
    if kind == "weak" and np.unique(np.sign(mean[~blurred])).size > 1:
        warnings.warn(
            f"the weak error changes its sign between dt={dt[-1]:.4g} and {dt[0]:.4g}, so that no power of dt fits; "
            "use smaller steps",
            AccuracyWarning,
            stacklevel=3,
        )
    power = 1 if kind == "weak" else 2
    # The law neglects a relative term of the order dt^2: the largest steps are trusted least.
    neglected = _NEGLECTED * (dt / dt.max()) ** 2
    weight = 1.0 / np.hypot(stderr / np.maximum(size, 1e-300), neglected)

    def orders(values):
        """From all steps, and without the largest."""
        return [_order(dt[k:], np.abs(values[k:]), weight[k:], finest, power) for k in (0, 1)]

    order, inner = orders(mean)
    left_out = np.array([orders((errors.sum(axis=0) - row) / (BATCHES - 1)) for row in errors])
    change = left_out[:, 0] - left_out[:, 1]
    quantile = float(stats.t.ppf(0.5 + 0.5 * level, BATCHES - 1))
    # What the largest step changes beyond its sampling error is the error of the fitted law.
    curvature = abs(order - inner) - _jackknife(change)
    reach = quantile * _jackknife(left_out[:, 0]) + max(_MODEL_ERROR, curvature)
    noise = form_of(study.sde).noise_kind(study.sde)
    stated = scheme.weak if kind == "weak" else scheme.strong_order(noise)

    def about(text):
        return {"units": "1", "long_name": text}

    return xr.Dataset(
        {
            "order": ((), order, about(f"fitted {kind} order")),
            "order_low": ((), order - reach, about("lower end of the interval")),
            "order_high": ((), order + reach, about("upper end of the interval")),
            "error": ("dt", size, about(f"{kind} error at the end")),
            "stderr": ("dt", stderr, about("sampling error of the error")),
        },
        coords={"dt": ("dt", dt, {"units": "time", "long_name": "step"})},
        attrs=provenance(
            title=f"{kind} order of {scheme.name}",
            convention=study.sde.convention,
            scheme=scheme.name,
            noise=noise,
            stated_order=stated,
            level=level,
            paths=study.per_batch * BATCHES,
            seed=int(study.seed),
        ),
    )


def _jackknife(left_out: np.ndarray) -> float:
    """Standard error of an estimate from its values without one batch each."""
    n = left_out.size
    return math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


def _order(dt, error, weight, finest, power) -> float:
    """The order q in error = C (dt^(power q) - finest^(power q))^(1/power) exp(c dt), weighted fit of logs.

    The factor exp(c dt) stands for the next term of the expansion; without it the fit would measure the
    order at finite steps instead of the limit.
    """
    root = weight / weight.max()
    rest = root[:, None] * np.stack([np.ones_like(dt), dt / dt.max()], axis=1)
    logs = np.log(np.maximum(error, 1e-300))

    if not finest:
        columns = np.concatenate([rest, (root * np.log(dt))[:, None]], axis=1)
        return float(np.linalg.lstsq(columns, root * logs)[0][-1])

    def misfit(q):
        gap = root * (logs - np.log(dt ** (power * q) - finest ** (power * q)) / power)
        return float(((gap - rest @ np.linalg.lstsq(rest, gap)[0]) ** 2).sum())

    return float(optimize.minimize_scalar(misfit, bounds=(0.02, 6.0), method="bounded").x)
