"""Slowest eigenmodes of a Fokker-Planck generator, leading eigenmodes of a transfer operator."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from solvers.eigensolvers import Modes, generator_modes, transfer_modes
from solvers.errors import AccuracyWarning, ConvergenceFailure, InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.provenance import provenance
from solvers.slow_exchange import slowest_exchange
from solvers.transfer import TransferOperator

# Distance from 1 from which an eigenvalue of a stochastic matrix has lost digits; cells of a plane that are eliminated.
_ONE, _FEW = 1e-6, 5000


def eigenmodes(
    operator: Any, k: int = 6, *, method: str = "auto", tol: float = 1e-10, richardson: bool = False
) -> xr.Dataset:
    """The k slowest eigenmodes of a Fokker-Planck operator, or the k leading ones of a transfer operator.

    Parameters
    ----------
    operator : FokkerPlanck or TransferOperator
    k : int
        Number of modes. If the k-th is one of a complex pair its partner is returned too (k + 1 modes).
    method : {"auto", "tridiagonal", "shift-invert", "davidson", "arnoldi", "dense"}
        "auto": "tridiagonal" (LAPACK bisection on the symmetrised matrix) for reversible operators in one
        dimension; "dense" up to 100 cells; "davidson" on more than 20 000 cells, in two dimensions (nested iteration
        with Jacobi-Davidson corrections by multigrid cycles, for all modes at once, on both sides where there is no
        detailed balance) and in three (block generalised Davidson preconditioned by multigrid cycles); otherwise,
        and where cycles do not converge in two dimensions, "shift-invert" (a sparse factorisation of the generator,
        symmetrised where it is reversible) or, for transfer operators, "arnoldi".
    tol : float
        Relative residual at which a mode counts as converged.
    richardson : bool
        Also solve on cells of twice the width (a Fokker-Planck operator with an even number of cells, at least
        four, along every axis) and estimate the discretisation error, which is of second order.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``: of the generator in 1/time, real part <= 0, slowest (largest real part) first;
        of a transfer operator (per step), by modulus. Real dtype if the operator is reversible, complex if
        not. ``right(mode, *names)``: as a density; the first integrates to 1, the others have integral of
        the absolute value 1. ``left(mode, *names)``: eigenfunction of the adjoint, bi-orthonormal,
        ``sum(left[i] * right[j] * volumes) = delta_ij`` without conjugation; the first is 1 when probability
        is conserved. Signs: left is positive in the first cell where ``|right|`` exceeds half its maximum.
        ``residual(mode)``: backward error ``|A v - lambda v| / (|A| |v|)``, the larger of right and left.
        ``gap``: minus the real part of the slowest nonzero eigenvalue (for a transfer operator
        ``-log|mu| / step`` of the first mode that decays, accurate relatively if a single real one is near 1),
        in 1/time. Which modes are zero follows from the
        structure (walls that conserve probability, disconnected parts), not from a tolerance.
        With ``richardson``: ``eigenvalue_error(mode)``, a third of the distance to the coarser grid's value, and
        ``eigenvalue_extrapolated(mode)``, fourth-order accurate where cells and model are smooth. On an axis
        without noise, where the scheme is of first order, the error is three times as large. Attributes:
        ``method`` and ``method_reason``.

    Raises
    ------
    InvalidInput
        For unusable arguments.
    ConvergenceFailure
        If a returned mode fails the check of its own residual, or modes may have been missed.

    Warns
    -----
    AccuracyWarning
        If the cells are too coarse where the stationary mass lies, or an eigenvalue is so small that rounding
        spoils it or its eigenvectors.

    Notes
    -----
    Reversible eigenvalues are Rayleigh quotients in the form of a sum of squares
    ``sum_ij c_ij (q_i - q_j)^2``, so exponentially small ones keep relative accuracy down to about 1e-26 of
    the largest rate; in one dimension ("tridiagonal") they are squared singular values of a bidiagonal matrix
    and keep it without limit. In three dimensions without detailed balance ("davidson") they are quotients of
    flows, ``sum_ij (q_j - q_i) (k_ij m_i - k_ji m_j)`` with right masses m and left functions q, which keep it
    likewise while at most one decay rate is below rounding. The modes of some thousand cells, which Arnoldi's
    method finds with a check that none is missing, are followed to the finest grid; right and left ones are
    found on their own and must agree.

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid, eigenmodes
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> modes = eigenmodes(FokkerPlanck(ou, Grid.uniform(x=(-5, 5, 400))), k=3)
    >>> [round(v, 3) for v in modes.eigenvalue.values.tolist()]
    [0.0, -1.0, -2.0]
    """
    if not isinstance(operator, (FokkerPlanck, TransferOperator)):
        raise InvalidInput(
            f"operator is a {type(operator).__name__}; pass a FokkerPlanck or a TransferOperator"
        )
    grid = operator.grid
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= grid.size:
        raise InvalidInput(f"k={k!r} modes of {grid.size} cells; give an integer from 1 to {grid.size}")
    if not 0 < tol < 1e-2:
        raise InvalidInput(f"tol={tol!r}; give a relative tolerance between 0 and 0.01")
    if richardson:
        _refuse_unpaired(operator)
    if isinstance(operator, FokkerPlanck):
        modes = generator_modes(operator.chain, int(k), method, tol)
        if modes.zeros:
            operator.warn_if_unresolved(np.real(modes.right[:, 0] / modes.right[:, 0].sum()), stacklevel=3)
        units, eigenvalue_name = "1/time", "eigenvalue of the generator"
        gap, doubts = _generator_gap(operator, modes, method, tol)
        for doubt in doubts:
            warnings.warn(AccuracyWarning(doubt), stacklevel=2)
    else:
        modes = transfer_modes(operator.matrix, int(k), method, tol)
        units, eigenvalue_name = "1", f"eigenvalue per step of {operator.step:g}"
        gap, doubts = _transfer_gap(operator, modes, method, tol)
        for doubt in doubts:
            warnings.warn(AccuracyWarning(doubt), stacklevel=2)
    verify(modes, tol, relative=isinstance(operator, TransferOperator))
    result = _dataset(operator, modes, gap, units, eigenvalue_name)
    if richardson and isinstance(operator, FokkerPlanck):
        return _with_errors(result, operator, modes, method, tol)
    return result


def _refuse_unpaired(operator: Any) -> None:
    if not isinstance(operator, FokkerPlanck):
        raise InvalidInput(
            "richardson=True needs a FokkerPlanck operator; leave it out for transfer operators"
        )
    for name, cells in zip(operator.grid.names, operator.grid.shape, strict=True):
        if cells % 2 or cells < 4:
            raise InvalidInput(
                f"richardson=True joins cells in pairs, but axis {name} has {cells}; give it an even number, at "
                "least 4"
            )


def _with_errors(
    result: xr.Dataset, operator: FokkerPlanck, modes: Modes, method: str, tol: float
) -> xr.Dataset:
    """Errors of second order, from the same operator on cells of twice the width."""
    grid = Grid(**{name: edges[::2] for name, edges in operator.grid.edges.items()})
    count = len(modes.values)
    if count > grid.size:
        raise InvalidInput(
            f"richardson=True needs k <= {grid.size}, the cells of the coarser grid; ask for fewer modes"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)  # the finer grid has said what there is to say
        coarser = FokkerPlanck(
            operator.sde,
            grid,
            boundary=dict(operator.boundary),
            flux=operator.flux,
            allow_wall_mass=operator.allow_wall_mass,
        )
    coarse = generator_modes(coarser.chain, count, "auto" if method == "tridiagonal" else method, tol)
    third = (modes.values - coarse.values[:count]) / 3.0
    units = {"units": "1/time"}
    return result.assign(
        eigenvalue_error=(
            "mode",
            np.abs(third),
            {**units, "long_name": "discretisation error of the eigenvalue, estimated"},
        ),
        eigenvalue_extrapolated=(
            "mode",
            modes.values + third,
            {**units, "long_name": "eigenvalue extrapolated from two grids"},
        ),
    )


def _generator_gap(
    operator: FokkerPlanck, modes: Modes, method: str, tol: float
) -> tuple[float, tuple[str, ...]]:
    if len(modes.values) <= modes.zeros:
        if operator.grid.size <= modes.zeros:
            return np.nan, modes.doubts
        modes = generator_modes(operator.chain, modes.zeros + 1, method, tol)
    return float(-np.real(modes.values[modes.zeros])), modes.doubts


def _transfer_gap(
    operator: TransferOperator, modes: Modes, method: str, tol: float
) -> tuple[float, tuple[str, ...]]:
    """The gap and what is doubtful; vectors of two modes near 1 are replaced by those that are not mixed."""
    known = modes
    if len(modes.values) <= modes.zeros:
        known = transfer_modes(operator.matrix, modes.zeros + 1, method, tol)
    slow = known.values[known.zeros :]
    gap = float(-np.log(np.abs(slow[0])) / operator.step)
    lone = known.zeros == 1 and abs(slow[0] - 1.0) < _ONE and not np.any(np.abs(slow[1:]) > 1.0 - _ONE)
    if not (lone and (operator.grid.d == 1 or operator.grid.size <= _FEW)):
        return gap, known.doubts
    found = slowest_exchange(operator.matrix)
    if found is None:
        return gap, known.doubts
    modes.right[:, 0], modes.left[:, 0] = found.masses, 1.0
    if len(modes.values) > 1:
        modes.right[:, 1] = found.right * np.sign(found.right @ found.left)
        modes.left[:, 1] = found.left / abs(found.right @ found.left)
    return float(-np.log1p(-found.gap) / operator.step), ()


def verify(modes: Modes, tol: float, *, relative: bool) -> None:
    """Refuse modes whose residual, computed afresh, is neither small beside them nor at rounding level.

    Raises
    ------
    ConvergenceFailure
        With the mode that exceeds what it is allowed by most; `relative` says that residuals are measured against 1,
        as for a stochastic matrix.
    """
    nonzero = np.abs(modes.values[modes.zeros :])
    smallest = float(nonzero.min()) if nonzero.size and not relative else 1.0
    scale = np.maximum(np.abs(modes.values), smallest)
    allowed = np.maximum(10 * tol * scale, 2000 * np.finfo(float).eps * modes.norm)
    error = modes.residual * modes.norm
    excess = np.where(np.isfinite(error), error / allowed, np.inf)
    worst = int(np.argmax(excess))
    if excess[worst] > 1:
        raise ConvergenceFailure(
            f"mode {worst} (eigenvalue {modes.values[worst]:.6g}) has residual {error[worst]:.2g}, allowed "
            f"{allowed[worst]:.2g}; use a narrower grid, method='dense' on fewer cells, "
            f"{'fewer modes (without noise on an axis the others are hardly determined), ' * relative}or a larger tol"
        )


def _dataset(operator: Any, modes: Modes, gap: float, units: str, eigenvalue_name: str) -> xr.Dataset:
    grid = operator.grid
    dims = ("mode", *grid.names)
    shape = (len(modes.values), *grid.shape)
    return xr.Dataset(
        {
            "eigenvalue": ("mode", modes.values, {"units": units, "long_name": eigenvalue_name}),
            "right": (
                dims,
                modes.right.T.reshape(shape) / grid.volumes,
                {"units": "1", "long_name": "right eigenvector, as a density"},
            ),
            "left": (dims, modes.left.T.reshape(shape), {"units": "1", "long_name": "left eigenvector"}),
            "residual": (
                "mode",
                modes.residual,
                {"units": "1", "long_name": "backward error of the eigenpair"},
            ),
            "gap": ((), gap, {"units": "1/time", "long_name": "decay rate of the slowest decaying mode"}),
        },
        coords={
            "mode": ("mode", np.arange(shape[0]), {"units": "1", "long_name": "mode, slowest first"}),
            **grid.coordinates(),
        },
        attrs=provenance(
            convention=operator.sde.convention,
            method=modes.method,
            method_reason=modes.reason,
            zero_modes=modes.zeros,
        ),
    )
