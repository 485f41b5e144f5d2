"""estimate_order(): the order at which a scheme converges, with an interval, on shared Brownian paths."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import optimize, stats

from solvers import schemes, wiener
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.given_noise import drive
from solvers.provenance import provenance
from solvers.request import checked_start

if TYPE_CHECKING:
    from solvers.sde import SDE

_BATCHES = 20
_REFINEMENT = 16
_MODEL_ERROR = 0.01
"""Half width that the interval has even without noise, for terms of the expansion beyond the second."""
_ENTRIES = 1 << 22
"""Increments held at once."""


def estimate_order(
    sde: SDE,
    *,
    scheme: str,
    kind: str = "strong",
    y0: Any = 1.0,
    t1: float = 1.0,
    t0: float = 0.0,
    steps: Sequence[int] = (16, 32, 64, 128, 256),
    paths: int = 4000,
    seed: int = 0,
    exact: Callable[..., Any] | None = None,
    observable: Callable[..., Any] | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """Fit the order of convergence of a scheme on one SDE.

    Parameters
    ----------
    sde : SDE
        The model, in any convention.
    scheme : str
        As in `simulate`.
    kind : {"strong", "weak"}
        Strong: mean distance of the end points, ``E |X_h(t1) - X(t1)|``. Weak: ``|E f(X_h) - E f(X)|``, both
        terms on the same Brownian paths, which removes most of the sampling noise.
    y0 : float or array (d,)
        Start.
    t0, t1 : float
        Start and end.
    steps : sequence of int
        Numbers of steps; each must divide the largest.
    paths : int
        Number of Brownian paths, at least 40; for kind="weak" each is used with its mirror image as well.
    seed : int
        Of the Brownian paths.
    exact : callable, optional
        ``exact(t, y0, w, p)``: d-tuple of arrays, the solution at t for the Wiener processes' values w (tuple
        of m arrays). Without it the reference is the scheme itself on 16 times more steps than the largest
        number, and the fit allows for the error of that reference.
    observable : callable, optional
        ``observable(y)`` for kind="weak": f, on a d-tuple of arrays; the first component if not given.
    level : float
        Confidence of the interval.

    Returns
    -------
    Dataset
        ``order``, ``order_low``, ``order_high``; ``error`` and ``stderr`` over ``dt``. The fit is
        ``error = C dt^order exp(c dt)``, the last factor for the next term of the expansion; the interval is
        the jackknife's over 20 batches of paths, plus 0.01 on both sides.

    Raises
    ------
    InvalidInput
        If an argument cannot be used.

    Warns
    -----
    AccuracyWarning
        If an error is not resolved above its sampling noise.
    """
    found = schemes.find(scheme)
    if kind not in {"strong", "weak"}:
        raise InvalidInput(f"kind={kind!r} is unknown: choose 'strong' or 'weak'")
    if wiener.checked_integer("paths", paths) < 2 * _BATCHES:
        raise InvalidInput(f"paths={paths} is too few for an interval; give at least {2 * _BATCHES}")
    counts = np.unique([wiener.checked_integer("steps", n) for n in steps])
    if counts.size < 4 or counts[0] < 1 or (counts[-1] % counts).any():
        raise InvalidInput(f"steps={list(steps)} must be four or more numbers that divide the largest")
    if not t1 > t0:
        raise InvalidInput(f"t1={t1} must be later than t0={t0}")
    if not 0 < level < 1:
        raise InvalidInput(f"level={level} must lie between 0 and 1")
    start = checked_start(sde, y0, 1)
    errors = _errors(sde, start[0], found, kind, counts, t0, t1, paths, seed, exact, observable)
    finest = 0.0 if exact is not None else (t1 - t0) / (counts[-1] * _REFINEMENT)
    return _fitted(sde, found, kind, (t1 - t0) / counts, errors, finest, level, seed, paths)


def _errors(sde, start, scheme, kind, counts, t0, t1, paths, seed, exact, observable) -> np.ndarray:
    """Mean error of each batch of paths at each number of steps, shape (batches, steps)."""
    fine = int(counts[-1]) * (1 if exact is not None else _REFINEMENT)
    m = sde.noise_dimension
    per_batch = paths // _BATCHES
    size = max(1, min(per_batch, _ENTRIES // (fine * m)))
    errors = np.zeros((_BATCHES, counts.size))
    for batch in range(_BATCHES):
        for low in range(0, per_batch, size):
            number = min(size, per_batch - low)
            first = batch * per_batch + low
            dw = wiener.increments(seed, number, fine, m, (t1 - t0) / fine, first_path=first)
            if kind == "weak":  # each path and its mirror image: cancels the odd part of the noise
                dw = np.concatenate([dw, -dw])
            if exact is not None:
                w = tuple(dw.sum(axis=1).T)
                truth = np.stack(
                    [np.broadcast_to(c, (len(dw),)) for c in exact(t1, tuple(start), w, sde.params)], axis=-1
                )
            else:
                truth = _end(sde, start, dw, t0, t1, scheme)
            for k, n in enumerate(counts):
                end = _end(sde, start, wiener.coarsen(dw, fine // int(n)), t0, t1, scheme)
                if kind == "strong":
                    difference = np.sqrt(((end - truth) ** 2).sum(axis=-1))
                else:
                    difference = _observed(observable, end) - _observed(observable, truth)
                errors[batch, k] += difference.mean() * number / per_batch
    return errors


def _end(sde, start, dw, t0, t1, scheme) -> np.ndarray:
    dt = (t1 - t0) / dw.shape[1]
    return drive(sde, start, dw, dt=dt, t0=t0, scheme=scheme.name, every_step=False).values[:, 0]


def _observed(observable, states: np.ndarray) -> np.ndarray:
    return states[:, 0] if observable is None else np.asarray(observable(tuple(states.T)))


def _fitted(sde, scheme, kind, dt, errors, finest, level, seed, paths) -> xr.Dataset:
    mean = errors.mean(axis=0)
    stderr = errors.std(axis=0, ddof=1) / math.sqrt(_BATCHES)
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
    power = 1 if kind == "weak" else 2
    # Relative errors under 1 % are not trusted more than that: the law itself has corrections.
    weight = 1.0 / np.maximum(stderr / np.maximum(size, 1e-300), 0.01)

    def order_of(values):
        return _order(dt, np.abs(values), weight, finest, power)

    order = order_of(mean)
    left_out = np.array([order_of((errors.sum(axis=0) - row) / (_BATCHES - 1)) for row in errors])
    sampling = math.sqrt((_BATCHES - 1) / _BATCHES * ((left_out - left_out.mean()) ** 2).sum())
    reach = float(stats.t.ppf(0.5 + 0.5 * level, _BATCHES - 1)) * sampling + _MODEL_ERROR
    stated = scheme.weak if kind == "weak" else scheme.strong

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
            convention=sde.convention,
            scheme=scheme.name,
            stated_order=stated,
            stated_order_special=scheme.strong_special if kind == "strong" else scheme.weak,
            special=scheme.special,
            level=level,
            paths=paths,
            seed=int(seed),
        ),
    )


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
