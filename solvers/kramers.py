"""Escape over a barrier in the limit of weak noise: Kramers and Eyring-Kramers formulas, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.integrate import quad

from solvers import tangent
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.observables import mean_first_passage_time
from solvers.provenance import provenance
from solvers.purity import plain_function
from solvers.reading import as_params
from solvers.regions import Region, checked_grid
from solvers.sde import SDE

Point = float | Sequence[float] | Mapping[str, float]
_NEWTON_STEPS = 60


def eyring_kramers_rate(
    model: Any, *, minimum: Point, saddle: Point, D: float | None = None, params: Any = None
) -> xr.Dataset:
    """Rate of leaving a well over a saddle as the noise goes to zero, in any dimension.

    Parameters
    ----------
    model : SDE or callable
        An SDE made by `from_potential` with constant noise, the same for all components; any SDE in one
        dimension, whose noise may depend on the state; or a potential ``U(t, y, p, xp)``, together with D.
    minimum, saddle : float, sequence or mapping of names to float
        Bottom of the well and the saddle that is crossed, roughly: both are found exactly by Newton's method.
    D : float, optional
        For a potential: the noise, dY = -grad U dt + sqrt(2 D) dW.
    params : NamedTuple, mapping, tuple or None
        For a potential: its parameters.

    Returns
    -------
    Dataset
        ``rate`` of transitions past the saddle in 1/time, ``log_rate``, ``prefactor`` in 1/time and ``barrier``
        (dimensionless, so that rate = prefactor * exp(-barrier)), ``minimum(component)``, ``saddle(component)``.
        The inverse of the rate is the mean time to reach the other side, not the saddle itself, which takes half
        as long.

    Raises
    ------
    InvalidInput
        If the points are no minimum and no saddle with one way down, if there is no potential, or the noise is
        not of the stated kind.

    Notes
    -----
    rate = |l| / (2 pi) sqrt(det H(minimum) / |det H(saddle)|) exp(-(U(saddle) - U(minimum)) / D) with the Hessians H
    and the negative eigenvalue l of the saddle's, by exact derivatives (Bovier, Eckhoff, Gayrard and Klein, J. Eur.
    Math. Soc. 6 (2004) 399). The relative error is of order D. In one dimension with noise that depends on the
    state, U / D becomes Phi with Phi' = -(a - c D') / D (c = 1 Ito, 1/2 Stratonovich, 0 Klimontovich), by
    quadrature, and rate = D(saddle) sqrt(Phi''(minimum) |Phi''(saddle)|) / (2 pi) exp(-Delta Phi): Laplace's
    method on the exact mean passage time. There minimum and saddle are those of Phi, not of the drift.

    Examples
    --------
    >>> def wells(t, y, p, xp):
    ...     return (y[0] ** 2 - 1) ** 2 + y[1] ** 2
    >>> result = eyring_kramers_rate(wells, minimum=(-0.9, 0.1), saddle=(0, 0), D=0.1)
    >>> round(float(result.prefactor), 6), round(float(result.barrier), 6)
    (0.900316, 10.0)
    """
    if isinstance(model, SDE):
        if D is not None or params is not None:
            raise InvalidInput("an SDE brings its own noise and parameters; leave out D and params")
        if model.dimension == 1:
            return _in_one_dimension(model, minimum, saddle)
        if model.potential is None:
            raise InvalidInput(
                f"the model has {model.dimension} components and no potential; make it with from_potential"
            )
        return _with_potential(
            model.potential,
            _constant_noise(model),
            model.params,
            model.names,
            model.convention,
            minimum,
            saddle,
        )
    if not callable(model):
        raise InvalidInput(f"model is a {type(model).__name__}; pass an SDE, or a potential U(t, y, p, xp)")
    if not (isinstance(D, (int, float, np.number)) and 0 < D < np.inf):
        raise InvalidInput(f"D={D!r}; give the noise of a potential as a positive number")
    dimension = len(minimum) if isinstance(minimum, (Sequence, Mapping, np.ndarray)) else 1
    names = tuple(minimum) if isinstance(minimum, Mapping) else tuple(f"y{i}" for i in range(dimension))
    potential = plain_function(model, "model")
    return _with_potential(potential, float(D), as_params(params), names, None, minimum, saddle)


def kramers_comparison(fp: Any, *, minimum: Point, saddle: Point, target: Region) -> xr.Dataset:
    """The computed rate of leaving a well beside the formula for weak noise.

    Parameters
    ----------
    fp : FokkerPlanck
        Of a model that `eyring_kramers_rate` takes.
    minimum, saddle : float, sequence or mapping
        As for `eyring_kramers_rate`.
    target : callable
        Predicate on coordinate arrays: what counts as the other side. Well beyond the saddle, for example the
        neighbourhood of the next minimum.

    Returns
    -------
    Dataset
        ``rate``: one over the mean time from the minimum to the target, in 1/time; ``eyring_kramers``: the
        formula; ``ratio`` = rate / eyring_kramers, which is 1 + O(D); ``barrier`` in units of the noise.

    Raises
    ------
    InvalidInput
        As for `eyring_kramers_rate` and `mean_first_passage_time`.
    ConvergenceFailure
        As for `mean_first_passage_time`, or if the formula underflows.
    """
    grid = checked_grid(fp)
    formula = eyring_kramers_rate(fp.sde, minimum=minimum, saddle=saddle)
    if not float(formula.rate) > 0:
        raise ConvergenceFailure(
            f"the formula's rate exp({float(formula.log_rate):.4g}) is below the smallest float; use more noise"
        )
    start = dict(zip(grid.names, formula.minimum.values.tolist(), strict=True))
    for name, value in start.items():
        if not grid.edges[name][0] <= value <= grid.edges[name][-1]:
            raise InvalidInput(f"the minimum has {name}={value:g}, outside the grid; widen the grid")
    time = float(mean_first_passage_time(fp, target).sel(start, method="nearest"))
    if time == 0:
        raise InvalidInput("the target contains the minimum; move it beyond the saddle")
    return xr.Dataset(
        {
            "rate": ((), 1.0 / time, {"units": "1/time", "long_name": "computed rate of leaving the well"}),
            "eyring_kramers": ((), float(formula.rate), formula.rate.attrs),
            "ratio": (
                (),
                1.0 / time / float(formula.rate),
                {"units": "1", "long_name": "computed rate over the formula"},
            ),
            "barrier": formula.barrier,
        },
        attrs=provenance(convention=fp.sde.convention),
    )


# ---- potentials ------------------------------------------------------------------------------------------


def _with_potential(
    potential: Callable[..., Any],
    D: float,
    params: Any,
    names: tuple[str, ...],
    convention: str | None,
    minimum: Point,
    saddle: Point,
) -> xr.Dataset:
    read = _derivatives(potential, params, names)
    points = [_coordinates(point, names, role) for point, role in ((minimum, "minimum"), (saddle, "saddle"))]
    bottom = _stationary_point(read, points[0], "minimum", 0)
    top = _stationary_point(read, points[1], "saddle", 1)
    level_bottom, _, hessian_bottom = read(bottom)
    level_top, _, hessian_top = read(top)
    around, curvatures = np.linalg.eigvalsh(hessian_bottom), np.linalg.eigvalsh(hessian_top)
    # a product of ratios, not a ratio of products: determinants of many dimensions may overflow
    ratio = float(np.exp(0.5 * (np.log(around).sum() - np.log(np.abs(curvatures)).sum())))
    prefactor = abs(float(curvatures[0])) / (2 * math.pi) * ratio
    return _dataset(prefactor, (level_top - level_bottom) / D, bottom, top, names, convention)


def _derivatives(potential: Callable[..., Any], params: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """A function of a point that returns the potential, its gradient and its Hessian, differentiated exactly."""
    import sympy as sp

    t = sp.Symbol("t", real=True)
    y = tuple(sp.Symbol(name, real=True) for name in names)
    value = sp.sympify(tangent.trace(potential, (t, y, _symbols_like(params)), "potential"))
    if not isinstance(value, sp.Expr):
        raise InvalidInput(f"potential must return one number, got {value!r}; return the value itself")
    gradient = [sp.diff(value, a) for a in y]
    symbols = tangent.SymbolicSDE(t, y, (), (), ())
    first = tangent.lambdify_components([value, *gradient], symbols)
    second = tangent.lambdify_components([[sp.diff(g, b) for b in y] for g in gradient], symbols)

    def read(point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        at = tuple(float(v) for v in point)
        with np.errstate(all="ignore"):
            level, *slope = first(0.0, at, params, np)
            curvature = second(0.0, at, params, np)
        return float(level), np.array(slope, dtype=float), np.array(curvature, dtype=float)

    return read


def _symbols_like(params: Any) -> Any:
    import sympy as sp

    fields = getattr(params, "_fields", None)
    if fields is None:
        return tuple(sp.Symbol(f"p[{i}]", real=True) for i in range(len(params)))
    return type(params)(*(sp.Symbol(f"p.{name}", real=True) for name in fields))


def _stationary_point(read: Callable[..., Any], start: np.ndarray, role: str, downward: int) -> np.ndarray:
    """The stationary point nearest by Newton's method, with the given number of negative curvatures."""
    point = start.astype(float)
    scale = max(1.0, float(np.abs(start).max()))
    for _ in range(_NEWTON_STEPS):
        _, slope, curvature = read(point)
        values = np.linalg.eigvalsh(curvature) if np.isfinite(curvature).all() else np.zeros(1)
        if not np.isfinite(slope).all() or np.abs(values).min() <= 1e-12 * np.abs(values).max():
            raise InvalidInput(
                f"{role}={_shown(start)}: at {_shown(point)} the slope or curvature is degenerate, where the formula "
                "does not hold; give another point"
            )
        step = np.linalg.solve(curvature, slope)
        point = point - step
        if np.abs(step).max() <= 1e-12 * scale:
            break
    else:
        raise InvalidInput(
            f"{role}={_shown(start)}: no stationary point was found near it; give a nearer one"
        )
    found = int(np.sum(values < 0))
    if found != downward:
        raise InvalidInput(
            f"{role}={_shown(start)} leads to a stationary point at {_shown(point)} with {found} directions "
            f"downhill where a {role} has {downward}; give a point nearer the {role}"
        )
    return point


def _constant_noise(sde: SDE) -> float:
    """D of a model whose noise is constant and the same for all components."""
    symbolic = sde.symbolic()
    if any(symbol in getattr(s, "free_symbols", ()) for s in symbolic.diffusion for symbol in symbolic.y):
        raise InvalidInput(
            "the noise depends on the state; the formula in more than one dimension needs constant noise"
        )
    sigma = np.array([float(s) for s in sde.diffusion_at(0.0, tuple(np.zeros(sde.dimension)))])
    if not sigma.min() > 0 or np.ptp(sigma) > 1e-12 * sigma.max():
        raise InvalidInput(
            f"the noise of the components is {_shown(sigma)}; the formula needs the same positive noise in all"
        )
    return 0.5 * float(sigma[0]) ** 2


# ---- one dimension ---------------------------------------------------------------------------------------


def _in_one_dimension(sde: SDE, minimum: Point, saddle: Point) -> xr.Dataset:
    """Kramers' formula for any drift and noise, from Phi' = -(drift of the Klimontovich reading) / D."""
    read = _force(sde)
    points = [_coordinates(p, sde.names, role) for p, role in ((minimum, "minimum"), (saddle, "saddle"))]
    bottom = _stationary_point(read, points[0], "minimum", 0)
    top = _stationary_point(read, points[1], "saddle", 1)
    low, high = float(bottom[0]), float(top[0])
    height, error = quad(
        lambda x: float(read(np.array([x]))[1][0]), low, high, epsabs=1e-13, epsrel=1e-12, limit=500
    )
    if not (height > 0 and error < 1e-6 * max(1.0, height)):
        raise InvalidInput(
            f"between minimum {low:g} and saddle {high:g} the barrier is {height:.4g} with a quadrature error of "
            f"{error:.2g}; give two neighbouring points between which the noise is not zero"
        )
    well, hill = float(read(bottom)[2][0, 0]), float(read(top)[2][0, 0])
    diffusion = read(top)[0]
    prefactor = diffusion * math.sqrt(well * abs(hill)) / (2 * math.pi)
    return _dataset(prefactor, height, bottom, top, sde.names, sde.convention)


def _force(sde: SDE) -> Callable[..., Any]:
    """A function of a point that returns D, and the first two derivatives of Phi."""
    import sympy as sp

    reading = sde if sde.convention == "klimontovich" else sde.to("klimontovich")
    symbolic = reading.symbolic()
    (y,) = symbolic.y
    diffusion = sp.Rational(1, 2) * sum(s**2 for s in symbolic.sigma[0])
    slope = -symbolic.drift[0] / diffusion
    traced = tangent.lambdify_components([diffusion, slope, sp.diff(slope, y)], symbolic)

    def read(point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            level, first, second = traced(0.0, (np.float64(point[0]),), sde.params, np)
        return float(level), np.array([first], dtype=float), np.array([[second]], dtype=float)

    return read


# ---- reading and writing ---------------------------------------------------------------------------------


def _coordinates(point: Point, names: tuple[str, ...], role: str) -> np.ndarray:
    if isinstance(point, Mapping):
        if set(point) != set(names):
            raise InvalidInput(f"{role} names {', '.join(map(str, point))}; give {', '.join(names)}")
        point = [point[name] for name in names]
    try:
        values = np.atleast_1d(np.asarray(point, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{role}={point!r} is no point; give {len(names)} numbers") from error
    if values.shape != (len(names),) or not np.isfinite(values).all():
        raise InvalidInput(f"{role}={point!r}; give {len(names)} finite numbers ({', '.join(names)})")
    return values


def _shown(point: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in point) + ")"


def _dataset(
    prefactor: float,
    barrier: float,
    bottom: np.ndarray,
    top: np.ndarray,
    names: tuple[str, ...],
    convention: str | None,
) -> xr.Dataset:
    if not barrier > 0:
        raise InvalidInput(
            f"the saddle {_shown(top)} lies {-barrier:.4g} D below the minimum {_shown(bottom)}; give the saddle "
            "through which this well is left"
        )
    log_rate = math.log(prefactor) - barrier
    return xr.Dataset(
        {
            "rate": ((), math.exp(log_rate), {"units": "1/time", "long_name": "Eyring-Kramers rate"}),
            "log_rate": ((), log_rate, {"units": "1", "long_name": "logarithm of the rate"}),
            "prefactor": ((), prefactor, {"units": "1/time", "long_name": "prefactor of exp(-barrier)"}),
            "barrier": ((), barrier, {"units": "1", "long_name": "height of the barrier over the noise"}),
            "minimum": ("component", bottom, {"units": "1", "long_name": "bottom of the well"}),
            "saddle": ("component", top, {"units": "1", "long_name": "saddle"}),
        },
        coords={"component": ("component", list(names), {"units": "1", "long_name": "component"})},
        attrs=provenance(convention=convention),
    )
