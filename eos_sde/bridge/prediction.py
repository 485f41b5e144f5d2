"""Predictions of the reduced models from a calibration: what theory says before the network is run."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.optimize import root_scalar

from eos_sde.bridge.plateau_prediction import Predicted, flow_rows, law_rows, trust
from eos_sde.bridge.task_library import Task
from eos_sde.models import flip_coefficients, flip_normal_form, matched_linear
from eos_sde.models.maps import caeo_map
from eos_sde.optimizers import rule as caeo_rule
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers import FokkerPlanck, Grid, TransferOperator, eigenmodes, escape_rate
from solvers.errors import InvalidInput
from solvers.provenance import provenance

RULES = ("gd", "sgd", "caeo")


class Phases(NamedTuple):
    """The flip normal form of a calibrated network at a chosen barrier.

    Attributes
    ----------
    eta : float
        Learning rate at which the barrier is reached.
    mu, C, s : float
        Coefficients of ``dA = (mu A - C A^3) dk + s dW``, per step.
    kind : {"phase flip", "escape"}
        For C > 0 the two phases of the oscillation exchange beyond the edge (mu > 0); for C < 0 noise drives
        the weight out of its basin before the edge (mu < 0).
    edge : float
        sqrt(mu / C): amplitude of the oscillation, or half width of the basin.
    """

    eta: float
    mu: float
    C: float
    s: float
    kind: str
    edge: float

    def grid(self, cells: int = 600) -> Grid:
        """Cells over the phases (and six thermal widths beyond), or over the basin."""
        if self.kind == "escape":
            return Grid.uniform(A=(-self.edge, self.edge, cells))
        reach = self.edge + 6 * self.s / math.sqrt(4 * self.mu)
        return Grid.uniform(A=(-reach, reach, cells))

    def rate(self, *, discrete: bool, cells: int = 600) -> float:
        """Relaxation rate between the phases, or escape rate, per step.

        Parameters
        ----------
        discrete : bool
            From the transfer operator of one step of the map instead of the Fokker-Planck operator.
        cells : int
            Of the grid.

        Returns
        -------
        float
            The spectral gap (twice the flip rate each way), or the quasi-stationary decay rate.
        """
        sde, grid = flip_normal_form(self.mu, self.C, self.s), self.grid(cells)
        walls = "absorbing" if self.kind == "escape" else "reflecting"
        operator = (
            TransferOperator(sde, grid, step=1.0, boundary=walls)
            if discrete
            else FokkerPlanck(sde, grid, boundary=walls)
        )
        if self.kind == "escape":
            return float(escape_rate(operator)["rate"])
        modes = eigenmodes(operator, 2)
        slow = float(np.real(modes["eigenvalue"].values[1]))
        return -math.log(slow) if discrete else -slow


def phases(
    *, curvature: float, third: float, fourth: float, gradient_variance: float, barrier: float = 3.0
) -> Phases:
    """The flip normal form along a line, at the learning rate where its barrier is `barrier` noise units.

    Parameters
    ----------
    curvature, third, fourth : float
        Derivatives of the loss at a minimum along the line; curvature > 0.
    gradient_variance : float
        Variance of the batch gradient along the line, > 0.
    barrier : float
        mu^2 / (2 |C| s^2), the Kramers exponent.

    Returns
    -------
    Phases
        With eta = (2 + mu) / curvature.

    Raises
    ------
    InvalidInput
        If a number is out of range, there is no cubic term, or no learning rate within 1/curvature of the edge
        gives the barrier.
    """
    if not (curvature > 0 and gradient_variance > 0 and barrier > 0):
        raise InvalidInput(
            f"curvature={curvature:.4g}, gradient_variance={gradient_variance:.4g} and barrier={barrier:.4g} must "
            "be positive; calibrate at a minimum along the line, with a batch smaller than the training set"
        )
    at_edge = flip_coefficients(2 / curvature, curvature, third, fourth)[1]
    if at_edge == 0:
        raise InvalidInput(
            f"third={third:.4g} and fourth={fourth:.4g} give no cubic term at the edge, hence no barrier; choose "
            "another line"
        )
    side = math.copysign(1.0, at_edge)

    def excess(size: float) -> float:
        eta = (2 + side * size) / curvature
        mu, c = flip_coefficients(eta, curvature, third, fourth)
        return mu**2 - 2 * abs(c) * eta**2 * gradient_variance * barrier

    sizes = np.geomspace(1e-6, 0.999, 400)
    above = [size for size in sizes if excess(size) > 0]
    if not above:
        raise InvalidInput(
            f"the noise is too large for a barrier of {barrier:g}: raise the batch size or lower barrier"
        )
    size = float(root_scalar(excess, bracket=(0.0, above[0]), xtol=1e-14).root)
    eta = (2 + side * size) / curvature
    mu, c = flip_coefficients(eta, curvature, third, fourth)
    kind = "phase flip" if c > 0 else "escape"
    return Phases(eta, mu, c, eta * math.sqrt(gradient_variance), kind, math.sqrt(mu / c))


def stationary_variances(
    calibration: xr.Dataset, *, eta: float, batch_size: int
) -> dict[str, tuple[float, float]]:
    """Stationary variance along the top eigenvector by the map, SME-1, SME-2 and the matched model.

    Parameters
    ----------
    calibration : Dataset
        From `calibrate`.
    eta : float
        Learning rate, with eta * curvature < 2.
    batch_size : int
        B, without replacement.

    Returns
    -------
    dict
        Model to (variance, standard error), in weight^2. ``"map + curvature noise"`` is the map with the
        batch-to-batch variance of the curvature, ``eta^2 s^2 / (1 - (1 - eta h)^2 - eta^2 var h)``.

    Raises
    ------
    InvalidInput
        If there is no stationary state at this learning rate, or B is out of range.
    """
    n = calibration.attrs["examples"]
    if not 1 <= batch_size <= n:
        raise InvalidInput(f"batch_size={batch_size} must be from 1 to {n}")
    p = noise_fraction(n, batch_size)
    h = float(calibration["eigenvalue"][0])
    v, v_err = (float(calibration[name]) for name in ("per_example_variance", "per_example_variance_stderr"))
    if not 0 < eta * h < 2:
        raise InvalidInput(
            f"eta={eta} gives eta * sharpness = {eta * h:.4g}, not in (0, 2); choose another eta"
        )
    s2 = p * v
    ou = matched_linear(h, eta=eta, noise=math.sqrt(s2))
    rate, strength = float(ou.params.rate), float(ou.params.strength)
    damping = 1 - (1 - eta * h) ** 2
    shaken = damping - eta**2 * p * float(calibration["curvature_variance"])
    values = {
        "map": eta**2 * s2 / damping,
        "map + curvature noise": eta**2 * s2 / shaken if shaken > 0 else math.inf,
        "matched": strength**2 / (2 * rate),
        "SME-1": eta * s2 / (2 * h),
        "SME-2": eta * s2 / (h * (2 + eta * h)),
    }
    relative = v_err / v if v > 0 else 0.0
    return {model: (value, value * relative) for model, value in values.items()}


def caeo_path(calibration: xr.Dataset, *, eta: float, delta: float, steps: int) -> xr.Dataset:
    """Sharpness and learning rate of CAEO by the reduced model, started without oscillation.

    Parameters
    ----------
    calibration : Dataset
        From `calibrate`; its ``alpha`` is frozen along the path.
    eta : float
        Base learning rate.
    delta : float
        Margin of the rule, < 2.
    steps : int
        Updates.

    Returns
    -------
    Dataset
        ``sharpness`` and ``learning_rate`` over ``step`` = 0 .. steps, with ``*_stderr`` from that of alpha.

    Raises
    ------
    InvalidInput
        If eta is not positive, delta not below 2, or steps negative.
    """
    caeo_rule.validate(learning_rate=eta, delta=delta)
    if isinstance(steps, bool) or int(steps) != steps or steps < 0:
        raise InvalidInput(f"steps={steps} must be an integer of at least 0")
    base = {"eta_base": eta, "delta": delta, "beta": float(calibration["beta"]), "noise": 0.0}
    start = float(calibration["eigenvalue"][0])
    alpha, error = float(calibration["alpha"]), float(calibration["alpha_stderr"])

    def sharpness(value: float) -> np.ndarray:
        if value <= 0:  # no progressive sharpening: the map's builder wants alpha > 0, its formula does not
            path = [start]
            for _ in range(steps):
                path.append(path[-1] + _rate(path[-1], eta, delta) * value)
            return np.array(path)
        run = caeo_map(base["eta_base"], delta=delta, alpha=value, beta=base["beta"], noise=0.0).iterate(
            (0.0, start), steps=steps, seed=0
        )
        return run["state"].isel(path=0, component=1).values

    centre, high, low = sharpness(alpha), sharpness(alpha + error), sharpness(alpha - error)
    rates = [np.array([_rate(s, eta, delta) for s in path]) for path in (centre, high, low)]
    units = {"sharpness": "1/time", "learning_rate": "time"}
    return xr.Dataset(
        {
            name: (
                "step",
                value,
                {"units": units[name.removesuffix("_stderr")], "long_name": f"reduced CAEO {name}"},
            )
            for name, value in {
                "sharpness": centre,
                "sharpness_stderr": np.abs(high - low) / 2,
                "learning_rate": rates[0],
                "learning_rate_stderr": np.abs(rates[1] - rates[2]) / 2,
            }.items()
        },
        coords={"step": np.arange(steps + 1)},
        attrs=provenance(eta=eta, delta=delta, alpha=alpha),
    )


def _rate(sharpness: float, eta: float, delta: float) -> float:
    return float(caeo_rule.learning_rate(eta, sharpness, delta))


def predict(
    calibration: xr.Dataset,
    *,
    rule: str,
    eta: float,
    batch_size: int,
    task: Task | None = None,
    steps: int | None = None,
    progress: Callable[[float], None] | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Predictions for a rule at a learning rate and batch size, from a calibration and nothing else.

    Of the reduced models at once; with ``steps`` also of the flow, which follows the weights from the calibrated ones
    and takes as long as a forecast of so many steps.

    Parameters
    ----------
    calibration : Dataset
        From `calibrate`.
    rule : {"gd", "sgd", "caeo"}
        Which predictions apply: the edge for all; variance, plateau and phases where batches make noise.
    eta : float
        Learning rate.
    batch_size : int
        B.
    task : Task, optional
        The problem that was calibrated: the flow needs its loss.
    steps : int, optional
        How far the flow goes; the plateau is its last third.
    progress : callable, optional
        Called with the fraction of the flow that is done.
    **settings
        More of `forecast_plateau`: ``repeats``, ``seed``, ``modes``, options of the rule.

    Returns
    -------
    Dataset
        Over ``quantity``: ``predicted``, ``predicted_stderr`` (the sampling error of the calibration over the
        examples; of the flow what `forecast_plateau` tells), ``units``, ``model`` and ``caution`` (what speaks against
        it); NaN with the reason in ``model`` where a law has no answer. ``attrs["trusted_plateau"]`` names the plateau
        to trust, ``attrs["trust"]`` says why.

    Raises
    ------
    InvalidInput
        For an unknown rule, bad numbers, or ``steps`` without the task that was calibrated.
    """
    if (task is None) != (steps is None):
        raise InvalidInput("task and steps belong together: give both for the flow, or neither")
    if settings and steps is None:
        raise InvalidInput(f"{next(iter(settings))!r} is for the flow: give steps and task, or leave it out")
    if rule not in RULES:
        raise InvalidInput(f"rule={rule!r} has no reduced model here: choose one of {', '.join(RULES)}")
    if not isinstance(calibration, xr.Dataset) or "examples" not in calibration.attrs:
        raise InvalidInput(
            "calibration is not a dataset from bridge.calibrate; make one at the weights in question"
        )
    if not (eta > 0 and math.isfinite(eta)):
        raise InvalidInput(f"eta={eta} must be a positive learning rate")
    n = calibration.attrs["examples"]
    if not 1 <= batch_size <= n:
        raise InvalidInput(f"batch_size={batch_size} must be from 1 to {n}")
    h, error = (float(calibration[name][0]) for name in ("eigenvalue", "eigenvalue_stderr"))
    rows = [Predicted("edge", 2 / h, 2 * error / h**2, "time", "2/sharpness (gradient descent)")]

    def attempt(name: str, units: str, compute: Callable[[], Mapping[str, tuple[float, float]]]) -> None:
        try:
            found = compute().items()
            rows.extend(Predicted(f"{name} ({model})", *pair, units, model) for model, pair in found)
        except InvalidInput as reason:
            rows.append(Predicted(name, math.nan, math.nan, units, str(reason)))

    if rule != "gd" and batch_size < n:
        attempt(
            "top variance",
            "weight^2",
            lambda: stationary_variances(calibration, eta=eta, batch_size=batch_size),
        )

        rows += law_rows(calibration, eta=eta, batch_size=batch_size)
        attempt("metastability", "1/step", lambda: _calibrated_rate(calibration, batch_size))
    if task is not None and steps is not None:
        given = {"rule": rule, "eta": eta, "batch_size": batch_size, "steps": steps, "progress": progress}
        rows += flow_rows(calibration, task, **given, **settings)
    trusted, reason = trust(rows)
    names, predicted, stderr, units, models, cautions = zip(*rows, strict=True)
    columns = {
        "predicted": (np.array(predicted), "predicted value"),
        "predicted_stderr": (
            np.array(stderr),
            "its error: the sampling error of the calibration, or the flow's",
        ),
        "units": (list(units), "units of both"),
        "model": (list(models), "model or reason"),
        "caution": (list(cautions), "what speaks against it"),
    }
    return xr.Dataset(
        {
            name: ("quantity", values, {"units": "see units" if i < 2 else "1", "long_name": text})
            for i, (name, (values, text)) in enumerate(columns.items())
        },
        coords={"quantity": list(names)},
        attrs=provenance(
            rule=rule,
            eta=eta,
            batch_size=batch_size,
            task=calibration.attrs["task"],
            trusted_plateau=trusted,
            trust=reason,
        ),
    )


def _calibrated_rate(calibration: xr.Dataset, batch_size: int) -> dict[str, tuple[float, float]]:
    """The Fokker-Planck rate at the learning rate of barrier 3, and its error at that learning rate.

    First order: the rate is differentiated by the calibrated coefficients, taken as independent.
    """
    n = calibration.attrs["examples"]
    p = noise_fraction(n, batch_size)
    names = ("curvature", "third", "fourth", "per_example_variance")
    values = {name: float(calibration[name]) for name in names}
    form = phases(
        curvature=values["curvature"],
        third=values["third"],
        fourth=values["fourth"],
        gradient_variance=p * values["per_example_variance"],
    )
    rate = form.rate(discrete=False)
    variance = 0.0
    for name in names:
        error = float(calibration[f"{name}_stderr"])
        step = 1e-4 * max(abs(values[name]), error)
        moved = values | {name: values[name] + step}
        mu, c = flip_coefficients(form.eta, moved["curvature"], moved["third"], moved["fourth"])
        s = form.eta * math.sqrt(p * moved["per_example_variance"])
        other = form._replace(mu=mu, C=c, s=s, edge=math.sqrt(mu / c)).rate(discrete=False)
        variance += ((other - rate) / step * error) ** 2
    return {f"{form.kind}, Fokker-Planck, eta={form.eta:.4g}": (rate, math.sqrt(variance))}
