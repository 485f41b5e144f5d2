"""Backward equations on large lattices: Krylov iterations preconditioned by multigrid, verified afterwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.multigrid import Form, Level, Multigrid, operator, rates_of

_EPS = np.finfo(float).eps
_RESTART = 8


class LatticeOperator:
    """A = -L^T of a chain on a lattice (form "backward") or its transpose ("forward"), and cycles for it."""

    def __init__(self, chain: Chain, form: Form, *, shift: float = 0.0, cycles: bool = True):
        self._cells = chain.cells
        if cycles:
            self.precondition = Multigrid(chain, form, shift=shift)
            fine = self.precondition.rates[0]
            self.precondition.rates.clear()
        else:
            fine = rates_of(chain)
        self.level: Level = operator(fine, form, float, shift)
        self._whole = np.zeros(self.level.diagonal.shape)
        self._out = np.empty(self.level.diagonal.shape)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """A x over the states of the chain."""
        if self._cells is None:
            return self.level.apply(x.reshape(self._out.shape), self._out).ravel().copy()
        self._whole.ravel()[self._cells] = x
        return self.level.apply(self._whole, self._out).ravel()[self._cells]


def flexible_gmres(
    apply: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    *,
    tol: float,
    start: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    max_cycles: int = 400,
) -> tuple[np.ndarray, float, int]:
    """Solve A x = b by restarted flexible GMRES.

    Parameters
    ----------
    apply, precondition : callable
    b : ndarray
    tol : float
        Relative residual in the 2-norm of entries divided by `scale`.
    start : ndarray, optional
    scale : ndarray, optional
        Positive sizes of the entries of a residual; all 1 if not given.
    max_cycles : int
        Preconditioner calls before giving up.

    Returns
    -------
    x, residual, cycles
        The solution, the relative residual computed afresh, and how often the preconditioner was called.

    References
    ----------
    Saad, SIAM J. Sci. Comput. 14 (1993) 461.
    """
    weight = np.ones(1) if scale is None else 1.0 / scale
    x = np.zeros_like(b) if start is None else start.copy()
    size = float(np.linalg.norm(weight * b))
    if size == 0.0:
        return np.zeros_like(b), 0.0, 0
    used, best, stalled = 0, np.inf, 0
    with threadpool_limits(1, user_api="blas"):
        while True:
            rest = weight * (b - apply(x))
            norm = float(np.linalg.norm(rest))
            if not np.isfinite(norm):
                return x, np.inf, used
            stalled = stalled + 1 if norm > 0.5 * best else 0
            best = min(best, norm)
            if norm <= tol * size or used >= max_cycles or stalled >= 3:
                return x, norm / size, used
            x, spent = _arnoldi_pass(apply, precondition, x, rest, weight, 0.5 * tol * size)
            used += spent


def _arnoldi_pass(apply, precondition, x, rest, weight, goal) -> tuple[np.ndarray, int]:
    n = len(x)
    basis, directions = np.empty((_RESTART + 1, n)), np.empty((_RESTART, n))
    hessenberg = np.zeros((_RESTART + 1, _RESTART))
    norm = float(np.linalg.norm(rest))
    np.multiply(rest, 1.0 / norm, out=basis[0])
    target = np.zeros(_RESTART + 1)
    target[0] = norm
    for j in range(_RESTART):
        directions[j] = precondition(basis[j] / weight)
        new = weight * apply(directions[j])
        for _ in range(2):
            products = basis[: j + 1] @ new
            hessenberg[: j + 1, j] += products
            new -= products @ basis[: j + 1]
        hessenberg[j + 1, j] = np.linalg.norm(new)
        small = hessenberg[: j + 2, : j + 1]
        weights, *_ = np.linalg.lstsq(small, target[: j + 2], rcond=None)
        left = float(np.linalg.norm(target[: j + 2] - small @ weights))
        if left <= goal or hessenberg[j + 1, j] <= 1e-14 * norm or j == _RESTART - 1:
            return x + weights @ directions[: j + 1], j + 1
        np.multiply(new, 1.0 / hessenberg[j + 1, j], out=basis[j + 1])
    raise AssertionError("unreachable")


def extend(chain: Chain, rates: np.ndarray, values: np.ndarray, known: np.ndarray) -> None:
    """Solve (-L^T - rate) q = 0 on the states outside the mask `known`, given q on those inside.

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
        given = np.zeros(chain.size)
        for here, there, speed in edges:
            np.add.at(given, here, speed * row[there])
        solution, residual, _ = flexible_gmres(
            lambda x, rate=rate: system(x) - rate * x,
            system.precondition,
            given[rest],
            tol=1e-8,
            start=row[rest],
            scale=diagonal,
        )
        if not residual < 1e-6:
            raise ConvergenceFailure(
                f"the left eigenvector of {-rate:.6g} is undetermined in the tails (residual {residual:.2g}): "
                "the process hardly leaves them; use more noise or a narrower grid"
            )
        row[rest] = solution
