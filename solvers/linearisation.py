"""The linear SDE that a model becomes at a fixed point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from solvers.errors import InvalidInput
from solvers.request import refuse_other
from solvers.sde import SDE


def linearised(sde: Any, at: Sequence[float] | float) -> tuple[np.ndarray, np.ndarray]:
    """Ito linearisation dy = A y dt + sum_k B_k y dW_k at a fixed point.

    Parameters
    ----------
    sde : SDE
    at : sequence of d floats

    Returns
    -------
    A : ndarray (d, d)
    B : ndarray (m, d, d)

    Raises
    ------
    InvalidInput
        If drift or diffusion does not vanish at the point, or the model is not autonomous or smooth there.
    """
    import sympy as sp

    refuse_other(sde, SDE, "sde")
    try:
        point = np.atleast_1d(np.asarray(at, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"at={at!r}; give {sde.dimension} finite numbers, one per component") from error
    if point.shape != (sde.dimension,) or not np.isfinite(point).all():
        raise InvalidInput(f"at={at!r}; give {sde.dimension} finite numbers, one per component")
    model = sde.to("ito").symbolic()
    values = dict(zip(model.p, sde.params, strict=True)) | dict(zip(model.y, point, strict=True))
    sigma = sp.Matrix(model.sigma)
    if model.t in sp.Matrix(model.drift).free_symbols | sigma.free_symbols:
        raise InvalidInput("the model depends on time; its exponents need an autonomous SDE")
    drift = _numbers(sp.Matrix(model.drift), values)
    noise = _numbers(sigma, values)
    matrix = _numbers(sp.Matrix(model.drift).jacobian(model.y), values)
    noises = np.array([_numbers(sigma[:, k].jacobian(model.y), values) for k in range(sigma.shape[1])])
    place = ", ".join(f"{n}={v:g}" for n, v in zip(sde.names, point, strict=True))
    reach = 1e-8 * max(1.0, float(np.abs(point).max()))
    if np.abs(drift).max() > reach * max(1.0, float(np.abs(matrix).max())):
        raise InvalidInput(
            f"{place} is no fixed point: the (Ito) drift there is {drift.ravel().tolist()}; give a zero of it"
        )
    if np.abs(noise).max() > reach * max(1.0, float(np.abs(noises).max())):
        raise InvalidInput(
            f"the diffusion at {place} is {float(np.abs(noise).max()):g}, not 0: with additive noise the "
            "linearisation is not homogeneous and has no exponent of its own; leave that noise out"
        )
    return matrix, noises


def _numbers(matrix: Any, values: dict[Any, float]) -> np.ndarray:
    try:
        result = np.array(matrix.subs(values).evalf().tolist(), dtype=float)
    except TypeError as error:
        raise InvalidInput(f"the model has no derivative at the point `at` ({error})") from error
    if not np.isfinite(result).all():
        raise InvalidInput("the model or its derivative is not finite at the point `at`; choose another")
    return result
