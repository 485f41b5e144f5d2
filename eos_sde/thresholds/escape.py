"""Escape within a horizon: from the flip normal form, from the loss along a line, and past the catapult edge."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq

from eos_sde.models.arguments import count, finite, non_negative, positive
from eos_sde.models.maps import NoisyMap
from eos_sde.models.normal_forms import flip_coefficients, flip_normal_form
from eos_sde.thresholds.crossing import locate
from eos_sde.thresholds.result import Threshold
from solvers import SDE, AccuracyWarning, FokkerPlanck, Grid, InvalidInput, TransferOperator, escape_rate

_SOURCE = "quasi-stationary rate of the flip normal form (Kuznetsov 2004, section 5.4; Collet et al. 2013)"
_DROP = 12.0  # log units below the barrier at which a path counts as gone: e^-12 of them would return
_TOLERANCE = 1e-4
_FEWEST_CELLS, _MOST_CELLS = 400, 4000
_CERTAIN = 6.0  # standard deviations: 1e-9 of what is counted as gone would come back
_CELLS_PER_KICK = 8  # the grid then adds less than 0.3 % to the variance of a kick


def catapult(sharpness: float) -> Threshold:
    """Learning rate up to which gradient descent that leaves its minimum comes back to a flatter one: 4 / S.

    Between 2/S and 4/S the loss first grows; large outputs then lower the sharpness until eta S < 2. From 4/S on
    they raise it, and the loss diverges.

    Exact for gradient descent on the half squared error of a two-layer linear network and one example, from any
    state in which it diverges beyond the edge and from every state below it (`models.maps.catapult_map`). For other
    networks it is a rule of thumb: the factor depends on the architecture, and for cross entropy there need be none.

    Parameters
    ----------
    sharpness : float
        S > 0, the largest Hessian eigenvalue where the loss is small, or the largest eigenvalue of the tangent
        kernel over n at the start.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "catapult".

    Raises
    ------
    InvalidInput
        If the sharpness is not positive.
    """
    s = positive(
        "sharpness", sharpness, "give the largest eigenvalue; without one above 0 nothing is unstable"
    )
    return Threshold(
        4 / s, 0.0, "catapult", "4/S, two-layer linear network", "Lewkowycz et al. 2020, arXiv:2003.02218"
    )


class _Line(NamedTuple):
    """What the normal form needs to know."""

    curvature: float
    third: float
    fourth: float
    feedback: float
    gradient_variance: float
    curvature_variance: float

    def form(self, eta: float) -> _Form:
        mu, c = flip_coefficients(eta, self.curvature, self.third, self.fourth, feedback=self.feedback)
        return _Form(mu, c, eta * math.sqrt(self.gradient_variance), eta * math.sqrt(self.curvature_variance))


class _Form(NamedTuple):
    """Coefficients of dA = (mu A - C A^3) dk + sqrt(s^2 + m^2 A^2) dW."""

    mu: float
    C: float
    s: float
    m: float

    def fall(self, low: float, high: float) -> float:
        """How far the quasi-potential falls between two squared amplitudes: the integral of 2 drift / noise^2."""
        drift_over_noise = lambda z: (self.mu - self.C * z) / (self.s**2 + self.m**2 * z)  # noqa: E731
        return float(quad(drift_over_noise, low, high, epsrel=1e-10)[0])

    @property
    def edge(self) -> float:
        """Squared amplitude of the unstable oscillation; 0 beyond the edge."""
        return max(self.mu / self.C, 0.0)

    @property
    def barrier(self) -> float:
        """Kramers exponent, mu^2/(2 |C| s^2) where m = 0."""
        return -self.fall(0.0, self.edge)

    def wall(self) -> float:
        """Amplitude beyond the unstable oscillation from which no path returns."""
        edge = self.edge
        step = max(edge, self.s**2)
        while self.fall(edge, edge + step) < _DROP:
            step *= 2
        excess = lambda z: self.fall(edge, edge + z) - _DROP  # noqa: E731
        return math.sqrt(edge + float(brentq(excess, 0.0, step, rtol=1e-6)))  # pyright: ignore[reportArgumentType]

    def grid(self) -> Grid:
        wall = self.wall()
        cells = math.ceil(2 * _CELLS_PER_KICK * wall / self.s)
        return Grid.uniform(A=(-wall, wall, min(max(cells, _FEWEST_CELLS), _MOST_CELLS)))


def flip_barrier(
    eta: float,
    *,
    curvature: float,
    third: float,
    fourth: float,
    gradient_variance: float,
    curvature_variance: float = 0.0,
    feedback: float = 0.0,
) -> float:
    """Kramers exponent of the subcritical flip: mu^2/(2 |C| s^2), less with curvature noise.

    Parameters
    ----------
    eta, curvature, third, fourth, gradient_variance, curvature_variance, feedback
        As for `flip_escape_rate`.

    Returns
    -------
    float
        How far the quasi-potential rises to the unstable oscillation: 0 from the edge on, infinite below it where
        C >= 0.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    line = _checked(curvature, third, fourth, gradient_variance, curvature_variance, feedback)
    form = line.form(positive("eta", eta))
    return 0.0 if form.mu >= 0 else math.inf if form.C >= 0 else form.barrier


def flip_escape_rate(
    eta: float,
    *,
    curvature: float,
    third: float,
    fourth: float,
    gradient_variance: float,
    curvature_variance: float = 0.0,
    feedback: float = 0.0,
    discrete: bool = False,
) -> float:
    """Rate per step of leaving a minimum whose flip is subcritical, near the edge of stability.

    The quasi-stationary decay rate of ``dA = (mu A - C A^3) dk + sqrt(s^2 + m^2 A^2) dW`` with C < 0, removed so far
    beyond the unstable oscillation A^2 = mu/C that it would not return. For a high barrier and m = 0 it is
    ``sqrt(2) |mu|/pi exp(-mu^2/(2 |C| s^2))``: Kramers' rate over both sides.

    Parameters
    ----------
    eta : float
        Learning rate, > 1/curvature.
    curvature, third, fourth : float
        Derivatives of the loss along the top eigenvector at the minimum.
    gradient_variance, curvature_variance : float
        Variance of the batch's first (> 0) and second (>= 0) derivative along it.
    feedback : float
        As for `models.flip_coefficients`.
    discrete : bool
        By the transfer operator of the map whose step is one step of this SDE, instead of Fokker-Planck. The rates
        differ by O(sqrt(|mu|)), the thresholds by far less; its cells must resolve a kick, which close to the edge
        (|mu| below about 1e-3) takes more than there are.

    Returns
    -------
    float

    Raises
    ------
    InvalidInput
        If an argument is out of range, or the flip is supercritical at this rate (C >= 0).
    """
    line = _checked(curvature, third, fourth, gradient_variance, curvature_variance, feedback)
    eta = positive("eta", eta)
    if eta * line.curvature <= 1:
        raise InvalidInput(
            f"eta * curvature = {eta * line.curvature:.4g} is not near the edge, 2; give eta > 1/curvature"
        )
    form = line.form(eta)
    if form.C >= 0:
        raise InvalidInput(
            f"C = {form.C:.4g} is not negative: the oscillation is bounded and nothing escapes; use line_escape"
        )
    sde, grid = flip_normal_form(*form), form.grid()
    operator = (
        TransferOperator(sde, grid, step=1.0, boundary="absorbing")
        if discrete
        else FokkerPlanck(sde, grid, boundary="absorbing")
    )
    return float(escape_rate(operator)["rate"])


def flip_escape(
    *,
    curvature: float,
    third: float,
    fourth: float,
    gradient_variance: float,
    horizon: int,
    curvature_variance: float = 0.0,
    feedback: float = 0.0,
    discrete: bool = False,
) -> Threshold:
    """Learning rate at which one escape from a minimum is expected within a horizon, by the flip normal form.

    Where `flip_escape_rate` times the horizon is 1; by the exponential law a fraction 1 - 1/e of runs has then left.

    Subcritical flip (C < 0 at the edge): noise drives the weight over the unstable oscillation before the edge; as the
    noise vanishes the threshold goes to (2 + 1/horizon)/curvature. Supercritical (C > 0): beyond the edge the
    oscillation is bounded and the normal form has no way out, so the threshold is infinite; what lies further
    out decides, see `line_escape` and `catapult`.

    Parameters
    ----------
    curvature, third, fourth, gradient_variance, curvature_variance, feedback, discrete
        As for `flip_escape_rate`.
    horizon : int
        Steps, at least 10.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "escape". Its stderr is the discretisation error.

    Raises
    ------
    InvalidInput
        If an argument is out of range, or the noise leaves no barrier at any learning rate near the edge.
    """
    line = _checked(curvature, third, fourth, gradient_variance, curvature_variance, feedback)
    steps = count("horizon", horizon, least=10)
    h = line.curvature
    at_edge, high = line.form(2 / h), (2 + 3 / steps) / h
    if at_edge.C >= 0 or line.form(high).C >= 0:
        method = (
            "none: supercritical flip, bounded oscillation beyond 2/curvature; line_escape or catapult apply"
        )
        return Threshold(math.inf, 0.0, "escape", method, _SOURCE)
    enough = math.log(steps) + 4.0  # the rate is below |mu| exp(-barrier), so that rate * steps < e^-4
    for size in np.geomspace(1e-12, 1.0, 240)[:-1]:
        low = (2 - float(size)) / h
        if line.form(low).C < 0 and line.form(low).barrier > enough:
            break
    else:
        raise InvalidInput(
            f"gradient_variance={line.gradient_variance:.4g} and curvature_variance={line.curvature_variance:.4g} "
            "leave no barrier near the edge; raise the batch size, shorten the horizon, or use line_escape"
        )

    def build(eta: float) -> SDE | NoisyMap:
        sde = flip_normal_form(*line.form(eta))
        return NoisyMap("flip normal form", sde, 1.0) if discrete else sde

    found = locate(
        build, bracket=(low, high), criterion="escape", tolerance=_TOLERANCE,
        grid=lambda eta: line.form(eta).grid(), horizon=steps,
    )  # fmt: skip
    operator = "transfer operator" if discrete else "Fokker-Planck"
    return replace(found, method=f"subcritical flip, {operator}: {found.method}", source=_SOURCE)


def line_escape(
    slope: Callable[[Any], Any],
    noise: Callable[[Any], Any],
    *,
    interval: tuple[float, float],
    horizon: int,
    bracket: tuple[float, float],
    cells: int = 1000,
) -> Threshold:
    """Learning rate at which one escape from an interval is expected within a horizon, by SGD on a line.

    The map x+ = x - eta slope(x) + eta noise(x) xi itself, with everything that the normal form leaves out: bounded
    oscillations, their own instabilities, and the barrier behind them. Its transfer operator, absorbing outside the
    interval, gives the quasi-stationary rate.

    Parameters
    ----------
    slope, noise : callable
        Mean and standard deviation (>= 0) of the batch gradient at x, as functions a model may call on components
        (`solvers.tabulated`, arithmetic).
    interval : (float, float)
        The basin around the minimum at 0. What lands outside has left; what will do so in the next step with
        certainty (6 standard deviations) counts as gone.
    horizon : int
        Steps.
    bracket : (float, float)
        Learning rates between which to search.
    cells : int
        Of the grid.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "escape".

    Raises
    ------
    InvalidInput
        If an argument is out of range, or the rate does not cross 1/horizon in the bracket.
    """
    low, high = (finite(f"interval[{i}]", end) for i, end in enumerate(interval))
    if not low < 0 < high:
        raise InvalidInput(
            f"interval={(low, high)} is not around the minimum, 0; give (low, high) on either side"
        )
    steps = count("horizon", horizon, least=10)
    cells = count("cells", cells, least=20)

    def drift(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
        return (-p.eta * slope(y[0]),)

    def diffusion(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
        return (p.eta * noise(y[0]),)

    sde = SDE(drift, diffusion, params={"eta": 1.0}, names=("x",), convention="ito")
    with warnings.catch_warnings():
        # At learning rates far below, the rate of escape is under rounding: all that is asked there is that it is
        # below one per horizon.
        warnings.filterwarnings("ignore", r"1 - \|eigenvalue\| is", AccuracyWarning)
        found = locate(
            lambda eta: NoisyMap("SGD on a line", sde.replace(eta=eta), 1.0),
            bracket=bracket, criterion="escape", tolerance=_TOLERANCE, horizon=steps,
            grid=lambda eta: Grid.uniform(x=(*undecided(low, high, eta, slope, noise), cells)),
        )  # fmt: skip
    return replace(found, method=f"map on the line, transfer operator: {found.method}")


def undecided(
    low: float, high: float, eta: float, slope: Callable[[Any], Any], noise: Callable[[Any], Any]
) -> tuple[float, float]:
    """The part of the basin around 0 from which the next step does not leave with certainty.

    To be beyond it is to have left. A wider grid would carry points whose part in the slowest mode is below rounding.
    """
    x = np.linspace(low, high, 4001)
    landing, spread = x - eta * slope(x), _CERTAIN * eta * noise(x)
    leaves = (landing + spread < low) | (landing - spread > high)
    left, right = x[leaves & (x < 0)], x[leaves & (x > 0)]
    return float(left[-1]) if left.size else low, float(right[0]) if right.size else high


def _checked(
    curvature: float,
    third: float,
    fourth: float,
    gradient_variance: float,
    curvature_variance: float,
    feedback: float,
) -> _Line:
    return _Line(
        positive("curvature", curvature, "give the curvature at a minimum"),
        finite("third", third),
        finite("fourth", fourth),
        finite("feedback", feedback),
        positive(
            "gradient_variance",
            gradient_variance,
            "where no batch moves the minimum nothing escapes; use sgd_mean_square and sgd_almost_sure",
        ),
        non_negative("curvature_variance", curvature_variance),
    )
