"""Conjugate residuals and gradients for large systems, with any preconditioner."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers.blas_threads import one_blas_thread

# Directions kept, and steps without progress before giving up.
_KEPT, _PATIENCE = 20, 40


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
