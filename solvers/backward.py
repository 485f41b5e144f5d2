"""Backward equations on large lattices: Krylov iterations preconditioned by multigrid, verified afterwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers import memory
from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.lattice_rates import has_lattice
from solvers.lattice_transfer import Form
from solvers.multigrid import Level, Multigrid, operator

# Directions kept, and steps without progress before giving up.
_KEPT, _PATIENCE = 20, 40
# In tails all time scales are short: few directions do as well.
_KEPT_IN_TAILS = 4
# Beyond this many cells in three dimensions elimination fills in: 1e9 numbers at 64^3.
_LARGE = 20000
_ACCURATE, _NEGATIVE, _EXTENDED = 1e-4, 1e-10, 1e-6
# Where sqrt(pi) is below this fraction of its largest, sqrt(pi) q has too few digits.
_RELIABLE = 1e-6
_BYTES = 500  # per cell, measured: hierarchy, operator and the vectors of a pass


def prefers_cycles(chain: Chain) -> bool:
    """Whether equations of a chain are solved by iterations: three dimensions, many cells, a grid of faces."""
    return has_lattice(chain) and len(chain.widths) == 3 and chain.size > _LARGE


class LatticeOperator:
    """A = -L^T of a chain on a lattice (form "backward") or its transpose ("forward"), and cycles for it."""

    def __init__(self, chain: Chain, form: Form, *, shift: float = 0.0):
        self._cells = chain.cells
        self.precondition = Multigrid(chain, form, shift=shift)
        self.level: Level = operator(self.precondition.rates[0], form, float, shift)
        self.precondition.rates.clear()
        self._whole = np.zeros(self.level.diagonal.shape)
        self._out = np.empty(self.level.diagonal.shape)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """A x over the states of the chain."""
        if self._cells is None:
            return self.level.apply(x.reshape(self._out.shape), self._out).ravel().copy()
        self._whole.ravel()[self._cells] = x
        return self.level.apply(self._whole, self._out).ravel()[self._cells]


@one_blas_thread
def conjugate_residuals(
    apply: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    *,
    tol: float,
    start: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    kept: int = _KEPT,
    max_cycles: int = 400,
) -> tuple[np.ndarray, float, int]:
    """Solve A x = b by truncated generalised conjugate residuals.

    The residual is minimised over the last directions, and over the start vector: a slow mode that it holds
    need not be found again.

    Parameters
    ----------
    apply, precondition : callable
    b : ndarray
    tol : float
        Relative residual in the 2-norm of entries divided by `scale`.
    start : ndarray, optional
    scale : ndarray, optional
        Positive sizes of the entries of a residual; all 1 if not given.
    reference : ndarray, optional
        What the residual is relative to; b if not given.
    kept : int
        Directions that a new one is made orthogonal to; two vectors each.
    max_cycles : int
        Preconditioner calls before giving up.

    Returns
    -------
    x, residual, cycles
        The solution, the relative residual computed afresh, and how often the preconditioner was called.

    References
    ----------
    Eisenstat, Elman and Schultz, SIAM J. Numer. Anal. 20 (1983) 345.
    """
    weight = np.ones(1) if scale is None else 1.0 / scale
    size = float(np.linalg.norm(weight * (b if reference is None else reference)))
    x = np.zeros_like(b) if start is None else start.copy()
    if size == 0.0:
        return np.zeros_like(b), 0.0, 0
    directions, images = np.empty((kept, len(b))), np.empty((kept, len(b)))
    held = oldest = used = 0
    rest = weight * (b - apply(x))
    best, waited = np.inf, 0
    while True:
        norm = float(np.linalg.norm(rest))
        waited = 0 if norm < 0.9 * best else waited + 1
        best = min(best, norm)
        if not np.isfinite(norm) or norm <= tol * size or used >= max_cycles or waited > _PATIENCE:
            true = float(np.linalg.norm(weight * (b - apply(x))))
            return x, true / size, used
        new = x.copy() if used == 0 and x.any() else precondition(rest / weight)
        used += 1
        image = weight * apply(new)
        length = 0.0
        for _ in range(2):  # the second time only where the first left rounding
            before = float(np.linalg.norm(image))
            products = images[:held] @ image
            image -= products @ images[:held]
            new -= products @ directions[:held]
            length = float(np.linalg.norm(image))
            if length > 0.1 * before:
                break
        if not length > 0.0:
            waited += _PATIENCE
            continue
        slot = held if held < kept else oldest
        np.multiply(new, 1.0 / length, out=directions[slot])
        np.multiply(image, 1.0 / length, out=images[slot])
        held, oldest = min(held + 1, kept), (slot + 1) % kept
        step = float(images[slot] @ rest)
        x += step * directions[slot]
        rest -= step * images[slot]


@one_blas_thread
def conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    *,
    tol: float,
    max_cycles: int = 400,
) -> tuple[np.ndarray, int]:
    """Solve A x = b, A symmetric positive definite, until the residual is tol |b| or no longer falls.

    The energy norm of the error is minimised, so that a slow mode is found however small its eigenvalue. The
    flexible update (Notay, SIAM J. Sci. Comput. 22, 2000, 1444) allows for a preconditioner that is symmetric
    to single precision only.

    Returns
    -------
    x, cycles
    """
    x, rest = np.zeros_like(b), b.copy()
    direction = image = np.zeros(0)
    goal, best, best_x, waited, used = tol * float(np.linalg.norm(b)), np.inf, x, 0, 0
    while True:
        norm = float(np.linalg.norm(rest))
        waited = 0 if norm < 0.9 * best else waited + 1
        if norm < best:
            best, best_x = norm, x.copy()
        if not norm > goal or waited > _PATIENCE or used >= max_cycles:
            return best_x, used
        new = precondition(rest)
        used += 1
        if len(image):
            new -= float(new @ image) / float(direction @ image) * direction
        direction, image = new, apply(new)
        curvature = float(direction @ image)
        if not curvature > 0.0:
            return best_x, used
        step = float(direction @ rest) / curvature
        x += step * direction
        rest -= step * image


def nonnegative_solution(chain: Chain, right: np.ndarray, what: str) -> tuple[np.ndarray, str]:
    """The solution q >= 0 of -L^T q = right >= 0 of a chain whose every state is removed in the end.

    With detailed balance: conjugate gradients for sqrt(pi) q, from there into the tails, and the scale from the
    exact balance sum pi loss q = sum pi right, all of whose terms are positive. Without: conjugate residuals.

    Returns
    -------
    q, how
        How it was computed and how well the equations hold, as a sentence.

    Raises
    ------
    InvalidInput
        If memory would not suffice.
    ConvergenceFailure
        If the equations hold to less than 1e-4.
    """
    memory.require(_BYTES * chain.size, f"the {what} on {chain.size} cells", "use fewer cells")
    if chain.log_weights is not None:
        q, cycles, wrong = _reversible_solution(chain, right)
        name = "conjugate gradients"
    else:
        system, name = LatticeOperator(chain, "backward"), "conjugate residuals"
        q, wrong, cycles = conjugate_residuals(
            system, system.precondition, right, tol=1e-12, scale=chain.outflow
        )
    negative = -float(q.min()) / max(float(np.abs(q).max()), 1e-300)
    if not (wrong < _ACCURATE and negative < _ACCURATE):
        raise ConvergenceFailure(
            f"the {what} is not determined on {chain.size} cells: after {cycles} multigrid cycles its equations "
            f"hold to {wrong:.2g} of the right-hand side and its least value is {-negative:.2g} of the largest; "
            "use more noise, or fewer cells, for which elimination fits in memory"
        )
    how = f"{name}, {cycles} multigrid cycles (elimination would fill in); equations hold to {wrong:.1e}"
    return np.maximum(q, 0.0), how


def _reversible_solution(chain: Chain, right: np.ndarray) -> tuple[np.ndarray, int, float]:
    weights = chain.log_weights
    assert weights is not None
    with np.errstate(under="ignore"):
        half = np.exp(0.5 * weights)
        pi = half * half
    system = LatticeOperator(chain, "symmetric")
    psi, cycles = conjugate_gradients(system, system.precondition, half * right, tol=1e-13)
    del system
    known = weights > 2 * np.log(_RELIABLE)
    q = np.zeros(chain.size)
    q[known] = psi[known] / half[known]
    # the scale of a slow mode has no digits in residuals; this balance has them all
    for extended in (False, True):
        if extended:
            extend(chain, np.zeros(1), q[None], known, right)
        lost = float(pi @ (chain.loss * np.maximum(q, 0.0)))
        if not lost > 0.0:
            return q, cycles, np.inf
        q *= float(pi @ right) / lost
    change = (right, chain.loss * q, -_gains(chain, q))
    wrong = float(pi @ np.abs(change[0] - change[1] - change[2])) / float(pi @ right)
    return q, cycles, wrong


def _gains(chain: Chain, q: np.ndarray) -> np.ndarray:
    """L^T q without the losses, from differences: a constant gives exactly nothing."""
    step = q[chain.second] - q[chain.first]
    return np.bincount(chain.first, chain.forward * step, chain.size) - np.bincount(
        chain.second, chain.backward * step, chain.size
    )


def extend(
    chain: Chain,
    rates: np.ndarray,
    values: np.ndarray,
    known: np.ndarray,
    right: np.ndarray | None = None,
) -> None:
    """Solve (-L^T - rate) q = right (0 if not given) on the states outside the mask `known`, given q on those inside.

    Parameters
    ----------
    chain : Chain
        With a lattice.
    rates : ndarray of shape (k,)
        Decay rates of the modes.
    values : ndarray of shape (k, n)
        q, one mode a row, where known; elsewhere a guess, which is overwritten.
    known : ndarray of bool, shape (n,)

    Raises
    ------
    ConvergenceFailure
        If the iteration does not reach a relative residual of 1e-6.
    """
    if known.all():
        return
    rest = ~known
    edges = []
    into = np.zeros(chain.size)
    for here, there, speed in (
        (chain.first, chain.second, chain.forward),
        (chain.second, chain.first, chain.backward),
    ):
        at = rest[here] & known[there]
        edges.append((here[at], there[at], speed[at]))
        np.add.at(into, here[at], speed[at])
    inner = chain.keep(rest, into)
    system = LatticeOperator(inner, "backward")
    diagonal = inner.outflow
    for rate, row in zip(rates, values, strict=True):
        given = np.zeros(chain.size) if right is None else right.copy()
        for here, there, speed in edges:
            np.add.at(given, here, speed * row[there])
        solution, residual = row[rest], np.inf
        # where the drift dominates on every scale coarse lattices mislead, and sweeps alone follow it
        for precondition in (system.precondition, system.precondition.smooth):
            if not residual < _EXTENDED:
                trial, size, _ = conjugate_residuals(
                    lambda x, rate=rate: system(x) - rate * x,
                    precondition,
                    given[rest],
                    tol=1e-10,
                    start=solution,
                    scale=diagonal,
                    kept=_KEPT_IN_TAILS,
                )
                if size < residual:
                    solution, residual = trial, size
        if not residual < _EXTENDED:
            raise ConvergenceFailure(
                f"the function of decay rate {rate:.6g} is undetermined in the tails (residual {residual:.2g}): "
                "the process hardly leaves them; use more noise or a narrower grid"
            )
        row[rest] = solution


def stationary_by_cycles(chain: Chain) -> tuple[np.ndarray, float]:
    """Null vector of the generator, summing to 1, and the net flow it leaves, relative to the exchange.

    The null vector of the coarsest lattice is spread to the finest, where a correction is solved for.
    """
    memory.require(_BYTES * chain.size, f"a stationary density on {chain.size} cells", "use fewer cells")
    system = LatticeOperator(chain, "forward")
    start = system.precondition.spread_null()
    masses = start if chain.cells is None else start[chain.cells]
    masses /= masses.sum()
    correction, _, _ = conjugate_residuals(
        system,
        system.precondition,
        -system(masses),
        tol=1e-13,
        scale=chain.outflow,
        reference=chain.outflow * masses,
    )
    masses += correction
    masses /= masses.sum()
    if not -float(masses[masses < 0].sum()) < _NEGATIVE:
        raise ConvergenceFailure(
            f"the stationary density on {chain.size} cells has negative mass {float(masses[masses < 0].sum()):.2g}; "
            "use more noise, or fewer cells, for which a factorisation fits in memory"
        )
    masses = np.maximum(masses, 0.0)
    masses /= masses.sum()
    return masses, float(np.abs(system(masses)).sum() / (chain.outflow @ masses))


def resolvent_by_cycles(
    chain: Chain, g: float, *, transposed: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """The map x -> (1 - g L)^-1 x on masses, or with L^T on functions, by multigrid: relative residual 1e-12.

    The shift 1 / g bounds all eigenvalues away from zero, so a handful of cycles is enough for short steps.

    Raises
    ------
    ConvergenceFailure
        From the returned function, if the residual stays above 1e-9.
    """
    system = LatticeOperator(chain, "backward" if transposed else "forward", shift=1.0 / g)
    scale = chain.outflow + 1.0 / g

    def solve(x: np.ndarray) -> np.ndarray:
        result, residual, cycles = conjugate_residuals(
            system, system.precondition, x / g, tol=1e-12, scale=None if not transposed else scale
        )
        if not residual < 1e-9:
            raise ConvergenceFailure(
                f"an implicit step of {g:.3g} leaves a residual of {residual:.2g} after {cycles} multigrid cycles; "
                "use shorter times"
            )
        return result

    return solve
