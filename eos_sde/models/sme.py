"""Stochastic modified equations of SGD: the gradient-flow SDE and its second-order correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eos_sde.models.arguments import finite, non_negative, positive
from eos_sde.models.landscapes import quadratic
from solvers import tangent
from solvers.errors import InvalidInput
from solvers.sde import SDE, from_potential

Loss = Callable[..., Any]


def gradient_flow(
    potential: Loss | None = None,
    *,
    eta: float,
    noise: float | Callable[..., Any],
    curvature: float | Sequence[float] | None = None,
    params: Any = None,
    names: Sequence[str] = ("x",),
    convention: str = "ito",
) -> SDE:
    """The first-order stochastic modified equation, dX = -grad L dt + sqrt(eta) sigma(X) dW.

    Its Euler-Maruyama step of size eta is one step of SGD with Gaussian gradient noise. It does not know the
    edge eta * curvature = 2: only that step does.

    Parameters
    ----------
    potential : callable, optional
        The loss, ``potential(t, y, p, xp)``; differentiated exactly. Give this or `curvature`.
    eta : float
        Learning rate, > 0. Time unit: eta per step.
    noise : float or callable
        Standard deviation of the gradient noise per component (loss per weight): one number for all, or
        ``noise(t, y, p, xp)`` returning a d-tuple.
    curvature : float or sequence of d floats, optional
        Makes the loss sum_i h_i y_i^2 / 2.
    params : NamedTuple, mapping or tuple, optional
        Parameters of the loss and of `noise`; "eta" and, for a constant, "noise" are appended.
    names : sequence of str
        Names of the d weights.
    convention : {"ito", "stratonovich", "klimontovich"}
        How state-dependent noise is read. SGD's noise does not look ahead, which is Ito.

    Returns
    -------
    SDE
        With `potential` set. ``sde.replace(eta=...)`` changes the learning rate without compiling anew.

    Raises
    ------
    InvalidInput
        If eta is not positive, the noise negative, or not exactly one of potential and curvature is given.

    References
    ----------
    Li, Tai and E 2019, JMLR 20(40), the order-1 equation.

    Examples
    --------
    >>> sde = gradient_flow(curvature=3.0, eta=0.1, noise=0.5)
    >>> sde.drift_at(0.0, (2.0,))
    (array(-6.),)
    """
    loss, extended = _loss_and_params(potential, curvature, params, names, eta, noise)
    return from_potential(
        loss, _scaled_noise(noise, extended, names), params=extended, names=names, convention=convention
    )


def sme2(
    potential: Loss | None = None,
    *,
    eta: float,
    noise: float | Callable[..., Any],
    curvature: float | Sequence[float] | None = None,
    params: Any = None,
    names: Sequence[str] = ("x",),
    convention: str = "ito",
) -> SDE:
    """The second-order stochastic modified equation: drift -grad(L + (eta/4) |grad L|^2), same noise.

    Second order in eta at a fixed curvature, yet away from the edge: its stationary variance on a quadratic,
    eta s^2/(h (2 + eta h)), falls where SGD's, eta s^2/(h (2 - eta h)), diverges.

    Parameters
    ----------
    potential, eta, noise, curvature, params, names, convention
        As for `gradient_flow`.

    Returns
    -------
    SDE
        With `potential` set to the modified loss.

    Raises
    ------
    InvalidInput
        As for `gradient_flow`.

    References
    ----------
    Li, Tai and E 2019, JMLR 20(40), the order-2 equation (its correction of the noise left out).
    """
    loss, extended = _loss_and_params(potential, curvature, params, names, eta, noise)
    first = from_potential(
        loss, _scaled_noise(noise, extended, names), params=extended, names=names, convention=convention
    )
    symbols = first.symbolic()
    p = type(first.params)(*symbols.p)
    rate = symbols.p[list(extended).index("eta")]
    value = tangent.trace(loss, (symbols.t, symbols.y, p), "potential")
    value = value + rate / 4 * sum(a**2 for a in symbols.drift)
    traced = tangent.lambdify_components([value], symbols)

    def modified(t, y, p, xp):
        return traced(t, y, p, xp)[0]

    return from_potential(modified, first.diffusion, params=extended, names=names, convention=convention)


def _loss_and_params(
    potential: Loss | None,
    curvature: float | Sequence[float] | None,
    params: Any,
    names: Sequence[str],
    eta: float,
    noise: float | Callable[..., Any],
) -> tuple[Loss, dict[str, float]]:
    """The loss, and all parameters as one mapping whose order keeps ``p[i]`` of the user's tuple valid."""
    if (potential is None) == (curvature is None):
        raise InvalidInput("give exactly one of potential (a loss) and curvature (for a quadratic loss)")
    names = (names,) if isinstance(names, str) else tuple(names)
    if potential is None:
        if params is not None:
            raise InvalidInput("params belongs to a potential; leave it out with curvature")
        values = np.atleast_1d(np.asarray(curvature, dtype=float))
        if values.shape != (len(names),):
            raise InvalidInput(f"curvature has shape {values.shape}; give one number for each of {names}")
        keys = ["curvature"] if len(names) == 1 else [f"curvature_{name}" for name in names]
        extended = {key: finite("curvature", value) for key, value in zip(keys, values, strict=True)}
        loss: Loss = quadratic
    else:
        loss, extended = potential, _named(params)
    if not callable(noise):
        added = {
            "noise": non_negative("noise", noise, "give the standard deviation of the gradient noise, >= 0")
        }
    else:
        added = {}
    added = {"eta": positive("eta", eta, "give a learning rate above 0"), **added}
    taken = sorted(set(added) & set(extended))
    if taken:
        raise InvalidInput(
            f"params already has {taken[0]!r}, which this model adds itself; rename or drop yours"
        )
    return loss, {**extended, **added}


def _named(params: Any) -> dict[str, Any]:
    if params is None:
        return {}
    if isinstance(params, Mapping):
        return dict(params)
    fields = getattr(params, "_fields", None) or [f"p{i}" for i in range(len(params))]
    return dict(zip(fields, params, strict=True))


def _scaled_noise(noise: float | Callable[..., Any], extended: dict[str, float], names: Sequence[str]) -> Any:
    """sqrt(eta) times the noise as one function of (t, y, p, xp), so that Numba sees no nested calls."""
    import sympy as sp

    def still(t, y, p, xp):  # noqa: ARG001
        return tuple(0.0 * component for component in y)

    shell = SDE(still, noise if callable(noise) else still, params=extended, names=names, convention="ito")
    symbols = shell.symbolic()
    place = list(extended).index
    root = sp.sqrt(symbols.p[place("eta")])
    if callable(noise):
        sigma = [root * s for s in symbols.diffusion]
    else:
        sigma = [root * symbols.p[place("noise")]] * shell.dimension
    return tangent.lambdify_components(sigma, symbols)
