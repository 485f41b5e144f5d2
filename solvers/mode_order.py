"""Modes without detailed balance in order: slowest first, pairs and clusters whole, left ones dual to right ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers.errors import ConvergenceFailure


def slowest_first(values: np.ndarray) -> np.ndarray:
    """Order by real part, complex pairs together with the positive imaginary part first."""
    scale = max(float(np.abs(values).max()), 1e-300)
    return np.lexsort(
        (-values.imag, np.round(np.abs(values.imag) / scale, 9), np.round(-values.real / scale, 9))
    )


def ordered(
    values: np.ndarray, vectors: np.ndarray, order_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Values and the columns that belong to them in an order."""
    order = order_of(values)
    return values[order], vectors[:, order]


def closed_count(values: np.ndarray, k: int, cluster: bool = False) -> int:
    """The smallest count >= k that splits no complex pair (nor, if asked, a cluster of eigenvalues)."""
    count = min(k, len(values))
    while count < len(values):
        inside, outside = values[:count], values[count]
        scale = max(abs(outside), 1e-300)
        pair = np.min(np.abs(inside - np.conj(outside))) < 1e-8 * scale and abs(outside.imag) > 1e-8 * scale
        unpaired = abs(values[count - 1].imag) > 0 and pair and outside.imag < 0
        close = cluster and np.min(np.abs(inside - outside)) < 1e-6 * scale
        if not (unpaired or close or (cluster and pair)):
            break
        count += 1
    return count


def biorthonormal(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Combinations of the columns of z that are dual to the columns of y."""
    y_size, z_size = np.linalg.norm(y, axis=0), np.linalg.norm(z, axis=0)
    gram = (z / z_size).T @ (y / y_size)
    if not np.linalg.cond(gram) < 1e10:
        raise ConvergenceFailure(
            "left and right eigenvectors are not independent (nearly defective operator); change k, or the "
            "parameters by a little"
        )
    return (z / z_size) @ np.linalg.inv(gram).T / y_size


def real_span(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Real columns that span complex pairs of columns: real and imaginary part of the first one of each."""
    columns = []
    for value, vector in zip(values, vectors.T, strict=True):
        if value.imag >= 0:
            columns.append(vector.real)
        if value.imag > 0:
            columns.append(vector.imag)
    return np.column_stack(columns) if columns else np.zeros((len(vectors), 0))
