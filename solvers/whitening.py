"""Coordinates in which the direction of a linear SDE is spread out: a similarity that spares harmonics."""

from __future__ import annotations

from typing import Any

import numpy as np

_ROUNDS = 60
_WELL_CONDITIONED = 100.0


def whitened(drift: np.ndarray, noises: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """A similar system, less a rate c times the identity, whose growing covariance is nearly the identity.

    Exponents do not depend on coordinates, the harmonics needed do: with weak noise the direction of a node or
    saddle keeps to a narrow cone, and that of a focus turns unevenly. In the principal axes of the drift, scaled
    so that the growing second moments are those of isotropic vectors, both are smooth; and what is left of the
    drift's radial part is of the order of the noise, so that exponents less c keep relative accuracy.

    Parameters
    ----------
    drift, noises : array (d, d), (m, d, d)
        Without invariant subspace, so that the growing covariance is definite.

    Returns
    -------
    c : float
        Largest real part of an eigenvalue of the drift.
    drift, noises : array
    """
    c, drift, noises = _in_principal_axes(drift, noises)
    d = len(drift)
    for _ in range(_ROUNDS):
        # powers of two do not round
        scale = np.exp2(np.round(0.5 * np.log2(np.clip(np.diag(_covariance(drift, noises)), 1e-8, None))))
        scale /= scale.max()
        if np.all(scale == 1):
            break
        drift, noises = drift / scale[:, None] * scale, noises / scale[:, None] * scale
    values, axes = np.linalg.eigh(_covariance(drift, noises))
    if values[-1] > 4 * values[0]:
        root = axes * np.sqrt(np.maximum(values, 1e-6 * values[-1]))
        inverse = np.linalg.inv(root)
        drift, noises = inverse @ drift @ root, inverse @ noises @ root
    return c, drift, noises.reshape(-1, d, d)


def _in_principal_axes(drift: np.ndarray, noises: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    d = len(drift)
    decomposition: Any = np.linalg.eig(drift)
    values, vectors = decomposition
    if d == 2 and abs(values[0].imag) > 0:
        values = 0.5 * np.trace(drift) + 1j * values.imag  # the trace rounds less
    c = float(values.real.max())
    frame, normal = np.empty((d, d)), np.zeros((d, d))
    k = 0
    for value, vector in zip(values, vectors.T, strict=True):
        if value.imag < 0:
            continue
        normal[k, k] = value.real - c
        if value.imag == 0:
            frame[:, k] = vector.real
            k += 1
            continue
        normal[k + 1, k + 1] = value.real - c
        normal[k, k + 1], normal[k + 1, k] = value.imag, -value.imag
        frame[:, k], frame[:, k + 1] = vector.real, vector.imag
        k += 2
    if np.linalg.cond(frame) > _WELL_CONDITIONED:
        return c, drift - c * np.eye(d), noises
    return c, normal, np.linalg.solve(frame, noises @ frame)


def _covariance(drift: np.ndarray, noises: np.ndarray) -> np.ndarray:
    """The principal eigenvector of S -> A S + S A^T + sum_k B_k S B_k^T, largest diagonal entry 1."""
    d = len(drift)
    identity = np.eye(d)
    operator = np.kron(drift, identity) + np.kron(identity, drift) + sum(np.kron(b, b) for b in noises)
    # on symmetric matrices only: antisymmetric ones may grow as fast
    row, column = np.triu_indices(d)
    basis = np.zeros((d, d, len(row)))
    basis[row, column, np.arange(len(row))] = basis[column, row, np.arange(len(row))] = 1.0
    basis = basis.reshape(d * d, -1) / np.sqrt(np.sum(basis.reshape(d * d, -1) ** 2, axis=0))
    decomposition: Any = np.linalg.eig(basis.T @ operator @ basis)
    values, vectors = decomposition
    found = (basis @ np.real(vectors[:, np.argmax(values.real)])).reshape(d, d)
    if np.trace(found) < 0:
        found = -found
    return found / np.diag(found).max()
