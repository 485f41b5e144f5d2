"""Metastable sets: fuzzy sets that a process seldom leaves, from the slowest modes (PCCA+ and its generalisation)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize as so
import xarray as xr

from solvers.errors import InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.provenance import provenance
from solvers.spectrum import eigenmodes
from solvers.transfer import TransferOperator

_ROUNDS = 30


def metastable_sets(operator: Any, n: int, *, modes: xr.Dataset | None = None) -> xr.Dataset:
    """The n sets between which a process moves as slowly as its n slowest modes, and the rates between them.

    Parameters
    ----------
    operator : FokkerPlanck or TransferOperator
        With one stationary density; reversible or not.
    n : int
        Number of sets, at least 2: a gap in the spectrum below the n-th mode suggests one. It must not split a
        complex pair.
    modes : Dataset, optional
        ``eigenmodes(operator, k)`` with k >= n, if at hand.

    Returns
    -------
    Dataset
        ``membership(set, *names)``: between 0 and 1, summing to 1 in every cell. ``weight(set)``: stationary
        probability, largest first. ``assignment(*names)``: the set of largest membership. ``crispness``: mean
        over the sets of sum(w chi^2) / sum(w chi), w the stationary weights: 1 for sets without overlap.
        ``rates(set, set2)`` in 1/time: generator of the chain between the sets, from ``set`` to ``set2``, whose
        eigenvalues are those of the modes exactly; rows sum to 0. Memberships overlap where sets are not
        metastable, and rates may then be negative. For a transfer operator ``transition(set, set2)``: the
        same per step, rows sum to 1.

    Raises
    ------
    InvalidInput
        If n is unusable, splits a complex pair, or the operator has no single stationary density.
    ConvergenceFailure
        As for `eigenmodes`.

    Notes
    -----
    Memberships are the combinations of the n slowest left modes that are nonnegative, sum to one and are
    crispest: robust Perron cluster analysis, PCCA+ (Deuflhard and Weber, Linear Algebra Appl. 398 (2005) 161;
    Roeblitz and Weber, Adv. Data Anal. Classif. 7 (2013) 147). Of a complex pair the real and imaginary parts
    span the same real space as Schur vectors do in GPCCA (Reuter, Fackeldey and Weber, J. Chem. Phys. 150 (2019)
    174103), so dominant cycles are found too. The start is the inner simplex of the modes; constraints enter the
    optimisation one by one as they are violated, so that it does not depend on the number of cells.
    """
    if not isinstance(operator, (FokkerPlanck, TransferOperator)):
        raise InvalidInput(
            f"operator is a {type(operator).__name__}; pass a FokkerPlanck or TransferOperator"
        )
    grid = operator.grid
    if not isinstance(n, (int, np.integer)) or not 2 <= n <= grid.size:
        raise InvalidInput(f"n={n!r} sets of {grid.size} cells; give an integer from 2 to {grid.size}")
    if any("absorbing" in pair for pair in operator.boundary.values()):
        raise InvalidInput(
            "there is no stationary density: an absorbing wall removes all probability; use escape_rate"
        )
    modes = _checked_modes(operator, int(n), modes)
    functions, block = _real_basis(modes.left.values[:n], modes.eigenvalue.values[:n])
    weights = np.abs(modes.right.values[0] * grid.volumes).ravel()
    functions, block = _orthonormal(functions, block, weights / weights.sum())
    rotation = _crispest(functions)
    rotation = rotation[:, _order(grid, functions @ rotation, rotation[0], weights)]
    membership = np.clip(functions @ rotation, 0.0, 1.0)
    membership /= membership.sum(axis=1, keepdims=True)
    coarse = np.linalg.solve(rotation, block @ rotation)
    matrix = (
        ("rates", "1/time", "rate from set to set2")
        if isinstance(operator, FokkerPlanck)
        else ("transition", "1", f"transition per step of {operator.step:g} from set to set2")
    )
    numbers = np.arange(n)
    return xr.Dataset(
        {
            "membership": (
                ("set", *grid.names),
                membership.T.reshape(n, *grid.shape),
                {"units": "1", "long_name": "membership"},
            ),
            "weight": ("set", rotation[0], {"units": "1", "long_name": "stationary probability of the set"}),
            "assignment": (
                grid.names,
                membership.argmax(axis=1).reshape(grid.shape),
                {"units": "1", "long_name": "set of largest membership"},
            ),
            "crispness": (
                (),
                _crispness(rotation) / n,
                {"units": "1", "long_name": "crispness, 1 for sets without overlap"},
            ),
            matrix[0]: (("set", "set2"), coarse, {"units": matrix[1], "long_name": matrix[2]}),
        },
        coords={
            "set": ("set", numbers, {"units": "1", "long_name": "metastable set, heaviest first"}),
            "set2": ("set2", numbers, {"units": "1", "long_name": "metastable set"}),
            **grid.coordinates(),
        },
        attrs=provenance(convention=operator.sde.convention, method="PCCA+"),
    )


def _checked_modes(operator: Any, n: int, modes: xr.Dataset | None) -> xr.Dataset:
    if modes is None:
        modes = eigenmodes(operator, n)
    elif not isinstance(modes, xr.Dataset) or not {"left", "right", "eigenvalue"} <= set(modes.data_vars):
        raise InvalidInput(f"modes is a {type(modes).__name__}; pass what eigenmodes returns, or nothing")
    elif modes.right.shape[1:] != operator.grid.shape or modes.sizes["mode"] < n:
        raise InvalidInput(
            f"modes hold {modes.sizes['mode']} modes on {modes.right.shape[1:]} cells, needed are {n} on "
            f"{operator.grid.shape}; pass eigenmodes(operator, {n})"
        )
    if modes.attrs.get("zero_modes", 1) != 1:
        raise InvalidInput(
            f"the grid falls into {modes.attrs['zero_modes']} parts that exchange no probability: they are the "
            "metastable sets; build one operator on each"
        )
    values = modes.eigenvalue.values
    if (
        len(values) > n
        and values[n - 1].imag > 0
        and abs(values[n] - np.conj(values[n - 1])) < 1e-6 * abs(values[n])
    ):
        advice = f"n={n - 1} or {n + 1}" if n > 2 else "n=3"
        raise InvalidInput(
            f"n={n} splits the complex pair {values[n - 1]:.4g} and {values[n]:.4g}; use {advice}"
        )
    return modes


def _real_basis(left: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real functions X that span the modes, and the block B with L^T X = X B."""
    n = len(values)
    flat, block = left.reshape(n, -1), np.zeros((n, n))
    functions, a = np.zeros((flat.shape[1], n)), 0
    while a < n:
        block[a, a] = values[a].real
        functions[:, a] = flat[a].real
        if abs(values[a].imag) > 0 and a + 1 < n:
            functions[:, a + 1] = flat[a].imag
            block[a + 1, a + 1] = values[a].real
            block[a, a + 1], block[a + 1, a] = values[a].imag, -values[a].imag
            a += 1
        a += 1
    functions[:, 0] = 1.0
    return functions, block


def _orthonormal(
    functions: np.ndarray, block: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same space with an orthonormal basis in the stationary weights, the constant first."""
    root = np.sqrt(weights)
    _, upper = np.linalg.qr(root[:, None] * functions)
    upper *= np.sign(np.diag(upper))[:, None]
    functions = np.linalg.solve(upper.T, functions.T).T
    functions[:, 0] = 1.0
    return functions, upper @ np.linalg.solve(upper.T, block.T).T


def _crispest(functions: np.ndarray) -> np.ndarray:
    """The rotation A whose memberships X A are nonnegative, sum to one and are crispest."""
    n = functions.shape[1]
    corners = _inner_simplex(functions)
    rotation = np.linalg.inv(functions[corners])
    if n == 2:
        return _feasible(rotation[1:, 1:], functions)
    kept = np.unique(np.concatenate([corners, functions.argmin(axis=0), functions.argmax(axis=0)]))
    for _ in range(_ROUNDS):
        some = functions[kept]
        best: Any = so.minimize(
            lambda free, some=some: -_crispness(_feasible(free.reshape(n - 1, n - 1), some)),
            rotation[1:, 1:].ravel(),
            method="Nelder-Mead",
            options={
                "xatol": 1e-7,
                "fatol": 1e-10,
                "maxiter": 2000 * n,
                "maxfev": 2000 * n,
                "adaptive": n > 3,
            },
        )
        rotation = _feasible(best.x.reshape(n - 1, n - 1), some)
        membership = functions @ rotation
        worst = membership.argmin(axis=0)
        if membership.min() > -1e-6:
            break
        kept = np.unique(np.concatenate([kept, worst]))
    return _feasible(rotation[1:, 1:], functions)


def _inner_simplex(functions: np.ndarray) -> np.ndarray:
    """The n cells furthest apart: each the furthest from the plane through those before."""
    n = functions.shape[1]
    corners = [int(np.argmax(np.sum(functions**2, axis=1)))]
    rest = functions - functions[corners[0]]
    for _ in range(1, n):
        size = np.sum(rest**2, axis=1)
        corners.append(int(np.argmax(size)))
        direction = rest[corners[-1]] / np.sqrt(size[corners[-1]])
        rest = rest - np.outer(rest @ direction, direction)
    return np.array(corners)


def _feasible(free: np.ndarray, functions: np.ndarray) -> np.ndarray:
    """The rotation with this block that makes memberships nonnegative and sum to one."""
    lower = np.hstack([-free.sum(axis=1, keepdims=True), free])
    top = -(functions[:, 1:] @ lower).min(axis=0)
    rotation = np.vstack([top, lower])
    return rotation / top.sum()


def _crispness(rotation: np.ndarray) -> float:
    # in an orthonormal basis the sum over cells of w chi^2 is that of the squared coefficients
    return float(np.sum(np.sum(rotation**2, axis=0) / rotation[0]))


def _order(grid: Any, membership: np.ndarray, weight: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Heaviest set first; equal weights by mean position."""
    mass = membership * weights[:, None]
    keys = [-np.round(weight, 6)]
    for coordinate in grid.coords():
        keys.append((coordinate.ravel() @ mass) / mass.sum(axis=0))
    return np.lexsort(keys[::-1])
