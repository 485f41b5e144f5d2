"""Thresholds with a formula: gradient methods, Gaussian regression, momentum, pitchfork."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq

from eos_sde.models.arguments import count, finite, fraction, non_negative, positive
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput

# What must be added to a, in units of s^2, to read the equation in the Stratonovich convention.
_SHIFT = {"ito": -0.5, "stratonovich": 0.0, "klimontovich": 0.5}


def gradient_descent(sharpness: float, *, momentum: float = 0.0, nesterov: bool = False) -> Threshold:
    """Largest stable learning rate of full-batch gradient descent on a quadratic.

    ``2 / S`` for plain descent, ``(2 + 2b) / S`` with heavy-ball momentum b (v+ = b v + g, w+ = w - eta v),
    ``(2 + 2b) / ((1 + 2b) S)`` with Nesterov's.

    Parameters
    ----------
    sharpness : float
        Largest Hessian eigenvalue S > 0.
    momentum : float
        b in [0, 1).
    nesterov : bool
        Gradient at the look-ahead point.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "deterministic".

    Raises
    ------
    InvalidInput
        If the sharpness is not positive or the momentum outside [0, 1).
    """
    s = positive(
        "sharpness", sharpness, "give the largest Hessian eigenvalue; without one above 0 no rate is unstable"
    )
    b = fraction("momentum", momentum)
    formula = "(2 + 2b)/((1 + 2b) S)" if nesterov else "(2 + 2b)/S" if b > 0 else "2/S"
    return _exact(momentum_edge(s, b, nesterov=nesterov), "deterministic", formula, _COHEN_2021)


def adam(preconditioned_sharpness: float, *, b1: float = 0.9, weight_decay: float = 0.0) -> Threshold:
    """Largest stable learning rate of Adam, or AdamW, with its preconditioner frozen.

    ``(2 + 2 b1) / ((1 - b1) S_P + (1 + b1) w)`` with S_P the largest eigenvalue of P^-1 H,
    P = diag(sqrt(nu_hat) + eps), and w the decoupled weight decay of AdamW: 38 / S_P at b1 = 0.9, w = 0. The same
    holds for descent with an exponential moving average of gradients (P = 1).

    Parameters
    ----------
    preconditioned_sharpness : float
        S_P > 0, without the learning rate in P.
    b1 : float
        Decay of the first moment, in [0, 1).
    weight_decay : float
        w >= 0, taken off the weights as eta w times them.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "deterministic".

    Raises
    ------
    InvalidInput
        If the sharpness is not positive, b1 outside [0, 1) or the decay negative.
    """
    s = positive(
        "preconditioned_sharpness", preconditioned_sharpness, "give the largest eigenvalue of P^-1 H"
    )
    b = fraction("b1", b1)
    decay = non_negative("weight_decay", weight_decay)
    formula = "(2 + 2 b1)/((1 - b1) S_P" + (" + (1 + b1) w)" if decay > 0 else ")")
    value = momentum_edge(s, b, gain=1 - b, weight_decay=decay)
    return _exact(value, "deterministic", formula, "Cohen et al. 2022, arXiv:2207.14484")


def momentum_edge(
    curvature: Any,
    momentum: Any,
    *,
    nesterov: bool = False,
    gain: Any = 1.0,
    weight_decay: Any = 0.0,
    growth: Any = 1.0,
) -> Any:
    """Learning rate at which an eigenvalue of the step with momentum is -growth; arithmetic only, no checks.

    ``v+ = b v + gain h w``, ``w+ = (1 - eta decay) w - eta v+`` (Nesterov: ``- eta (gain h w + b v+)``).

    Parameters
    ----------
    curvature : float or array
        h > 0, NumPy or JAX, traced or not.
    momentum, gain, weight_decay : float
        b in [0, 1); 1, or 1 - b for a moving average of gradients; decoupled decay.
    nesterov : bool
        Which step.
    growth : float
        1 for the edge of stability. 3 for the catapult edge: in the two-layer linear network the sharpness changes by
        (eta_eff f^2/n)(eta_eff S - 4) a step (Lewkowycz et al. 2020, arXiv:2003.02218, eq. 5), where an alternating
        mode that grows by rho moves with eta_eff S = 1 + rho, whatever its momentum. (With momentum that network also
        diverges at some rates below: from 0.95 of the edge on at b = 0.3, from 0.8 at b = 0.9.)

    Returns
    -------
    float or array
        Like the curvature.
    """
    b, r = momentum, growth
    slope = gain * (r * (1 + b) + b if nesterov else r)
    return (r + 1) * (r + b) / (slope * curvature + (r + b) * weight_decay)


def gaussian_least_squares(spectrum: Sequence[float] | np.ndarray, *, batch_size: int) -> Threshold:
    """Mean-square threshold of SGD on noiseless least squares with Gaussian inputs.

    Fresh batches of B inputs x ~ N(0, diag(s)), loss (x . w)^2 / 2. The second moments of the iterate are
    stable below the root of ``sum_j (eta / B) s_j / (2 - eta s_j (1 + 1/B)) = 1``.

    Parameters
    ----------
    spectrum : sequence of float
        Eigenvalues s_j >= 0 of the input covariance, at least one positive.
    batch_size : int
        B >= 1.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "mean-square".

    Raises
    ------
    InvalidInput
        If the spectrum is empty, negative, not finite or all zero, or the batch size not a positive integer.
    """
    s = np.asarray(spectrum, dtype=float)
    if s.ndim != 1 or s.size == 0 or not np.all(np.isfinite(s)) or np.any(s < 0) or not np.any(s > 0):
        raise InvalidInput(f"spectrum={spectrum!r} is not usable; give finite eigenvalues >= 0, one above 0")
    batch = count("batch_size", batch_size)
    s = s[s > 0] / s.max()  # in units of the largest, so that the bracket below is the same for every scale
    # The sum rises from 0 to infinity at the pole of the largest eigenvalue: one root before it.
    pole = 2.0 / (1.0 + 1.0 / batch)

    def excess(u: float) -> float:
        return float(np.sum(u / batch * s / (2.0 - u * s * (1.0 + 1.0 / batch))) - 1.0)

    upper = pole * (1.0 - 1e-3)
    while excess(upper) < 0:
        upper = pole - (pole - upper) / 16.0
    root = float(brentq(excess, 0.0, upper, xtol=1e-15))  # pyright: ignore[reportArgumentType]
    eta = root / float(np.max(np.asarray(spectrum, dtype=float)))
    return Threshold(
        eta, 1e-14 * eta, "mean-square", "root of the second-moment equation; error: root tolerance",
        "second-moment recursion with Gaussian fourth moments",
    )  # fmt: skip


def momentum_sgd_scalar(mean: float, variance: float, *, momentum: float = 0.0) -> Threshold:
    """Mean-square threshold of SGD with heavy-ball momentum on one weight with random curvature.

    v+ = b v + h_k w, w+ = w - eta v+ with independent h_k of the given mean and variance:
    ``eta = 2 (1 - b) h / (variance + h^2 (1 - b)/(1 + b))``.

    Parameters
    ----------
    mean, variance : float
        Of the batch curvature h_k: h > 0, variance >= 0.
    momentum : float
        b in [0, 1).

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "mean-square".

    Raises
    ------
    InvalidInput
        If mean is not positive, variance negative, or momentum outside [0, 1).
    """
    h = positive("mean", mean)
    s2 = non_negative("variance", variance)
    b = fraction("momentum", momentum)
    value = 2 * (1 - b) * h / (s2 + h**2 * (1 - b) / (1 + b))
    return _exact(
        value, "mean-square", "2(1 - b) h/(variance + h^2 (1 - b)/(1 + b))", "second-moment recursion"
    )


def gaussian_regression_1d(curvature: float, *, batch_size: int, model: str = "map") -> Threshold:
    """Mean-square threshold of one-weight Gaussian regression, by the map and by two SDE models of it.

    Input x ~ N(0, h), fresh batches of B. The map: ``2B / (h (B + 2))``. The SDE with the exact
    multiplicative noise: ``B / h``. The SDE with noise covariance (2 L / B) H ("decoupled"): ``2B / h``.
    Only the map knows the edge 2/h: the SDEs' thresholds grow without bound with B.

    Parameters
    ----------
    curvature : float
        h > 0.
    batch_size : int
        B >= 1.
    model : {"map", "sde", "decoupled"}
        Which of the three.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "mean-square".

    Raises
    ------
    InvalidInput
        If an argument is out of range or the model unknown.
    """
    h = positive("curvature", curvature)
    batch = count("batch_size", batch_size)
    values = {"map": 2 * batch / (h * (batch + 2)), "sde": batch / h, "decoupled": 2 * batch / h}
    formulas = {"map": "2B/(h(B + 2))", "sde": "B/h", "decoupled": "2B/h"}
    if model not in values:
        raise InvalidInput(f"model={model!r} is unknown; choose 'map', 'sde' or 'decoupled'")
    return _exact(values[model], "mean-square", f"{formulas[model]}, {model}", "Gaussian fourth moments")


def pitchfork_d_bifurcation(noise: float, *, convention: str) -> Threshold:
    """Where the exponent at 0 of dx = (a x - x^3) dt + s x dW changes sign: the almost-sure threshold of a.

    a = 0 for Stratonovich, s^2/2 for Ito, -s^2/2 for Klimontovich.

    Parameters
    ----------
    noise : float
        s >= 0, per square root of time.
    convention : {"ito", "stratonovich", "klimontovich"}
        How the noise is read.

    Returns
    -------
    Threshold
        Of a, per time; criterion "almost-sure".

    Raises
    ------
    InvalidInput
        If the noise is negative or the convention unknown.
    """
    s, shift = _pitchfork(noise, convention)
    return _exact(0.0 - shift * s**2, "almost-sure", f"D-bifurcation, {convention}", _ARNOLD)


def pitchfork_p_bifurcation(noise: float, *, convention: str) -> Threshold:
    """Where the stationary density of dx = (a x - x^3) dt + s x dW turns from peaked at 0 to bimodal.

    The density is x^(2a/s^2 - 1) exp(-x^2/s^2) for Stratonovich: a = s^2/2; s^2 for Ito, 0 for Klimontovich.

    Parameters
    ----------
    noise : float
        s >= 0, per square root of time.
    convention : {"ito", "stratonovich", "klimontovich"}
        How the noise is read.

    Returns
    -------
    Threshold
        Of a, per time; criterion "shape".

    Raises
    ------
    InvalidInput
        If the noise is negative or the convention unknown.
    """
    s, shift = _pitchfork(noise, convention)
    return _exact((0.5 - shift) * s**2, "shape", f"P-bifurcation, {convention}", _ARNOLD)


def pitchfork_moment(noise: float, *, p: float, convention: str) -> Threshold:
    """Where E|x|^p of the linearised pitchfork, dx = a x dt + s x dW, starts to grow.

    a = -s^2 p/2 for Stratonovich, -s^2 (p - 1)/2 for Ito, -s^2 (p + 1)/2 for Klimontovich.

    Parameters
    ----------
    noise : float
        s >= 0, per square root of time.
    p : float
        Order of the moment, not 0.
    convention : {"ito", "stratonovich", "klimontovich"}
        How the noise is read.

    Returns
    -------
    Threshold
        Of a, per time; criterion "moment(p)".

    Raises
    ------
    InvalidInput
        If the noise is negative, p is 0 or the convention unknown.
    """
    s, shift = _pitchfork(noise, convention)
    order = finite("p", p)
    if order == 0:
        raise InvalidInput(
            "p=0.0 gives the moment 1 at every a; give another p, or use pitchfork_d_bifurcation"
        )
    return _exact(
        -(0.5 * order + shift) * s**2, f"moment({order:g})", f"Lambda(p) = 0, {convention}", _ARNOLD
    )


_COHEN_2021 = "Cohen et al. 2021, arXiv:2103.00065"
_ARNOLD = "Arnold 1998, Random Dynamical Systems, chapter 9"


def _exact(value: float, criterion: str, method: str, source: str) -> Threshold:
    return Threshold(value, 0.0, criterion, method, source)


def _pitchfork(noise: float, convention: str) -> tuple[float, float]:
    if convention not in _SHIFT:
        raise InvalidInput(f"convention={convention!r} is unknown; choose {', '.join(map(repr, _SHIFT))}")
    return non_negative("noise", noise), _SHIFT[convention]
