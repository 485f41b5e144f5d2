"""First-order perturbation theory: how fast eigenvalues move with a parameter of the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from solvers.chain import Chain
from solvers.errors import InvalidInput
from solvers.provenance import provenance
from solvers.regions import Region
from solvers.spectral_problem import Build, Operator, built, problem_of
from solvers.spectrum import eigenmodes

# Central differences: rounding eps / h against truncation h^2 / 6, both relative, h in units of the scale.
_STEP = float(np.cbrt(3 * np.finfo(float).eps))


def eigenvalue_derivative(
    build: Build, value: float, *, k: int = 2, scale: float | None = None, tol: float = 1e-10
) -> xr.DataArray:
    """Derivatives of the slowest eigenvalues with respect to a parameter, from one eigen-solve.

    Parameters
    ----------
    build : callable
        ``build(value)`` returns a FokkerPlanck or TransferOperator, on the same grid for every value.
    value : float
    k : int
        Number of modes, as for `eigenmodes`.
    scale : float, optional
        Size of a change of the parameter that changes the operator by about as much as the operator itself;
        the magnitude of `value`, or 1 at 0, if left out.
    tol : float
        As for `eigenmodes`.

    Returns
    -------
    DataArray (mode)
        d(eigenvalue)/d(parameter), in the order of `eigenmodes`, with the coordinate ``eigenvalue``. Within a
        group of equal eigenvalues the derivatives of single modes have no meaning.

    Raises
    ------
    InvalidInput
        If an argument is unusable, or build returns another grid elsewhere.
    ConvergenceFailure
        As for `eigenmodes`.

    Notes
    -----
    d(lambda_i)/dp = <left_i | dL/dp | right_i> (Kato, Perturbation Theory for Linear Operators, sec. II.2).
    dL/dp is a central difference of the assembled rates over (3 eps)^(1/3) = 9e-6 of the scale, where rounding
    (eps / h) and truncation (h^2 / 6) balance near 4e-11 of the sum of absolute terms; the sum runs over
    differences of `left` across faces, so that the large rates of a fine grid do not cancel in it.

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-p.k * y[0],), lambda t, y, p, xp: (1.0,), params={"k": 1.0}, convention="ito")
    >>> grid = Grid.uniform(x=(-6, 6, 600))
    >>> moved = eigenvalue_derivative(lambda k: FokkerPlanck(ou.replace(k=k), grid), 1.0, k=3)
    >>> [round(v, 2) for v in moved.values.tolist()]
    [0.0, -1.0, -2.0]
    """
    value = checked_number("value", value)
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise InvalidInput(f"scale={scale!r}; give a positive size of a change of the parameter")
    operator = built(build, value)
    modes = eigenmodes(operator, k, tol=tol)
    left, right = vectors(modes, operator)
    derivative = derivatives(build, value, scale or abs(value) or 1.0, left, right, operator)
    return xr.DataArray(
        derivative,
        dims="mode",
        coords={"mode": modes["mode"], "eigenvalue": modes["eigenvalue"]},
        name="eigenvalue_derivative",
        attrs={"units": modes["eigenvalue"].attrs["units"], "long_name": "derivative of the eigenvalue"}
        | provenance(convention=operator.sde.convention, value=value),
    )


def derivatives(
    build: Build,
    value: float,
    scale: float,
    left: np.ndarray,
    right: np.ndarray,
    operator: Operator,
    absorbed: Region | None = None,
) -> np.ndarray:
    """<left_i | dL/dp | right_i> for bi-orthonormal columns of functions and masses, outside the absorbed region."""
    return rounded_derivatives(build, value, scale, left, right, operator, absorbed)[0]


def rounded_derivatives(
    build: Build,
    value: float,
    scale: float,
    left: np.ndarray,
    right: np.ndarray,
    operator: Operator,
    absorbed: Region | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `derivatives`, and what the rounding of `left` makes of them, which spoils those of tiny eigenvalues."""
    above, below = value + _STEP * scale, value - _STEP * scale
    pair = [built(build, at) for at in (above, below)]
    for at, other in zip((above, below), pair, strict=True):
        if type(other) is not type(operator) or other.grid != operator.grid:
            raise InvalidInput(
                f"build returns another grid or kind of operator at {at:.9g} than at {value:.9g}; use the same "
                "grid for every value"
            )
    high, low = (problem_of(each, absorbed) for each in pair)
    if high.chain is not None and low.chain is not None:
        change, size = _between(high.chain, low.chain, left, right)
    else:
        moved = (high.matrix - low.matrix) @ right  # type: ignore[union-attr]
        change, size = _sums(left, moved)
    return change / (above - below), np.finfo(float).eps * size / (above - below)


def _sums(left: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scalar products of columns, and the sums of their absolute terms."""
    return np.sum(left * moved, axis=0), np.sum(np.abs(left) * np.abs(moved), axis=0)


def _between(high: Chain, low: Chain, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """<left | L_high - L_low | right>, summed by parts over pairs of states; and its terms before differences."""
    if not (np.array_equal(high.first, low.first) and np.array_equal(high.second, low.second)):
        # correlated noise changed the sign of a diagonal jump
        return _sums(left, (high.generator - low.generator) @ right)
    forward, backward = high.forward - low.forward, high.backward - low.backward
    above, below = left[high.second], left[high.first]
    moved = forward[:, None] * right[high.first] - backward[:, None] * right[high.second]
    result = np.sum((above - below) * moved, axis=0)
    size = np.sum((np.abs(above) + np.abs(below)) * np.abs(moved), axis=0)
    lost = (high.loss - low.loss)[:, None] * right
    result -= np.sum(lost * left, axis=0)
    if high.extra is not None and low.extra is not None:
        extra, more = _sums(left, (high.extra - low.extra) @ right)
        result, size = result + extra, size + more
    return result, size


def vectors(modes: xr.Dataset, operator: Operator) -> tuple[np.ndarray, np.ndarray]:
    """Left functions and right masses of a result of `eigenmodes`, as columns."""
    count, size = modes.sizes["mode"], operator.grid.size
    right = modes["right"].values * operator.grid.volumes
    return modes["left"].values.reshape(count, size).T, right.reshape(count, size).T


def checked_number(name: str, value: Any) -> float:
    """A finite float."""
    if not (isinstance(value, (int, float, np.number)) and np.isfinite(value)):
        raise InvalidInput(f"{name}={value!r}; give a finite number")
    return float(value)
