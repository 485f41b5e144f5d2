"""Eigenpairs along a parameter, each mode followed through crossings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.linalg import null_space
from scipy.optimize import linear_sum_assignment

from solvers.errors import AccuracyWarning, InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.mode_order import closed_count
from solvers.perturbation import derivatives
from solvers.progress import reporting
from solvers.provenance import provenance
from solvers.spectral_problem import Build, Operator, built, problem_of
from solvers.starts import Neighbours

# A mode counts as found again if this much of it is one mode of the next value.
_FOUND = 0.6
_HALVINGS = 6
# Near one half, but not on it: symmetric points, where modes mix, are there.
_CUT = 0.47
_SPARE = 4
_EQUAL = 1e-8


def continuation(
    build: Build,
    values: Sequence[float] | np.ndarray,
    *,
    k: int = 4,
    name: str = "parameter",
    tol: float = 1e-10,
    keep_vectors: bool = True,
    resume: xr.Dataset | None = None,
    progress: bool | Callable[[float], Any] | None = None,
) -> xr.Dataset:
    """The k modes that are slowest at the first value, followed along a parameter.

    Parameters
    ----------
    build : callable
        ``build(value)`` returns a FokkerPlanck or TransferOperator, on the same grid for every value.
    values : sequence of float
        Strictly increasing or decreasing; the modes are numbered at the first.
    k : int
        Number of modes (one more if that would split a complex pair).
    name : str
        Of the parameter: the dimension of the result.
    tol : float
        As for `eigenmodes`.
    keep_vectors : bool
        Whether the result holds the eigenvectors at all values; without them it cannot be resumed.
    resume : Dataset, optional
        An unfinished result for a beginning of the same values.
    progress : bool or callable
        True for a bar on a terminal, or a function of the finished fraction.

    Returns
    -------
    Dataset
        ``eigenvalue(name, mode)`` of each followed mode; ``eigenvalue_derivative(name, mode)``, by
        first-order perturbation theory; ``rank(name, mode)``, its place among all modes, slowest first;
        ``overlap(name, mode)``, how much of it is the mode of the value before (1 at the first);
        ``residual(name, mode)``; with ``keep_vectors`` ``right`` and ``left``, normalised as by `eigenmodes` and
        with signs that do not change along the way. ``attrs`` tell the number of eigen-solves, and whether the
        run is complete: an interrupted run (Ctrl-C) returns its finished values, with a warning.

    Raises
    ------
    InvalidInput
        If an argument is unusable, or build returns another grid elsewhere.
    ConvergenceFailure
        As for `eigenmodes`.

        Any error at one value has the finished values as its attribute ``finished``.

    Warns
    -----
    AccuracyWarning
        If a mode cannot be followed (an avoided crossing narrower than the steps of the parameter, or two modes
        that merge), or the run was interrupted.

    Notes
    -----
    Modes of neighbouring values are paired so that their overlaps, 1 for equal modes, have the largest sum: with
    detailed balance the squared scalar products of the eigenvectors of the symmetrised generators, else
    ``|<left_i | right_j'> <left_j' | right_i>|``. So modes keep their number through crossings, where their
    order changes. Where less than 0.6 of a mode is found again, the step is halved, up to 6 times. Equal
    eigenvalues, whose vectors are arbitrary, get those nearest to the value before.

    Iterations start from the modes of the two nearest values, continued linearly: a sum of them for Lanczos' and
    Arnoldi's methods, the block itself for the Davidson and block Krylov ones. LAPACK's methods on lines, which
    do not iterate, start anew.
    """
    at = _checked_values(values)
    if not (isinstance(name, str) and name.isidentifier()):
        raise InvalidInput(f"name={name!r}; give a name such as 'mu'")
    first = built(build, float(at[0]))
    if name in {*first.grid.names, "mode"}:
        raise InvalidInput(f"name={name!r} is also an axis of the result; give the parameter another one")
    run = _Run(build, first, k, tol, float(np.ptp(at)) or abs(float(at[0])) or 1.0)
    branches = [] if resume is None else _finished(resume, at, name, first, keep_vectors)
    error: BaseException | None = None
    try:
        with reporting(progress, "values") as report:
            for value in at[len(branches) :]:
                operator = first if value == at[0] else run.operator(float(value))
                branches.append(run.next(branches[-1] if branches else None, operator, float(value)))
                if report is not None:
                    report(len(branches) / len(at))
    except KeyboardInterrupt as interrupt:
        error = interrupt
    except Exception as failure:
        if branches:
            failure.finished = _dataset(branches, run, at, name, keep_vectors)  # type: ignore[attr-defined]
            failure.add_note(f"{len(branches)} of {len(at)} values were finished; they are in .finished")
        raise
    if error is not None and not branches:
        raise error
    if error is not None:
        warnings.warn(
            AccuracyWarning(
                f"interrupted after {len(branches)} of {len(at)} values; the result holds these, and resume= goes "
                "on from it"
            ),
            stacklevel=2,
        )
    for lost in run.lost:
        warnings.warn(AccuracyWarning(lost), stacklevel=2)
    return _dataset(branches, run, at, name, keep_vectors)


@dataclass
class _Branches:
    """The followed modes at one value: columns of functions and masses."""

    value: float
    eigenvalue: np.ndarray
    left: np.ndarray
    right: np.ndarray
    residual: np.ndarray
    rank: np.ndarray
    overlap: np.ndarray
    derivative: np.ndarray

    def keep(self, modes: slice) -> None:
        """Only some of the modes."""
        self.left, self.right = self.left[:, modes], self.right[:, modes]
        for name in ("eigenvalue", "residual", "rank", "overlap"):
            setattr(self, name, getattr(self, name)[modes])


class _Run:
    """What all values share, and what was counted."""

    def __init__(self, build: Build, first: Operator, k: int, tol: float, scale: float):
        self._build, self._k, self._tol, self._scale = build, k, tol, scale
        self.first = first
        self.solves, self.lost, self.method = 0, [], ""
        self._neighbours = Neighbours()

    def operator(self, value: float) -> Operator:
        operator = built(self._build, value)
        if type(operator) is not type(self.first) or operator.grid != self.first.grid:
            raise InvalidInput(
                f"build returns another grid or kind of operator at {value:g} than before; use the same grid for "
                "every value"
            )
        return operator

    def next(self, before: _Branches | None, operator: Operator, value: float) -> _Branches:
        """The modes at a value, followed from those before, through values between if need be."""
        if before is None:
            found = self._solved(operator, min(self._k + _SPARE, operator.grid.size), value)
            found.keep(slice(closed_count(found.eigenvalue, self._k)))
        else:
            found = self._followed(before, operator, value, _HALVINGS)
        found.derivative = derivatives(self._build, value, self._scale, found.left, found.right, operator)
        return found

    def _followed(self, before: _Branches, operator: Operator, value: float, halvings: int) -> _Branches:
        found = self._paired(before, operator, value)
        if found.overlap.min() >= _FOUND:
            return found
        if halvings:
            middle = before.value + _CUT * (value - before.value)
            between = self._followed(before, self.operator(middle), middle, halvings - 1)
            # what could not be followed to the middle is lost: halving the rest would not find it again
            rest = halvings - 1 if between.overlap.min() >= _FOUND else 0
            found = self._followed(between, operator, value, rest)
            found.overlap = np.minimum(found.overlap, between.overlap)
            return found
        worst = int(np.argmin(found.overlap))
        self.lost.append(
            f"mode {worst} could not be followed from {before.value:.6g} to {value:.6g}: only "
            f"{found.overlap[worst]:.2g} of it is one mode there (an avoided crossing, or modes that merge); use "
            "finer values there"
        )
        return found

    def _paired(self, before: _Branches, operator: Operator, value: float) -> _Branches:
        count = min(int(before.rank.max()) + 1 + _SPARE, operator.grid.size)
        while True:
            found = self._solved(operator, count, value)
            _align_equal(before, found)
            there = before.left.T @ found.right
            if self._symmetric(operator):
                shared = (_symmetrised(before).T @ _symmetrised(found)) ** 2
                if before.eigenvalue[0] == found.eigenvalue[0] == 0:  # the stationary mode, wherever it moves
                    shared[0], shared[:, 0] = 0.0, 0.0
                    shared[0, 0] = 1.0
            else:
                shared = np.abs(there * (found.left.T @ before.right).T)
            rows, columns = linear_sum_assignment(-shared)
            assert np.array_equal(rows, np.arange(len(before.eigenvalue)))
            overlap = np.minimum(shared[rows, columns], 1.0)
            more = min(2 * count, operator.grid.size)
            # a mode may have become faster than all that were computed
            if overlap.min() >= _FOUND or more == count or count > 4 * (len(overlap) + _SPARE):
                break
            count = more
        phase = there[rows, columns]
        phase = np.where(np.abs(phase) > 0, phase / np.where(phase == 0, 1.0, np.abs(phase)), 1.0)
        return _Branches(
            value,
            found.eigenvalue[columns],
            found.left[:, columns] * phase,
            found.right[:, columns] / phase,
            found.residual[columns],
            found.rank[columns],
            overlap,
            np.zeros(0),
        )

    def _symmetric(self, operator: Operator) -> bool:
        return all(isinstance(each, FokkerPlanck) and each.reversible for each in (self.first, operator))

    def _solved(self, operator: Operator, count: int, value: float) -> _Branches:
        start = self._neighbours.start(value, operator.grid.size)
        modes = problem_of(operator).modes(count, self._tol, start)
        self._neighbours.add(value, modes.near())
        self.solves += 1
        self.method = modes.method
        number = len(modes.values)
        return _Branches(
            value,
            modes.values,
            modes.left.copy(),
            modes.right.copy(),
            modes.residual,
            np.arange(number),
            np.ones(number),
            np.zeros(0),
        )


def _symmetrised(modes: _Branches) -> np.ndarray:
    """Orthonormal eigenvectors of the symmetrised generator, sqrt(left * right) with the sign of left."""
    return np.sign(modes.left) * np.sqrt(np.maximum(modes.left * modes.right, 0.0))


def _align_equal(before: _Branches, found: _Branches) -> None:
    """Turn the vectors of equal eigenvalues, which are arbitrary, towards the modes before."""
    values, start = found.eigenvalue, 0
    size = float(np.abs(values).max()) or 1.0
    while start < len(values):
        end = start + 1
        while end < len(values) and abs(values[end] - values[start]) <= _EQUAL * max(
            abs(values[start]), 1e-6 * size
        ):
            end += 1
        if end - start > 1:
            _turn(before, found, slice(start, end))
        start = end


def _turn(before: _Branches, found: _Branches, group: slice) -> None:
    """Make the modes before, projected on the group, its first vectors, and the rest their complement."""
    there = before.left.T @ found.right[:, group]
    back = found.left[:, group].T @ before.right
    inside = np.flatnonzero(np.abs(np.sum(there * back.T, axis=1)) > 0.5)[: back.shape[0]]
    if not len(inside):
        return
    there, back = there[inside], back[:, inside]
    rest = null_space(there)
    other = null_space(back.T).T
    if rest.shape[1] != back.shape[0] - len(inside) or other.shape[0] != rest.shape[1]:
        return
    right = np.hstack([back @ np.linalg.inv(there @ back), rest])
    left = np.vstack([there, np.linalg.solve(other @ rest, other)])
    found.right[:, group] = found.right[:, group] @ right
    found.left[:, group] = found.left[:, group] @ left.T


def _dataset(
    branches: list[_Branches], run: _Run, at: np.ndarray, name: str, keep_vectors: bool
) -> xr.Dataset:
    grid, per = run.first.grid, "1/time" if isinstance(run.first, FokkerPlanck) else "1"
    stacked = {
        field: np.array([getattr(b, field) for b in branches])
        for field in ("eigenvalue", "derivative", "rank", "overlap", "residual")
    }
    names = {
        "eigenvalue": ("eigenvalue", "eigenvalue of the followed mode", per),
        "derivative": ("eigenvalue_derivative", f"derivative of the eigenvalue with respect to {name}", per),
        "rank": ("rank", "place among all modes, slowest first", "1"),
        "overlap": ("overlap", "share of the mode found again from the value before", "1"),
        "residual": ("residual", "backward error of the eigenpair", "1"),
    }
    data: dict[str, Any] = {
        title: ((name, "mode"), stacked[field], {"units": units, "long_name": long_name})
        for field, (title, long_name, units) in names.items()
    }
    count = len(branches[0].eigenvalue)
    if keep_vectors:
        shape = (len(branches), count, *grid.shape)
        right = np.array([b.right.T for b in branches]).reshape(shape) / grid.volumes
        left = np.array([b.left.T for b in branches]).reshape(shape)
        dims = (name, "mode", *grid.names)
        data["right"] = (dims, right, {"units": "1", "long_name": "right eigenvector, as a density"})
        data["left"] = (dims, left, {"units": "1", "long_name": "left eigenvector"})
    return xr.Dataset(
        data,
        coords={
            name: (name, at[: len(branches)], {"units": "1", "long_name": f"parameter {name}"}),
            "mode": (
                "mode",
                np.arange(count),
                {"units": "1", "long_name": "mode, slowest first at the first value"},
            ),
            **grid.coordinates(),
        },
        attrs=provenance(
            convention=run.first.sde.convention,
            method=run.method,
            eigen_solves=run.solves,
            complete=len(branches) == len(at),
        ),
    )


def _finished(resume: Any, at: np.ndarray, name: str, first: Operator, keep_vectors: bool) -> list[_Branches]:
    """The branches of an unfinished result."""
    if not (isinstance(resume, xr.Dataset) and {"left", "right", "overlap", name} <= set(resume.variables)):
        raise InvalidInput(
            f"resume is no result of continuation along {name!r} with eigenvectors; give one, made with "
            "keep_vectors=True"
        )
    done = resume[name].values
    if not (len(done) <= len(at) and np.array_equal(done, at[: len(done)])):
        raise InvalidInput(f"resume holds the values {done}, which are no beginning of values={at}")
    if resume["left"].shape[2:] != first.grid.shape or not keep_vectors:
        raise InvalidInput(
            "resume is from another grid, or keep_vectors=False; use the same grid and keep them"
        )
    size, volumes = first.grid.size, first.grid.volumes
    count = resume.sizes["mode"]
    return [
        _Branches(
            float(one[name]),
            one["eigenvalue"].values,
            one["left"].values.reshape(count, size).T,
            (one["right"].values * volumes).reshape(count, size).T,
            one["residual"].values,
            one["rank"].values,
            one["overlap"].values,
            one["eigenvalue_derivative"].values,
        )
        for one in (resume.isel({name: i}) for i in range(len(done)))
    ]


def _checked_values(values: Sequence[float] | np.ndarray) -> np.ndarray:
    try:
        at = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"values={values!r}; give finite numbers in order") from error
    steps = np.diff(at) if at.ndim == 1 else np.zeros(1)
    if (
        at.ndim != 1
        or at.size == 0
        or not np.isfinite(at).all()
        or not (np.all(steps > 0) or np.all(steps < 0))
    ):
        raise InvalidInput(f"values={values!r}; give finite numbers, strictly increasing or decreasing")
    return at
