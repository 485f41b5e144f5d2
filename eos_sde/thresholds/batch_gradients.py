"""Thresholds from gradients away from a minimum: batch sharpness and gradient-noise interaction (T6)."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from eos_sde.models.arguments import count
from eos_sde.thresholds.curvature_factors import noise_fraction, weighted_jacobian
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput

_SOURCE = "Andreyev and Beneventano 2024, arXiv:2412.20553"


def batch_sharpness(
    jacobian: Any,
    residuals: Any,
    *,
    batch_size: int,
    replacement: bool = False,
    draws: int = 4096,
    seed: int = 0,
) -> Threshold:
    """Learning rate 2 over the batch sharpness E[g_B' H_B g_B/|g_B|^2], where plain SGD comes to rest.

    H_B is the Gauss-Newton matrix of a batch and g_B its gradient, for the half squared error; `max_stable_lr` with
    criterion "batch-sharpness" takes the whole Hessian of any loss. One set of weights gives one reading: average
    thresholds, or rather their inverses, along a run before they are held against its learning rate.

    Parameters
    ----------
    jacobian : array, shape (n, d) or (n, c, d)
        Derivatives of the outputs of each example.
    residuals : array, shape (n,) or (n, c)
        Outputs less targets.
    batch_size : int
        B.
    replacement : bool
        Whether batches are drawn with replacement.
    draws : int
        Batches; without replacement all of them, where there are no more.
    seed : int
        Of the batches.

    Returns
    -------
    Threshold
        Criterion "batch-sharpness"; the stderr is that of sampling, 0 where all batches are taken. Batches whose
        gradient is 0 do not move the weights and are left out.

    Raises
    ------
    InvalidInput
        If shapes or numbers cannot be used, or no batch has a gradient, as at a minimum that fits every example.
    """
    rows, errors = _checked(jacobian, residuals)
    n = len(rows)
    size = count("batch_size", batch_size, most=None if replacement else n)
    draws, seed = count("draws", draws, least=2), count("seed", seed, least=0)
    rng = np.random.default_rng(seed)
    every = not replacement and comb(n, size) <= draws
    if every:
        batches = combinations(range(n), size)
    else:
        batches = (rng.choice(n, size, replace=replacement) for _ in range(draws))
    quotients = np.array([_quotient(rows[list(batch)], errors[list(batch)]) for batch in batches])
    moving = quotients[np.isfinite(quotients)]
    if not moving.size:
        raise InvalidInput(
            "residuals give no batch a gradient: at a minimum that fits every example use sgd_mean_square"
        )
    mean = float(moving.mean())
    error = 0.0 if every else float(moving.std()) / moving.size**0.5
    how = f"all {moving.size} batches" if every else f"{moving.size} batches; error: sampling"
    return Threshold(
        2 / mean, 2 * error / mean**2, "batch-sharpness", f"2 over {mean:.4g}, the mean of {how}", _SOURCE
    )


def gradient_noise_interaction(
    jacobian: Any, residuals: Any, *, batch_size: int, replacement: bool = False
) -> Threshold:
    """Learning rate 2 over the gradient-noise interaction E[g_B' H g_B]/|grad L|^2, exact over all batches.

    To second order the loss neither falls nor rises on average at this rate. Along a run it equals the learning rate
    wherever the loss is stationary, stable or not, and so tells no instability by itself.

    Parameters
    ----------
    jacobian, residuals, batch_size, replacement
        As for `batch_sharpness`; H is the Gauss-Newton matrix of all examples.

    Returns
    -------
    Threshold
        Criterion "gradient-noise-interaction", without error.

    Raises
    ------
    InvalidInput
        If shapes or numbers cannot be used, or the full gradient is 0.
    """
    rows, errors = _checked(jacobian, residuals)
    n = len(rows)
    p = noise_fraction(n, batch_size, replacement)
    gradients = np.einsum("ncd,nc->nd", rows, errors)
    full = gradients.mean(axis=0)
    square = float(full @ full)
    if square == 0:
        raise InvalidInput("residuals give no full gradient: at a minimum use sgd_mean_square")
    flat = rows.reshape(-1, rows.shape[2])
    centred = gradients - full
    # E[g_B' H g_B] = g' H g + p tr(H C), C the covariance of one example's gradient
    bent = np.sum((flat @ full) ** 2) / n + p * np.sum((flat @ centred.T) ** 2) / n**2
    return Threshold(
        2 * square / float(bent), 0.0, "gradient-noise-interaction", "2 |grad L|^2/E[g_B' H g_B]", _SOURCE
    )


def _quotient(rows: np.ndarray, errors: np.ndarray) -> float:
    """Curvature along the gradient of a batch; NaN without one."""
    flat, size = rows.reshape(-1, rows.shape[2]), len(rows)
    gradient = flat.T @ errors.ravel() / size
    square = float(gradient @ gradient)
    return float(np.sum((flat @ gradient) ** 2)) / size / square if square > 0 else np.nan


def _checked(jacobian: Any, residuals: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = weighted_jacobian(jacobian)
    errors = np.asarray(residuals, float)
    errors = errors[:, None] if errors.ndim == 1 else errors
    if errors.shape != rows.shape[:2]:
        raise InvalidInput(
            f"residuals has shape {np.shape(residuals)}; give one for each of {rows.shape[0]} x {rows.shape[1]} outputs"
        )
    if not np.all(np.isfinite(errors)):
        raise InvalidInput("residuals holds numbers that are not finite; give weights that have not diverged")
    return rows, errors
